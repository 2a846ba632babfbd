"""Means and differences with their 95 % intervals."""

from collections.abc import Set
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean and its 95 % interval, which is infinite for a single value."""

    mean: float
    low: float
    high: float

    @property
    def is_zero_excluded(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def estimate(values: np.ndarray) -> Estimate:
    """Returns the mean of independent values [n] with Student's interval.

        mean +- t_{0.975, n - 1} s / sqrt(n)

    For paired differences it is the paired t-interval.

    Source: Student, 'The probable error of a mean', 1908.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, -np.inf, np.inf)

    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error

    return Estimate(mean, mean - reach, mean + reach)


class Difference(NamedTuple):
    """How a row differs from another one that was trained and tested on the same examples.

    Attributes:
      over_replicas: mean of the replicas' means: the interval reflects the randomness of training.
      over_examples: mean of the test examples, each averaged over its replicas: the interval
        reflects the randomness of the test set alone.
    """

    over_replicas: Estimate
    over_examples: Estimate

    @property
    def is_distinguishable(self) -> bool:
        """Whether both intervals lie on the same side of zero."""
        both = self.over_replicas.is_zero_excluded and self.over_examples.is_zero_excluded
        return both and (self.over_replicas.mean > 0) == (self.over_examples.mean > 0)


def paired_difference(
    row: dict[tuple[int, int], np.ndarray], baseline: dict[tuple[int, int], np.ndarray]
) -> Difference:
    """Returns row - baseline, replica by replica and test example by test example.

    Args:
      row: scores of the test examples [N of that fold], by (fold, seed).
      baseline: scores of the same examples, by the same keys.

    Raises:
      ValueError: the two do not have the same replicas.
    """
    _check_replicas(row.keys(), baseline.keys())
    differences = {replica: row[replica] - baseline[replica] for replica in row}

    # The seeds of a fold test the same examples: averaged first, as the interval is one of
    # independent values.
    folds = sorted({fold for fold, _ in differences})
    by_example = [
        np.mean([scores for (f, _), scores in differences.items() if f == fold], axis=0)
        for fold in folds
    ]

    return Difference(
        over_replicas=estimate(np.array([scores.mean() for scores in differences.values()])),
        over_examples=estimate(np.concatenate(by_example)),
    )


def _check_replicas(row: Set[tuple[int, int]], baseline: Set[tuple[int, int]]) -> None:
    if row != baseline:
        raise ValueError(
            f"rows are compared over the same replicas; {sorted(row)} and {sorted(baseline)} were "
            "given: finish the study's runs first"
        )
