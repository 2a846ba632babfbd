"""The border: what a config may say, what is stored of it, and what old ones become."""

import dataclasses
import json
import math
import re

import pytest
from diffrax import Heun

from configs import digits, pydocs
from odeformer import presets
from tests.helpers.checkout import ROOT
from tests.helpers.tiny import make_tiny_language, make_tiny_sentences
from train.config import border, stored
from train.config.border import flatten, from_config_dict, settings_for, to_dict
from train.config.help import list_keys
from train.config.names import RENAMED
from train.config.run import TASKS
from train.config.setting import PartOfRun, kinds_of, settings_of
from train.errors import BadInput

OLD = ROOT / "tests/data"


def test_every_key_becomes_a_field(tiny):
    config = from_config_dict(tiny)
    assert config.model.depth.solver == tiny.depth.solver
    assert config.model.width == 16 and config.optimizer.ema_decay == tiny.optimizer.ema_decay
    assert config.data.augment.zoom == tiny.data.augment.zoom


@pytest.mark.parametrize("task", TASKS)
def test_every_default_is_accepted(task):
    config = from_config_dict({"task": task})
    assert from_config_dict(to_dict(config)) == config
    for key, setting in settings_for(task).items():
        if key == "task":
            continue
        value, default = flatten(to_dict(config)).get(key), setting.default
        expected = default.of(config.train_steps) if isinstance(default, PartOfRun) else default
        # Plain values, as JSON has them.
        expected = list(expected) if isinstance(expected, tuple) else expected
        assert value == expected, key
        assert value is None or setting.accepted.contains(value), key


@pytest.mark.parametrize("task", TASKS)
def test_every_key_is_listed_with_its_help(task):
    listed = "\n".join(list_keys("config", from_config_dict({"task": task})))
    for key, setting in settings_for(task).items():
        assert len(setting.help) >= 10 and setting.help.endswith((".", ")")), key
        line = rf"^  --config\.{re.escape(key)}=.+\n      \S"
        assert len(re.findall(line, listed, re.MULTILINE)) == 1, key


def test_the_keys_of_every_task_are_listed_once():
    lines = [line.strip().partition("=")[0] for line in list_keys("config")]
    flags = [line for line in lines if line.startswith("--config.")]
    keys = {f"--config.{key}" for task in TASKS for key in settings_for(task)}
    assert set(flags) == keys
    # Groups whose keys depend on the task stand once for each.
    assert flags.count("--config.optimizer.b1") == flags.count("--config.seed") == 1
    assert flags.count("--config.model.width") == flags.count("--config.data.name") == 3


@pytest.mark.parametrize("task", TASKS)
def test_every_range_of_the_library_is_listed(task):
    """And is what its own check refuses, one value beyond it."""
    listed = " ".join(list_keys("config", from_config_dict({"task": task})))
    entries = {part.partition("=")[0]: " ".join(part.split()) for part in listed.split("--config.")}
    for key, setting in settings_for(task).items():
        if key.startswith(("model.", "depth.")) and bool not in kinds_of(setting.kind):
            text = setting.accepted.text
            assert text and f" {text[:1].upper()}{text[1:]}. " in entries[key], key

    for key, beyond, text in (
        ("depth.share", 0, "Greater than 0 and less than 2**31."),
        ("depth.rtol", 0.0, "Greater than 0."),
        ("model.dropout", 1.0, "In [0, 1)."),
        ("model.time", "sines", "One of none, additive."),
    ):
        assert text in entries[key]
        with pytest.raises(BadInput, match=key.partition(".")[2]):
            from_config_dict({"task": task}, {key: beyond})


def test_the_library_keeps_its_help_in_its_docstrings():
    found = settings_of(TASKS["sentences"].model)
    assert found["width"].help == "D, size of the state's last axis."
    assert found["pool"].help.startswith("'mean' reads the classes from the mean over a text's")


def test_parts_of_a_run_follow_its_length(tiny):
    del tiny["eval"], tiny["log"]
    config = from_config_dict(tiny, {"train_steps": 250})
    assert (config.eval.every_steps, config.log.every_steps) == (25, 2)
    assert config.checkpoint.every_steps == 3  # which the config says
    assert from_config_dict(tiny, {"train_steps": 7}).log.every_steps == 1


@pytest.mark.parametrize(
    ("task", "name", "make"),
    [("images", "vit_l", presets.vit), ("language", "gpt_small", presets.lm)],
)
def test_a_preset_gives_the_sizes(task, name, make):
    given = {"task": task, "model": {"preset": name}}
    assert from_config_dict(given).model == make(name)
    given |= {"model": {"preset": name, "width": 96}, "depth": {"layers": 2}}
    assert from_config_dict(given).model == make(name, width=96, depth={"layers": 2})
    with pytest.raises(BadInput, match="config.model.preset: unknown preset 'x'; accepted: "):
        from_config_dict(given, {"model.preset": "x"})


def test_stored_configs_come_back(tiny):
    for cfg in (tiny, make_tiny_language(), make_tiny_sentences("x")):
        config = from_config_dict(cfg)
        assert stored.from_json(stored.to_json(config)) == config


def test_a_solver_object_is_not_stored(tiny):
    """Of its class config.json would hold nothing, and the run could not be read again."""
    config = from_config_dict(tiny)
    depth = dataclasses.replace(config.model.depth, solver=Heun())
    with pytest.raises(
        BadInput, match=r"config.depth.solver is a name.*odeformer.solvers.register"
    ):
        dataclasses.replace(config, model=dataclasses.replace(config.model, depth=depth))


def test_configs_of_earlier_versions_are_read():
    images = stored.from_json((OLD / "config_0_images.json").read_text())
    assert images.checkpoint.best is None and images.data.validation_examples == 0
    assert images.guard.max_consecutive == 10 and images.guard.max_rollbacks == 3
    assert images.data.repeats_per_batch == 1 and images.model.depth.solver == "rk4"

    language = stored.from_json((OLD / "config_0_language.json").read_text())
    assert language.data.held_out_fraction == 0.05 and language.checkpoint.best == "val/loss"

    # They are the same runs as today's configs describe.
    assert stored.resume_conflicts(images, from_config_dict(digits.get_config())) == []
    assert stored.resume_conflicts(language, from_config_dict(pydocs.get_config())) == []


def test_every_old_name_is_in_an_old_config():
    """Else nothing would show that it is read."""
    keys = set()
    for path in OLD.glob("config_*.json"):
        keys |= flatten(json.loads(path.read_text())).keys()
    new = {key for task in TASKS for key in settings_for(task)}
    assert RENAMED.keys() <= keys and not RENAMED.keys() & new
    assert {name for name in RENAMED.values() if name is not None} <= new


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_are_refused_with_the_new_one(old, new):
    """In a config and on the command line; a stored config alone may have them."""
    message = f"config.{old} is now config.{new}" if new else f"config.{old} is no key any more"
    group, _, name = old.partition(".")
    with pytest.raises(BadInput, match=re.escape(message)):
        from_config_dict({group: {name: 1}})
    with pytest.raises(BadInput, match=re.escape(message)):
        stored.for_evaluation(from_config_dict({}), {old: 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("depth.solvr", "rk4", "unknown config key 'depth.solvr'.*Did you mean 'depth.solver'"),
        ("modl", {}, "unknown config key 'modl'.*Did you mean 'model'"),
        ("model.widht", 3, "Did you mean 'model.width'"),
        ("data.augmnt", {}, "Did you mean 'data.augment'"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate takes float; 'fast'"),
        ("optimizer.learning_rate", -1.0, "optimizer.learning_rate is greater than 0; -1.0"),
        ("optimizer.clip_norm", "no", "optimizer.clip_norm takes float or None; 'no'"),
        ("train_steps", 1.5, "train_steps takes int; 1.5"),
        ("depth.per_sample", 1, "depth.per_sample takes bool; 1"),
        ("depth.share", 3, "config.depth: share=3 does not divide layers=2"),
        ("depth.solver", "rk5", "config.depth: unknown solver 'rk5'"),
        ("depth.solver", Heun(), r"depth.solver takes str; Heun\(.*config.json holds no objects"),
        ("model.terms", ("mlp", "convv"), "config.model: terms=.*'convv'.*Did you mean 'conv'"),
        ("model.heads", 3, "config.model: heads=3 does not divide width=16"),
        (
            "model.classes",
            0,
            "config.model.classes=0 is a model without a head, which gives no class",
        ),
        ("optimizer.ema_decay", 1.0, r"optimizer.ema_decay is in \[0, 1\); 1.0"),
        ("optimizer.warmup_steps", 6, "shorten the warm-up or train longer"),
        ("data", 3, "config.data is a group of keys; 3"),
        ("depth", None, "config.depth is a group of keys; None"),
        ("model", 3, "config.model is a group of keys; 3"),
        ("data.augment.erasing", 1.5, r"data.augment.erasing is in \[0, 1\]; 1.5"),
        ("data.repeats_per_batch", 0, "data.repeats_per_batch is greater than 0 and less than 2"),
        ("seed", None, "seed takes int; None"),
        ("seed", 2**32, r"seed is 0 or more and less than 2\*\*32; 4294967296"),
        ("task", ["images"], r"config.task takes str; \['images'\] was given"),
        ("optimizer.weight_decay", math.nan, "weight_decay is a finite number of float32; nan"),
        ("optimizer.b2", 1 - 1e-9, r"optimizer.b2 is in \[0, 1\); 0.999999999 was"),
        ("model.depth", {"layers": 4}, "config.model.depth is no key.*set config.depth"),
        ("data.repeats_per_batch", 33, "batch=33 of an example do not fit into .*batch_size=32"),
        ("data.augment.mixup", 1e-38, "data.augment.mixup is 0, or 1e-6 or more; 1e-38"),
        ("data.augment.crop_padding_px", 9, "crop_padding_px=9 is more than the images' 8 pixels"),
        ("checkpoint.best", "none", "checkpoint.best is one of val/loss, val/accuracy; none was"),
        ("checkpoint.best", "none", r"none was given \(None is accepted, too\)"),
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
        from_config_dict(given)


def test_a_misspelt_task_is_named_before_the_keys_of_another_one():
    given = make_tiny_language().to_dict()
    given["ttask"] = given.pop("task")
    with pytest.raises(BadInput, match="unknown config key 'ttask'.*Did you mean 'task'"):
        from_config_dict(given)


@pytest.mark.parametrize("task", TASKS)
def test_a_refusal_of_an_optional_key_names_none(task):
    """Of every key that has a range and may be None, on the command line a word like any other."""
    optional = {
        key: kinds_of(setting.kind)
        for key, setting in settings_for(task).items()
        if type(None) in kinds_of(setting.kind) and setting.accepted.text
    }
    assert {"checkpoint.best", "model.preset", "guard.sigmas"} <= optional.keys()

    for key, kinds in optional.items():
        # The library names its own fields after the group: 'config.depth: steps is ...'.
        group, _, name = key.rpartition(".")
        with pytest.raises(BadInput, match=rf"config\.{group}.*\b{name}\b.*\bNone\b"):
            from_config_dict({"task": task}, {key: "none" if str in kinds else -1})


def test_draws_are_numbered_in_32_bits(tiny):
    tiny.train_steps, tiny.data.repeats_per_batch, tiny.batch_size = 2**27, 8, 32
    from_config_dict(tiny)
    tiny.data.repeats_per_batch = 16
    with pytest.raises(BadInput, match=r"train_steps=134217728 times .*_per_batch=16 is less"):
        from_config_dict(tiny)


def test_only_some_keys_may_differ_on_resume(tiny):
    config = from_config_dict(tiny)
    other = from_config_dict(tiny, {"train_steps": 99, "log.every_steps": 7})
    assert stored.resume_conflicts(config, other) == []
    other = from_config_dict(tiny, {"optimizer.learning_rate": 0.5})
    conflicts = stored.resume_conflicts(config, other)
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
def test_what_is_changed_for_evaluation_replaces_what_conflicts_with_it(
    tiny, trained, changes, expected
):
    tiny.depth.update(trained)
    changes = {f"depth.{key}": value for key, value in changes.items()}
    depth = stored.for_evaluation(from_config_dict(tiny), changes).model.depth
    assert {key: getattr(depth, key) for key in expected} == expected


def test_evaluation_has_a_mesh_of_its_own(tiny):
    tiny.mesh.update(data=2, fsdp=4)
    tiny.parallel.update(mode="shard_map", accumulate=2)
    config = stored.for_evaluation(from_config_dict(tiny), {"mesh.tensor": 2})
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (-1, 1, 2)
    assert (config.parallel.mode, config.parallel.accumulate) == ("jit", 1)
    with pytest.raises(BadInput, match="unknown config key 'model.preset'"):
        stored.for_evaluation(config, {"model.preset": "digits"})


def test_readme_and_pages_name_keys_that_exist():
    """Every `group.key` that begins with a group's name, and every --config.group.key."""
    keys = {key for task in TASKS for key in settings_for(task)}
    groups = {group for task in TASKS for group in border.groups_for(task)}
    pages = {path.name: path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}

    for name, page in pages.items():
        words = re.findall(r"`([a-z]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", page)
        named = {word for word in words if word.partition(".")[0] in groups}
        flags = set(re.findall(r"--(?:study\.)?config\.([a-z_0-9.]+)=", page))
        assert named | flags <= keys | groups, name
        assert flags or name not in ("README.md", "training.md", "own-data.md")


@pytest.mark.parametrize("start", [dict(rtol=0.1, max_steps=9, solver="tsit5"), dict(steps=8)])
def test_no_tolerance_in_evaluation_is_fixed_steps(tiny, start):
    tiny.depth.update(start)
    depth = stored.for_evaluation(from_config_dict(tiny), {"depth.rtol": None}).model.depth
    assert depth.rtol is None and depth.max_steps is None
    assert depth.steps == start.get("steps")
