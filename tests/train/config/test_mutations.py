"""Every bad config is refused by an error that names the key, before anything is compiled."""

import re
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from configs import cifar, digits, imagenet, lm1b, pydocs, shakespeare, sst2
from tests.helpers import mutations
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences
from train.config.border import from_config_dict
from train.config.run import TASKS
from train.errors import BadInput
from train.loop import train

COMPILED = "/jax/core/compile/backend_compile_duration"
LARGEST = float(np.finfo(np.float32).max)
REAL = {
    "cifar": lambda: cifar.get_config("dataset=cifar100"),
    "cifar:size=cpu": lambda: cifar.get_config("size=cpu"),
    "digits": digits.get_config,
    "imagenet": imagenet.get_config,
    "imagenet:variant=vit_l": lambda: imagenet.get_config("variant=vit_l"),
    "lm1b": lm1b.get_config,
    "pydocs": pydocs.get_config,
    "shakespeare": shakespeare.get_config,
    "sst2": sst2.get_config,
}


def names_key(message, key):
    """Whether a message names a key: in full, or its group and its own name."""
    group, _, last = key.rpartition(".")
    if f"config.{key}" in message or f"config key '{key}'" in message:
        return True
    groups = {"depth": ("depth", "model")}.get(group, (group,))  # a model's depth is its own
    is_named = re.search(rf"\b{re.escape(last)}\b", message) is not None
    return (group and key in message) or (
        is_named and any(f"config.{g}" in message for g in groups)
    )


def refusal(mutation, action):
    """What is wrong with how an action refuses a mutation; None if nothing is."""
    try:
        action(ml_collections.ConfigDict(mutation.given))
    except BadInput as error:
        named = names_key(str(error), mutation.key)
        return None if named else f"{mutation.told}: {mutation.key} is not named in: {error}"
    except Exception as error:
        return f"{mutation.told}: {type(error).__name__}: {error}"
    return f"{mutation.told}: accepted"


@pytest.fixture
def forbidden():
    """Makes every compilation an error while a test runs; the list counts them."""
    compiled, watching = [], True

    def listener(event: str, duration_secs: float, **_: Any) -> None:
        if watching and event == COMPILED:
            compiled.append(duration_secs)
            raise AssertionError("something was compiled")

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield compiled
    watching = False  # not every version of jax has a public way to unregister it


def test_the_guard_sees_a_start_compile(forbidden, tmp_path):
    with pytest.raises(AssertionError, match="something was compiled"):
        train(make_tiny(), tmp_path)
    assert forbidden


@pytest.mark.parametrize("name", REAL)
def test_mutations_of_real_configs_are_refused(name):
    rng = np.random.default_rng(sum(name.encode()))
    given = mutations.complete(REAL[name]())
    drawn = mutations.draw(mutations.kinds_of_mutations(given, rng), 12, rng)
    assert len(drawn) == 12
    assert [wrong for m in drawn if (wrong := refusal(m, from_config_dict))] == []


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("images", {"data.name": "digit"}),
        ("images", {"data.data_dir": "/nowhere", "data.name": "mnist"}),
        ("images", {"data.fold": 5}),
        ("images", {"data.name": "cifar10/bad"}),
        ("images", {"model.classes": 9}),
        ("images", {"batch_size": 20_000}),
        ("images", {"batch_size": 2**31 - 1}),
        ("images", {"mesh.data": 1009}),
        ("images", {"parallel.accumulate": 3}),
        ("images", {"model.dtype": "float64"}),
        ("images", {"model.attention": "cudnn", "model.dtype": "bfloat16"}),
        ("images", {"data.repeats_per_batch": 33}),
        ("language", {"data.files": "/nowhere/*.txt"}),
        ("language", {"data.tokenizer": "~no-one-of-this-name/x"}),
        ("language", {"model.vocabulary": 2**31 - 1}),
        ("language", {"batch_size": 2, "model.block_size": 2**31 - 1}),
    ],
)
def test_what_the_data_and_the_devices_refuse(forbidden, tmp_path, task, changes):
    given = mutations.complete((make_tiny if task == "images" else make_tiny_language)())
    mutation = mutations.changed(given, changes)
    assert refusal(mutation, lambda cfg: train(cfg, tmp_path / "run")) is None
    assert forbidden == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("border", "behind", "least"),
    [(74, 28, 300), pytest.param(10**6, 10**6, 1500, marks=pytest.mark.slow)],
    ids=["300", "all"],
)
def test_mutations_are_refused_before_anything_is_compiled(
    forbidden, tmp_path, opinions_dir, border, behind, least
):
    rng = np.random.default_rng(0)
    failures, count = [], 0
    for cfg in (make_tiny(), make_tiny_language(), make_tiny_sentences(opinions_dir)):
        given = mutations.complete(cfg)
        drawn = mutations.draw(mutations.kinds_of_mutations(given, rng), border, rng)
        drawn += mutations.draw(mutations.kinds_of_data_mutations(given, rng), behind, rng)
        for mutation in drawn:
            count += 1
            workdir = tmp_path / str(count)
            if wrong := refusal(mutation, lambda cfg, workdir=workdir: train(cfg, workdir)):
                failures.append(f"{given['task']}: {wrong}")
            if workdir.exists():
                failures.append(f"{given['task']}: {mutation.told}: something was written")
    assert (failures, forbidden) == ([], []) and count >= least


ACCEPTED: dict[str, tuple[Any, ...]] = {
    "train_steps": (3, 2**31 - 1),
    "batch_size": (1, 2**31 - 1),
    "seed": (0, 2**32 - 1),
    "depth.reversible": (None, 0.999, 1, 1.0),
    "data.validation_examples": (0, 10**12),
    "data.test_fraction": (0.0, 0, 0.9999),
    "data.workers": (0, 1024),
    "data.fold": (None, 0, 4),
    "data.repeats_per_batch": (1, 5, 8),  # it need not divide the batch
    "data.held_out_fraction": (1e-9, 0.4999),
    "data.token_dropout": (0.0, 0, 0.9999),
    "data.augment.zoom": (0.0, 0.9999),
    "data.augment.crop_min_area": (0.0, 0.9999),
    "data.augment.shift_px": (0.0, 0, LARGEST),
    "data.augment.rotate_degrees": (0.0, 360.0),
    "data.augment.crop_padding_px": (0, 8),
    "data.augment.randaugment_ops": (0, 100),
    "data.augment.randaugment_magnitude": (0.0, 10.0),
    "data.augment.erasing": (0.0, 1.0, 1),
    "data.augment.mixup": (0.0, 1e-6, LARGEST),
    "data.augment.cutmix": (0.0, 1e-6, LARGEST),
    "model.norm_epsilon": (1e-30, 1e-12, 1, LARGEST),
    "model.layer_scale": (None, 1e-30, 1, LARGEST),
    "model.registers": (0, 2**31 - 1),
    "optimizer.learning_rate": (1e-30, 1, LARGEST),
    "optimizer.warmup_steps": (0, 5),
    "optimizer.decay_steps": (1, 4),  # of 6, 2 of which warm up
    "optimizer.weight_decay": (0.0, LARGEST),
    "optimizer.b1": (0.0, 0.999999),
    "optimizer.b2": (0.0, 0.999999),
    "optimizer.ema_decay": (None, 0.0, 0.999999),
    "lora.rank": (None, 1, 2**31 - 1),
    "lora.alpha": (None, 1e-30, LARGEST),
    "optimizer.layer_decay": (None, 1e-12, 1, 1.0),
    "optimizer.clip_norm": (None, 1e-30, LARGEST),
    "optimizer.label_smoothing": (0.0, 0.9999),
    "mesh.data": (-1, 1, 2**20),
    "mesh.fsdp": (-1, 1, 2**20),
    "mesh.tensor": (-1, 1, 2**20),
    "parallel.mode": ("jit", "shard_map"),
    "parallel.accumulate": (1, 2**31 - 1),
    "checkpoint.every_steps": (1, 10**12),
    "checkpoint.keep": (1, 10**12),
    "checkpoint.best": (None, "val/loss", "val/accuracy"),
    "guard.sigmas": (None, 1e-30, LARGEST),
    "guard.max_consecutive": (1, 2**31 - 1),
    "guard.max_rollbacks": (0, 2**31 - 1),
    "eval.every_steps": (1, 10**12),
    "eval.batch_size": (1, 2**31 - 1),
    "log.every_steps": (1, 10**12),
    "model.image_size": (2, [2, 4], 2**31 - 2),
    "model.patch_size": (1, 8),
    "model.channels": (1, 2**31 - 1),
    "model.classes": (1, 2**31 - 1),
    "model.vocabulary": (1, 2**31 - 1),
    "model.block_size": (1, 2**31 - 1),
    "model.width": (8, 2**31 - 8),
    "model.heads": (1, 8),
    "model.kv_heads": (None, 1, 2),
    "model.head_size": (None, 2, 2**31 - 2),
    "model.rotary_base": (1e-30, 1, LARGEST),
    "model.rotary_fraction": (0.5, 1, 1.0),
    "model.mlp": (1, 2**31 - 1),
    "model.dropout": (0.0, 0, 0.999999),
    "model.drop_path": (0.0, 0.999999),
    "depth.layers": (2, 2**31 - 2),
    "depth.share": (1, 2),
    "depth.steps": (None, 1, 2**31 - 1),
    "depth.coefficients": (None,),
}


def test_the_edges_of_every_range_are_accepted():
    unseen = set(ACCEPTED)
    for cfg in (make_tiny(), make_tiny_language(), sst2.get_config()):
        given = mutations.complete(cfg)
        for key in sorted(ACCEPTED.keys() & set(mutations.keys_of(given))):
            unseen.discard(key)
            for value in ACCEPTED[key]:
                others = {"optimizer.warmup_steps": 0} if key == "train_steps" else {}
                if key.startswith("lora.") and value is not None:
                    others = {"init.path": "/x", "lora.rank": 1} | others
                others |= {"optimizer.schedule": "wsd"} if key == "optimizer.decay_steps" else {}
                config: Any = from_config_dict(
                    mutations.changed(given, others | {key: value}).given
                )
                for name in key.replace("depth.", "model.depth.").split("."):
                    config = getattr(config, name)
                assert config == (tuple(value) if isinstance(value, list) else value)
    assert unseen == set()


def test_the_edges_of_adaptive_steps_are_accepted():
    given = mutations.complete(make_tiny())
    adaptive = {"depth.solver": "tsit5", "depth.rtol": 1e-3}
    for changes in (
        {"depth.rtol": 1e-30},
        {"depth.rtol": LARGEST},
        {"depth.atol": 1e-30},
        {"depth.atol": LARGEST},
        {"depth.max_steps": 1},
        {"depth.max_steps": 2**31 - 1},
        {"depth.per_sample": True},
    ):
        from_config_dict(mutations.changed(given, adaptive | changes).given)


def test_every_key_has_its_mutations():
    """A new key needs a range, or a word, here."""
    keys = {key: kinds for task in TASKS for key, kinds in mutations.kinds_of(task).items()}
    numbers = {key for key, kinds in keys.items() if kinds & {int, float}}
    assert numbers - mutations.OUT_OF_RANGE.keys() == {"data.fold"}  # which the data refuse
    words = {key for key, kinds in keys.items() if str in kinds}
    free = {"data.data_dir", "data.files", "data.text_key", "init.path"}
    assert words - free == {*mutations.WORDS, *mutations.WORDS_OF_DATA}
    assert mutations.OUT_OF_RANGE.keys() <= keys.keys() and set(mutations.WORDS) <= keys.keys()
