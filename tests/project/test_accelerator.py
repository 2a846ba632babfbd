"""The accelerator's benchmarks, rehearsed at tiny sizes; and what stops them."""

import contextlib
import copy
import json
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import handwritten
from benchmarks.accelerator import driver, models, render, rows, study, trainer, truth
from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.sections import SECTIONS
from benchmarks.accelerator.timing import BLOCKS, time_steps
from tests.helpers.checkout import ROOT
from train import __main__ as train_program
from train import command_line
from train.config.study import study_settings
from train.study import __main__ as study_program
from train.study.grid import from_study_dict

LATER = 1e6  # seconds


def make_rows(folder: pathlib.Path, rehearsal: bool = False, secs: float = LATER) -> rows.Rows:
    deadline = time.monotonic() + secs
    return rows.Rows(
        folder=folder,
        section="card",
        card="a card",
        software="jax 1",
        rehearsal=rehearsal,
        deadline=deadline,
    )


def test_rehearse_a_section(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"--out={out}", "--rehearse", "--sections=card", "--budget_secs=300"]
    assert main(arguments) == 0, (out / driver.LOG).read_text()
    lines = rows.read(out)
    assert [line.get("row", line.get("end")) for line in lines] == [
        "software",
        "matmul",
        "copy",
        "complete",
    ]
    assert lines[1]["values"]["tflops_per_sec"] > 0 and lines[1]["rehearsal"]
    assert sorted(path.name for path in out.iterdir()) == [driver.LOG, rows.FILE]

    assert main(arguments) == 0 and rows.read(out) == lines
    assert "card           known already" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([f"--out={out}", "--sections=card"])
    assert end.value.code == 2 and "rows of a rehearsal" in capsys.readouterr().err

    assert main([f"--render={out}"]) == 0
    shown = capsys.readouterr().out
    assert "A rehearsal at tiny sizes" in shown and shown.strip() == render_of(out).strip()


def render_of(out):
    return (out / render.FILE).read_text()


def test_without_an_accelerator(tmp_path, capsys):
    assert main([f"--out={tmp_path}/out", "--sections=card"]) == 2
    assert "--rehearse at tiny sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --out=DIR"),
        (["--out=x", "--sections=cards"], "Did you mean 'card'"),
        (["--out=x"], "trainer, probe, shakespeare, study read prepared sets"),
        (["--out=x", "--data_dir=nowhere"], "is no folder"),
        (["--render=nowhere"], "holds no results.jsonl"),
    ],
)
def test_bad_input(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_row_is_written_once_and_an_error_again(tmp_path):
    first = make_rows(tmp_path)

    def fail(error):
        def function():
            raise error

        return function

    first.measure("good", lambda: {"ms": 1.0})
    first.measure("bad", fail(rows.WrongAnswer("7 is not 8\nat all")))
    first.measure("big", fail(RuntimeError("RESOURCE_EXHAUSTED: 80 GB")))
    first.measure("elsewhere", fail(rows.Unavailable("not on this backend (cpu)")))
    first.measure("missing", fail(ModuleNotFoundError("no", name="torch.nn")))
    assert first.failed == ["bad", "missing"]
    with (tmp_path / rows.FILE).open("a") as file:
        file.write('{"section": "card", "ro')  # a process that was killed

    again = make_rows(tmp_path)
    assert again.values("good") == {"ms": 1.0}
    assert [row for row in ("good", "bad", "big", "elsewhere", "missing") if again.has(row)] == [
        "good",
        "big",
        "elsewhere",
    ]
    again.measure("bad", lambda: {"ms": 2.0})
    lines = rows.newest(rows.read(tmp_path), "card")
    assert lines["bad"]["values"] == {"ms": 2.0}
    assert lines["big"]["outcome"] == "out of memory"
    assert lines["missing"]["error"] == "torch is not installed"
    rehearsal = make_rows(tmp_path, rehearsal=True)
    rehearsal.measure("missing", fail(ModuleNotFoundError("no", name="torch.nn")))
    assert rehearsal.failed == [] and rehearsal.has("missing")


def test_no_row_is_begun_behind_the_deadline(tmp_path):
    late = make_rows(tmp_path, secs=-1)
    late.measure("row", lambda: pytest.fail("begun"))
    assert late.unreached == ["row"] and rows.read(tmp_path) == []


def test_a_section_that_hangs_is_stopped_with_all_its_processes(tmp_path, monkeypatch):
    pid, hangs = tmp_path / "pid", tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {pid}\nwait\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(driver, "START_SECS", 1)
    out = tmp_path / "out"
    assert driver.run(driver.Options(out, ["card", "truth"], 2, None, True)) == 0
    ends = {line["section"]: line["end"] for line in rows.read(out)}
    assert ends == {"card": "stopped at 2 s"}  # and no second section was begun

    started = pathlib.Path("/proc") / pid.read_text().strip() / "cmdline"
    until = time.monotonic() + 10
    while started.exists() and started.read_text():  # a zombie's is empty
        assert time.monotonic() < until, "what the section started still runs"
        time.sleep(0.05)


def test_limits():
    """The calls that the README proposes hold their sections; what one leaves goes to the next."""
    names = list(SECTIONS)
    calls = {570: names[:5], 500: names[5:9], 360: names[9:11], 580: names[11:]}
    assert calls[580] == ["study"]
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for budget, call in calls.items():
        assert budget - 10 <= sum(SECTIONS[name].limit_secs for name in call) <= budget
        command = page[page.index(f"--budget_secs={budget}") :]
        assert f"--sections={','.join(call)}\n" in command[:130]

    card, *rest = calls[570]
    assert driver._limit(card, rest, 565) == SECTIONS[card].limit_secs
    assert driver._limit(rest[0], rest[1:], 560) == 165
    assert driver._limit(rest[-1], [], 50) == 50


def test_time_steps_counts_steps_and_waits():
    calls = []
    timing = time_steps(lambda: calls.append("step"), lambda: calls.append("wait"), secs=1e-9)
    assert calls == ["step"] * 2 + ["wait", "step", "wait"] + ["step", "wait"] * BLOCKS
    assert timing.fastest_ms <= timing.ms <= timing.slowest_ms


@pytest.mark.parametrize("kind", truth.KINDS)
def test_cudnn_attention_has_parameters_to_compare_with(kind):
    """Its own config is bfloat16's alone, and no CPU runs it."""
    config = truth.exact(truth.config(kind, "bfloat16", "cudnn"))
    assert (config.attention, config.dtype) == ("xla", "float32")


@pytest.mark.parametrize("make", [trainer.cifar_flags, trainer.shakespeare_flags])
@pytest.mark.parametrize("tiny", [True, False])
def test_the_trainer_takes_its_flags(make, tiny):
    """A rehearsal tries the tiny ones alone."""
    flags = make("midpoint", tiny, ROOT)
    known = copy.deepcopy(train_program.FLAGS)
    config = command_line.parse_config(["train", *flags], known)
    assert config.model.depth.solver == "midpoint" and config.data.data_dir == str(ROOT)
    assert config.train_steps == (4 if tiny else 186 if make is trainer.cifar_flags else 1000)


def test_the_study_takes_as_many_epochs_as_the_time_allows():
    """By hand: 20 epochs of 93 steps, 6.5 runs of a row, and rows of twice RK4's step: 24,180."""
    assert study.epochs_in(24_180 * 0.01 + 1, step_secs=0.01, start_secs=0) == 20
    assert study.epochs_in(24_180 * 0.01 - 1, step_secs=0.01, start_secs=0) == 10
    assert study.epochs_in(24_180 * 0.01 + 1, step_secs=0.01, start_secs=20) == 5
    assert study.epochs_in(1.0, step_secs=1.0, start_secs=1.0) == 1


@pytest.mark.parametrize("tiny", [True, False])
def test_the_study_takes_its_flags(tiny):
    command = ["train.study", *study.study_command(tiny, 5, ROOT, ROOT / "runs")[3:]]
    file, values = command_line.load_file(command, "study"), copy.deepcopy(study_program.FLAGS)
    command_line.define_file("study", values)
    changes = command_line.parse_changes(command, values, "study", study_settings(file))
    config = from_study_dict(file, changes).rows[0].config
    assert config.data.data_dir == str(ROOT) and config.train_steps == (4 if tiny else 465)


def test_a_part_of_the_study_is_shown(tmp_path):
    line = {"section": "study", "row": study.SO_FAR, "card": "H100", "software": "jax"}
    claims = [["better", "a against b", "+1.0", "at 465 steps so far: yes"]]
    line["values"] = {"runs": 7, "of": 20, "steps": 465, "claims": claims}
    text = render.markdown([{**line, "date": "today"}])
    assert "**Six layers of width 192; 7 of 20 runs, 465 steps**" in text
    assert "| better | a against b | +1.0 | at 465 steps so far: yes |" in text


def test_by_hand_is_the_same_model():
    """The yardstick of the whole model, in float32 and of each layer."""
    for solver, layer in handwritten.LAYERS.items():
        config = models.vit("deit_ti", True, {"solver": solver}, dtype="float32")
        params, (images, _) = models.make_params(config), models.example(config, 2)
        hand, ours = models.forward_by_hand(config, layer), models.forward(config)
        logits, reference = (jax.jit(f)(params, images) for f in (hand, ours))
        np.testing.assert_allclose(logits, reference, rtol=1e-4, atol=1e-6, err_msg=solver)


def test_the_readme_shows_the_tables_as_they_are():
    """The published tables are those of the rows that lie next to them."""
    lines = rows.read(ROOT / "benchmarks" / "results")
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert any("values" in line for line in lines)
    assert page.endswith(render.markdown(lines)), "render benchmarks/results, at the page's end"
    for section in SECTIONS.values():
        assert f"| `{section.name}` | {section.limit_secs} |" in page


def test_every_figure_of_a_row_is_shown(tmp_path):
    """Of a measured pair of rows the ratio is shown; of another card's it is not."""

    def line(row, ms, card="H100"):
        values = {"ms": ms, "memory_gb": 2.0, "examples_per_sec": 1000.0}
        base = {"section": "overhead", "row": row, "card": card, "software": "jax", "date": "today"}
        return {**base, "values": values}

    lines = [line("deit_ti, euler, by hand", 10.0), line("deit_ti, euler", 10.5)]
    assert "| DeiT-Ti | parallel (`euler`) | 10.0 | 10.5 | 1.05 | 1.00 | 1,000 | 2.0 |" in (
        render.markdown(lines)
    )
    lines[0]["card"] = "H200"
    assert "on two cards" in render.markdown(lines)


@pytest.mark.slow
def test_a_polite_kill_leaves_no_section_behind(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--out={out}", "--rehearse"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not _processes(out, "benchmarks.accelerator.child"):
        assert program.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    program.terminate()
    program.wait(60)
    assert _processes(out, "benchmarks.accelerator.child") == []


def _processes(out, module):
    """The command lines of the processes that run a module with that --out."""
    lines = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines.append(path.read_bytes().decode(errors="replace").split("\0"))
    return [line for line in lines if module in line and f"--out={out}" in line]


@pytest.mark.slow
def test_rehearse_all_sections(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--out={out}", "--rehearse"]
    done = subprocess.run(
        [*command, "--budget_secs=3000"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr + (out / driver.LOG).read_text()[-5000:]
    lines = rows.read(out)
    assert all(rows.is_complete(lines, name) for name in SECTIONS)
    assert "error" not in json.dumps(lines)
    for name in (
        "card",
        "truth",
        "overhead",
        "utilisation",
        "decoding",
        "trainer",
        "probe",
        "study",
    ):
        assert any("values" in line for line in rows.newest(lines, name).values()), name
    render.markdown(lines)
