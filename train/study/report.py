"""The tables and the plot of a study."""

import collections
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from train.files import write_atomic
from train.study.claims import Claim
from train.study.grid import Study
from train.study.intervals import Difference, Estimate, estimate, paired_difference
from train.study.rows import Row

# By row, by (fold, seed): as `train.logs.metrics.read_scores` returns them.
Scores = Mapping[str, Mapping[tuple[int, int], Mapping[str, np.ndarray]]]
Results = Sequence[Mapping[str, Any]]

_BOTH = "both intervals exclude 0"
_LIMITS = (
    "The 95 % intervals are corrected neither for the number of claims nor, over folds, for the "
    "overlap of their training sets: a difference whose intervals exclude 0 is an observation, not "
    "a verdict."
)

# By task: the metric that is plotted, its factor and its label.
_PLOTTED = {
    "images": ("test/accuracy", 100, "test accuracy, %"),
    "language": ("test/loss", 1, "test loss, nats a token"),
    "sentences": ("test/accuracy", 100, "test accuracy, %"),
}

_OTHER_COLOUR = "#7c3aed"
_COLOURS = {
    "lie_trotter": "#6b7280",
    "strang": "#a16207",
    "euler": "#1f6feb",
    "midpoint": "#16a34a",
    "rk4": "#d1242f",
}


def print_costs(study: Study, console: Console) -> None:
    """Prints the rows with their costs, and how many runs that makes."""
    table = Table(title=f"{len(study.rows)} rows, {len(study.replicas)} replicas each")
    table.add_column("row")
    for column in ("parameters", "NFE", "inference", "training", "recomputed"):
        table.add_column(column, justify="right")

    for row in study.rows:
        match = f" (= {row.match[1]} in {row.match[0]})" if row.match else ""
        table.add_row(row.name + match, *_cost_cells(row))

    table.caption = "inference, training, recomputed: millions of FLOPs per example"
    console.print(table)


def markdown(study: Study, results: Results, scores: Scores) -> str:
    """Returns the study's two tables: what each row reached, and the paper's claims.

    Args:
      study: its rows, replicas and claims.
      results: the lines of results.jsonl.
      scores: the scores of each test example.
    """
    rows = [
        "| row | parameters | NFE | inference MFLOPs | training MFLOPs | recomputed MFLOPs "
        "| ms a step | test accuracy % | test loss |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(_result_cells(row, results)) for row in study.rows),
    ]
    claims = [
        "| claim | row | against | accuracy, points: over replicas | over examples "
        f"| {_BOTH} | loss, nats: over replicas | over examples | {_BOTH} |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(_claim_cells(claim, scores)) for claim in study.claims),
    ]
    return "\n".join([*rows, "", *claims, "", _LIMITS, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _result_cells(row: Row, results: Results) -> list[str]:
    own = _of_row(row, results)
    accuracy = estimate(np.array([100 * result["test/accuracy"] for result in own]))
    loss = estimate(np.array([result["test/loss"] for result in own]))
    secs = [result["secs_per_step"] for result in own if result["secs_per_step"]]

    match = f" (matched in {row.match[0]} to {row.match[1]})" if row.match else ""
    return [
        row.name + match,
        *_cost_cells(row),
        f"{1e3 * np.median(secs):.1f}" if secs else "",
        _with_interval(accuracy, 2),
        _with_interval(loss, 4),
    ]


def _claim_cells(claim: Claim, scores: Scores) -> list[str]:
    accuracy = _difference(claim, scores, "correct", 100)
    loss = _difference(claim, scores, "loss", 1)
    return [
        claim.text,
        claim.row,
        claim.baseline,
        *_difference_cells(accuracy, 2),
        *_difference_cells(loss, 4),
    ]


def _cost_cells(row: Row) -> list[str]:
    costs = row.costs
    work = (costs.inference_flops, costs.training_flops, costs.recomputed_flops)
    return [
        f"{costs.parameters:,}",
        str(costs.nfe),
        *(f"{flops / 1e6:.2f}" for flops in work),
    ]


def _of_row(row: Row, results: Results) -> list[Mapping[str, Any]]:
    return [result for result in results if result["row"] == row.name]


def _with_interval(value: Estimate, digits: int) -> str:
    """'97.31 ± 0.42'; the mean alone if the interval is infinite."""
    if not np.isfinite(value.high):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.high - value.mean:.{digits}f}"


def _difference(claim: Claim, scores: Scores, metric: str, scale: float) -> Difference:
    def scaled(name: str) -> dict[tuple[int, int], np.ndarray]:
        return {key: scale * replica[metric] for key, replica in scores[name].items()}

    return paired_difference(scaled(claim.row), scaled(claim.baseline))


def _difference_cells(difference: Difference, digits: int) -> list[str]:
    def interval(value: Estimate) -> str:
        if not np.isfinite(value.high):
            return f"{value.mean:+.{digits}f}"
        return f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"

    both = "yes" if difference.is_distinguishable else "no"
    return [interval(difference.over_replicas), interval(difference.over_examples), both]


def plot(study: Study, results: Results, path: epath.Path) -> None:
    """Draws accuracy (loss for language models) over the FLOPs of inference, as an SVG.

    Bars are intervals over replicas. Each solver has a colour; a mark is filled where every layer
    has its own weights and hollow where they are shared, and square for a row matched in cost.
    """
    metric, scale, label = _PLOTTED[study.rows[0].config.task]
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()

    drawn: collections.Counter[int] = collections.Counter()
    labelled = set()
    for row in study.rows:
        # Rows of the same FLOPs would hide one another: each further one is moved to the right.
        flops = row.costs.inference_flops
        x = flops / 1e6 * 1.025 ** drawn[flops]
        drawn[flops] += 1

        reached = estimate(np.array([scale * result[metric] for result in _of_row(row, results)]))
        solver = row.config.model.depth.solver
        _draw_row(axes, row, x, reached, label=None if solver in labelled else solver)
        labelled.add(solver)

    axes.set_xlabel("model FLOPs of inference, millions an example")
    axes.set_ylabel(f"{label} (mean, 95 % interval over replicas)")
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


def _draw_row(axes: Axes, row: Row, x: float, reached: Estimate, label: str | None) -> None:
    depth = row.config.model.depth
    colour = _COLOURS.get(depth.solver, _OTHER_COLOUR)
    reach = reached.high - reached.mean
    axes.errorbar(
        x,
        reached.mean,
        yerr=reach if np.isfinite(reach) else None,
        fmt="s" if row.match else "o",
        color=colour,
        markerfacecolor=colour if depth.share == 1 else "white",
        capsize=3,
        label=label,
    )

    layers = f", {depth.layers} layers" if row.match else ""
    axes.annotate(
        f"share {depth.share}{layers}",
        (x, reached.mean),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=7,
        color="#57606a",
    )
