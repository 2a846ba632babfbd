"""The plot of a study."""

import collections
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.files import write_atomic
from train.study.intervals import Estimate
from train.study.report import reached
from train.study.results import Results

# By metric: its label.
_LABELS = {"accuracy": "test accuracy, %", "loss": "test loss, nats"}

_OTHER_COLOUR = "#7c3aed"
_COLOURS = {
    "lie_trotter": "#6b7280",
    "strang": "#a16207",
    "euler": "#1f6feb",
    "midpoint": "#16a34a",
    "rk4": "#d1242f",
}


def plot(results: Results, path: epath.Path) -> None:
    """Draws the study's metric over the FLOPs of inference, as an SVG, for the longest runs.

    Bars are 95 % intervals over the replicas, corrected for the overlap of folds. Each solver has a
    colour; a mark is filled where every layer has its own weights and hollow where they are shared,
    and square for a row matched in cost.
    """
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    metric, steps = results.declared["metric"], results.lengths[-1]

    drawn: collections.Counter[int] = collections.Counter()
    labelled = set()
    for row in results.declared["rows"]:
        lines = results.of_row(row["name"], steps)
        if not lines:
            continue

        # Rows of the same FLOPs would hide one another: each further one is moved to the right.
        flops = row["inference_flops"]
        x = flops / 1e6 * 1.025 ** drawn[flops]
        drawn[flops] += 1

        mean = reached(lines, metric).interval()
        _draw_row(axes, row, x, mean, label=None if row["solver"] in labelled else row["solver"])
        labelled.add(row["solver"])

    axes.set_xlabel("model FLOPs of inference, millions an example")
    axes.set_ylabel(f"{_LABELS[metric]} (mean, 95 % interval over replicas)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)

    # The minor ticks are labelled too: a study may span less than a power of ten.
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")

    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    write_atomic(path, content.getvalue())


def _draw_row(
    axes: Axes, row: Mapping[str, Any], x: float, mean: Estimate, label: str | None
) -> None:
    colour = _COLOURS.get(row["solver"], _OTHER_COLOUR)
    reach = mean.high - mean.mean
    axes.errorbar(
        x,
        mean.mean,
        yerr=reach if np.isfinite(reach) else None,
        fmt="s" if row["match"] else "o",
        color=colour,
        markerfacecolor=colour if row["share"] == 1 else "white",
        capsize=3,
        label=label,
    )

    _, _, rest = row["name"].partition(", ")
    axes.annotate(
        rest,
        (x, mean.mean),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=7,
        color="#57606a",
    )
