"""All that is wrong with a config is listed at once, and unknown keys are understood."""

import ml_collections
import pytest

from tests.helpers.programs import run
from train.config.border import from_config_dict, settings_for
from train.config.run import TASKS
from train.config.stored import for_evaluation
from train.config.suggestions import suggest, synonyms, unknown_key
from train.errors import BadInput
from train.study.grid import from_study_dict


def faults(given, changes=None):
    with pytest.raises(BadInput) as refused:
        from_config_dict(given, changes)
    return refused.value.faults


def test_every_kind_of_fault_is_listed():
    given = {
        "depth": {"solver": "rk5", "share": 3, "layers": 2},
        "model": {"width": -1, "heads": 5, "patch_size": 3},
        "optimizer": {"lr": 1, "warmup_steps": 2000, "b1": "x"},
        "data": {"repeats_per_batch": 100},
        "mesh": 3,
    }
    found = faults(given, {"log.every_steps": 0, "wd": 3})
    beginnings = [
        "unknown config key 'optimizer.lr'. Did you mean 'optimizer.learning_rate'?",
        "config.mesh is a group of keys; 3 was given",
        "unknown config key 'wd'. Did you mean 'optimizer.weight_decay'?",
        "config.optimizer.b1 takes float; 'x' was given",
        "config.log.every_steps is greater than 0; 0 was given",
        "config.depth: unknown solver 'rk5'; accepted: ",
        "config.depth: share=3 does not divide layers=2",
        "config.model: patch_size=3 does not divide image_size=32",
        "config.model: width is a whole number, 1 or more; -1 was given",
        "config.optimizer.warmup_steps=2000 does not lie in [0, train_steps=1000)",
        "config.data.repeats_per_batch=100 of an example do not fit",
    ]
    assert len(found) == len(beginnings), found
    for beginning in beginnings:
        assert any(fault.startswith(beginning) for fault in found), beginning


def test_a_message_has_a_line_for_each_fault():
    with pytest.raises(BadInput) as refused:
        from_config_dict({"lr": 1, "seed": -1})
    first, *lines = str(refused.value).splitlines()
    assert first == "2 faults:" and len(lines) == 2
    assert all(line.startswith("  ") for line in lines)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"model": {"width": 30, "hedas": 5}}, 1),  # heads=3 is not the user's
        ({"model": {"width": -1, "heads": 5}}, 1),  # nor is the width that 5 does not divide
        ({"depth": {"rtoll": 1e-3, "max_steps": 9}}, 1),
        ({"model": {"preset": "vit_x", "heads": 5}}, 1),
        ({"epochs": 300, "optimizer": {"warmup_steps": 2000}}, 1),
        ({"train_steps": 0, "optimizer": {"warmup_steps": 2000}}, 1),
        ({"model": {"preset": "vit_x"}, "seed": -1}, 2),
    ],
)
def test_what_follows_from_another_fault_is_not_listed(given, count):
    assert len(faults(given)) == count


def test_a_run_that_is_evaluated_and_a_study_list_all_faults():
    with pytest.raises(BadInput) as refused:
        for_evaluation(from_config_dict({}), {"depth.solvr": "rk4", "eval.batch_size": 0})
    assert len(refused.value.faults) == 2
    study = dict(config={"seed": -1}, grid={}, matched={"rwo": "rk4"}, folds=1, seeds=())
    study = ml_collections.ConfigDict(study)
    with pytest.raises(BadInput) as refused:
        from_study_dict(study)
    assert len(refused.value.faults) == 4


def test_the_command_line_and_the_file_are_refused_together(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "import ml_collections\n"
        "def get_config():\n    return ml_collections.ConfigDict({'seed': -1, 'wd': 0.1})\n"
    )
    flags = ("--config.lr", "0.1", "--config.train_steps=1.5", "--wrkdir=x")
    done = run("train.__main__", f"--config={file}", *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: 5 faults:\n")
    for text in ("'lr'", "takes int; 1.5", "'--wrkdir'", "'wd'", "seed is 0 or more"):
        assert text in done.stderr


# Unknown keys.


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.lr", ["optimizer.learning_rate"]),
        ("model.lr", ["optimizer.learning_rate"]),
        ("momentum", ["optimizer.b1"]),
        ("bs", ["batch_size"]),
        ("optimizer.wd", ["optimizer.weight_decay"]),
        ("optimizer.warmup", ["optimizer.warmup_steps"]),
        ("model.dropout_rate", ["model.dropout"]),
        ("model.num_layers", ["depth.layers"]),
        ("model.depth", ["depth.layers"]),
        ("n_heads", ["model.heads"]),
        ("model.hidden_size", ["model.width"]),
        ("model.patch", ["model.patch_size"]),
        ("num_classes", ["model.classes"]),
        ("depth.num_steps", ["depth.steps"]),
        ("num_steps", ["train_steps", "depth.steps"]),
        ("optimizer.dropout", ["model.dropout"]),
        ("learning_rte", ["optimizer.learning_rate"]),
        ("optimiser.b1", ["optimizer.b1"]),
        ("Batch-Size", ["batch_size", "eval.batch_size"]),
        ("zzz", []),
    ],
)
def test_what_a_key_means(key, meant):
    assert suggest(key, settings_for("images")) == meant


def test_every_synonym_stands_for_a_key_and_is_none():
    known = {key for task in TASKS for key in settings_for(task)}
    assert {key for keys in synonyms().values() for key in keys} <= known
    assert not synonyms().keys() & known


def test_only_the_groups_own_keys_are_listed():
    first, *listed = str(unknown_key("optimizer.lr", settings_for("images"))).splitlines()
    assert first.endswith("Did you mean 'optimizer.learning_rate'?")
    assert all(len(line) <= 100 for line in listed)
    assert " ".join(" ".join(listed).split()) == (
        "optimizer has b1, b2, clip_norm, decay_steps, ema_decay, freeze, label_smoothing, "
        "layer_decay, learning_rate, name, rate_factors, schedule, warmup_steps, weight_decay"
    )
    (_, *listed) = str(unknown_key("data.x", settings_for("images"))).splitlines()
    assert "augment, data_dir" in listed[0] and "crop_min_area" not in listed[0]


def test_a_group_is_no_key():
    with pytest.raises(BadInput, match="config key 'model' is a group of keys: set one of them"):
        from_config_dict({}, {"model": "vit_b"})


def test_a_study_names_the_keys_of_its_runs():
    known = [f"config.{key}" for key in settings_for("images")]
    assert suggest("config.optimizer.lr", known) == ["config.optimizer.learning_rate"]
