"""The tables of a study, from results.jsonl and study.json alone."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from train.study.contrasts import (
    Finding,
    Key,
    compare,
    conclude,
    find,
    over_replicas,
    ratio_of_tests,
    what_would_change,
)
from train.study.grid import Study
from train.study.intervals import Estimate, Mean, holm
from train.study.results import SCORES, Results
from train.study.tuning import best_of

_UNITS = {"accuracy": "points", "loss": "nats"}
_DIGITS = {"accuracy": 2, "loss": 4}
_COSTS = ("inference_flops", "training_flops", "recomputed_flops")

_FOLDS = (
    "Intervals are over folds, whose seeds are averaged first, with the variance (1/k + n_test / "
    "n_train) s^2 and k - 1 degrees of freedom (Nadeau, Bengio 2003), as training sets overlap."
)
_SEEDS = (
    "Intervals are Student's over seeds; 'over examples' is a paired bootstrap of the test "
    "examples (95 %), and p the larger of both p-values."
)
_RULES = (
    "p (Holm) is corrected for the number of contrasts declared. yes, no: p (Holm) below 0.05. "
    "equivalent: the 90 % interval lies within the margin. not reachable here: the smallest effect "
    "that such a study finds in 80 % of cases (at 5 %, before Holm's correction) exceeds the "
    "margin. A claim holds where runs of N and of 2N steps agree."
)


def print_costs(study: Study, console: Console) -> None:
    """Prints the rows with their costs, and how many runs that makes."""
    runs = len(study.rows) * (len(study.replicas) + len(study.trials))
    table = Table(
        title=f"{len(study.rows)} rows, {len(study.replicas)} replicas and {len(study.trials)} "
        f"trials each: {runs} runs"
    )
    table.add_column("row")
    for column in ("parameters", "NFE", "inference", "training", "recomputed"):
        table.add_column(column, justify="right")

    for row in study.rows:
        match = f" (= {row.match[1]} in {row.match[0]})" if row.match else ""
        table.add_row(row.name + match, *_cost_cells(vars(row.costs)))

    table.caption = "inference, training, recomputed: millions of FLOPs per example"
    console.print(table)


def markdown(results: Results) -> str:
    """Returns a study's tables: claims, contrasts, rows, pairs of rows, and trials."""
    declared, findings = results.declared, all_findings(results)
    tables = [
        _claims_table(results, findings),
        _contrasts_table(declared, findings),
        *(_rows_table(results, steps) for steps in results.lengths),
        *(_pairs_table(results, steps) for steps in results.lengths),
        _trials_table(results),
    ]
    rules = f"{_FOLDS if declared['folds'] else _SEEDS} {_RULES}"
    margin = declared["margin"]
    if margin is not None:
        rules += f" Margin: {margin:g} {_UNITS[declared['metric']]}."
    return "\n\n".join([*filter(None, tables), rules]) + "\n"


def all_findings(results: Results) -> list[Finding]:
    """Returns the findings of every length of which there are runs."""
    return [finding for steps in results.lengths for finding in find(results, steps)]


def claims_markdown(studies: Sequence[Results]) -> str:
    """Returns the table of the claims of several studies, for docs/claims.md."""
    header = ("claim", "task", "rows", "effect [95 % interval], p (Holm)", "verdict")
    lines = []
    for results in studies:
        findings = all_findings(results)
        cells = claims_cells(results, findings)
        for claim, (text, rows, *rest) in zip(results.declared["contrasts"], cells, strict=True):
            own = [finding for finding in findings if finding.claim == claim]
            change = what_would_change(own, results.declared)
            lines.append([text, results.declared["on"], rows, *rest, change])
    return _table((*header, "what would change it"), lines)


def reached(lines: Mapping[Key, Mapping[str, Any]], metric: str) -> Mean:
    """Returns the mean test metric of a row's runs, in percent or in nats."""
    values = {key: SCORES[metric][1] * line[f"test/{metric}"] for key, line in lines.items()}
    return over_replicas(values, ratio_of_tests(list(lines.values())))


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _claims_table(results: Results, findings: Sequence[Finding]) -> str:
    if not results.declared["contrasts"]:
        return ""

    header = ("claim", "rows", f"effect, {_UNITS[results.declared['metric']]}", "verdict")
    return _table(header, list(claims_cells(results, findings)))


def claims_cells(results: Results, findings: Sequence[Finding]) -> Iterator[list[str]]:
    """Yields the cells of each claim: its rows, its effects by number of steps, its verdict."""
    declared = results.declared
    digits = _DIGITS[declared["metric"]]

    for claim in declared["contrasts"]:
        own = [finding for finding in findings if finding.claim == claim]
        effects = [
            f"{_difference(finding.comparison.mean.interval(), digits)}, p {finding.corrected:.2g} "
            f"({finding.steps:,} steps)"
            for finding in own
        ]
        yield [
            _claim_text(claim),
            f"{claim['row']} against {claim['baseline']}",
            "; ".join(effects),
            conclude(own, declared["lengths"]),
        ]


def _claim_text(claim: Mapping[str, Any]) -> str:
    return claim["text"] + (" (added after the first run)" if claim.get("added") else "")


def _contrasts_table(declared: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    if not findings:
        return ""

    unit, digits = _UNITS[declared["metric"]], _DIGITS[declared["metric"]]
    header = ("claim", "row", "against", "steps", "pairs", f"effect, {unit} [95 % interval]")
    header += () if declared["folds"] else ("over examples",)
    header += ("p", "p (Holm)", "smallest detectable", "verdict")

    lines = []
    for finding in findings:
        claim, each = finding.claim, finding.comparison
        over = [] if each.examples is None else [_difference(each.examples.interval, digits)]
        lines.append(
            [
                *(_claim_text(claim), claim["row"], claim["baseline"], f"{finding.steps:,}"),
                *(str(each.replicas), _difference(each.mean.interval(), digits), *over),
                *(f"{each.p_value:.2g}", f"{finding.corrected:.2g}"),
                *(f"{each.detectable:.{digits}f}", finding.verdict),
            ]
        )
    return _table(header, lines)


def _rows_table(results: Results, steps: int) -> str:
    has_accuracy = any("test/accuracy" in line for line in results.runs)
    header = ("row", "steps", "runs", "tuned", "parameters", "NFE", "inference MFLOPs")
    header += ("training MFLOPs", "recomputed MFLOPs", "ms per step")
    header += ("test accuracy %", "test loss") if has_accuracy else ("test loss",)

    lines = []
    for row in results.declared["rows"]:
        own = results.of_row(row["name"], steps)
        if not own:
            continue

        match = f" (matched in {row['match'][0]} to {row['match'][1]})" if row["match"] else ""
        metrics = ("accuracy", "loss") if has_accuracy else ("loss",)
        secs = [line["secs_per_step"] for line in own.values() if line["secs_per_step"]]
        lines.append(
            [
                *(row["name"] + match, f"{steps:,}", str(len(own))),
                *(_values(next(iter(own.values()))["values"]), *_cost_cells(row)),
                f"{1e3 * np.median(secs):.1f}" if secs else "",
                *(_with_interval(reached(own, m).interval(), _DIGITS[m]) for m in metrics),
            ]
        )
    return _table(header, lines) if lines else ""


def _pairs_table(results: Results, steps: int) -> str:
    """Every row against every other one, corrected for the number of pairs."""
    metric, pairs = results.declared["metric"], []
    for a, b in itertools.combinations([row["name"] for row in results.declared["rows"]], 2):
        rows = results.of_row(a, steps), results.of_row(b, steps)
        common = sorted(rows[0].keys() & rows[1].keys())
        if common:
            row, baseline = ({key: lines[key] for key in common} for lines in rows)
            pairs.append((a, b, compare(row, baseline, metric, with_examples=False)))

    if not pairs:
        return ""

    corrected = holm([each.p_value for *_, each in pairs])
    header = ("row", "against", "steps", f"difference, {_UNITS[metric]} [95 % interval]")
    header += ("p", f"p (Holm, {len(pairs)} pairs)")
    lines = [
        [
            *(a, b, f"{steps:,}", _difference(each.mean.interval(), _DIGITS[metric])),
            *(f"{each.p_value:.2g}", f"{p_value:.2g}"),
        ]
        for (a, b, each), p_value in zip(pairs, corrected, strict=True)
    ]
    title = "All pairs, which nobody declared (over runs alone):"
    return f"{title}\n\n{_table(header, lines)}"


def _trials_table(results: Results) -> str:
    """Validation loss of each trial, by row; the chosen values are those of the row's runs."""
    if not results.trials:
        return ""

    tried = list(dict.fromkeys(tuple(line["trial"].items()) for line in results.trials))
    lines = []
    for row in dict.fromkeys(line["row"] for line in results.trials):
        choice = best_of(_trial_losses(results, row), row)
        losses = (f"{loss:.4f}" if np.isfinite(loss) else "diverged" for _, loss in choice.losses)
        edge = ", ".join(choice.edges)
        lines.append([row, *losses, _values(choice.values), f"yes: {edge}" if edge else "no"])

    title = f"Trials of {results.trials[0]['steps']:,} steps: validation loss, nats"
    header = ("row", *(_values(dict(values)) for values in tried), "chosen", "at an edge")
    return f"{title}\n\n{_table(header, lines)}"


def _trial_losses(results: Results, row: str) -> dict[tuple[tuple[str, Any], ...], float]:
    """Each tried combination's mean validation loss over the seeds of a row's trials."""
    losses: dict[tuple[tuple[str, Any], ...], list[float]] = {}
    for line in results.trials:
        if line["row"] == row:
            loss = np.inf if line["val/loss"] is None else line["val/loss"]
            losses.setdefault(tuple(line["trial"].items()), []).append(loss)
    return {values: float(np.mean(each)) for values, each in losses.items()}


def _values(values: Mapping[str, Any]) -> str:
    """'learning_rate 0.009'; '-' where nothing is tuned."""
    named = (f"{key.rpartition('.')[2]} {value}" for key, value in values.items())
    return ", ".join(named) or "-"


def _cost_cells(costs: Mapping[str, Any]) -> list[str]:
    return [
        f"{costs['parameters']:,}",
        str(costs["nfe"]),
        *(f"{costs[name] / 1e6:.2f}" for name in _COSTS),
    ]


def _with_interval(value: Estimate, digits: int) -> str:
    """'97.31 ± 0.42'; the mean alone if the interval is infinite."""
    if not np.isfinite(value.high):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.high - value.mean:.{digits}f}"


def _difference(value: Estimate, digits: int) -> str:
    """'+1.20 [+0.30, +2.10]'; the mean alone if the interval is infinite."""
    if not np.isfinite(value.high):
        return f"{value.mean:+.{digits}f}"
    return f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
