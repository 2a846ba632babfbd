"""Damage to checkpoints: every kind is detected, told of, and survived."""

import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import traceback

import jax
import numpy as np
import pytest

from tests.helpers.damage import contents, cut, cuts, damage, flip, flips, kinds
from tests.helpers.processes import finish, launch_both, restored
from tests.helpers.programs import timeless
from tests.helpers.tiny import make_tiny
from train.checkpoint.checks import check_origin
from train.checkpoint.metadata import make_metadata, read_metadata, tokenizer_digest
from train.checkpoint.restore import evaluation_config, restore_newest, verified_config
from train.checkpoint.saver import Saver
from train.checkpoint.workdir import check_workdir, saved_steps
from train.config.border import from_config_dict
from train.config.stored import resume_conflicts, to_json
from train.data.pipeline import Position
from train.data.text.tokenizer import ByteTokenizer
from train.devices.mesh import device_mesh
from train.errors import BadInput
from train.logs.metrics import read_metrics, read_scores
from train.loop import train
from train.optimizer import make_optimizer
from train.state import abstract_state

STEPS = [2, 4, 6]
START_SECS, EACH_SECS = 120, 30  # that a worker may take


def make_cfg():
    """The config of a run with checkpoints of STEPS, which is compiled in a second or two."""
    cfg = make_tiny()
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0, flip=True)
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.checkpoint.update(every_steps=2, keep=3)
    cfg.eval.every_steps = 6
    return cfg


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints of STEPS, and what was saved: {step: {leaf's name: values}}."""
    saved = {}

    def spying(state, position, **rest):
        saved[position.step] = values(state)
        return make_metadata(state, position, **rest)

    workdir = tmp_path_factory.mktemp("damage") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.checkpoint.saver.make_metadata", spying)
        train(make_cfg(), workdir)
    assert saved_steps(workdir) == sorted(saved) == STEPS
    return workdir, saved


def values(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def same(a, b):
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(
        (a[name].dtype, a[name].shape, a[name].tobytes())
        == (b[name].dtype, b[name].shape, b[name].tobytes())
        for name in a
    )


@functools.cache
def make_target():
    config = from_config_dict(make_cfg())
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    return abstract_state(config, optimizer, device_mesh(config.mesh))


def probe(workdir, saved, scratch, case, goes_on):
    """Returns the step that is restored where the newest checkpoint has a damage.

    What must hold of that is asserted; also, if so asked, that the step is saved again after it.
    """
    newest, copy = STEPS[-1], pathlib.Path(scratch) / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(workdir, copy)
    damaged = copy / "checkpoints" / str(newest)
    damage(damaged, *case)
    before = contents(copy)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        found = restore_newest(copy, make_target())
    assert contents(copy) == before
    assert found is not None
    state, metadata = found
    step, lines = metadata.position.step, told.getvalue().splitlines()
    assert same(values(state), saved[step])
    assert metadata == read_metadata(workdir, step)
    if step == newest:
        assert lines == []
    else:
        assert step == STEPS[-2]
        assert len(lines) == 1 and lines[0].startswith(f"warning: {damaged} is damaged"), lines
    if goes_on:
        config = from_config_dict(make_cfg(), {"train_steps": newest})
        with Saver(copy, config, metadata.examples) as saver:
            saver.retire(step)
            if step != newest:
                saver.save(state, Position(newest, 0), {}, wait=True)
        assert sorted(os.listdir(copy / "checkpoints")) == [str(step) for step in STEPS]
    return step


@pytest.mark.parametrize("before, step", [(None, 6), (7, 6), (6, 4), (5, 4), (4, 2), (2, 6)])
def test_checkpoints_before_a_step_are_preferred(run, before, step):
    """That step's own is not one of them: it may hold what is to be undone."""
    found = restore_newest(run[0], make_target(), before)
    assert found is not None and found[1].position.step == step


def work(connection, *given):
    """Probes each case that comes, and sends back the step, or the error's text."""
    connection.send("ready")
    while (case := connection.recv()) is not None:
        try:
            connection.send(probe(*given, case, goes_on=True))
        except BaseException:
            connection.send(traceback.format_exc())


def probe_apart(workdir, saved, cases, scratch):
    """Returns the step of `probe` for each case.

    A process of its own does it, so that a crash of the interpreter and a hang tell their case.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs, workdir, saved, scratch))
    worker.start()
    theirs.close()
    steps, case = [], "its start"
    try:
        assert ours.poll(START_SECS) and ours.recv() == "ready"
        for case in cases:
            ours.send(case)
            assert ours.poll(EACH_SECS), f"hangs: {case}"
            step = ours.recv()
            assert isinstance(step, int), f"{case}: {step}"
            steps.append(step)
        ours.send(None)
    except EOFError:
        worker.join(EACH_SECS)
        pytest.fail(f"the interpreter crashed ({worker.exitcode}) at {case}")
    finally:
        worker.kill()
        worker.join()
    return steps


def test_a_damage_of_each_kind(run, tmp_path):
    workdir, saved = run
    folder, rng = workdir / "checkpoints/6", np.random.default_rng(0)
    by_kind = kinds(folder)
    assert {"record/record.json", "state/_METADATA", "state/manifest.ocdbt"} <= set(by_kind)
    steps = {
        name: probe(workdir, saved, tmp_path, flip(folder, name, rng), goes_on=False)
        for name in by_kind
    }
    assert steps["record/record.json"] == 4  # no byte of it is without effect
    for case in (
        cut(folder, "record/record.json", rng),
        ("cut", "state/manifest.ocdbt", 0),
        ("cut", "state/_METADATA", 0),
        ("delete", "record"),
        ("delete", "state/d"),
        ("empty", ""),
    ):
        assert probe(workdir, saved, tmp_path, case, goes_on=False) == 4, case


@pytest.mark.slow
def test_200_bytes_flipped(run, tmp_path):
    workdir, saved = run
    cases = flips(workdir / "checkpoints/6", 200, seed=1)
    steps = probe_apart(workdir, saved, cases, tmp_path)
    assert {4, 6} == set(steps)


@pytest.mark.slow
def test_files_cut_off_and_deleted(run, tmp_path):
    workdir, saved = run
    cases = cuts(workdir / "checkpoints/6", np.random.default_rng(2))
    assert len(cases) >= 50
    assert {4, 6} == set(probe_apart(workdir, saved, cases, tmp_path))


def test_everything_damaged_is_refused_and_left(run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    damage(folder / "2", "flip", "record/record.json", 100, 1)
    damage(folder / "4", "empty", "")
    damage(folder / "6", "delete", "state")
    shutil.copytree(folder / "2/state", folder / "6/state")  # sound, and another step's
    before = contents(tmp_path)
    reasons = r"\n  6: .* arrays are not what was saved.*\n  4: .*\n  2: .*\nPut"
    with pytest.raises(BadInput, match=reasons):
        restore_newest(tmp_path, make_target())
    told = capsys.readouterr().err.splitlines()
    assert [re.search(r"checkpoints/(\d) is damaged", line)[1] for line in told] == ["6", "4", "2"]
    with pytest.raises(BadInput, match="no sound checkpoint"):
        train(make_cfg(), tmp_path)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {"lock"}


def test_a_run_goes_on_behind_a_damage(run, tmp_path, capsys):
    """It ends as if nothing had been."""
    workdir, saved = run
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints/6"
    damage(newest, "flip", "record/record.json", 1000, 1)
    train(make_cfg(), tmp_path)
    told = capsys.readouterr()
    assert f"warning: {newest} is damaged and not used" in told.err
    assert "resumed at step 4" in told.out
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "4", "6"]
    state, metadata = restore_newest(tmp_path, make_target())
    assert same(values(state), saved[6])
    assert metadata == read_metadata(workdir, 6)
    lines, whole = (list(map(timeless, read_metrics(path))) for path in (tmp_path, workdir))
    assert lines == whole
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert same(read_scores(tmp_path), read_scores(workdir))


def beside(run, tmp_path, name):
    """A copy of a run, and 60 of its files of a name with a byte flipped, one after the other."""
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(3)
    for place in map(int, rng.integers(len(whole), size=60)):
        mask = 1 if place % 2 else int(rng.integers(1, 256))  # 1 leaves a digit one, mostly
        (tmp_path / name).write_bytes(whole)
        damage(tmp_path, "flip", name, place, mask)
        yield place
    (tmp_path / name).write_bytes(whole)


def test_a_config_json_that_is_not_the_runs(run, tmp_path):
    """It is refused in words, or says nothing that matters."""
    refused, config, other = 0, from_config_dict(make_cfg()), make_cfg()
    for _ in beside(run, tmp_path, "config.json"):
        try:
            found = verified_config(tmp_path)
        except BadInput:
            refused += 1
            with pytest.raises(BadInput):
                check_workdir(tmp_path, config)
        else:
            assert resume_conflicts(found, config) == []
            evaluation_config(tmp_path, {})
    assert refused > 20
    kept = from_config_dict(make_cfg(), {"checkpoint.keep": 9, "log.every_steps": 2})
    (tmp_path / "config.json").write_text(to_json(kept))
    assert verified_config(tmp_path) == kept  # these may be changed
    other.depth.solver, other.eval.batch_size = "rk38", 64
    (tmp_path / "config.json").write_text(to_json(from_config_dict(other)))
    told = r"is not what .*\n  depth.solver: 'euler' in checkpoint 6, 'rk38' in config.json\nPut"
    for refuse in (
        lambda: evaluation_config(tmp_path, {}),
        lambda: check_origin(read_metadata(tmp_path, 6), tmp_path, 1257),
        lambda: train(other, tmp_path),  # both say the same; the checkpoint does not
    ):
        with pytest.raises(BadInput, match=told):
            refuse()
    shutil.rmtree(tmp_path / "checkpoints/6")  # an older one says so, too
    with pytest.raises(BadInput, match="depth.solver: 'euler' in checkpoint 4"):
        verified_config(tmp_path)


def test_a_tokenizer_that_is_not_the_runs(run, tmp_path):
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    tokenizer = tmp_path / "tokenizer.json"
    assert tokenizer_digest(tmp_path) is None
    tokenizer.write_text(ByteTokenizer().to_json())
    metadata = read_metadata(tmp_path, 6)
    metadata = dataclasses.replace(metadata, tokenizer=tokenizer_digest(tmp_path))
    path = tmp_path / "checkpoints/6/record/record.json"
    path.write_text(json.dumps(metadata.to_json()))
    verified_config(tmp_path)
    damage(tmp_path, "flip", "tokenizer.json", 5, 1)
    told = f"tokenizer.json is not what .*SHA-256 is {metadata.tokenizer}"
    with pytest.raises(BadInput, match=told):
        verified_config(tmp_path)
    with pytest.raises(BadInput, match=told):
        check_origin(metadata, tmp_path, metadata.examples)
    older = dataclasses.replace(metadata, versions=metadata.versions | {"tokenizers": "0.1"})
    check_origin(older, tmp_path, metadata.examples)  # which may have written it in another way


def test_metrics_that_are_damaged(run, tmp_path):
    whole, refused = read_metrics(run[0]), 0
    for place in beside(run, tmp_path, "metrics.jsonl"):
        try:
            found = read_metrics(tmp_path)
        except BadInput as error:
            line = (run[0] / "metrics.jsonl").read_bytes()[:place].count(b"\n") + 1
            assert re.match(f"line {line} of .*metrics.jsonl is damaged", str(error))
            refused += 1
        else:  # a value, or a name
            assert len(found) in (len(whole), len(whole) - 1)
    assert refused > 10


@pytest.mark.slow
def test_a_file_that_one_of_two_processes_reads(tmp_path):
    """Both go back, whichever of them finds it missing."""
    flags = ["--config.mesh.fsdp=8", "--config.checkpoint.every_steps=1"]
    flags += ["--config.checkpoint.keep=3", "--config.model.width=64"]
    for code, _, err in map(finish, launch_both(tmp_path / "run", *flags)):
        assert code == 0, err
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    shutil.rmtree(tmp_path / "older/checkpoints/3")
    older = restored(tmp_path, tmp_path / "older", both=False)
    for process in (0, 1):
        copy = tmp_path / f"without {process}"
        shutil.copytree(tmp_path / "run", copy)
        data = copy / f"checkpoints/3/state/ocdbt.process_{process}/d"
        max(data.iterdir(), key=lambda path: path.stat().st_size).unlink()
        assert same(restored(tmp_path, copy, both=True), older)
