"""Saving while a run trains: what is kept, and what follows when the workdir takes nothing."""

import dataclasses
import itertools
import re
import shutil
import time

import jax
import numpy as np
import pytest

from tests.helpers.disk import full_disk
from tests.helpers.tiny import make_tiny
from train import loop
from train.checkpoint import arrays, saver
from train.checkpoint.metadata import read_metadata
from train.checkpoint.restore import restore_newest
from train.checkpoint.retention import best_step
from train.checkpoint.saver import Saver
from train.checkpoint.workdir import check_workdir, record_run, saved_steps
from train.config.border import from_config_dict
from train.config.run import CheckpointConfig
from train.data.pipeline import Position
from train.devices.mesh import device_mesh
from train.errors import BadInput, RunError
from train.loop import train
from train.optimizer import make_optimizer
from train.run import Schedule
from train.state import abstract_state, init_state


@pytest.fixture(scope="module")
def state():
    """A state to save, and its abstract form."""
    config = from_config_dict(make_tiny())
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    return init_state(config, optimizer, mesh), abstract_state(config, optimizer, mesh)


def open_saver(workdir, train_steps=100, **checkpoint):
    checkpoint = CheckpointConfig(**{"every_steps": 1, "keep": 2, **checkpoint})
    config = from_config_dict(make_tiny(), {"train_steps": train_steps, "seed": 3})
    return Saver(workdir, dataclasses.replace(config, checkpoint=checkpoint), examples=7)


def test_the_newest_and_the_best_are_kept(workdir, state):
    losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: None, 5: 0.3, 6: float("nan")}
    kept = {}
    with open_saver(workdir) as saver:
        for step, loss in losses.items():
            scores = {} if loss is None else {"val/loss": loss}
            saver.save(state[0], Position(step, 0), scores, wait=True)
            kept[step] = saved_steps(workdir)
    assert kept == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [2, 5, 6]}
    with open_saver(workdir, best="val/accuracy") as saver:  # of which no checkpoint knows
        saver.save(state[0], Position(7, 0), {"val/loss": 0.1}, wait=True)
    assert saved_steps(workdir) == [6, 7]


def test_the_workdir_is_not_blamed_for_what_is_none_of_its(workdir, state, monkeypatch):
    def fail(**_):
        raise AttributeError("no mesh")

    with open_saver(workdir) as opened:
        monkeypatch.setattr(saver, "make_metadata", fail)
        with pytest.raises(AttributeError, match="no mesh"):
            opened.save(state[0], Position(1, 0), {}, wait=True)
    assert saved_steps(workdir) == []


def test_the_best_is_known_to_a_later_start(workdir, state):
    with open_saver(workdir) as saver:
        saver.save(state[0], Position(1, 0), {"val/loss": 0.2}, wait=True)
    with open_saver(workdir) as saver:
        for step in (2, 3, 4):
            saver.save(state[0], Position(step, 0), {"val/loss": 0.3}, wait=True)
    assert saved_steps(workdir) == [1, 3, 4]


@pytest.mark.parametrize(
    ("metrics", "best", "step"),
    [
        ({1: 0.5, 2: 0.4, 3: 0.4, 4: None}, "val/loss", 3),
        ({1: 0.5, 2: 0.6, 3: 0.6, 4: float("inf")}, "val/accuracy", 3),
        ({1: 0.5}, None, None),
        ({1: None}, "val/loss", None),
    ],
)
def test_which_is_the_best(metrics, best, step):
    assert best_step(metrics, best) == step


def test_what_the_metadata_says(workdir, state):
    with open_saver(workdir) as saver:
        saver.save(state[0], Position(5, 2), {"val/loss": 0.25}, wait=True)
    metadata = read_metadata(workdir, 5)
    assert (metadata.position, metadata.examples) == (Position(5, 2), 7)
    assert metadata.config["seed"] == 3 and metadata.metrics == {"val/loss": 0.25}
    assert metadata.versions["jax"] == jax.__version__ and "orbax-checkpoint" in metadata.versions
    assert {leaf.dtype for leaf in metadata.leaves.values()} == {"float32", "int32"}


def test_when_a_save_is_due(workdir):
    with open_saver(workdir, every_steps=4) as saver:
        assert [step for step in range(1, 11) if saver.is_due(step)] == [4, 8]


def test_what_is_due(workdir):
    cfg = make_tiny()
    cfg.train_steps, cfg.eval.every_steps = 10, 3
    with open_saver(workdir, every_steps=4) as saver:
        schedule = Schedule(from_config_dict(cfg), saver)
        due = {step: schedule.due(step, stop=step in (5, 10)) for step in range(1, 11)}
    assert [step for step, after in due.items() if after.evaluate] == [3, 6, 9, 10]
    assert [step for step, after in due.items() if after.save] == [4, 5, 8, 10]
    assert [step for step, after in due.items() if after.last] == [10]
    assert [step for step, after in due.items() if after.stop] == [5]  # the last step needs no stop


def test_a_workdir_that_vanishes_is_warned_of_and_tried_again(workdir, state, capsys):
    """And nothing is made at its place, which may be an empty mount point."""
    with open_saver(workdir, every_steps=20) as saver:
        saver.save(state[0], Position(20, 0), {})
        saver.is_due(21)  # waits for nothing
        saver.retire(20)  # waits
        away = workdir.rename(workdir.parent / "away")
        tried = []
        for step in range(21, 60):
            if saver.is_due(step):
                tried.append(step)
                saver.save(state[0], Position(step, 0), {})
            if step == 50:
                assert not workdir.exists()
                away.rename(workdir)
    warned = capsys.readouterr().err
    assert tried == [40, 42, 46, 54]  # 2, 4, 8 steps later
    assert warned.count("STEP 40 IS NOT SAVED") == 1 and "has vanished" in warned
    assert "next attempt follows step 46" in warned and "cannot be seen now" in warned
    assert "can be written again: step 54 is saved" in warned
    assert saved_steps(workdir) == [20, 54]


def test_a_disk_that_is_too_small(workdir, state, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with open_saver(workdir) as writer:
        writer.save(state[0], Position(1, 0), {})
    assert re.search("STEP 1 .* 1 bytes left, and the state takes", capsys.readouterr().err)
    assert saved_steps(workdir) == []


def test_a_save_that_fails_in_the_background(workdir, state, capsys):
    """Its step is not counted as saved, no older one is deleted for it, and it is made up for."""
    with open_saver(workdir, keep=1) as saver:
        saver.save(state[0], Position(1, 0), {}, wait=True)
        with full_disk(limit=4_000):
            saver.save(state[0], Position(2, 0), {})
            saver.retire(2)  # waits
        assert "STEP 2 IS NOT SAVED" in capsys.readouterr().err
        assert saved_steps(workdir) == [1]
        saver.save(state[0], Position(3, 0), {}, wait=True)
    assert saved_steps(workdir) == [3]
    restored, metadata = restore_newest(workdir, state[1])
    assert metadata.position.step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, state[0])


def test_the_last_state_is_not_given_up_lightly(workdir, state, monkeypatch):
    waits = []
    monkeypatch.setattr(saver.time, "sleep", waits.append)
    with open_saver(workdir) as writer:
        away = workdir.rename(workdir.parent / "away")
        said = "can no longer be written: saving failed 4 times.*No checkpoint can be seen"
        with pytest.raises(RunError, match=said):
            writer.save(state[0], Position(1, 0), {}, wait=True)
        assert waits == list(saver.WAITS_SECS)
        away.rename(workdir)
        writer.save(state[0], Position(1, 0), {}, wait=True)
    assert saved_steps(workdir) == [1]


def test_what_is_retired_is_deleted_when_it_is_replaced(workdir, state):
    names = lambda: sorted(entry.name for entry in (workdir / "checkpoints").iterdir())
    with open_saver(workdir, keep=4) as saver:
        for step in (1, 2, 3):
            saver.save(state[0], Position(step, 0), {"val/loss": 1.0 / step}, wait=True)
        saver.retire(1)
        assert names() == ["1", "2.aside", "3.aside"]
        saver.save(state[0], Position(2, 1), {}, wait=True)
        assert names() == ["1", "2", "3.aside"]
        assert read_metadata(workdir, 2).position.shuffle == 1
        saver.save(state[0], Position(4, 1), {}, wait=True)
        assert names() == ["1", "2", "4"]


def test_a_run_that_went_back_to_its_start_still_holds_its_workdir(workdir, state):
    config = from_config_dict(make_tiny())
    record_run(workdir, config, None)
    with open_saver(workdir) as saver:
        saver.save(state[0], Position(1, 0), {}, wait=True)
        saver.retire(0)
    check_workdir(workdir, config)
    with pytest.raises(BadInput, match="seed: 0 in the workdir, 5 given"):
        check_workdir(workdir, dataclasses.replace(config, seed=5))


def test_an_old_checkpoint_that_cannot_be_deleted(workdir, state, capsys, monkeypatch):
    """The new one is saved all the same."""
    path_type = type(workdir)
    rmtree = path_type.rmtree

    def fail(path, *args, **kwargs):
        if path.name == "1":
            raise OSError(39, "Directory not empty")
        return rmtree(path, *args, **kwargs)

    monkeypatch.setattr(path_type, "rmtree", fail)
    with open_saver(workdir, keep=1, best=None) as saver:
        for step in (1, 2, 3):
            saver.save(state[0], Position(step, 0), {"val/loss": 1.0 * step}, wait=True)
    warned = capsys.readouterr().err
    assert "step 2 is saved, and an older one cannot be deleted" in warned
    assert "NOT SAVED" not in warned and saved_steps(workdir)[-1] == 3


def test_a_checkpoint_under_another_steps_name(workdir, state, capsys):
    with open_saver(workdir) as saver:
        for step in (1, 2):
            saver.save(state[0], Position(step, 0), {}, wait=True)
    (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "7")
    restored = restore_newest(workdir, state[1])
    assert restored is not None and restored[1].position.step == 1
    assert "it is the checkpoint of step 2" in capsys.readouterr().err


def test_one_that_cannot_be_read_for_a_moment_is_not_damaged(workdir, state, capsys, monkeypatch):
    with open_saver(workdir) as saver:
        saver.save(state[0], Position(1, 0), {}, wait=True)
    read, tried = arrays.read_arrays, []

    def read_at_second_try(*args):
        tried.append(1)
        if len(tried) == 1:
            raise OSError(5, "Input/output error")
        return read(*args)

    monkeypatch.setattr(arrays, "read_arrays", read_at_second_try)
    assert restore_newest(workdir, state[1]) is not None
    assert len(tried) == 2 and capsys.readouterr().err == ""


def make_quick():
    """A run that is compiled in a second or two."""
    cfg = make_tiny()
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    cfg.depth.update(layers=1, share=1, solver="euler")
    return cfg


def break_behind(monkeypatch, step, workdir):
    """Puts a file where the checkpoints are, as soon as a step's is there."""
    folder, put = workdir / "checkpoints", loop.put_batch
    batches = itertools.count()

    def putting(*args):
        if next(batches) == step:
            while not (folder / str(step)).exists():
                time.sleep(0.01)
            folder.rename(workdir / "gone")
            folder.write_text("")
        return put(*args)

    monkeypatch.setattr(loop, "put_batch", putting)  # evaluation has a name of its own for it


def test_a_run_that_cannot_be_saved_at_its_end_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saver, "WAITS_SECS", (0,))
    cfg = make_quick()
    break_behind(monkeypatch, 3, tmp_path / "run")
    with pytest.raises(RunError, match="can no longer be written") as error:
        train(cfg, tmp_path / "run")
    assert "To resume elsewhere, copy config.json" in str(error.value)
    assert "STEP 6 IS NOT SAVED" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "gone").iterdir()] == ["3"]
