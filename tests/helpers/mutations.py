"""Mutations of a run's config: of types, of names, of ranges, of words, of what goes together."""

import copy
import math
import typing
from typing import Any, NamedTuple

from train.config import setting
from train.config.border import from_config_dict, settings_for, to_dict

NAN, INF = math.nan, math.inf

_COUNT = (0, -1, 2**31, 10**12)
_RATE = (-0.5, 1.0, 1.5, 1 - 1e-9, NAN, INF)
_SIZE = (-0.5, NAN, INF, -INF, 1e39, 10**400)
_POSITIVE = (0.0, *_SIZE)
_ADAPTED = {"lora.rank": 2, "init.path": "/x"}
OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("train_steps", "batch_size", "data.repeats_per_batch"), _COUNT),
    **dict.fromkeys(("model.image_size", "model.patch_size", "model.channels"), _COUNT),
    **dict.fromkeys(("model.classes", "model.vocabulary", "model.block_size"), _COUNT),
    **dict.fromkeys(("model.width", "model.heads", "model.mlp"), _COUNT),
    **dict.fromkeys(("model.kv_heads", "model.head_size", "model.rotary_length"), _COUNT),
    **dict.fromkeys(("depth.layers", "depth.share", "depth.steps", "depth.max_steps"), _COUNT),
    "depth.coefficients": _COUNT,
    **dict.fromkeys(("parallel.accumulate", "guard.max_consecutive", "eval.batch_size"), _COUNT),
    **dict.fromkeys(("checkpoint.every_steps", "checkpoint.keep"), (0, -1)),
    **dict.fromkeys(("eval.every_steps", "log.every_steps"), (0, -1)),
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), (0, -2)),
    **dict.fromkeys(("model.dropout", "model.drop_path", "data.token_dropout"), _RATE),
    **dict.fromkeys(("data.augment.zoom", "data.augment.crop_min_area"), _RATE),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2", "optimizer.ema_decay"), _RATE),
    **dict.fromkeys(("optimizer.label_smoothing",), _RATE),
    **dict.fromkeys(("data.augment.shift_px", "data.augment.rotate_degrees"), _SIZE),
    **dict.fromkeys(("data.augment.mixup", "data.augment.cutmix"), (*_SIZE, 1e-38)),
    **dict.fromkeys(("optimizer.learning_rate", "optimizer.clip_norm", "guard.sigmas"), _POSITIVE),
    **dict.fromkeys(("depth.rtol", "depth.atol", "model.norm_epsilon"), _POSITIVE),
    **dict.fromkeys(("model.layer_scale",), _POSITIVE),
    **dict.fromkeys(("model.rotary_base", "model.rotary_factor"), _POSITIVE),
    **dict.fromkeys(("model.rotary_low_turns", "model.rotary_high_turns"), _POSITIVE),
    "model.rotary_fraction": (*_POSITIVE, 1.001),
    "lora.rank": _COUNT,
    "lora.alpha": _POSITIVE,
    "depth.reversible": (0.0, -0.5, 1.5, NAN, INF),
    "seed": (-1, 2**32, 10**12),
    "model.registers": (-1, 2**31, 10**12),
    "data.validation_examples": (-1,),
    "data.test_fraction": (-0.5, 1.0, 1 - 1e-9, 1.5, NAN, INF),
    "data.workers": (-1, 10**12),
    "data.held_out_fraction": (0.0, -0.5, 0.5, 1.5, NAN, INF),
    "data.augment.crop_padding_px": (-1, 10**12),
    "data.augment.randaugment_ops": (-1, 10**12),
    "data.augment.randaugment_magnitude": (-0.5, 10.5, NAN, INF),
    "data.augment.erasing": (-0.5, 1.5, NAN, INF),
    **dict.fromkeys(("regularise.kinetic", "regularise.error", "regularise.end_time"), _SIZE),
    "optimizer.weight_decay": _SIZE,
    "model.centre": (NAN, INF, -INF, 1e39, 10**400),
    "optimizer.warmup_steps": (-1, 2**31, 10**12),
    "optimizer.decay_steps": _COUNT,
    "optimizer.layer_decay": (0.0, -0.5, 1.5, NAN, INF),
    "guard.max_rollbacks": (-1, 2**31),
}
WORDS = (
    *("model.dtype", "model.pool", "model.positions", "model.time", "model.attention"),
    *("model.activation", "model.distillation", "model.norm", "model.rotary_scaling"),
    "depth.basis",
    *("depth.solver", "depth.adjoint", "depth.policy", "data.packing", "parallel.mode", "task"),
    *("checkpoint.best", "model.preset", "optimizer.name", "optimizer.schedule"),
)
WORDS_OF_DATA = ("data.name", "data.tokenizer", "data.label_key")

# Fields whose input products are not joined.
_UNFUSED: list[dict[str, Any]] = [
    {"model.kv_heads": 1},
    {"model.gated": True},
    {"model.norm": "rms"},
    {"model.qkv_bias": False},
    {"model.mlp_bias": False},
]
_ROTARY: list[dict[str, Any]] = [
    {"model.positions": "rotary", "model.width": 6, "model.heads": 2},
    {"model.positions": "rotary", "model.head_size": 3},
    {"model.rotary_fraction": 0.4, "model.head_size": 8},
    {"model.rotary_fraction": 0.01},
    {"model.rotary_scaling": "linear"},
    {"model.rotary_factor": 4.0},
    {"model.rotary_length": 4},
    {"model.rotary_low_turns": 2.0, "model.rotary_scaling": "linear", "model.rotary_factor": 2.0},
    {"model.rotary_low_turns": 4.0, "model.rotary_scaling": "llama3", "model.rotary_factor": 2.0},
    {"model.rotary_base": 5e5, "model.positions": "learned"},
    {"model.rotary_scaling": "linear", "model.rotary_factor": 2.0, "model.positions": "learned"},
]

# Each is refused for one of its keys' sake, the first; by tasks, None being all of them.
CONTRADICTIONS: dict[str | None, list[dict[str, Any]]] = {
    None: [
        {"model.heads": 7},
        {"model.heads": 2**31 - 1},
        {"depth.share": 5, "depth.layers": 12},
        {"depth.share": 2, "depth.layers": 2**31 - 1},
        {"optimizer.warmup_steps": 50, "train_steps": 50},
        {"optimizer.warmup_steps": 2**31 - 1},
        {"optimizer.decay_steps": 3},
        {"optimizer.decay_steps": 3, "optimizer.schedule": "constant"},
        {"optimizer.decay_steps": 10**6, "optimizer.schedule": "wsd", "train_steps": 10**6},
        {"depth.coefficients": 3},
        {"depth.basis": "hat"},
        {"depth.basis": "hat", "depth.coefficients": 8, "depth.share": 1, "depth.layers": 12},
        {"depth.basis": "hat", "depth.coefficients": 1, "depth.share": 1},
        {"depth.basis": "fourier", "depth.coefficients": 2, "depth.share": 1},
        {"depth.basis": "legendre", "depth.coefficients": 3, "depth.share": 2, "depth.layers": 2},
        {
            "optimizer.layer_decay": 0.9,
            "depth.basis": "legendre",
            "depth.coefficients": 2,
            "depth.share": 1,
        },
        {"depth.refine_at": [3, 3]},
        {"depth.refine_at": [0]},
        {"depth.refine_at": [3, "4"]},
        {"depth.refine_at": [10**9]},
        {"depth.refine_at": [3], "depth.share": 1},
        {"depth.refine_at": [3], "depth.share": 2, "depth.layers": 2, "depth.steps": 3},
        {"optimizer.layer_decay": 1e-30},
        {"optimizer.freeze": [""]},
        {"optimizer.freeze": ["head", 7]},
        {"optimizer.rate_factors": ["head"]},
        {"optimizer.rate_factors": ["head=0"]},
        {"optimizer.rate_factors": ["head=-1"]},
        {"optimizer.rate_factors": ["head=1e39"]},
        {"init.include": ["head"]},
        {"init.exclude": ["head"]},
        {"init.exclude": ["head/"], "init.path": "/nowhere/at/all"},
        {"depth.atol": 1e-3},
        {"depth.max_steps": 10},
        {"depth.rtol": 0.1, "depth.solver": "rk4"},
        {"depth.rtol": 0.1, "depth.solver": "tsit5", "depth.steps": 2},
        {"depth.rtol": INF, "depth.solver": "tsit5"},
        {"depth.adjoint": "store", "depth.solver": "tsit5", "depth.rtol": 0.1},
        {"depth.adjoint": "backsolve", "depth.solver": "strang"},
        {"depth.policy": "dots_saveable", "depth.adjoint": "store"},
        {"depth.adjoint": "reversible"},
        {"depth.adjoint": "direct", "depth.reversible": 0.9},
        {"depth.reversible": 0.9, "depth.rtol": 0.1, "depth.solver": "tsit5"},
        {"depth.reversible": 0.1, "depth.solver": "rk4", "depth.steps": 20},
        {"regularise.end_time": 1.0, "depth.share": 1},
        {"regularise.end_time": 0.5, "depth.reversible": 0.99, "depth.solver": "midpoint"},
        {"regularise.kinetic": 0.1, "depth.reversible": 0.99, "depth.solver": "midpoint"},
        {"regularise.error": 0.1, "depth.solver": "rk4"},
        {"regularise.error": 0.1, "depth.solver": "heun", "depth.adjoint": "backsolve"},
        {"model.terms": ["attention", "mlpp"]},
        {"model.terms": []},
        {"model.terms": ["mlp", 7]},
        {"model.terms": ["mlp", "mlp"]},
        {"model.fused": True, "model.terms": ["attention", "mlp", "conv"]},
        *({"model.fused": True, **options} for options in _UNFUSED),
        {"model.kv_heads": 3},
        {"model.kv_heads": 2**31 - 1},
        {"model.head_size": 12, "model.attention": "cudnn", "model.dtype": "bfloat16"},
        {"model.centre": 1.0, "model.terms": ["mlp"]},
        {"model.kv_heads": 1, "model.terms": ["mlp"]},
        {"model.activation": "relu", "model.terms": ["attention"]},
        {"model.time": "additive", "model.terms": ["damping"]},
        {"model.attention": "cudnn", "model.dtype": "float32"},
        {"model.attention": "cudnn", "model.dtype": "bfloat16", "model.width": 8, "model.heads": 2},
        {"model.depth": {"layers": 2}},
        {"lora.rank": 2},
        {"lora.alpha": 2.0},
        {"lora.targets": ["qkv"]},
        {"lora.targets": ["qkv/"], **_ADAPTED},
        *({f"init.{key}": ["head"], **_ADAPTED} for key in ("include", "exclude")),
        {**_ADAPTED, "depth.share": 2, "depth.refine_at": [1]},
    ],
    "images": [
        {"model.patch_size": 5},
        {"model.patch_size": 2**31 - 1},
        {"model.distillation": "mean", "model.pool": "mean"},
        {"model.image_size": [8]},
        {"model.image_size": [8, 8, 1]},
        {"model.image_size": [8, "8"]},
        {"model.image_size": [8, 0]},
        {"model.positions": "sincos", "model.width": 6, "model.heads": 2},
        {"data.repeats_per_batch": 33, "batch_size": 32},
        {
            "data.repeats_per_batch": 2**20,
            "batch_size": 2**21,
            "train_steps": 2**12,
            "optimizer.warmup_steps": 0,
        },
        {"data.augment.crop_padding_px": 300},
        {"data.augment.randaugment_ops": 1, "model.channels": 2},
    ],
    "language": [
        {"depth.rtol": 0.1, "depth.solver": "tsit5", "depth.adjoint": "checkpoint"},
        *_ROTARY,
    ],
    "sentences": _ROTARY,
}
# What only the devices or the data can refuse.
CONTRADICTIONS_OF_DATA: dict[str | None, list[dict[str, Any]]] = {
    None: [
        {"optimizer.freeze": ["no_such_name"]},
        {"optimizer.freeze": ["**"]},
        {"optimizer.rate_factors": ["no_such_name=2"]},
        {"init.path": "/nowhere/at/all"},
        {"init.path": "no_such_folder/of/anything"},
        {"mesh.data": 1009},
        {"mesh.fsdp": -1},
        {"mesh.tensor": 2**40},
        {"parallel.accumulate": 3},
        {"model.dtype": "float64"},
        {"model.attention": "cudnn", "model.dtype": "bfloat16", "model.width": 16},
        {"depth.adjoint": "recursive", "parallel.mode": "shard_map"},
        {"batch_size": 20_000},
        {"batch_size": 2**31 - 1},
        {"data.name": ""},
        {"data.name": "a b"},
        {"data.name": "mnist:9.9.9"},
        {"data.name": "cifar10/bad"},
        {"init.path": "/nowhere/at/all", "lora.rank": 2},
        {"lora.rank": 2**20, "init.path": "/nowhere/at/all"},
        {"lora.targets": ["qvk"], "lora.rank": 2, "init.path": "/nowhere/at/all"},
    ],
    "images": [
        {"data.data_dir": "/nowhere/at/all", "data.name": "mnist"},
        {"data.data_dir": "/nowhere/at/all", "data.name": "mnist1"},
        {"data.data_dir": "nothing://x", "data.name": "mnist"},
        {"data.fold": 5},
        {"data.fold": -1},
        {"data.fold": 0, "data.name": "mnist"},
        {"model.classes": 9},
        {"model.image_size": 16},
        {"model.image_size": [8, 16]},
        {"model.channels": 3},
    ],
    "language": [
        {"data.files": "/nowhere/*.txt"},
        {"data.files": "~no-one-of-this-name/x.txt"},
        {"data.files": None},
        {"data.files": "x.txt", "data.name": "pydocs"},
        {"data.text_key": "text"},
        {"data.held_out_fraction": 1e-9},
        {"data.tokenizer": "~no-one-of-this-name/tokenizer.json"},
        {"model.vocabulary": 256},
        {"model.vocabulary": 2**31 - 1},
        {"model.vocabulary": 300, "data.tokenizer": "bytes"},
        {"batch_size": 2, "model.block_size": 2**31 - 1},  # one block holds the whole text
    ],
    "sentences": [
        {"data.data_dir": "/nowhere/at/all"},
        {"data.files": "/nowhere/at/all"},
        {"data.text_key": "label"},
        {"data.label_key": ""},
        {"model.classes": 7},
        {"model.vocabulary": 2**31 - 1},
    ],
}


class Mutation(NamedTuple):
    """A bad config: the key that is wrong with it, and the config as plain values."""

    key: str
    told: str
    given: dict[str, Any]


def groups_of(given, prefix=""):
    """Yields every group of a config and its name, the whole as ''."""
    yield prefix.rstrip("."), given
    for name, value in given.items():
        if isinstance(value, dict):
            yield from groups_of(value, f"{prefix}{name}.")


def keys_of(given):
    """Every key's path: of values, and of groups."""
    return [f"{path}.{name}".lstrip(".") for path, group in groups_of(given) for name in group]


def holder(given, key):
    """The group that holds a key, and the key's last name."""
    *groups, last = key.split(".")
    for name in groups:
        given = given[name]
    return given, last


def changed(given, changes):
    """A mutation by values, named for the first key."""
    given = copy.deepcopy(given)
    for key, value in changes.items():
        group, last = holder(given, key)
        group[last] = value
    return Mutation(next(iter(changes)), f"{changes}", given)


def complete(cfg):
    """Every key of a config, as plain values."""
    return to_dict(from_config_dict(cfg))


def kinds_of(task):
    """The types that each key takes, by its path."""
    return {
        key: {typing.get_origin(kind) or kind for kind in setting.kinds_of(one.kind)}
        for key, one in settings_for(task).items()
    }


def wrong_types(given):
    """Each key with a value of each type that it does not take."""
    kinds = kinds_of(given["task"])
    for key in keys_of(given):
        taken = kinds.get(key, {dict})
        taken = taken | {int} if float in taken else taken
        for value in ("7", 7, 7.5, [7, 7], None, True, {"a": 7}):
            is_list = isinstance(value, list) and tuple in taken
            if type(value) not in taken and not is_list:
                yield changed(given, {key: value})


def misspelt(name, rng):
    """A name with two letters swapped, one dropped or one doubled."""
    at = int(rng.integers(len(name) - 1))
    ways = (
        name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        name[:at] + name[at + 1 :],
        name[:at] + name[at] + name[at:],
    )
    return next((way for way in rng.permutation(ways).tolist() if way != name), name + name[-1])


def unknown_keys(given, rng):
    """Each key misspelt: under another name, or beside the right one."""
    for key in keys_of(given):
        mutated = copy.deepcopy(given)
        group, last = holder(mutated, key)
        wrong = misspelt(last, rng)
        if wrong not in group:
            group[wrong] = group.pop(last) if rng.integers(2) else group[last]
            path = f"{key.rpartition('.')[0]}.{wrong}".lstrip(".")
            yield Mutation(path, f"{path} for {key}", mutated)


def out_of_range(given):
    """Each key with each value that is out of its range."""
    keys = keys_of(given)
    for key, values in OUT_OF_RANGE.items():
        for value in values if key in keys else ():
            yield changed(given, {key: value})


def unknown_words(given, words, rng):
    """Each key of words with one that is not known."""
    keys = keys_of(given)
    for key in words:
        if key in keys:
            group, last = holder(given, key)
            word = group[last] or "dots_saveable"
            for wrong in (misspelt(word, rng), f"{word}.", f"{word} ", "nonsense"):
                yield changed(given, {key: wrong})


def contradictions(given, table):
    """Values of which each is accepted, but not beside the others."""
    for changes in table[None] + table.get(given["task"], []):
        yield changed(given, changes)


def kinds_of_mutations(given, rng):
    """Lists of mutations that need neither data nor devices, by kind."""
    return [
        list(wrong_types(given)),
        list(unknown_keys(given, rng)),
        list(out_of_range(given)),
        list(unknown_words(given, WORDS, rng)),
        list(contradictions(given, CONTRADICTIONS)),
    ]


def kinds_of_data_mutations(given, rng):
    """Lists of those that only the devices or the data can refuse."""
    return [
        list(unknown_words(given, WORDS_OF_DATA, rng)),
        list(contradictions(given, CONTRADICTIONS_OF_DATA)),
    ]


def draw(lists, number, rng):
    """Draws so many of all kinds: as evenly as there are enough of each, and none twice."""
    lists = [[entries[i] for i in rng.permutation(len(entries))] for entries in lists if entries]
    drawn = []
    while len(drawn) < number and any(lists):
        drawn += [entries.pop() for entries in lists if entries]
    return drawn[:number]
