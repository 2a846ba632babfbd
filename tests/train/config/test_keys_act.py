"""Every config key acts: another value changes a program, the batches, or what a run writes.

Nothing is compiled or trained by default. A key without an entry in the tables below fails.
"""

import functools
from typing import NamedTuple

import pytest

from tests.helpers import reviews, views
from tests.helpers.checkout import ROOT
from tests.helpers.programs import timeless
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences
from train.checkpoint.workdir import saved_steps
from train.config.border import flatten, from_config_dict, settings_for, to_dict
from train.config.run import TASKS
from train.errors import BadInput
from train.logs.metrics import read_metrics
from train.loop import train


class Change(NamedTuple):
    """Another value of a key, and what it changes.

    Attributes:
      value: neither the tiny config's nor the one in `beside`.
      view: what of a run differs, a function of `tests.helpers.views`.
      beside: keys that are set in both runs, without which the key has no effect.
      refused: whether the value does not fit the tiny config, which shows that it is looked at; the
        message names the key.
    """

    value: object
    view: object
    beside: dict = {}  # noqa: RUF012
    refused: bool = False


ADAPTED = {"init.path": "/of/no/run", "lora.rank": 2}
ADAPTIVE = {"depth.solver": "heun", "depth.rtol": 0.1}
HAT = {"depth.share": 1, "depth.basis": "hat", "depth.coefficients": 3}
OF_EVERY_TASK = {
    "seed": Change(1, views.batches),
    "train_steps": Change(7, views.step),
    "batch_size": Change(16, views.batches),
    "model.width": Change(32, views.state),
    "model.heads": Change(4, views.state),
    "model.mlp": Change(16, views.state),
    "model.dropout": Change(0.3, views.gradient),
    "model.drop_path": Change(0.3, views.gradient),
    "model.dtype": Change("bfloat16", views.gradient),
    "model.time": Change("additive", views.state),
    "model.fused": Change(True, views.gradient),
    "model.attention": Change("cudnn", views.gradient, {"model.dtype": "bfloat16"}, refused=True),
    "model.centre": Change(1.0, views.gradient),
    "model.norm": Change("rms", views.state),
    "model.gated": Change(True, views.state),
    "model.mlp_bias": Change(False, views.state),
    "model.kv_heads": Change(1, views.state),
    "model.head_size": Change(4, views.state),
    "model.qk_norm": Change(True, views.state),
    "model.qkv_bias": Change(False, views.state),
    "model.out_bias": Change(False, views.state),
    "model.norm_epsilon": Change(1e-3, views.gradient),
    "model.activation": Change("relu", views.gradient),
    "model.layer_scale": Change(0.1, views.state),
    "depth.solver": Change("midpoint", views.gradient),
    "depth.steps": Change(3, views.gradient),
    "depth.rtol": Change(0.1, views.forward, {"depth.solver": "heun"}),
    "depth.atol": Change(0.1, views.forward, ADAPTIVE),
    "depth.max_steps": Change(7, views.forward, ADAPTIVE),
    "depth.per_sample": Change(True, views.forward, ADAPTIVE),
    "depth.adjoint": Change("store", views.gradient),
    "depth.policy": Change("dots_saveable", views.gradient),
    "depth.reversible": Change(0.99, views.gradient),
    "depth.layers": Change(4, views.state),
    "depth.share": Change(1, views.state),
    "depth.basis": Change("legendre", views.gradient, HAT),
    "depth.coefficients": Change(5, views.state, HAT),
    "depth.refine_at": Change((4,), views.refined, HAT | {"depth.steps": 2}),
    "model.terms": Change(("attention",), views.state),
    # tests/train/checkpoint/test_initial.py shows what they do.
    "init.path": Change("/nowhere/at/all", views.initial, refused=True),
    "init.include": Change(("head",), views.initial, refused=True),
    "init.exclude": Change(("head",), views.initial, refused=True),
    "lora.rank": Change(4, views.state, ADAPTED),
    "lora.alpha": Change(3.0, views.gradient, ADAPTED),
    "lora.targets": Change(("mlp_layer",), views.state, ADAPTED),
    "optimizer.name": Change("lion", views.optimizer),
    "optimizer.schedule": Change("linear", views.optimizer),
    "optimizer.decay_steps": Change(2, views.optimizer, {"optimizer.schedule": "wsd"}),
    "optimizer.learning_rate": Change(0.5, views.step),
    "optimizer.warmup_steps": Change(3, views.optimizer),
    "optimizer.weight_decay": Change(0.5, views.optimizer),
    "optimizer.b1": Change(0.5, views.optimizer),
    "optimizer.b2": Change(0.5, views.optimizer),
    "optimizer.clip_norm": Change(0.5, views.optimizer),
    "optimizer.ema_decay": Change(0.5, views.step),
    "optimizer.label_smoothing": Change(0.3, views.gradient),
    "optimizer.freeze": Change(("bias",), views.optimizer),
    "optimizer.rate_factors": Change(("bias=0.5",), views.optimizer),
    "optimizer.layer_decay": Change(0.5, views.optimizer),
    "regularise.kinetic": Change(0.1, views.gradient),
    "regularise.error": Change(0.1, views.gradient, {"depth.solver": "heun"}),
    "regularise.end_time": Change(0.5, views.gradient),
    "mesh.data": Change(4, views.mesh, {"mesh.data": 2, "mesh.fsdp": -1}),
    "mesh.fsdp": Change(2, views.mesh),
    "mesh.tensor": Change(2, views.mesh),
    "parallel.mode": Change("shard_map", views.gradient),
    "parallel.accumulate": Change(2, views.gradient),
    "checkpoint.every_steps": Change(2, views.due),
    "checkpoint.keep": Change(1, views.kept),
    "checkpoint.best": Change("val/accuracy", views.kept),
    "guard.sigmas": Change(4.0, views.step),
    "guard.max_consecutive": Change(4, views.rolled_back),
    "guard.max_rollbacks": Change(1, views.rolled_back),
    "eval.every_steps": Change(2, views.due),
    "eval.metrics": Change(("no_such_metric",), views.state, refused=True),
    "eval.batch_size": Change(64, views.read),
    "log.every_steps": Change(2, views.logged),
}
LINEAR = {"model.rotary_scaling": "linear", "model.rotary_factor": 4.0}
LLAMA3 = LINEAR | {"model.rotary_scaling": "llama3"}
OF_ROTARY = {
    "model.rotary_base": Change(5e5, views.forward),
    "model.rotary_fraction": Change(0.5, views.forward),
    "model.rotary_scaling": Change("llama3", views.forward, LINEAR),
    "model.rotary_factor": Change(2.0, views.forward, LINEAR),
    "model.rotary_low_turns": Change(0.5, views.forward, LLAMA3),
    "model.rotary_high_turns": Change(8.0, views.forward, LLAMA3),
    "model.rotary_length": Change(64, views.forward, LLAMA3),
}
SET = {"data.name": "dots/whole", "data.data_dir": "ONE", "data.test_fraction": 0.3}
SET |= {"data.validation_examples": 10}
PICTURES = {"data.name": "folder", "data.files": "PICTURES ONE", "data.test_fraction": 0.25}
PICTURES |= {"data.validation_examples": 10, "batch_size": 8}
REVIEWS = {"data.name": "reviews/good", "data.data_dir": "ONE", "data.text_key": "sentence"}
NOTES = {"data.name": "folder", "data.files": "NOTES ONE", "data.data_dir": None}
DOCUMENTS = REVIEWS | {"data.files": None, "model.vocabulary": 270, "batch_size": 4}
OF_TASK = {
    "images": {
        "data.name": Change("dots/other", views.batches, SET),
        "data.data_dir": Change("TWO", views.batches, SET),
        "data.files": Change("PICTURES TWO", views.batches, PICTURES),
        "data.fold": Change(1, views.batches, {"data.fold": 0, "data.validation_examples": 50}),
        "data.validation_examples": Change(20, views.batches, {"data.fold": 0}),
        "data.test_fraction": Change(0.4, views.batches, SET),
        "data.repeats_per_batch": Change(2, views.batches),
        "data.workers": Change(2, views.read),
        "data.skip_corrupt": Change(
            False,
            views.batches,
            SET | {"data.name": "dots/broken", "data.skip_corrupt": True},
            refused=True,
        ),
        "data.augment.shift_px": Change(1.0, views.prepare),
        "data.augment.rotate_degrees": Change(5.0, views.prepare),
        "data.augment.zoom": Change(0.2, views.prepare),
        "data.augment.crop_padding_px": Change(1, views.prepare),
        "data.augment.crop_min_area": Change(0.5, views.prepare),
        "data.augment.flip": Change(True, views.prepare),
        "data.augment.randaugment_ops": Change(1, views.prepare),
        "data.augment.randaugment_magnitude": Change(
            5.0, views.prepare, {"data.augment.randaugment_ops": 1}
        ),
        "data.augment.erasing": Change(0.5, views.prepare),
        "data.augment.mixup": Change(0.8, views.prepare),
        "data.augment.cutmix": Change(1.0, views.prepare),
        "model.image_size": Change(16, views.state),
        "model.patch_size": Change(4, views.state),
        "model.channels": Change(3, views.state),
        "model.classes": Change(7, views.state),
        "model.pool": Change("token", views.state, {"model.pool": "mean"}),
        "model.positions": Change("sincos", views.state),
        "model.distillation": Change("token", views.state, {"model.pool": "token"}),
        "model.registers": Change(2, views.state),
        "optimizer.label_smoothing": Change(0.3, views.prepare),
    },
    "language": {
        "data.name": Change("reviews/fine", views.batches, DOCUMENTS),
        "data.data_dir": Change("TWO", views.batches, DOCUMENTS),
        "data.files": Change(str(ROOT / "README.md"), views.batches),
        "data.text_key": Change("title", views.batches, DOCUMENTS),
        "data.held_out_fraction": Change(0.3, views.batches),
        "data.tokenizer": Change("bytes", views.batches, refused=True),
        "data.packing": Change("stream", views.batches),
        "model.vocabulary": Change(290, views.state),
        "model.block_size": Change(16, views.batches),
        "model.positions": Change("learned", views.state),
        **OF_ROTARY,
        "model.tied": Change(False, views.state),
        # A causal field takes no adaptive steps.
        "depth.rtol": Change(0.1, views.forward, refused=True),
        "depth.atol": Change(0.1, views.forward, refused=True),
        "depth.max_steps": Change(7, views.forward, refused=True),
        "depth.per_sample": Change(True, views.forward),
    },
    "sentences": {
        "data.name": Change("reviews/fine", views.batches, REVIEWS),
        "data.data_dir": Change("TWO", views.batches, REVIEWS),
        "data.text_key": Change("title", views.batches, REVIEWS),
        "data.label_key": Change("mood", views.batches, REVIEWS),
        "data.files": Change("NOTES TWO", views.batches, NOTES),
        "data.held_out_fraction": Change(0.3, views.batches),
        "data.tokenizer": Change("bytes", views.batches, refused=True),
        "data.token_dropout": Change(0.5, views.prepare),
        "model.vocabulary": Change(270, views.state),
        "model.block_size": Change(10, views.batches),
        "model.positions": Change("learned", views.state),
        **OF_ROTARY,
        "model.classes": Change(3, views.state),
        "model.pool": Change("first", views.gradient),
    },
}
# Which keys there are, and the sizes that others take: the tests at the end. Modules are imported
# before a config is read: tests/train/test_modules.py.
APART = ("task", "model.preset", "modules")
# What is the same code for all tasks is looked at once; these each task or model has of its own.
OF_ITS_OWN = ("model.dropout", "optimizer.label_smoothing")

CASES = []
for _task in TASKS:
    for _key in settings_for(_task):
        if _key not in APART:
            _own = OF_TASK[_task].keys() - (OF_ROTARY if _task == "sentences" else {})
            _again = _task != "images" and _key not in {*_own, *OF_ITS_OWN}
            CASES.append(pytest.param(_task, _key, marks=[pytest.mark.slow] if _again else []))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    reviews.prepare(folder)
    places = {name: folder / name.lower() for name in ("ONE", "TWO")}
    places |= {
        f"{kind} {name}": path / kind.lower()
        for name, path in places.items()
        for kind in ("PICTURES", "NOTES")
    }
    return {name: str(path) for name, path in places.items()}


@pytest.fixture(scope="module")
def look(folders, opinions_dir):
    """Returns (task, view, the changes from the tiny config) -> what is seen, or the refusal."""

    def make(task):
        if task == "images":
            cfg = make_tiny()
            cfg.data.augment.update(shift_px=0.5, rotate_degrees=0.0, zoom=0.0)
        else:
            cfg = make_tiny_language() if task == "language" else make_tiny_sentences(opinions_dir)
        cfg.depth.update(layers=2, share=2, solver="euler", adjoint="checkpoint")
        return cfg

    @functools.cache
    def look(task, view, changes):
        changes = {key: folders.get(value, value) for key, value in changes}
        try:
            return view(from_config_dict(make(task), changes))
        except (BadInput, ValueError) as error:
            return error

    return lambda task, view, changes: look(task, view, tuple(changes.items()))


@pytest.mark.parametrize(("task", "key"), CASES)
def test_every_key_acts(task, key, look):
    change = OF_TASK[task].get(key) or OF_EVERY_TASK.get(key)
    assert change is not None, (
        f"config.{key} of task {task!r} has no entry: give it another value, and what of a run that"
        " value changes, in OF_EVERY_TASK or OF_TASK"
    )

    before = look(task, change.view, change.beside)
    assert not isinstance(before, Exception), before
    after = look(task, change.view, {**change.beside, key: change.value})
    if change.refused:
        assert isinstance(after, Exception) and key.rpartition(".")[2] in str(after), after
    else:
        assert not isinstance(after, Exception), after
        assert after != before, f"config.{key}={change.value!r} changes no {change.view.__name__}"


@pytest.mark.parametrize("view", [views.step, views.gradient, views.prepare, views.batches])
def test_the_same_config_is_seen_alike(view, look):
    """Else what differs above would say nothing."""
    config = from_config_dict(make_tiny())
    assert view(config) == view(config)


@pytest.mark.parametrize("task", TASKS)
def test_no_entry_is_of_a_key_that_there_is_not(task):
    assert OF_TASK[task].keys() <= settings_for(task).keys()
    assert OF_EVERY_TASK.keys() <= settings_for(task).keys()


def test_the_task_says_which_keys_there_are():
    kinds = [tuple(settings_for(task)) for task in TASKS]
    assert len(set(kinds)) == len(TASKS)
    for task in TASKS:
        assert type(from_config_dict({"task": task}).model) is TASKS[task].model


@pytest.mark.parametrize("task", TASKS)
def test_a_preset_changes_the_sizes(task):
    plain, *found = (
        flatten(to_dict(from_config_dict({"task": task}, {"model.preset": name})))
        for name in (None, *TASKS[task].presets)
    )
    for name, values in zip(TASKS[task].presets, found, strict=True):
        changed = {key for key in plain if values[key] != plain[key]}
        sizes = ("model.", "depth.layers")
        assert all(key.startswith(sizes) for key in changed), name
    assert any(values != plain for values in found) or len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log.every_steps", 2),
        ("eval.every_steps", 2),
        ("checkpoint.every_steps", 2),
        ("checkpoint.keep", 1),
        ("eval.batch_size", 64),
    ],
)
def test_a_run_writes_other_files(key, value, tmp_path):
    """The same keys in whole runs: steps and names of the metrics, and the saved steps."""
    seen = []
    for changes in ({}, {key: value}):
        workdir = tmp_path / str(len(changes))
        config = from_config_dict(make_tiny(), {"depth.solver": "euler", **changes})
        train(config, workdir)
        names = [(line["step"], sorted(line)) for line in map(timeless, read_metrics(workdir))]
        seen.append((names, saved_steps(workdir)))
    # The batches of an evaluation do not show in its scores.
    assert (seen[0] != seen[1]) == (key != "eval.batch_size")
