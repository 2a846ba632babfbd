"""Tables and pictures of a study."""

import collections
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from train.files import write_atomic
from train.study.grid import Row, Study
from train.study.intervals import Difference, Estimate, estimate, paired_difference

# by row, by (fold, seed): what `train.logs.metrics.read_scores` returns
Scores = Mapping[str, Mapping[tuple[int, int], Mapping[str, np.ndarray]]]
_BOTH = "both intervals exclude 0"
_LIMITS = (
    "The 95 % intervals are corrected neither for the number of claims nor, over folds, for the "
    "overlap of their training sets: a difference whose intervals exclude 0 is an observation, not "
    "a verdict."
)
_PLOTTED = {  # by task: metric, factor, label
    "images": ("test/accuracy", 100, "test accuracy, %"),
    "language": ("test/loss", 1, "test loss, nats a token"),
    "sentences": ("test/accuracy", 100, "test accuracy, %"),
}
_COLOURS = {
    "lie_trotter": "#6b7280",
    "strang": "#a16207",
    "euler": "#1f6feb",
    "midpoint": "#16a34a",
    "rk4": "#d1242f",
}


def print_costs(study: Study, console: Console) -> None:
    """Prints the rows with what they cost, and how many runs that makes."""
    table = Table(title=f"{len(study.rows)} rows, {len(study.replicas)} replicas each")
    table.add_column("row")
    for column in ("parameters", "NFE", "inference", "training", "recomputed"):
        table.add_column(column, justify="right")
    for row in study.rows:
        cost = row.costs
        work = (cost.inference_flops, cost.training_flops, cost.recomputed_flops)
        name = row.name + (f" (= {row.match[1]} in {row.match[0]})" if row.match else "")
        table.add_row(
            name, f"{cost.parameters:,}", str(cost.nfe), *(f"{f / 1e6:.2f}" for f in work)
        )
    table.caption = "inference, training, recomputed: millions of FLOPs an example"
    console.print(table)


def markdown(study: Study, results: Sequence[Mapping[str, Any]], scores: Scores) -> str:
    """Returns the study's two tables: what each row reached, and the paper's claims.

    Args:
      study: its rows, replicas and claims.
      results: the lines of results.jsonl.
      scores: of each test example.
    """
    rows = [
        "| row | parameters | NFE | inference MFLOPs | training MFLOPs | recomputed MFLOPs "
        "| ms a step | test accuracy % | test loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in study.rows:
        mine = [result for result in results if result["row"] == row.name]
        accuracy = estimate(np.array([100 * result["test/accuracy"] for result in mine]))
        loss = estimate(np.array([result["test/loss"] for result in mine]))
        cost = row.costs
        work = (cost.inference_flops, cost.training_flops, cost.recomputed_flops)
        times = [result["secs_per_step"] for result in mine if result["secs_per_step"]]
        cells = [
            _name(row),
            f"{cost.parameters:,}",
            str(cost.nfe),
            *(f"{flops / 1e6:.2f}" for flops in work),
            f"{1e3 * np.median(times):.1f}" if times else "",
            _with_reach(accuracy, 2),
            _with_reach(loss, 4),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    claims = [
        "| claim | row | against | accuracy, points: over replicas | over examples "
        f"| {_BOTH} | loss, nats: over replicas | over examples | {_BOTH} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for claim in study.claims:
        accuracy = _difference(scores, claim.row, claim.baseline, "correct", 100)
        loss = _difference(scores, claim.row, claim.baseline, "loss", 1)
        cells = [
            claim.text,
            claim.row,
            claim.baseline,
            *_difference_cells(accuracy, 2),
            *_difference_cells(loss, 4),
        ]
        claims.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *claims, "", _LIMITS, ""])


def _name(row: Row) -> str:
    return f"{row.name} (matched in {row.match[0]} to {row.match[1]})" if row.match else row.name


def _with_reach(value: Estimate, digits: int) -> str:
    """'97.31 ± 0.42'; the mean alone where there is no interval."""
    if not np.isfinite(value.high):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.high - value.mean:.{digits}f}"


def _difference(scores: Scores, row: str, baseline: str, metric: str, scale: float) -> Difference:
    def of(name: str) -> dict[tuple[int, int], np.ndarray]:
        return {key: scale * replica[metric] for key, replica in scores[name].items()}

    return paired_difference(of(row), of(baseline))


def _difference_cells(difference: Difference, digits: int) -> list[str]:
    def interval(value: Estimate) -> str:
        if not np.isfinite(value.high):
            return f"{value.mean:+.{digits}f}"
        return f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"

    both = "yes" if difference.is_distinguishable else "no"
    return [interval(difference.over_replicas), interval(difference.over_examples), both]


def plot(study: Study, results: Sequence[Mapping[str, Any]], path: epath.Path) -> None:
    """Draws accuracy, of language models loss, over the FLOPs of inference, as an SVG.

    With intervals over replicas. One colour a solver;
    filled where every layer has weights of its own, hollow where they are shared; squares are rows
    matched in cost. Rows of the same FLOPs stand a little apart.
    """
    metric, scale, label = _PLOTTED[study.rows[0].config.task]
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    beside = collections.Counter()  # rows drawn already at these FLOPs
    seen = set()
    for row in study.rows:
        x = row.costs.inference_flops / 1e6 * 1.025 ** beside[row.costs.inference_flops]
        beside[row.costs.inference_flops] += 1
        values = [scale * result[metric] for result in results if result["row"] == row.name]
        reached = estimate(np.array(values))
        reach = reached.high - reached.mean
        depth = row.config.model.depth
        colour = _COLOURS.get(depth.solver, "#7c3aed")
        axes.errorbar(
            x,
            reached.mean,
            yerr=reach if np.isfinite(reach) else None,
            fmt="s" if row.match else "o",
            color=colour,
            markerfacecolor=colour if depth.share == 1 else "white",
            capsize=3,
            label=None if depth.solver in seen else depth.solver,
        )
        place = f"share {depth.share}" + (f", {depth.layers} layers" if row.match else "")
        axes.annotate(
            place,
            (x, reached.mean),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color="#57606a",
        )
        seen.add(depth.solver)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter("{x:g}")
    axes.set_xlabel("model FLOPs of inference, millions an example")
    axes.set_ylabel(f"{label} (mean, 95 % interval over replicas)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    write_atomic(path, content.getvalue())
