"""Several runs next to each other: their curves in one picture, their final scores in a table."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from train.errors import BadInput
from train.files import as_path, write_atomic
from train.logs.metrics import read_metrics

_CURVES = ("val/loss", "val/accuracy", "train/loss")
_SCORES = ("train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy")


def read_runs(workdirs: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the lines of metrics.jsonl of each run that has any, by workdir."""
    lines = {workdir: read_metrics(workdir) for workdir in workdirs}
    return {workdir: found for workdir, found in lines.items() if found}


def score_table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Returns a table of the last value of each score, a row per run.

    Args:
      runs: of `read_runs`.
    """
    names = [name for name in _SCORES if any(_series(lines, name) for lines in runs.values())]
    table = Table(title="final scores")
    table.add_column("run", overflow="fold")
    for name in ("step", *names):
        table.add_column(name, justify="right")

    for workdir, lines in runs.items():
        last = [_series(lines, name)[-1:] for name in names]
        values = [f"{points[0][1]:.4f}" if points else "" for points in last]
        table.add_row(Text(workdir), str(lines[-1]["step"]), *values)

    return table


def plot_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str) -> None:
    """Plots the runs' curves over the steps, a panel per metric that one of them has.

    Args:
      runs: of `read_runs`.
      path: of the PNG file.

    Raises:
      BadInput: no run has a curve.
    """
    names = [name for name in _CURVES if any(_series(lines, name) for lines in runs.values())]
    if not names:
        raise BadInput(
            "--curves: none of the runs has metrics yet (metrics.jsonl): train them first"
        )

    # Not with pyplot, which keeps every figure, and takes a backend from the environment.
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for workdir, lines in runs.items():
            points = _series(lines, name)
            # A line through a single point cannot be seen. A run without the metric is in the
            # legend all the same, and keeps its colour.
            steps, values = [step for step, _ in points], [value for _, value in points]
            axes.plot(steps, values, "o" if len(points) == 1 else "-", label=workdir)
        axes.set_xlabel("step")
        axes.set_title(name)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_atomic(as_path(path), content.getvalue())


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    # null stands for a value that was not finite.
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]
