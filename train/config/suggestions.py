"""What an unknown key, flag or file probably means: another trainer's name, or a misspelt one."""

import difflib
import pathlib
import textwrap
from collections.abc import Iterable

from train.errors import BadInput

_WIDTH = 100

# How near a misspelt name must be: to a key of its own group, and to one of another group.
_NEAR, _NEAR_ELSEWHERE = 0.55, 0.8

# A key -> the last parts under which other trainers and papers know it.
_SYNONYMS = {
    "optimizer.learning_rate": "lr learningrate base_lr max_lr peak_lr base_learning_rate",
    "optimizer.warmup_steps": "warmup warmup_iters warmup_epochs num_warmup_steps",
    "optimizer.weight_decay": "wd decay l2",
    "optimizer.b1": "momentum beta1 beta_1 adam_beta1",
    "optimizer.b2": "beta2 beta_2 adam_beta2",
    "optimizer.clip_norm": "clip grad_clip clip_grad grad_clip_norm clip_grad_norm max_grad_norm",
    "optimizer.ema_decay": "ema ema_rate",
    "optimizer.label_smoothing": "smoothing",
    "train_steps": "epochs num_epochs n_epochs max_epochs steps num_steps n_steps num_train_steps "
    "total_steps max_steps iterations iters max_iters",
    "batch_size": "bs batch batchsize train_batch_size minibatch_size per_device_batch_size",
    "seed": "random_seed rng_seed",
    "model.preset": "variant arch size",
    "model.width": "hidden_size hidden_dim d_model n_embd embed_dim embedding_dim emb_dim dim",
    "model.heads": "n_heads num_heads n_head nhead num_attention_heads",
    "model.kv_heads": "n_kv_heads num_kv_heads num_key_value_heads n_kv_head num_query_groups",
    "model.head_size": "head_dim dim_head d_head d_kv",
    "model.activation": "hidden_act activation_function act",
    "model.norm": "norm_type normalization",
    "model.norm_epsilon": "norm_eps rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "model.gated": "swiglu geglu glu gated_mlp",
    "model.rotary_base": "rope_theta rope_base",
    "model.rotary_scaling": "rope_scaling",
    "model.rotary_fraction": "partial_rotary_factor rotary_pct",
    "model.tied": "tie_word_embeddings tie_embeddings weight_tying",
    "model.mlp": "mlp_dim mlp_size mlp_ratio d_ff ffn_dim intermediate_size",
    "model.dropout": "dropout_rate drop_rate drop",
    "model.drop_path": "drop_path_rate stochastic_depth",
    "model.dtype": "precision mixed_precision",
    "model.image_size": "img_size image resolution input_size",
    "model.patch_size": "patch patches patchsize",
    "model.channels": "in_channels in_chans num_channels",
    "model.classes": "num_classes n_classes num_labels",
    "model.vocabulary": "vocab vocab_size vocabulary_size n_vocab",
    "model.block_size": "block seq_len sequence_length context context_length max_len max_length",
    "depth.layers": "depth num_layers n_layers n_layer num_hidden_layers",
    "depth.solver": "method ode_solver integrator",
    "depth.steps": "num_steps n_steps solver_steps",
    "depth.rtol": "tol tolerance rel_tol",
    "depth.atol": "abs_tol",
    "data.name": "dataset data_set dataset_name",
    "data.data_dir": "path root folder data_path data_root",
    "data.workers": "num_workers",
    "data.validation_examples": "val_examples validation_split val_size",
    "data.held_out_fraction": "val_fraction validation_split val_size",
    "data.augment.mixup": "mixup_alpha",
    "data.augment.cutmix": "cutmix_alpha",
    "data.augment.erasing": "random_erasing reprob",
    "data.augment.randaugment_ops": "randaugment rand_augment",
    "mesh.data": "devices num_devices gpus num_gpus",
    "parallel.accumulate": "accum grad_accum accumulation_steps gradient_accumulation_steps",
    "checkpoint.every_steps": "save_every save_steps ckpt_every checkpoint_every",
    "eval.every_steps": "eval_every eval_steps eval_interval",
    "eval.batch_size": "eval_batch_size",
    "log.every_steps": "log_every log_interval logging_steps",
}

# How a value is converted, where the key of another trainer counts something else.
_CONVERSIONS = {
    "epochs": "train_steps = epochs * training examples / batch_size",
    "per_device_batch_size": "batch_size is over all devices",
    "mlp_ratio": "model.mlp = ratio * model.width",
}


def synonyms() -> dict[str, list[str]]:
    """Returns the keys that a name of another trainer may stand for, by that name."""
    keys: dict[str, list[str]] = {}
    for key, names in _SYNONYMS.items():
        for name in names.split():
            keys.setdefault(name, []).append(key)
    return keys


def unknown_key(key: str, known: Iterable[str]) -> BadInput:
    """Returns the error for a key that is not known.

    Args:
      key: as it was given, e.g. 'optimizer.lr'.
      known: every key that is, e.g. 'optimizer.learning_rate'.

    Returns:
      An error that names what was probably meant, and lists the keys of the group.
    """
    known = list(known)
    group = _group_of(key, known)
    listing = _wrapped(group, _members(group, known))

    if key == group:
        return BadInput(f"config key {key!r} is a group of keys: set one of them.\n{listing}")

    hint = _hint(key, suggest(key, known))
    return BadInput(f"unknown config key {key!r}.{hint}\n{listing}")


def unknown_flag(
    flag: str, flags: Iterable[str], keys: Iterable[str] = (), name: str = "config"
) -> BadInput:
    """Returns the error for a flag that is not known: the name of a key, or a misspelt flag.

    Args:
      flag: as it was given, without its dashes, e.g. 'lr'.
      flags: every flag that is known, without dashes and without those of keys.
      keys: every key that can be set, e.g. 'optimizer.learning_rate'.
      name: what stands before a key on the command line.
    """
    flags = list(flags)
    meant = [f"{name}.{key}" for key in _same(flag, list(keys))]
    meant = meant or difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)

    hint = _hint(flag, [f"--{option}" for option in meant])
    accepted = ", ".join(f"--{option}" for option in flags)
    return BadInput(f"unknown flag '--{flag}'; accepted: {accepted}.{hint}")


def no_file(flag: str, file: str) -> BadInput:
    """Returns the error for a config's file that does not exist; names the nearest that does."""
    path = pathlib.Path(file)
    ours = pathlib.Path("configs", "studies" if flag == "study" else "")
    # Of two files of one name, that of the folder that was given counts.
    found = {there.stem: there for folder in (ours, path.parent) for there in folder.glob("*.py")}

    near = difflib.get_close_matches(path.stem, found, n=1, cutoff=0.6)
    meant = f"did you mean {found[near[0]]}?" if near else f"give one such as {ours}/digits.py"
    return BadInput(f"--{flag}: {file} is not a file: {meant}")


def suggest(key: str, known: Iterable[str]) -> list[str]:
    """Returns the keys that an unknown one may stand for: two at most, none if none is near."""
    known = list(known)
    if same := _same(key, known):
        return same

    last, group = _last(key), _group_of(key, known)
    members = _nearest(last, _members(group, known), _NEAR)
    if members:
        return [f"{group}.{name}" if group else name for name in members]

    elsewhere = _nearest(last, map(_last, known), _NEAR_ELSEWHERE)
    return [name for name in known if _last(name) in elsewhere][:2]


def _same(key: str, known: list[str]) -> list[str]:
    """The keys that another trainer calls so, or that end in this name: two at most."""
    last = _last(key)

    # What a study sets of its runs begins with 'config.'.
    prefix = "config." if key.startswith("config.") else ""
    meant = [prefix + name for name in synonyms().get(last, []) if prefix + name in known]
    group = _group_of(key, known)

    # 'depth.num_steps' can only be those of the solver; 'num_steps' may be those of the run, too.
    own = [name for name in meant if group and name.rpartition(".")[0] == group]
    return [*(own or meant), *(name for name in known if _last(name) == last)][:2]


def _hint(given: str, meant: list[str]) -> str:
    """What was probably meant, and how a value is converted to it; '' if nothing is near."""
    if not meant:
        return ""

    hint = f" Did you mean {' or '.join(map(repr, meant))}?"
    conversion = next((text for name, text in _CONVERSIONS.items() if name in _last(given)), None)
    return f"{hint} ({conversion})" if conversion else hint


def _last(key: str) -> str:
    return key.rpartition(".")[2].lower().replace("-", "_")


def _nearest(name: str, names: Iterable[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(name, sorted(set(names)), n=1, cutoff=cutoff)


def _group_of(key: str, known: Iterable[str]) -> str:
    """The longest part of a key that is a group, '' if none is; a misspelt group counts."""
    groups = {name.rpartition(".")[0] for name in known}
    groups |= {group.rpartition(".")[0] for group in groups} | {""}

    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        path = ".".join(parts[:end])
        if path in groups:
            return path

    near = _nearest(key.rpartition(".")[0], groups - {""}, _NEAR)
    return near[0] if near else ""


def _members(group: str, known: Iterable[str]) -> list[str]:
    """The names inside a group: of its keys, and of the groups in it."""
    prefix = f"{group}." if group else ""
    inside = (name.removeprefix(prefix) for name in known if name.startswith(prefix))
    return sorted({name.partition(".")[0] for name in inside})


def _wrapped(group: str, members: Iterable[str]) -> str:
    text = f"{group or 'The top level of a config'} has {', '.join(members)}"
    return textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")
