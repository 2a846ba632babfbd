"""What the program says of a run's folder: sound, damaged, unfinished; configs and parameters."""

import dataclasses
import json
import os
import re
import shutil

import jax
import pytest
from etils import epath

from tests.helpers.programs import start
from tests.helpers.tiny import make_tiny
from train import command_line, inspect
from train.checkpoint import listing
from train.checkpoint.metadata import Damaged, read_metadata
from train.checkpoint.parameters import count_parameters
from train.checkpoint.saver import Saver
from train.checkpoint.weights import load_model
from train.checkpoint.workdir import locked, read_config, record_run, saved_steps
from train.config.border import from_config_dict
from train.data.pipeline import Position
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import init_state

METRICS = {2: 2.25, 4: 1.25, 6: 3.25}  # the losses of the validation split


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run as the trainer leaves it, with checkpoints of steps 2, 4 and 6: saved, not trained."""
    cfg = make_tiny()
    cfg.checkpoint.update(every_steps=2, keep=3)
    config, path = from_config_dict(cfg), epath.Path(tmp_path_factory.mktemp("inspect") / "run")
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    state = init_state(config, optimizer, device_mesh(config.mesh))
    record_run(path, config, None)
    with Saver(path, config, 1000) as saver:
        for step, loss in METRICS.items():
            saver.save(state, Position(step, 0), {"val/loss": loss, "val/accuracy": 0.5}, wait=True)
    return path


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it, to spoil."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def look(monkeypatch, capsys):
    """Runs the program; returns its exit code and what it said on standard output and error."""
    monkeypatch.setattr(listing, "WAIT_SECS", 0)
    capsys.readouterr()

    def look(*arguments):
        program = lambda argv: start(monkeypatch, inspect, *argv[1:])
        code = command_line.run(program, ["", *map(str, arguments)], inspect.FLAGS, "")
        said = capsys.readouterr()
        return code, said.out, said.err

    return look


def rows(out):
    """The table's rows, by step: {'6': ['6', date, MB, state, ...]}."""
    cells = [re.split(r"\s*[│]\s*", line)[1:-1] for line in out.splitlines() if "│" in line]
    return {row[0]: row for row in cells}


def rewrite_metadata(run, step, **changes):
    """Replaces parts of the metadata, as if it had been saved like that."""
    metadata = dataclasses.replace(read_metadata(run, step), **changes)
    path = run / "checkpoints" / str(step) / "record" / "record.json"
    path.write_text(json.dumps(metadata.to_json()))


def flip_bytes(run, step):
    """Flips every 50th byte of the files that hold arrays; one alone may stand where none is."""
    for path in (run / "checkpoints" / str(step) / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        for place in range(25, len(content), 50):
            content[place] ^= 1
        path.write_bytes(content)


def state_of(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_sound_run_that_another_process_trains(run, look):
    with locked(epath.Path(run)):
        before = state_of(run)
        code, out, err = look(run)
        assert state_of(run) == before
    assert (code, err) == (0, "")
    assert f"{run}: images (digits), seed 0, saved at step 6 of 6, 2,762 parameters" in out
    assert "solver rk4" in out and "was saved with" not in out
    table = rows(out)
    assert list(table) == ["2", "4", "6"]
    for step, row in table.items():
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d", row[1])
        size = sum(p.stat().st_size for p in (run / "checkpoints" / step).rglob("*") if p.is_file())
        assert row[2:4] == [f"{size / 1e6:.2f}", "sound"]
        assert row[4] == f"loss {METRICS[int(step)]:.4f}  accuracy 50.0%"
        assert ("newest" in row[5]) == (step == "6")


def test_no_accelerator_is_taken_from_the_trainer(run, look):
    was = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cuda,cpu")
    try:
        look(run, "--params")
        assert jax.config.jax_platforms == "cpu"
    finally:
        jax.config.update("jax_platforms", was)


def test_a_damaged_newest(run, look):
    flip_bytes(run, 6)
    code, out, err = look(run)
    assert code == 1
    assert [row[3] for row in rows(out).values()] == ["sound", "sound", "damaged"]
    assert re.search(r"^6 is damaged: .*(array|params|opt_state|ema)", out, re.MULTILINE)
    assert "step 6, is damaged: the newest sound one is of step 4" in err


def test_a_missing_record_of_an_older_one(run, look):
    shutil.rmtree(run / "checkpoints" / "4" / "record")
    code, out, err = look(run)
    assert (code, err) == (0, "")
    assert [row[3] for row in rows(out).values()] == ["sound", "damaged", "sound"]
    assert "4 is damaged: its record.json is missing" in out


def test_none_that_is_sound(run, look):
    for step in saved_steps(run):
        flip_bytes(run, step)
    code, _, err = look(run)
    assert code == 1 and "step 6, is damaged: none is sound" in err


def test_another_config(run, look):
    cfg = json.loads((run / "config.json").read_text())
    cfg["model"]["mlp"] = 64
    (run / "config.json").write_text(json.dumps(cfg))
    code, out, err = look(run)
    assert [row[3] for row in rows(out).values()] == ["unfit"] * 3
    assert "is float32 [1, 32, 16] in the checkpoint and float32 [1, 64, 16] in the model" in out
    assert code == 2 and "model.mlp: 32 in checkpoint 6, 64 in config.json" in err


def test_a_state_of_another_form(run, look):
    leaves = read_metadata(run, 6).leaves
    rewrite_metadata(run, 6, leaves={name: leaf for name, leaf in leaves.items() if name != "step"})
    code, out, err = look(run)
    assert code == 1 and rows(out)["6"][3] == "unfit"
    assert "step 6, is unfit: the newest sound one is of step 4" in err


def test_what_is_unfinished_and_what_was_retired(run, look):
    with Saver(epath.Path(run), read_config(run), 1) as saver:
        saver.retire(4)
    shutil.copytree(
        run / "checkpoints" / "2" / "state", run / "checkpoints" / "9.orbax-checkpoint-tmp"
    )
    code, out, err = look(run)
    assert (code, err) == (0, "")
    table = rows(out)
    assert [row[3] for row in table.values()] == ["sound", "sound", "retired", "unfinished"]
    assert "newest" in table["4"][5] and table["9"][1:2] == [""] and float(table["9"][2]) > 0.05
    assert "6.aside is retired: " in out and "9.orbax-checkpoint-tmp is unfinished: " in out
    assert "saved at step 4 of 6" in out


def test_the_best_is_marked_and_is_sound(run, look):
    assert [row[5] for row in rows(look(run)[1]).values()] == ["", "best", "newest"]
    flip_bytes(run, 4)
    assert [row[5] for row in rows(look(run)[1]).values()] == ["best", "", "newest"]


def test_the_order_and_the_versions_where_they_tell_something(run, look):
    rewrite_metadata(run, 4, position=Position(4, 3))
    versions = read_metadata(run, 6).versions
    rewrite_metadata(run, 6, versions=versions | {"jax": "0.0.1", "no-such-package": "2.0"})
    _, out, _ = look(run)
    assert [row[4] for row in rows(out).values()] == ["", "3", ""]
    assert "step 6 was saved with jax 0.0.1, now " in out
    assert out.count(", now ") == 2 and "no-such-package 2.0, now absent" in out


def test_checkpoints_that_vanish_or_come_meanwhile(run, look, monkeypatch):
    read = listing.restore_step
    folder = run / "checkpoints"
    shutil.move(folder / "6", folder / "later")

    def restore(workdir, step, target):
        if (folder / "later").exists():  # the trainer saves the next one, and deletes these
            os.rename(folder / "later", folder / "6")
            shutil.rmtree(folder / "2")
            shutil.rmtree(folder / "4")
        return read(workdir, step, target)

    monkeypatch.setattr(listing, "restore_step", restore)
    code, out, _ = look(run)
    assert code == 0 and list(rows(out)) == ["6"] and rows(out)["6"][3] == "sound"


def test_what_is_damaged_at_one_glance_only(run, look, monkeypatch):
    read, glances = listing.restore_step, []

    def restore(workdir, step, target):
        glances.append(step)
        if glances.count(step) == 1:
            raise Damaged("it was being replaced")
        return read(workdir, step, target)

    monkeypatch.setattr(listing, "restore_step", restore)
    assert look(run)[0] == 0 and glances == [6, 6, 4, 4, 2, 2]


def test_configs_are_compared(run, saved, tmp_path, look):
    assert look(run, f"--compare={saved}")[1].endswith("have the same config\n")
    other = tmp_path / "other"
    other.mkdir()
    cfg = json.loads((run / "config.json").read_text())
    cfg["depth"]["solver"] = "euler"
    del cfg["guard"]["sigmas"]  # None is its default
    (other / "config.json").write_text(json.dumps(cfg))
    code, out, _ = look(run, f"--compare={other}")
    assert code == 0
    assert list(rows(out).values()) == [
        ["depth.solver", "'rk4'", "'euler'"],
    ]
    _, out, _ = look("--compare=configs/digits.py", run)
    assert rows(out)["train_steps"] == ["train_steps", "6", "1800"]
    assert "depth.solver" not in rows(out)
    _, out, _ = look("--compare=configs/pydocs.py", run)  # of another task, with other keys
    assert rows(out)["model.tied"] == ["model.tied", "absent", "True"]


def test_parameters_are_those_of_the_model(run, look):
    model = load_model(run)[1]["params"]
    shutil.rmtree(run / "checkpoints")
    code, out, _ = look(run, "--params")
    assert code == 0
    table = rows(out)
    number = lambda cell: int(cell.replace(",", ""))
    count = count_parameters(model)
    assert [number(cell) for cell in table["all"][3:5]] == [count, 4 * count]
    leaves = [row for row in table.values() if row[2] == "float32"]
    assert len(leaves) == len(jax.tree.leaves(model)) - 1  # 'positions' is a module's name, too
    for name, part in model.items():
        assert number(table[name][3]) == count_parameters(part)
    kernel = table["depth/groups/mlp_layer/up/kernel"]
    assert kernel[1:] == ["1 x 16 x 32", "float32", "512", "2,048", "- width mlp"]


def test_parameters_of_a_config(look):
    code, out, _ = look("--params", "--config=configs/digits.py", "--config.model.mlp=64")
    assert code == 0 and rows(out)["depth/groups/mlp_layer/up/bias"][1] == "1 x 64"


def test_no_checkpoint_yet(run, look):
    shutil.rmtree(run / "checkpoints")
    code, out, err = look(f"--workdir={run}")
    assert code == 1 and "saved at step 0 of 6" in out and "holds no checkpoint yet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run"], "no-such-run holds no run"),
        ([], "give the folder of one run, e.g. runs/digits; 0 were given"),
        (["a", "--workdir=b"], "2 were given"),
        (["a", "--parms"], "unknown flag '--parms'.*Did you mean '--params'"),
        (["--config=configs/digits.py"], "--config goes with --params alone"),
        (["LICENSE"], "LICENSE"),
    ],
)
def test_bad_input(look, arguments, message):
    code, _, err = look(*arguments)
    assert code == 2 and re.search(message, err)


def test_what_the_comparison_is_with(run, look):
    code, _, err = look(run, "--compare=configs/digit.py")
    assert code == 2 and "--compare: configs/digit.py is not a file" in err
    assert look(run, "--compare=no-such-run")[0] == 2


def test_a_folder_that_cannot_be_read(run, look, monkeypatch):
    monkeypatch.setattr(listing, "saved_steps", lambda _: fail(PermissionError(13, "denied")))
    code, _, err = look(run)
    assert code == 2 and "the run cannot be read: [Errno 13] denied" in err
    monkeypatch.setattr(inspect, "read_config", lambda _: fail(ImportError("gcsfs")))
    code, _, err = look("gs://bucket/run")
    assert code == 2 and "pip install 'etils[epath-gcs]'" in err


def fail(error):
    raise error
