"""Bad batches: what is skipped, that it leaves no trace, that it is told of."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.spoil import (
    PLACES,
    assert_no_trace,
    assert_same,
    compare,
    interrupt_at,
    leave_out,
    make_spoilable,
    read_state,
    spoil,
    spoilt_by,
    timeless_lines,
)
from tests.helpers.tiny import make_tiny_language
from train.config.border import from_config_dict
from train.config.run import GuardConfig
from train.data.sources import load_splits
from train.divergence import SkipMonitor
from train.logs.metrics import read_metrics
from train.loop import train
from train.state import WINDOW, init_guard, judge
from train.tasks.language import LanguageTask

# The first step, one where a checkpoint is due, that one's next, one of no account, the last one.
BAD = {
    1: ("images", np.inf),
    4: ("gradient", np.inf),
    5: ("loss", np.inf),
    7: ("gradient", np.nan),
    13: ("loss", np.nan),
}


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
