"""The border between ConfigDicts and dataclasses."""

import math

import ml_collections
import pytest

from train.config import run as configs
from train.errors import BadInput


def test_every_key_becomes_a_field(tiny):
    config = configs.from_config_dict(tiny)
    assert config.model.depth.solver == tiny.depth.solver
    assert config.model.width == 16 and config.optimizer.ema_decay == tiny.optimizer.ema_decay
    assert config.data.augment.zoom == tiny.data.augment.zoom


def test_saved_configs_come_back_and_can_be_overridden(tiny):
    loaded = configs.load(configs.save(tiny))
    assert configs.flatten(loaded.to_dict()) == configs.flatten(tiny.to_dict())
    loaded.depth.rtol = 1e-3  # a None when it was saved
    loaded.depth.solver = "tsit5"
    assert configs.from_config_dict(loaded).model.depth.rtol == 1e-3
    with pytest.raises(TypeError):
        loaded.depth.rtol = "small"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("depth.solvr", "rk4", "unknown config key 'depth.solvr'.*Did you mean 'depth.solver'"),
        ("modl", {}, "unknown config key 'modl'.*Did you mean 'model'"),
        ("model.widht", 3, "Did you mean 'model.width'"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate takes float; 'fast'"),
        ("optimizer.learning_rate", -1.0, "optimizer.learning_rate is greater than 0; -1.0"),
        ("train_steps", 1.5, "train_steps takes int; 1.5"),
        ("depth.per_sample", 1, "depth.per_sample takes bool; 1"),
        ("depth.share", 3, "config.depth: share=3 does not divide layers=2"),
        ("depth.solver", "rk5", "config.depth: unknown solver 'rk5'"),
        ("model.heads", 3, "config.model: heads=3 does not divide width=16"),
        ("optimizer.ema_decay", 1.0, r"optimizer.ema_decay is in \[0, 1\); 1.0"),
        ("optimizer.warmup_steps", 6, "shorten the warm-up or train longer"),
        ("data", 3, "config.data is a group of keys; 3"),
        ("depth", None, "config.depth is a group of keys; None"),
        ("model", 3, "config.model is a group of keys; 3"),
        ("data.augment.erasing", 1.5, r"data.augment.erasing is in \[0, 1\]; 1.5"),
        ("data.repeats", 0, "data.repeats is greater than 0 and less than 2.*31; 0"),
        ("seed", None, "seed takes int; None"),
        ("seed", 2**32, r"seed is 0 or more and less than 2\*\*32; 4294967296"),
        ("task", ["images"], r"config.task takes str; \['images'\] was given"),
        ("optimizer.weight_decay", math.nan, "weight_decay is a finite number of float32; nan"),
        ("optimizer.b2", 1 - 1e-9, r"optimizer.b2 is in \[0, 1\); 0.999999999 was"),
        ("model.depth", {"layers": 4}, "config.model.depth is no key.*set config.depth"),
        ("data.repeats", 33, "repeats=33 of an example do not fit into .*batch_size=32"),
        ("data.augment.mixup", 1e-38, "data.augment.mixup is 0, or 1e-6 or more; 1e-38"),
        ("data.augment.crop_padding_px", 9, "crop_padding_px=9 is more than the images' 8 pixels"),
    ],
)
def test_refusals_name_the_key(tiny, key, value, message):
    given = tiny.to_dict()
    *groups, last = key.split(".")
    holder = given
    for group in groups:
        holder = holder[group]
    holder[last] = value
    with pytest.raises(BadInput, match=message):
        configs.from_config_dict(given)


def test_draws_are_numbered_in_32_bits(tiny):
    tiny.train_steps, tiny.data.repeats, tiny.batch_size = 2**27, 8, 32
    configs.from_config_dict(tiny)
    tiny.data.repeats = 16
    with pytest.raises(
        BadInput, match="train_steps=134217728 times config.data.repeats=16 is less"
    ):
        configs.from_config_dict(tiny)


def test_a_missing_key_is_named(tiny):
    given = tiny.to_dict()
    del given["optimizer"]["b1"]
    with pytest.raises(BadInput, match="config.optimizer.b1 is missing"):
        configs.from_config_dict(given)
    given = tiny.to_dict()
    del given["model"]["heads"]  # for which the library has a default
    with pytest.raises(BadInput, match="config.model.heads is missing"):
        configs.from_config_dict(given)


def test_only_some_keys_may_differ_on_resume(tiny):
    other = ml_collections.ConfigDict(tiny.to_dict())
    other.train_steps, other.log.every_steps = 99, 7
    assert configs.resume_conflicts(tiny.to_dict(), other.to_dict()) == []
    other.optimizer.learning_rate = 0.5
    conflicts = configs.resume_conflicts(tiny.to_dict(), other.to_dict())
    assert conflicts == ["optimizer.learning_rate: 0.003 in the workdir, 0.5 given"]


@pytest.mark.parametrize(
    ("trained", "changes", "expected"),
    [
        (dict(steps=8), dict(rtol=1e-3, solver="tsit5"), dict(steps=None, rtol=1e-3)),
        (dict(steps=8), dict(solver="euler"), dict(steps=8, rtol=None)),
        (dict(rtol=0.1, max_steps=9, solver="tsit5"), dict(solver="euler"), dict(rtol=None)),
        (
            dict(rtol=0.1, max_steps=9, solver="tsit5"),
            dict(steps=3),
            dict(rtol=None, max_steps=None),
        ),
        (dict(rtol=0.1, solver="tsit5"), dict(rtol=0.2), dict(rtol=0.2, steps=None)),
        (dict(adjoint="store"), dict(rtol=0.2, solver="bosh3"), dict(adjoint="checkpoint")),
    ],
)
def test_what_is_changed_for_evaluation_replaces_what_stands_against_it(
    tiny, trained, changes, expected
):
    tiny.depth.update(trained)
    tiny.depth.update(changes)
    depth = configs.for_evaluation(tiny.to_dict(), {f"depth.{key}" for key in changes})["depth"]
    assert {key: depth[key] for key in expected} == expected
    configs.from_config_dict({**tiny.to_dict(), "depth": depth})
