"""Bad batches: what is skipped, that it leaves no trace, that it is told of."""

import dataclasses
import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_tiny, make_tiny_language, timeless

from train.checkpoint.restore import restore_step
from train.config.border import from_config_dict
from train.config.run import GuardConfig
from train.data.pipeline import BatchOrder, Position
from train.data.sources import load_splits
from train.devices.mesh import device_mesh, put_batch
from train.gradient import make_gradient
from train.guard import WINDOW, SkipMonitor, init_guard, judge
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_optimizer
from train.state import abstract_state, jit_init
from train.step import make_eval_step, make_train_step
from train.tasks.images import ImageTask
from train.tasks.language import LanguageTask

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

        def multiplied(params, inputs, targets, key):
            targets, (of_loss, of_gradient) = targets
            grads, metrics = gradient(params, inputs, targets, key)
            spoil_one = lambda x: jnp.where(jnp.isfinite(of_gradient), of_gradient * x, of_gradient)
            return jax.tree.map(spoil_one, grads), metrics | {"loss": of_loss * metrics["loss"]}

        return multiplied

    patch.setattr(task, "constants", spoilt_constants)
    patch.setattr(task, "prepare", spoilt_prepare)
    for module in ("step", "divergence"):
        patch.setattr(f"train.{module}.make_gradient", spoilt_gradient)
    patch.setattr("train.state.jit_init", INIT)
    patch.setattr("train.loop.make_train_step", TRAIN_STEP)
    patch.setattr("train.loop.make_eval_step", EVAL_STEP)
    patch.setattr(
        "train.logs.run_log.plot_curves", lambda workdir: workdir
    )  # takes longer than the run


def _shared(make, **other):
    """The maker of a compiled program, which makes one for all configs that differ in `other`."""
    made = {}

    def share(config, *others):
        key = dataclasses.replace(config, **other)
        if key not in made:
            made[key] = make(config, *others)
        return made[key]

    return share


TRAIN_STEP = _shared(make_train_step, checkpoint=None, log=None, eval=None)
EVAL_STEP = _shared(make_eval_step)
INIT = _shared(jit_init, checkpoint=None, log=None, eval=None, guard=None, train_steps=10**9)


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


# The first step, one where a checkpoint is due, that one's next, one of no account, the last one.
BAD = {
    1: ("images", np.inf),
    4: ("gradient", np.inf),
    5: ("loss", np.inf),
    7: ("gradient", np.nan),
    13: ("loss", np.nan),
}


def spoilt_by(cfg, bad, examples=None):
    """What `spoil` takes for the steps {step: (place, factor)}."""
    return {
        (int(batch_at(cfg, step, examples=examples)[3]), place): factor
        for step, (place, factor) in bad.items()
    }


def leave_out(patch, bad):
    """Puts the bad batches behind the good ones of a run."""

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


@pytest.fixture(scope="module")
def spoilt_run(tmp_path_factory):
    """A run with bad batches to its end: its config and workdir, and what it showed."""
    cfg = make_spoilable()
    workdir = tmp_path_factory.mktemp("spoilt")
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, spoilt_by(cfg, BAD))
        train(cfg, workdir)
    return cfg, workdir


def test_bad_batches_leave_no_trace(spoilt_run, tmp_path, monkeypatch):
    cfg, workdir = spoilt_run
    spoil(monkeypatch, spoilt_by(cfg, BAD))
    leave_out(monkeypatch, BAD)
    train(cfg, tmp_path)
    assert_no_trace(workdir, tmp_path, cfg, BAD)


def test_each_bad_batch_has_a_line(spoilt_run):
    _, workdir = spoilt_run
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 4, 5, 7, 8, 12, 13]
    assert [line["train/skipped"] for line in lines] == [1, 2, 3, 4, 4, 4, 5]
    assert [line["train/skipped_in_a_row"] for line in lines] == [1, 1, 2, 1, 0, 0, 1]
    values = {line["step"]: (line["train/loss"], line["train/grad_norm"]) for line in lines}
    assert {step for step, (loss, _) in values.items() if loss is None} == {1, 5, 13}
    assert {step for step, (_, norm) in values.items() if norm is None} == {1, 4, 7}


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.slow), 5, pytest.param(6, marks=pytest.mark.slow)]
)
def test_resumed_amid_bad_batches(spoilt_run, step, tmp_path, monkeypatch):
    """Behind a bad first batch, between two bad ones with a checkpoint, and behind these."""
    cfg, whole = spoilt_run
    spoil(monkeypatch, spoilt_by(cfg, BAD))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path)
    train(cfg, tmp_path)
    assert_same(read_state(tmp_path, cfg, 13)[0], read_state(whole, cfg, 13)[0])
    assert timeless_lines(tmp_path) == timeless_lines(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "mode", "accumulate"),
    [(0, "jit", 1), (1, "jit", 2), (2, "shard_map", 1), (3, "shard_map", 2)],
)
def test_random_steps(seed, mode, accumulate, tmp_path, monkeypatch):
    """A single bad image in one part of an accumulated batch spoils it as well."""
    rng = np.random.default_rng(seed)
    cfg = make_spoilable()
    cfg.seed, cfg.train_steps = seed, 40
    cfg.data.augment.update(mixup=0.8, cutmix=1.0)
    cfg.parallel.update(mode=mode, accumulate=accumulate)
    steps = 1 + rng.choice(40, 12, replace=False)
    bad = {
        int(step): (PLACES[rng.integers(3)], rng.choice([np.inf, -np.inf, np.nan]))
        for step in sorted(steps)
    }
    compare(cfg, bad, tmp_path, monkeypatch, spoilt_by(cfg, bad))


@pytest.mark.slow
def test_bad_batches_of_a_language_run(tmp_path, monkeypatch):
    cfg = make_tiny_language()
    cfg.train_steps = 12
    cfg.checkpoint.update(every_steps=4, keep=4)
    examples = len(load_splits(from_config_dict(cfg))["train"])  # each is read once at most
    bad = {1: BAD[5], 4: BAD[7], 5: BAD[4], 12: BAD[13]}
    compare(cfg, bad, tmp_path, monkeypatch, spoilt_by(cfg, bad, examples), LanguageTask)


SIGMAS = 5.0


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run that is spoilt before there are bounds, saved behind step 129, and those of 130."""
    cfg = make_spoilable()
    cfg.train_steps, cfg.guard.sigmas = 130, SIGMAS
    cfg.checkpoint.every_steps = cfg.eval.every_steps = 129
    cfg.log.every_steps = 1
    workdir = tmp_path_factory.mktemp("long")
    early = {20: ("loss", 30.0), 128: ("gradient", 1e3)}
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, spoilt_by(cfg, early))
        train(cfg, workdir)
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    values = np.array([[line[f"train/{name}"] for name in ("loss", "grad_norm")] for line in lines])
    assert lines[-1]["train/skipped"] == 0
    assert (values[[19, 127], [0, 1]] > 20 * np.median(values, axis=0)).all()
    before = values[1:129]
    bounds = before.mean(axis=0) + SIGMAS * before.std(axis=0)
    return cfg, workdir, dict(zip(PLACES[1:], zip(bounds, values[129], strict=True), strict=True))


@pytest.mark.parametrize("place", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_finite_spike(long_run, place, tmp_path, monkeypatch):
    cfg, whole, bounds = long_run
    shutil.copytree(whole / "checkpoints" / "129", tmp_path / "checkpoints" / "129")
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(whole / name, tmp_path)
    bound, value = bounds[place]
    before, _ = read_state(whole, cfg, 129)
    for reach, is_skipped in ((0.999, False), (1.001, True)):
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch, spoilt_by(cfg, {130: (place, reach * bound / value)}))
            train(cfg, tmp_path)
        after, _ = read_state(tmp_path, cfg, 130)
        assert after.guard.skipped == is_skipped
        assert after.step == 130 - is_skipped
        column, row = PLACES[1:].index(place), 129 % WINDOW
        if is_skipped:
            np.testing.assert_array_equal(after.guard.recent, before.guard.recent)
        else:
            assert after.guard.recent[row, column] == pytest.approx(reach * bound, rel=1e-5)
        shutil.rmtree(tmp_path / "checkpoints" / "130")


@pytest.mark.parametrize("sigmas", [None, 3.0])
def test_judge_is_numpys(sigmas):
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=(600, 2)).astype(np.float32)
    values[rng.random(600) < 0.05] *= 30
    for bad in (np.inf, -np.inf, np.nan):
        values[rng.integers(600, size=8), rng.integers(2)] = bad

    def step(carry, x):
        guard, steps = carry
        accepted, guard = judge(guard, steps, x[0], x[1], sigmas)
        return (guard, steps + accepted), (accepted, guard.consecutive, guard.skipped)

    start = (init_guard(), jnp.int32(0))
    (guard, steps), told = jax.jit(lambda v: jax.lax.scan(step, start, v))(jnp.asarray(values))

    accepted, in_a_row, expected = [], 0, []
    for x in values.astype(np.float64):
        newest = np.array(accepted[-WINDOW:])
        fits = np.isfinite(x).all()
        if sigmas is not None and len(newest) == WINDOW:
            fits &= (x <= newest.mean(axis=0) + sigmas * newest.std(axis=0)).all()
        accepted += [x] if fits else []
        in_a_row = 0 if fits else in_a_row + 1
        expected.append((fits, in_a_row, len(expected) + 1 - len(accepted)))
    np.testing.assert_array_equal(np.transpose(told), expected)
    assert steps == len(accepted) and 10 < guard.skipped == 600 - len(accepted)
    newest = np.roll(accepted[-WINDOW:], len(accepted), axis=0)
    np.testing.assert_array_equal(guard.recent, newest)


class Late:
    """A step's metrics, which note when they are waited for."""

    def __init__(self, step, in_a_row, waited):
        self.step, self.in_a_row, self.waited = step, in_a_row, waited

    def __getitem__(self, name):
        assert name == "skipped_in_a_row"
        self.waited.append(self.step)
        return self.in_a_row


def look(counts, in_a_row=3, saved=()):
    """What a watch waits for at each step, tells of, and finds."""
    waited, told, found, at = [], [], [], []
    config = GuardConfig(max_consecutive=in_a_row, max_rollbacks=0)
    monitor: Any = SkipMonitor(config, lambda step, _: told.append(step))
    for step, count in enumerate(counts, 1):
        found.append(monitor.exceeded(step, Late(step, count, waited), wait=step in saved))
        at.append(waited[sum(map(len, at)) :])
    return at, told, found


def test_a_watch_is_a_step_late_but_while_batches_are_skipped():
    waited, told, found = look([0, 0, 1, 2, 0, 0, 0])  # the run may have stopped amid bad batches
    assert waited == [[1], [], [2], [3, 4], [5], [], [6]]
    assert told == [3, 4] and not any(found)
    waited, told, found = look([0, 1, 2, 3])
    assert waited == [[1], [], [2, 3], [4]] and told == [2, 3, 4]
    assert found == [False, False, False, True]


def test_a_watch_looks_at_once_where_the_run_is_saved_or_one_is_too_many():
    waited, _, _ = look([0, 0, 0, 0, 0], saved=(3, 4))
    assert waited == [[1], [], [2, 3], [4], []]
    waited, told, found = look([0, 0, 1, 0], in_a_row=1)
    assert waited == [[1], [2], [3], [4]] and told == [3]
    assert found == [False, False, True, False]
    assert look([3, 0])[2] == [True, False]  # a run that is resumed amid bad batches
