"""What the paired differences of two rows say of a claim."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.study.intervals import LEVEL, Bootstrap, Mean, bootstrap, holm, of_folds, of_seeds
from train.study.results import SCORES, Results, decode

Key = tuple[int, int]  # (fold, seed)

YES, OPPOSITE, EQUIVALENT = "yes", "no: the opposite", "equivalent"
UNREACHABLE, OPEN, UNFINISHED = "not reachable here", "not distinguishable", "unfinished"
_WITHIN = ", by less than the margin"


class Comparison(NamedTuple):
    """How a row differs from another one that was trained and tested on the same examples.

    Attributes:
      mean: of row - baseline, by fold where there are folds, else by seed.
      examples: how it varies with the test examples, which are averaged over the seeds first; None
        where there are folds, as there the test examples vary already.
      replicas: number of pairs of runs.
    """

    mean: Mean
    examples: Bootstrap | None
    replicas: int

    @property
    def p_value(self) -> float:
        """The larger of both p-values: a difference has to show over runs and over examples."""
        return max(each.p_value for each in self._views)

    @property
    def detectable(self) -> float:
        """The smallest effect that shows in 80 % of such studies, over both, without correction."""
        return max(each.detectable for each in self._views)

    def is_equivalent(self, margin: float) -> bool:
        """Returns whether the difference lies within the margin, over both."""
        return all(each.is_equivalent(margin) for each in self._views)

    @property
    def _views(self) -> tuple[Mean | Bootstrap, ...]:
        return (self.mean,) if self.examples is None else (self.mean, self.examples)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim's comparison after one number of steps.

    Attributes:
      claim: as study.json holds it.
      steps: of the runs.
      comparison: of the two rows.
      corrected: the p-value, corrected by Holm for the number of declared contrasts.
      verdict: one of the words above.
    """

    claim: Mapping[str, Any]
    steps: int
    comparison: Comparison
    corrected: float
    verdict: str


def paired(row: Mapping[Key, Any], baseline: Mapping[Key, Any]) -> dict[Key, Any]:
    """Returns row - baseline by (fold, seed).

    Raises:
      ValueError: the two do not have the same replicas.
    """
    if row.keys() != baseline.keys():
        raise ValueError(
            f"rows are compared over the same replicas; {sorted(row)} and {sorted(baseline)} were "
            "given: finish the study's runs first"
        )
    return {key: row[key] - baseline[key] for key in row}


def over_replicas(values: Mapping[Key, float], test_per_train: float | None) -> Mean:
    """Returns the mean of values by (fold, seed).

    Args:
      values: a metric, or its paired differences.
      test_per_train: of a cross-validation, whose seeds are averaged within each fold first; None
        where there are no folds.
    """
    if test_per_train is None:
        return of_seeds(np.array(list(values.values())))

    folds = sorted({fold for fold, _ in values})
    means = [np.mean([v for (f, _), v in values.items() if f == fold]) for fold in folds]
    return of_folds(np.array(means), test_per_train)


def compare(
    row: Mapping[Key, Mapping[str, Any]],
    baseline: Mapping[Key, Mapping[str, Any]],
    metric: str,
    with_examples: bool = True,
) -> Comparison:
    """Returns row - baseline, in points of accuracy or in nats.

    Args:
      row: lines of results.jsonl, by (fold, seed).
      baseline: lines of the same replicas.
      metric: a key of SCORES.
      with_examples: whether test examples are drawn again where there are no folds.
    """
    scale = SCORES[metric][1]
    values = [
        {key: scale * line[f"test/{metric}"] for key, line in lines.items()}
        for lines in (row, baseline)
    ]
    differences = paired(*values)

    lines = list(row.values())
    ratio = ratio_of_tests(lines)
    examples = None
    if ratio is None and with_examples:
        # The seeds test the same examples: averaged first, as what is drawn is one example.
        each = [
            {key: decode(line["examples"]) for key, line in lines.items()}
            for lines in (row, baseline)
        ]
        examples = bootstrap(scale * np.mean(list(paired(*each).values()), axis=0))

    return Comparison(over_replicas(differences, ratio), examples, len(differences))


def ratio_of_tests(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns examples tested on per example trained on, of folds; None where there are none."""
    if any(line["fold"] is None for line in lines):
        return None
    tested, trained = (
        np.mean([line[f"{k}_examples"] for line in lines]) for k in ("test", "train")
    )
    return float(tested / trained)


def find(results: Results, steps: int) -> list[Finding]:
    """Returns the findings on the declared contrasts, as far as their runs are there."""
    declared, compared = results.declared, []

    for claim in declared["contrasts"]:
        rows = [results.of_row(claim[name], steps) for name in ("row", "baseline")]

        # An unfinished study compares what both rows have.
        common = rows[0].keys() & rows[1].keys()
        if common:
            row, baseline = ({key: lines[key] for key in sorted(common)} for lines in rows)
            compared.append((claim, compare(row, baseline, declared["metric"])))

    corrected = holm([comparison.p_value for _, comparison in compared])
    return [
        Finding(claim, steps, each, p_value, _verdict(declared, claim, each, p_value))
        for (claim, each), p_value in zip(compared, corrected, strict=True)
    ]


def _verdict(
    declared: Mapping[str, Any], claim: Mapping[str, Any], each: Comparison, corrected: float
) -> str:
    # A study that was stopped where its runs happened to agree would find what is not there.
    replicas = len(declared["seeds"]) * (declared["folds"] or 1)
    if each.replicas < replicas:
        return f"{UNFINISHED}, {each.replicas} of {replicas} pairs"

    mean, margin = each.mean, declared["margin"]
    is_equivalent = margin is not None and each.is_equivalent(margin)

    if corrected < 1 - LEVEL:
        is_better = (mean.value > 0) == (declared["metric"] == "accuracy")
        as_claimed = is_better == (claim["expected"] == "better")
        return (YES if as_claimed else OPPOSITE) + (_WITHIN if is_equivalent else "")

    if is_equivalent:
        return EQUIVALENT
    if margin is not None and each.detectable > margin:
        return UNREACHABLE
    return OPEN


def conclude(findings: Sequence[Finding], lengths: Sequence[int]) -> str:
    """Returns what a claim's findings come to: a verdict holds where N and 2N steps agree.

    Args:
      findings: on one claim, by number of steps.
      lengths: that were declared.
    """
    if not findings:
        return "not run yet"

    verdicts = {finding.steps: finding.verdict for finding in findings}
    if len(lengths) < 2 or max(lengths) < 2 * min(lengths):
        return f"at {findings[0].steps:,} steps alone: {findings[0].verdict}"
    if len(verdicts) < len(lengths):
        return f"at {findings[0].steps:,} steps so far: {findings[0].verdict}"

    # That a difference is small is said where all lengths say so.
    if len({verdict.removesuffix(_WITHIN) for verdict in verdicts.values()}) == 1:
        return min(verdicts.values(), key=len)
    return "open: " + "; ".join(f"{verdict} at {n:,} steps" for n, verdict in verdicts.items())


def what_would_change(findings: Sequence[Finding], declared: Mapping[str, Any]) -> str:
    """Returns, in words, what could lead a claim's findings to another verdict.

    Args:
      findings: on one claim, by number of steps.
      declared: the study's declaration.
    """
    if not findings:
        return "a run"

    longest = findings[-1]
    verdict, detectable = longest.verdict, longest.comparison.detectable
    sample = "folds" if declared["folds"] else "seeds"
    if verdict.startswith(UNFINISHED):
        change = "the runs that are left"
    elif not math.isfinite(detectable):
        change = f"more {sample}: one alone has no interval"
    elif verdict in (UNREACHABLE, OPEN):
        change = f"more {sample} or test examples: effects below {detectable:.2g} do not show here"
    elif verdict == EQUIVALENT:
        change = f"a margin below {declared['margin']:g}"
    else:
        change = "another task, size or budget; more seeds hardly"

    lengths = declared["lengths"]
    doubled = len(lengths) > 1 and max(lengths) >= 2 * min(lengths)
    return change if doubled else f"{change}; runs of twice the steps, which a claim needs"
