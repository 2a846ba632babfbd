"""Runs whose batches are spoilt, and what is compared of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.programs import timeless
from tests.helpers.tiny import make_tiny
from train.checkpoint.restore import restore_step
from train.config.border import from_config_dict
from train.data.pipeline import BatchOrder, Position
from train.data.sources import load_splits
from train.devices.mesh import device_mesh, put_batch
from train.gradient import make_gradient
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_optimizer
from train.scores import jit_eval_step
from train.state import abstract_state, jit_init
from train.step import jit_train_step
from train.tasks.images import ImageTask

PLACES = ("images", "loss", "gradient")
# What is spoilt: arrays that stay the same ones, so that runs of one config share their programs.
EXAMPLES, FACTORS = np.full(256, -1, np.int32), np.ones((256, len(PLACES)), np.float32)


def spoil(patch, spoilt, task: Any = ImageTask):
    """Multiplies what comes of the batches that hold given examples.

    Args:
      patch: a MonkeyPatch.
      spoilt: {(example, one of PLACES): factor}; an infinite one replaces the gradient.
      task: the class whose batches they are.
    """
    EXAMPLES[:], FACTORS[:] = -1, 1
    for row, ((example, place), factor) in enumerate(spoilt.items()):
        EXAMPLES[row], FACTORS[row, PLACES.index(place)] = example, factor
    constants, prepare = task.constants, task.prepare

    def spoilt_constants(self):
        return constants(self) | {"spoilt": EXAMPLES, "factors": FACTORS}

    def spoilt_prepare(self, batch, keys, given):
        (images, *others), targets = prepare(self, batch, keys, given)
        is_spoilt = batch["index"][:, None] == given["spoilt"]
        by_example = jnp.where(is_spoilt[..., None], given["factors"], 1).prod(axis=1)
        if jnp.issubdtype(images.dtype, jnp.floating):
            images = images * by_example[:, 0].reshape(-1, *(1,) * (images.ndim - 1))
        return (images, *others), (targets, by_example[:, 1:].prod(axis=0))

    def spoilt_gradient(config, task):
        gradient = make_gradient(config, task)

        def multiplied(params, inputs, targets, key, base):
            targets, (of_loss, of_gradient) = targets
            grads, metrics = gradient(params, inputs, targets, key, base)
            spoil_one = lambda x: jnp.where(jnp.isfinite(of_gradient), of_gradient * x, of_gradient)
            return jax.tree.map(spoil_one, grads), metrics | {"loss": of_loss * metrics["loss"]}

        return multiplied

    patch.setattr(task, "constants", spoilt_constants)
    patch.setattr(task, "prepare", spoilt_prepare)
    for module in ("step", "divergence"):
        patch.setattr(f"train.{module}.make_gradient", spoilt_gradient)
    patch.setattr("train.programs.jit_init", INIT)
    patch.setattr("train.programs.jit_train_step", TRAIN_STEP)
    patch.setattr("train.programs.jit_eval_step", EVAL_STEP)
    patch.setattr(
        "train.logs.run_log.plot_curves", lambda workdir: workdir
    )  # takes longer than the run


def _shared(make, *ignored):
    """The maker of a compiled program, which makes one for all configs that differ in these."""
    made = {}

    def share(config, *others):
        fields = [field.name for field in dataclasses.fields(config)]
        key = tuple(getattr(config, name) for name in fields if name not in ignored)
        if key not in made:
            made[key] = make(config, *others)
        return made[key]

    return share


TRAIN_STEP = _shared(jit_train_step, "checkpoint", "log", "eval")
EVAL_STEP = _shared(jit_eval_step)
INIT = _shared(jit_init, "checkpoint", "log", "eval", "guard", "train_steps")


def interrupt_at(patch, call):
    """Interrupts a run before a step: the one that is the `call`-th it takes."""
    calls = []

    def counted(mesh, rows, batch_size):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return put_batch(mesh, rows, batch_size)

    patch.setattr("train.loop.put_batch", counted)


def read_state(workdir, cfg, step):
    """The state of a checkpoint, and its record."""
    config = from_config_dict(cfg)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    target = abstract_state(config, optimizer, device_mesh(config.mesh))
    state, record = restore_step(workdir, step, target)
    return jax.device_get(state), record


def assert_same(a, b):
    """Asserts that two trees are equal bit for bit."""
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def timeless_lines(workdir):
    """The lines of metrics.jsonl without the keys of time."""
    return list(map(timeless, read_metrics(workdir)))


def make_spoilable():
    """Returns a config with dropout, drop-path and augmentation; logged every fourth step."""
    cfg = make_tiny()
    cfg.train_steps = 13
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.checkpoint.update(every_steps=4, keep=4)
    cfg.eval.every_steps = 8
    cfg.log.every_steps = 4
    return cfg


@functools.cache
def count_examples():
    return len(load_splits(from_config_dict(make_tiny()))["train"])


def batch_at(cfg, step, order=0, examples=None):
    """The examples of a step, from 1."""
    examples, seed = examples or count_examples(), cfg.get("seed", 0)
    order = BatchOrder(examples, cfg.batch_size, cfg.train_steps, seed, shuffle=order)
    return order[step - 1][0]


def spoilt_by(cfg, bad, examples=None):
    """What `spoil` takes for the steps {step: (place, factor)}."""
    return {
        (int(batch_at(cfg, step, examples=examples)[3]), place): factor
        for step, (place, factor) in bad.items()
    }


def leave_out(patch, bad):
    """Puts the bad batches after the good ones of a run."""

    class Others(BatchOrder):
        def __getitem__(self, step):
            steps = [s for s in range(len(self)) if s + 1 not in bad]
            steps += [s - 1 for s in bad]
            return super().__getitem__(steps[step])

    patch.setattr("train.data.pipeline.BatchOrder", Others)


def assert_no_trace(workdir, without, cfg, bad):
    """Asserts that a run ended as one that had read the good batches alone."""
    end, record = read_state(workdir, cfg, cfg.train_steps)
    assert record.position == Position(cfg.train_steps, 0)
    good = cfg.train_steps - len(bad)
    expected, _ = read_state(without, cfg, good)
    assert end.step == expected.step == good
    assert end.guard.skipped == len(bad) and expected.guard.skipped == 0
    assert np.count_nonzero(expected.guard.recent) == 2 * good
    uncounted = lambda state: state.replace(guard=state.guard.recent)
    assert_same(uncounted(end), uncounted(expected))


def compare(cfg, bad, folder, patch, spoilt, task: Any = ImageTask):
    """Trains with and without the bad batches."""
    spoil(patch, spoilt, task)
    train(cfg, folder / "spoilt")
    leave_out(patch, bad)
    train(cfg, folder / "without")
    assert_no_trace(folder / "spoilt", folder / "without", cfg, bad)
