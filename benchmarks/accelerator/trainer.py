"""Sections 7 to 9: the trainer itself, by its own program and its configs.

trainer: digits, and CIFAR-10 with DeiT-Ti for two epochs, images per second next to section 3's.
probe: the same CIFAR-10 run under other solvers; step time, memory and loss, not a study.
shakespeare: gpt_nano, a fifth of nanoGPT's steps, parallel and sequential, both at once.
"""

import functools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from benchmarks.accelerator.rows import NotReached, Rows
from benchmarks.accelerator.tables import Line, Table, number, stamp

ROOT = pathlib.Path(__file__).parents[2]  # where the configs are
SOLVERS = {
    "euler": "parallel",
    "lie_trotter": "sequential",
    "rk4": "RK4",
    "midpoint": "midpoint",
}
CIFAR = "cifar10, euler"  # the row of section 7 that section 8 continues
SHAKESPEARE_STEPS = 1000
EPOCH_STEPS = 93  # of 48,000 images in batches of 512
SHAKESPEARE = ("euler", "lie_trotter")
SHARE_OF_MEMORY = "0.4"  # of the device, for each of two runs at once

_TINY_MODEL = ["--config.model.width=16", "--config.model.heads=2", "--config.model.mlp=32"]
_TINY_RUN = [
    "--config.train_steps=4",
    "--config.optimizer.warmup_steps=1",
    "--config.eval.every_steps=4",
    "--config.checkpoint.every_steps=4",
    "--config.log.every_steps=1",
    *_TINY_MODEL,
]


def run_trainer(rows: Rows, tiny: bool, data_dir: pathlib.Path, scratch: pathlib.Path) -> None:
    """Measures section 7's rows."""
    digits = ["--config=configs/digits.py"]
    digits += [*_TINY_RUN, "--config.batch_size=16"] if tiny else []
    rows.measure("digits", lambda: run_training(rows, "digits", digits, scratch))
    flags = cifar_flags("euler", tiny, data_dir)
    rows.measure(CIFAR, lambda: run_training(rows, CIFAR, flags, scratch))


def run_probe(rows: Rows, tiny: bool, data_dir: pathlib.Path, scratch: pathlib.Path) -> None:
    """Measures section 8's rows."""
    solvers = [*SOLVERS][1:]  # the first is section 7's
    for solver in solvers[:1] if tiny else solvers:
        flags = cifar_flags(solver, tiny, data_dir)
        rows.measure(
            solver, functools.partial(run_training, rows, f"cifar10, {solver}", flags, scratch)
        )


def run_shakespeare(rows: Rows, tiny: bool, data_dir: pathlib.Path, scratch: pathlib.Path) -> None:
    """Measures section 9's rows; neither run's speed is that of a run alone."""
    due = [solver for solver in SHAKESPEARE if rows.is_due(solver)]
    with ThreadPoolExecutor(len(SHAKESPEARE)) as pool:
        solvers = {}
        for solver in due:
            flags = shakespeare_flags(solver, tiny, data_dir)
            name = f"shakespeare, {solver}"
            solvers[pool.submit(run_training, rows, name, flags, scratch, SHARE_OF_MEMORY)] = solver
        for result in as_completed(solvers):
            rows.record(solvers[result], result.result)


def cifar_flags(solver: str, tiny: bool, data_dir: pathlib.Path) -> list[str]:
    """Returns the trainer's flags for two epochs of CIFAR-10."""
    flags = [f"--config.data.data_dir={data_dir}", f"--config.depth.solver={solver}"]
    if tiny:
        config = "--config=configs/cifar.py:size=smoke"
        return [
            config,
            *flags,
            *_TINY_RUN,
            "--config.depth.layers=2",
            "--config.data.validation_examples=40",
        ]
    steps = 2 * EPOCH_STEPS
    return [
        "--config=configs/cifar.py",
        *flags,
        f"--config.train_steps={steps}",
        "--config.optimizer.warmup_steps=20",
        f"--config.eval.every_steps={EPOCH_STEPS}",
        f"--config.checkpoint.every_steps={steps}",
        "--config.log.every_steps=10",
    ]


def shakespeare_flags(solver: str, tiny: bool, data_dir: pathlib.Path) -> list[str]:
    """Returns the trainer's flags for tiny Shakespeare."""
    flags = [f"--config.data.data_dir={data_dir}", f"--config.depth.solver={solver}"]
    if tiny:
        config = "--config=configs/shakespeare.py:size=cpu"
        return [config, *flags, *_TINY_RUN, "--config.depth.layers=2"]
    return [
        "--config=configs/shakespeare.py:size=accelerator",
        *flags,
        f"--config.train_steps={SHAKESPEARE_STEPS}",
        f"--config.checkpoint.every_steps={SHAKESPEARE_STEPS}",
    ]


def run_training(
    rows: Rows,
    name: str,
    flags: list[str],
    scratch: pathlib.Path,
    memory: str | None = None,
) -> dict[str, Any]:
    """The figures of a run, which continues where an earlier call of it was stopped."""
    rows.check_time()
    workdir = scratch / "runs" / re.sub(r"\W+", "-", name)
    command = [sys.executable, "-m", "benchmarks.accelerator.trained", *flags]
    environment = dict(os.environ)
    if memory is not None:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = memory
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*command, f"--workdir={workdir}"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=max(rows.deadline - start, 1),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotReached from error
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        missing = re.search(r"No module named '([\w.]+)'", done.stderr)
        if missing:
            raise ModuleNotFoundError(done.stderr, name=missing[1])
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise RuntimeError(f"the trainer ended with code {done.returncode}: {last}")
    peak = json.loads(done.stdout.strip().splitlines()[-1])["peak_gb"]
    return {"peak_gb": peak, "wall_secs": time.monotonic() - start, **_figures(workdir)}


def _figures(workdir: pathlib.Path) -> dict[str, Any]:
    """What metrics.jsonl says of a run: its speed, its curve, its ends."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train/loss" in line]
    figures: dict[str, Any] = {
        "steps": lines[-1]["step"],
        "curve": [[line["step"], round(line["train/loss"], 4)] for line in trained],
    }
    for unit in ("images", "tokens"):
        # The first rate takes in what the first steps set up.
        rates = [
            line[f"train/{unit}_per_sec"] for line in trained if f"train/{unit}_per_sec" in line
        ]
        if rates:
            figures["examples_per_sec"] = statistics.median(rates[1:] or rates)
            steps = [
                line["train/steps_per_sec"] for line in trained if "train/steps_per_sec" in line
            ]
            figures["ms"] = 1e3 / statistics.median(steps[1:] or steps)
    for key in ("test/loss", "test/accuracy"):
        if key in lines[-1]:
            figures[key] = lines[-1][key]
    validation = [line["val/loss"] for line in lines if "val/loss" in line]
    figures["val/loss"], figures["best val/loss"] = validation[-1], min(validation)
    return figures


def tables_trainer(lines: Mapping[str, Line], bare: Mapping[str, Line]) -> list[Table]:
    """Returns section 7's table.

    Args:
      lines: the newest line of each row, by its name.
      bare: those of section 3, whose step has no input and no augmentation.
    """
    digits, cifar = lines.get("digits"), lines.get(CIFAR)
    step = bare.get("deit_ti, euler")
    rows = [
        ("`configs/digits.py`, 1,800 steps", *_speed(digits), "", _percent(digits)),
        (
            "`configs/cifar.py`, DeiT-Ti, 2 epochs",
            *_speed(cifar),
            number(step, "examples_per_sec", ",.0f"),
            _percent(cifar),
        ),
    ]
    columns = ("run", "images/s", "wall, s", "bare step, images/s", "test accuracy")
    return [Table("The trainer", columns, rows, stamp(lines))]


def tables_probe(lines: Mapping[str, Line], first: Mapping[str, Line]) -> list[Table]:
    """Returns section 8's table.

    Args:
      lines: the newest line of each row, by its name.
      first: those of section 7, whose CIFAR-10 run is the first of them.
    """
    all_lines = {**({"euler": first[CIFAR]} if CIFAR in first else {}), **lines}
    rows = []
    for solver, layer in SOLVERS.items():
        line = all_lines.get(solver)
        rows.append(
            (
                f"{layer} (`{solver}`)",
                number(line, "ms", ".1f"),
                number(line, "peak_gb", ".1f"),
                number(line, "val/loss", ".3f"),
                _percent(line),
            )
        )
    columns = ("layer", "step, ms", "peak, GB", "validation loss", "test accuracy")
    title = "CIFAR-10, DeiT-Ti for two epochs: a probe of speed, not a study"
    return [Table(title, columns, rows, stamp(all_lines))]


def tables_shakespeare(lines: Mapping[str, Line]) -> list[Table]:
    """Returns section 9's table.

    Args:
      lines: the newest line of each row, by its name.
    """
    rows = [
        (
            f"{SOLVERS[solver]} (`{solver}`)",
            number(lines.get(solver), "best val/loss", ".3f"),
            number(lines.get(solver), "test/loss", ".3f"),
            number(lines.get(solver), "wall_secs", ".0f"),
        )
        for solver in SHAKESPEARE
    ]
    columns = ("layer", "best validation loss, nats per byte", "test loss", "wall, s")
    title = (
        f"Tiny Shakespeare, `gpt_nano`, {SHAKESPEARE_STEPS:,} steps; two runs at once on the card"
    )
    return [Table(title, columns, rows, stamp(lines))]


def _speed(line: Line | None) -> tuple[str, str]:
    return number(line, "examples_per_sec", ",.0f"), number(line, "wall_secs", ".0f")


def _percent(line: Line | None) -> str:
    return number(line, "test/accuracy", ".1%")
