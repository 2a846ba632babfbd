"""Saving while a run trains: what is kept, and what follows when the workdir takes nothing."""

import itertools
import re
import shutil
import time

import jax
import ml_collections
import numpy as np
import pytest
from conftest import full_disk, make_tiny, timeless
from etils import epath

from train import loop
from train.checkpoint import restore, saver
from train.checkpoint.metadata import read_record
from train.checkpoint.restore import restore_newest
from train.checkpoint.saver import CannotSave, Saver, best_step
from train.checkpoint.workdir import check_workdir, find_spare, read_config, record_run, saved_steps
from train.config.run import CheckpointConfig, from_config_dict
from train.data.pipeline import Position
from train.devices.mesh import device_mesh
from train.errors import BadInput, RunError, Stopped
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_optimizer
from train.state import abstract_state, init_state


@pytest.fixture(scope="module")
def state():
    """A state to save, and its abstract form."""
    config = from_config_dict(make_tiny())
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    return init_state(config, optimizer, mesh), abstract_state(config, optimizer, mesh)


def open_saver(workdir, every_steps=1, keep=2, best="val/loss", spare_dir=None, train_steps=100):
    config = CheckpointConfig(every_steps, keep, best, spare_dir)
    return Saver(workdir, config, {"seed": 3}, examples=7, train_steps=train_steps)


def test_the_newest_and_the_best_are_kept(workdir, state):
    losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: None, 5: 0.3, 6: float("nan")}
    kept = {}
    with open_saver(workdir) as saver:
        for step, loss in losses.items():
            scores = {} if loss is None else {"val/loss": loss}
            saver.finish(state[0], Position(step, 0), scores)
            kept[step] = saved_steps(workdir)
    assert kept == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [2, 5, 6]}
    with open_saver(workdir, best="val/accuracy") as saver:  # of which no checkpoint knows
        saver.finish(state[0], Position(7, 0), {"val/loss": 0.1})
    assert saved_steps(workdir) == [6, 7]


def test_the_workdir_is_not_blamed_for_what_is_none_of_its(workdir, state, monkeypatch):
    def fail(*_):
        raise AttributeError("no mesh")

    with open_saver(workdir) as opened:
        monkeypatch.setattr(saver, "make_record", fail)
        with pytest.raises(AttributeError, match="no mesh"):
            opened.finish(state[0], Position(1, 0), {})
    assert saved_steps(workdir) == []


def test_the_best_is_known_to_a_later_start(workdir, state):
    with open_saver(workdir) as saver:
        saver.finish(state[0], Position(1, 0), {"val/loss": 0.2})
    with open_saver(workdir) as saver:
        for step in (2, 3, 4):
            saver.finish(state[0], Position(step, 0), {"val/loss": 0.3})
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


def test_what_a_record_says(workdir, state):
    with open_saver(workdir) as saver:
        saver.finish(state[0], Position(5, 2), {"val/loss": 0.25})
    record = read_record(workdir, 5)
    assert (record.position, record.examples) == (Position(5, 2), 7)
    assert (record.config, record.metrics) == ({"seed": 3}, {"val/loss": 0.25})
    assert record.versions["jax"] == jax.__version__ and "orbax-checkpoint" in record.versions
    assert {leaf.dtype for leaf in record.leaves.values()} == {"float32", "int32"}


def test_when_a_save_is_due(workdir):
    with open_saver(workdir, every_steps=4, train_steps=10) as saver:
        assert [step for step in range(1, 11) if saver.is_due(step)] == [4, 8, 10]


def test_a_workdir_that_vanishes_is_warned_of_and_tried_again(workdir, state, capsys):
    """And nothing is made at its place, which may be an empty mount point."""
    with open_saver(workdir, every_steps=20) as saver:
        saver.save(state[0], Position(20, 0), {})
        saver.is_due(21)  # waits for nothing
        saver.set_aside(20)  # waits
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
    assert "next attempt is made behind step 46" in warned and "cannot be seen now" in warned
    assert "takes checkpoints again: step 54 is saved" in warned
    assert saved_steps(workdir) == [20, 54]


def test_a_disk_that_is_too_small(workdir, state, capsys, monkeypatch):
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with open_saver(workdir) as writer:
        writer.save(state[0], Position(1, 0), {})
    assert re.search("STEP 1 .* 1 bytes left, and the state takes", capsys.readouterr().err)
    assert saved_steps(workdir) == []


def test_a_save_that_fails_in_the_background(workdir, state, capsys):
    """Its step is not counted as saved, no older one is deleted for it, and it is made up for."""
    with open_saver(workdir, keep=1) as saver:
        saver.finish(state[0], Position(1, 0), {})
        with full_disk(limit=4_000):
            saver.save(state[0], Position(2, 0), {})
            saver.set_aside(2)  # waits
        assert "STEP 2 IS NOT SAVED" in capsys.readouterr().err
        assert saved_steps(workdir) == [1]
        saver.finish(state[0], Position(3, 0), {})
    assert saved_steps(workdir) == [3]
    restored, record = restore_newest(workdir, state[1])
    assert record.position.step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, state[0])


def test_the_last_state_is_not_given_up_lightly(workdir, state, monkeypatch):
    waits = []
    monkeypatch.setattr(saver.time, "sleep", waits.append)
    with open_saver(workdir) as writer:
        away = workdir.rename(workdir.parent / "away")
        with pytest.raises(
            CannotSave, match="takes no checkpoints.*4 attempts.*no checkpoint to be seen"
        ):
            writer.finish(state[0], Position(1, 0), {})
        assert waits == list(saver.WAITS_SECS)
        away.rename(workdir)
        writer.finish(state[0], Position(1, 0), {})
    assert saved_steps(workdir) == [1]


def test_what_is_set_aside_is_deleted_when_it_is_replaced(workdir, state):
    names = lambda: sorted(entry.name for entry in (workdir / "checkpoints").iterdir())
    with open_saver(workdir, keep=4) as saver:
        for step in (1, 2, 3):
            saver.finish(state[0], Position(step, 0), {"val/loss": 1.0 / step})
        saver.set_aside(1)
        assert names() == ["1", "2.aside", "3.aside"]
        saver.finish(state[0], Position(2, 1), {})
        assert names() == ["1", "2", "3.aside"]
        assert read_record(workdir, 2).position.order == 1
        saver.finish(state[0], Position(4, 1), {})
        assert names() == ["1", "2", "4"]


def test_a_run_that_went_back_to_its_start_still_holds_its_workdir(workdir, state):
    cfg = make_tiny()
    record_run(workdir, cfg, None)
    with open_saver(workdir) as saver:
        saver.finish(state[0], Position(1, 0), {})
        saver.set_aside(0)
    check_workdir(workdir, cfg)
    cfg.seed = 5
    with pytest.raises(BadInput, match="seed: 0 in the workdir, 5 given"):
        check_workdir(workdir, cfg)


def test_an_old_checkpoint_that_cannot_be_deleted(workdir, state, capsys, monkeypatch):
    """The new one is saved all the same."""
    path_type = type(workdir)
    rmtree = path_type.rmtree

    def fail(path, *args, **kwargs):
        if path.name == "1":
            raise OSError(39, "Directory not empty")
        return rmtree(path, *args, **kwargs)

    monkeypatch.setattr(path_type, "rmtree", fail)
    with open_saver(workdir, keep=1, best="none") as saver:
        for step in (1, 2, 3):
            saver.finish(state[0], Position(step, 0), {"val/loss": 1.0 * step})
    warned = capsys.readouterr().err
    assert "step 2 is saved, and an older one cannot be deleted" in warned
    assert "NOT SAVED" not in warned and saved_steps(workdir)[-1] == 3


def test_a_checkpoint_under_another_steps_name(workdir, state, capsys):
    with open_saver(workdir) as saver:
        for step in (1, 2):
            saver.finish(state[0], Position(step, 0), {})
    (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "7")
    restored = restore_newest(workdir, state[1])
    assert restored is not None and restored[1].position.step == 1
    assert "it is the checkpoint of step 2" in capsys.readouterr().err


def test_one_that_cannot_be_read_for_a_moment_is_not_damaged(workdir, state, capsys, monkeypatch):
    with open_saver(workdir) as saver:
        saver.finish(state[0], Position(1, 0), {})
    read, tried = restore.read_arrays, []

    def read_at_second_try(*args):
        tried.append(1)
        if len(tried) == 1:
            raise OSError(5, "Input/output error")
        return read(*args)

    monkeypatch.setattr(restore, "read_arrays", read_at_second_try)
    assert restore_newest(workdir, state[1]) is not None
    assert len(tried) == 2 and capsys.readouterr().err == ""


def test_the_spare_folder_of_a_run(workdir, state, tmp_path):
    cfg, spare = make_tiny(), epath.Path(tmp_path) / "spare"
    assert find_spare(workdir, cfg, None) is None
    assert find_spare(workdir, cfg, f"{workdir}/../run") is None  # it has moved there
    assert find_spare(workdir, cfg, str(spare)) == spare and not spare.exists()
    for path in (workdir, spare):
        record_run(path, cfg, None)
        with open_saver(path) as saver:
            saver.finish(state[0], Position(3, 0), {})
    assert find_spare(workdir, cfg, str(spare)) == spare
    with open_saver(spare) as saver:
        saver.finish(state[0], Position(4, 0), {})
    with pytest.raises(BadInput, match="went on in its spare folder, to step 4: give --workdir"):
        find_spare(workdir, cfg, str(spare))


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


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_moves_to_its_spare_folder(tmp_path, monkeypatch, capsys, goes_on):
    cfg = make_quick()
    cfg.checkpoint.update(every_steps=1, spare_dir=str(tmp_path / "spare"))
    with monkeypatch.context() as patch:
        break_behind(patch, 2, tmp_path / "run")
        with pytest.raises(Stopped, match="go on with --workdir=.*spare"):
            train(cfg, tmp_path / "run")
    assert capsys.readouterr().err.count("IS NOT SAVED") == saver.ATTEMPTS
    assert saved_steps(tmp_path / "spare") == [2 + saver.ATTEMPTS]
    assert [line["step"] for line in read_metrics(tmp_path / "spare")] == [1, 2, 3, 3, 4, 5]
    if not goes_on:
        return
    assert train(cfg, tmp_path / "spare") == train(cfg, tmp_path / "whole")
    lines = [read_metrics(tmp_path / name) for name in ("whole", "spare")]
    assert list(map(timeless, lines[0])) == list(map(timeless, lines[1]))


def test_a_spare_folder_that_is_refused_at_the_start(tmp_path, state):
    cfg = make_tiny()
    spare = epath.Path(tmp_path) / "spare"
    other = ml_collections.ConfigDict(cfg.to_dict())
    other.seed = 5
    record_run(spare, other, None)
    with open_saver(spare) as saver:
        saver.finish(state[0], Position(1, 0), {})
    cfg.checkpoint.spare_dir = str(spare)
    with pytest.raises(BadInput, match="seed: 5 in the workdir, 0 given"):
        train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert read_config(spare).seed == 5 and saved_steps(spare) == [1]


def test_a_run_that_cannot_be_saved_at_its_end_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saver, "WAITS_SECS", (0,))
    cfg = make_quick()
    break_behind(monkeypatch, 3, tmp_path / "run")
    with pytest.raises(RunError, match="takes no checkpoints"):
        train(cfg, tmp_path / "run")
    assert "STEP 6 IS NOT SAVED" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "gone").iterdir()] == ["3"]
