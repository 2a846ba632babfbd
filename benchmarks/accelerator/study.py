"""Section 10: the paper's claims on CIFAR-10, by the study of configs/studies/cifar10_gpu.py.

A short run under RK4 says how long a step takes, and so how many epochs the time allows. The study
then runs as any other; what it has reached when the time is up is shown, and the same command
continues it.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.accelerator.rows import NotReached, Rows
from benchmarks.accelerator.tables import NOT_MEASURED, Line, Table, number, stamp
from benchmarks.accelerator.trainer import EPOCH_STEPS, ROOT, cifar_flags, run_training

PROBE, STUDY, SO_FAR = "probe", "study", "study, so far"
EPOCHS = (20, 10, 5, 2, 1)
PROBE_STEPS = 60

# Of all rows together per step of RK4's, by evaluations: 1/4 + 1/4 + 1/2 + 1.
_ROWS = 2.0
# Epochs of a row per epoch of a run: three trials of half as many, five seeds.
_RUNS = 3 / 2 + 5
_PROGRAMS = 16  # compiled: three trials' and the runs', by row
_STOP_SECS = 30  # to save and to report after the time is up


def run(rows: Rows, tiny: bool, data_dir: pathlib.Path, scratch: pathlib.Path) -> None:
    """Measures the probe's row, then the study's."""
    rows.measure(PROBE, lambda: _probe(rows, tiny, data_dir, scratch))
    probe = rows.values(PROBE)
    if probe is None:
        return

    workdir = scratch / "studies" / f"cifar10_gpu-{probe['epochs']}"
    if not rows.is_due(STUDY):
        return
    is_complete = _run_study(rows, tiny, probe["epochs"], data_dir, workdir)
    rows.record(STUDY if is_complete else SO_FAR, lambda: _figures(rows, workdir))
    if not is_complete:
        rows.unreached.append(STUDY)


def epochs_in(secs: float, step_secs: float, start_secs: float) -> int:
    """Returns the most epochs with which the study is expected to end in time; 1 at least.

    Args:
      secs: that are left.
      step_secs: of a step of RK4.
      start_secs: of a run's start, compilation included, of which a program takes about half.
    """
    for epochs in EPOCHS:
        training = _ROWS * _RUNS * EPOCH_STEPS * epochs * step_secs
        if training + _PROGRAMS * start_secs / 2 <= secs:
            return epochs
    return EPOCHS[-1]


def _probe(rows: Rows, tiny: bool, data_dir: pathlib.Path, scratch: pathlib.Path) -> dict[str, Any]:
    flags = cifar_flags("rk4", tiny, data_dir)
    steps = 4
    if not tiny:
        steps = PROBE_STEPS
        off = ("mixup", "cutmix", "randaugment_ops", "erasing")
        flags += [
            "--config.depth.layers=6",
            "--config.depth.adjoint=store",
            "--config.model.drop_path=0",
            f"--config.train_steps={steps}",
            f"--config.eval.every_steps={steps}",
            f"--config.checkpoint.every_steps={steps}",
            *(f"--config.data.augment.{name}=0" for name in off),
        ]

    figures = run_training(rows, "study, probe", flags, scratch)
    step_secs = figures["ms"] / 1e3
    start_secs = max(figures["wall_secs"] - steps * step_secs, 0.0)
    left = rows.deadline - time.monotonic() - _STOP_SECS
    epochs = EPOCHS[-1] if tiny else epochs_in(left, step_secs, start_secs)
    return {"ms": figures["ms"], "start_secs": start_secs, "epochs": epochs}


def study_command(
    tiny: bool, epochs: int, data_dir: pathlib.Path, workdir: pathlib.Path
) -> list[str]:
    """Returns the command that runs the study, or continues it."""
    size = ",size=smoke" if tiny else ""
    command = [sys.executable, "-m", "train.study", f"--workdir={workdir}"]
    command += [f"--study=configs/studies/cifar10_gpu.py:epochs={epochs}{size}"]
    command += [f"--study.config.data.data_dir={data_dir}"]
    return command + (["--study.config.data.validation_examples=40"] if tiny else [])


def _run_study(
    rows: Rows, tiny: bool, epochs: int, data_dir: pathlib.Path, workdir: pathlib.Path
) -> bool:
    """Runs the study until it ends or the time is up, and returns whether it ended."""
    process = subprocess.Popen(
        study_command(tiny, epochs, data_dir, workdir), cwd=ROOT, env=dict(os.environ)
    )
    try:
        code = process.wait(max(rows.deadline - time.monotonic() - _STOP_SECS, 1))
    except subprocess.TimeoutExpired:
        # The run that is in progress saves its state, from which it is resumed.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return False

    if code:
        raise RuntimeError(f"the study ended with code {code}: see the log")
    return True


def _figures(rows: Rows, workdir: pathlib.Path) -> dict[str, Any]:
    """What the study's results say so far; they are copied to the section's own folder."""
    from train.study.report import markdown
    from train.study.results import FILE, read_results

    # Before the first run there are trials alone, and no line of results.
    if not (workdir / FILE).exists():
        raise NotReached
    results = read_results(str(workdir))
    out = rows.folder / "study"
    out.mkdir(exist_ok=True)
    for name in ("study.json", FILE):
        shutil.copyfile(workdir / name, out / name)
    (out / "table.md").write_text(markdown(results))

    declared = results.declared
    pairs = len(declared["rows"]) * len(declared["seeds"]) * len(declared["lengths"])
    return {
        "runs": len(results.runs),
        "of": pairs,
        "steps": declared["lengths"][-1],
        "claims": _claims(results),
    }


def _claims(results: Any) -> list[list[str]]:
    """Claim, rows, effect and verdict of each contrast, as text."""
    from train.study.report import all_findings, claims_cells

    return [list(cells) for cells in claims_cells(results, all_findings(results))]


def tables(lines: Mapping[str, Line]) -> list[Table]:
    """Returns the section's table.

    Args:
      lines: the newest line of each row, by its name.
    """
    line = lines.get(STUDY, lines.get(SO_FAR))
    columns = ("claim", "rows", "effect, points [95 % interval]", "verdict")
    claims = line["values"]["claims"] if line and "values" in line else []
    runs = f"{number(line, 'runs', 'd')} of {number(line, 'of', 'd')} runs"
    title = "Six layers of width 192; " + (
        f"{runs}, {number(line, 'steps', ',d')} steps" if line else NOT_MEASURED
    )
    return [Table(title, columns, claims or [[NOT_MEASURED] * len(columns)], stamp(lines))]
