"""Runs that diverge: they go back and read other data, or stop and say what they saw."""

import contextlib
import io
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

import train.__main__ as program
from odeformer import make_model
from tests.helpers.programs import start
from tests.helpers.spoil import (
    assert_same,
    batch_at,
    count_examples,
    interrupt_at,
    make_spoilable,
    read_state,
    spoil,
    timeless_lines,
)
from train import command_line
from train.config.border import from_config_dict
from train.data.pipeline import BatchOrder, Position
from train.data.sources import load_splits
from train.devices.mesh import put_batch
from train.divergence import Diverged, first_skipped
from train.errors import RunError
from train.logs.metrics import read_metrics
from train.loop import train
from train.step import random_keys
from train.tasks import make_task

FIRST, SECOND = (5, 6, 7), (8, 9, 10)  # the steps at which batches are bad, in orders 0 and 1
END = 13


def make_config():
    """Returns the config of a run that goes back once; a checkpoint lies amid each streak."""
    cfg = make_spoilable()
    cfg.checkpoint.every_steps = 3
    cfg.guard.update(max_consecutive=3, max_rollbacks=1)
    return cfg


def make_bad(cfg, steps, order, read):
    """What `spoil` takes for a batch of each step; no other one of those that are read is bad.

    Args:
      cfg: of the run.
      steps: to be spoilt.
      order: of the data, in which they are.
      read: (step, order) of all batches that the run reads.
    """
    others = [batch_at(cfg, *at) for at in read if not (at[1] == order and at[0] in steps)]
    free = [np.setdiff1d(batch_at(cfg, step, order), np.concatenate(others)) for step in steps]
    return {(int(examples[0]), "loss"): np.nan for examples in free}


def steps_of(order, first, last):
    """(step, order) of batches one behind the other."""
    return [(step, order) for step in range(first, last + 1)]


def record(patch, workdir):
    """Returns a list that comes to hold the examples of each batch, and the checkpoints then."""
    seen = []

    def recorded(mesh, rows, batch_size):
        folders = [path.name for path in (workdir / "checkpoints").iterdir()]
        seen.append((rows["index"], {name for name in folders if "tmp" not in name}))
        return put_batch(mesh, rows, batch_size)

    patch.setattr("train.loop.put_batch", recorded)
    return seen


RETURNING = steps_of(0, 1, 7) + steps_of(1, 4, END)  # the batches of a run that goes back once


@pytest.fixture(scope="module")
def returned(tmp_path_factory):
    """A run that went back: its config and workdir, what it read and what it said."""
    cfg = make_config()
    workdir = tmp_path_factory.mktemp("returned")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        spoil(patch, make_bad(cfg, FIRST, 0, RETURNING))
        seen = record(patch, workdir)
        train(cfg, workdir)
    return cfg, workdir, seen, said.getvalue()


def test_a_run_goes_back_and_reads_other_data(returned):
    cfg, _, seen, said = returned
    np.testing.assert_array_equal(
        [indices for indices, _ in seen], [batch_at(cfg, *at) for at in RETURNING]
    )
    assert "warning: 3 batches were skipped in a row up to step 7" in said
    assert "(rollback 1 of 1)" in said and "unfinished" not in said


def test_the_checkpoints_behind_are_replaced(returned):
    cfg, workdir, seen, _ = returned
    for _, folders in seen[7:10]:
        assert "6.aside" in folders and "6" not in folders
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert {"6", "9", "12", "13"} <= left and not any("aside" in name for name in left)
    assert read_state(workdir, cfg, 6)[1].position == Position(6, 1)
    state, end = read_state(workdir, cfg, END)
    assert end.position == Position(END, 1)
    assert state.step == END and state.guard.skipped == 0


def test_no_step_is_logged_twice(returned):
    _, workdir, _, _ = returned
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 4, 8, 12]
    assert [line["step"] for line in lines if "val/loss" in line] == [8, 13]
    assert all(line["train/skipped"] == 0 for line in lines if "train/loss" in line)


@pytest.mark.parametrize(
    "call",
    [
        # The last of the bad batches: a checkpoint lies between it and the others.
        pytest.param(7, marks=pytest.mark.slow),
        pytest.param(6, marks=pytest.mark.slow),
        pytest.param(8, marks=pytest.mark.slow),  # the first batch of the second try
        pytest.param(9, marks=pytest.mark.slow),
        12,  # behind a checkpoint of the second try
    ],
)
def test_a_run_that_goes_back_resumes_bit_for_bit(returned, call, tmp_path, monkeypatch):
    cfg, whole, _, _ = returned
    spoil(monkeypatch, make_bad(cfg, FIRST, 0, RETURNING))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path)
    train(cfg, tmp_path)
    assert_same(read_state(tmp_path, cfg, END)[0], read_state(whole, cfg, END)[0])
    assert timeless_lines(tmp_path) == timeless_lines(whole)


def test_a_save_on_its_way_is_waited_for(tmp_path, monkeypatch):
    """A run goes back to the last checkpoint even where its save has not ended yet."""
    cfg = make_config()
    read = steps_of(0, 1, 6) + steps_of(1, 4, END)
    spoil(monkeypatch, make_bad(cfg, (4, 5, 6), 0, read))
    seen = record(monkeypatch, tmp_path)
    path_type = type(epath.Path(tmp_path))
    rename = path_type.rename

    def rename_slowly(path, target):
        if target.name == "3":
            time.sleep(0.5)
        return rename(path, target)

    monkeypatch.setattr(path_type, "rename", rename_slowly)
    train(cfg, tmp_path)
    np.testing.assert_array_equal(
        [indices for indices, _ in seen], [batch_at(cfg, *at) for at in read]
    )


@pytest.mark.parametrize(("every_steps", "back_to"), [(2, 2), (6, 0)])
def test_where_no_checkpoint_lies_before_the_bad_batches(
    tmp_path, monkeypatch, every_steps, back_to
):
    """One that was saved in the midst of them has the weights from before them; else the start."""
    cfg = make_config()
    cfg.checkpoint.every_steps = every_steps
    read = steps_of(0, 1, 4) + steps_of(1, back_to + 1, END)
    spoil(monkeypatch, make_bad(cfg, (2, 3, 4), 0, read))
    seen = record(monkeypatch, tmp_path)
    train(cfg, tmp_path)
    np.testing.assert_array_equal(
        [indices for indices, _ in seen], [batch_at(cfg, *at) for at in read]
    )
    skipped = 1 if back_to else 0  # the batch of step 2, before the checkpoint
    assert read_state(tmp_path, cfg, END)[0].step == END - skipped


def test_the_checkpoint_just_before_the_bad_batches_is_a_good_one():
    """Of batches skipped in steps 3, 4 and 5 the first is that of step 3: step 2 is before it."""
    state: Any = None
    diverged = Diverged(5, {}, {"skipped_in_a_row": np.int32(3)}, state)
    assert first_skipped(diverged) == 3


def test_every_order_reads_every_example_once_an_epoch():
    examples, steps = count_examples(), 200
    epochs = {}
    for order in range(3):
        batches = BatchOrder(examples, 32, steps, 5, shuffle=order)
        flat = np.concatenate([batches[step][0] for step in range(steps)])
        for epoch in range(len(flat) // examples):
            here = flat[epoch * examples : (epoch + 1) * examples]
            assert np.array_equal(np.sort(here), np.arange(examples))
            epochs[order, epoch] = here
        np.testing.assert_array_equal(batches[7][1], np.full(32, 7))  # the draw is the step's
    for epoch in range(2):  # the order that runs had before there were others
        expected = np.random.default_rng((5, epoch)).permutation(examples)
        np.testing.assert_array_equal(epochs[0, epoch], expected)
    distinct = {here.tobytes() for here in epochs.values()}
    assert len(distinct) == len(epochs)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run that diverged again: its config and workdir, exit code, what it read and said."""
    cfg = make_config()
    folder = tmp_path_factory.mktemp("diverged")
    workdir, config_file = folder / "run", folder / "config.py"
    config_file.write_text("from tests.train.test_divergence import make_config as get_config\n")
    read = steps_of(0, 1, 7) + steps_of(1, 4, 10)
    bad = make_bad(cfg, FIRST, 0, read) | make_bad(cfg, SECOND, 1, read)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        spoil(patch, bad)
        seen = record(patch, workdir)
        arguments = [f"--config={config_file}", f"--workdir={workdir}"]
        main = lambda argv: start(patch, program, *argv[1:])
        code = command_line.run(main, ["train", *arguments], program.FLAGS, None, "config")
    return cfg, workdir, code, [indices for indices, _ in seen], said.getvalue()


def test_a_run_that_diverges_again_stops(diverged):
    cfg, workdir, code, seen, said = diverged
    assert code == 1
    read = steps_of(0, 1, 7) + steps_of(1, 4, 10)
    np.testing.assert_array_equal(seen, [batch_at(cfg, *at) for at in read])
    told = json.loads((workdir / "divergence.json").read_text())
    assert told["step"] == 10 and told["skipped_in_a_row"] == 3 and told["loss"] == "nan"
    assert told["batch_indices"] == seen[-1].tolist()
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 4, 8, 9, 10]
    assert told["grad_norm"] == lines[-1]["train/grad_norm"]
    message = said.partition("error: ")[2]
    assert "the run diverged" in message and "after 1 rollbacks to a checkpoint" in message
    assert f"step 10: loss nan, gradient norm {told['grad_norm']:.4g}, 3 batches" in message
    for name, norm in told["gradient_norms"].items():
        assert any(
            line.split()[:3] == [name, "gradient", f"{norm:.4g}"] for line in message.splitlines()
        )
    assert f"{seen[-1][0]} {seen[-1][1]} " in message
    assert str(workdir / "divergence.json") in message


def test_the_report_is_of_the_batch_and_the_weights_of_then(diverged):
    """The norms against a gradient taken directly."""
    cfg, workdir, _, _, _ = diverged
    told = json.loads((workdir / "divergence.json").read_text())
    config = from_config_dict(cfg)
    state, _ = read_state(workdir, cfg, 9)  # amid the bad batches, which changed nothing
    data = load_splits(config)["train"]
    index = np.array(told["batch_indices"])
    draw = np.full(len(index), told["step"] - 1, np.int32)
    task: Any = make_task(config, data)
    model = make_model(config.model)
    batch = data.gather(index, draw) | {"draw": draw}

    @jax.jit
    def gradient(params):
        key, keys = random_keys(jnp.uint32(config.seed), state.step, batch)
        (images,), (targets, _) = task.prepare(batch, keys, task.constants())

        def loss(params):
            logits, _ = model.apply(
                {"params": params}, images, train=True, rngs={"dropout": key}, mutable=["ode"]
            )
            return optax.softmax_cross_entropy(logits, targets).mean()

        return jax.grad(loss)(params)

    for name, tree in (
        ("gradient_norms", gradient(state.params)),
        ("parameter_norms", state.params),
    ):
        squares = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            names = [key.key for key in path]
            group = "/".join(names[:-1] or names)
            squares[group] = squares.get(group, 0) + np.square(leaf, dtype=np.float64).sum()
        assert told[name] == pytest.approx({k: v**0.5 for k, v in squares.items()}, rel=1e-4)
    total = np.sqrt(sum(norm**2 for norm in told["gradient_norms"].values()))
    assert told["grad_norm"] == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_no_return_is_taken_where_none_is_granted(tmp_path, monkeypatch):
    cfg = make_config()
    cfg.guard.max_rollbacks = 0
    spoil(monkeypatch, make_bad(cfg, FIRST, 0, steps_of(0, 1, 7)))
    with pytest.raises(RunError, match="after 0 rollbacks to a checkpoint"):
        train(cfg, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*aside"))
