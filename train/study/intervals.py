"""What a few measured values say of a mean: intervals, p-values, corrections."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL, POWER = 0.95, 0.8
RESAMPLES = 4999
_CHUNK = 1 << 22  # examples drawn at a time


class Estimate(NamedTuple):
    """A mean and its interval, which is infinite for a single value."""

    mean: float
    low: float
    high: float

    @property
    def is_zero_excluded(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean whose error follows Student's distribution.

    Attributes:
      value: the mean.
      error: its standard error; infinite for a single value.
      degrees: degrees of freedom of the error.
    """

    value: float
    error: float
    degrees: int

    def interval(self, level: float = LEVEL) -> Estimate:
        """Returns value +- t_{(1 + level) / 2, degrees} error."""
        reach = _quantile((1 + level) / 2, self.degrees) * self.error
        return Estimate(self.value, self.value - reach, self.value + reach)

    @property
    def p_value(self) -> float:
        """The two-sided probability of a mean as far from 0, if the true one is 0."""
        if self.error == 0 or not np.isfinite(self.error):
            return float(self.error != 0 or self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.degrees))

    @property
    def detectable(self) -> float:
        """The smallest true mean that a two-sided test at 5 % finds in 80 % of studies.

            (t_{0.975} + t_{0.8}) error

        Source: Bloom, 'Minimum detectable effects', Evaluation Review 19(5), 1995.
        """
        quantiles = _quantile((1 + LEVEL) / 2, self.degrees) + _quantile(POWER, self.degrees)
        return quantiles * self.error

    def is_equivalent(self, margin: float) -> bool:
        """Returns whether the true mean lies within the margin, by two one-sided tests at 5 %.

        Both reject just where the 90 % interval lies in (-margin, margin).

        Source: Schuirmann, 'A comparison of the two one-sided tests procedure', 1987.
        """
        _, low, high = self.interval(2 * LEVEL - 1)
        return -margin < low and high < margin


def _quantile(probability: float, degrees: int) -> float:
    return float(stats.t.ppf(probability, degrees)) if degrees else 1.0


def of_seeds(values: np.ndarray) -> Mean:
    """Returns the mean of independent values [n]; of paired differences: the paired t-test.

        error = s / sqrt(n),   n - 1 degrees of freedom

    Source: Student, 'The probable error of a mean', 1908.
    """
    return _mean(values, factor=1 / len(values))


def of_folds(values: np.ndarray, test_per_train: float) -> Mean:
    """Returns the mean of a k-fold cross-validation's values [k], each averaged over its seeds.

        error^2 = (1 / k + n_test / n_train) s^2,   k - 1 degrees of freedom

    The second part stands for the overlap of the training sets, which correlates the folds.

    Args:
      values: by fold.
      test_per_train: examples tested on per example trained on; validation counts as neither.

    Source: Nadeau, Bengio, 'Inference for the generalization error', Machine Learning 52, 2003.
    """
    return _mean(values, factor=1 / len(values) + test_per_train)


def _mean(values: np.ndarray, factor: float) -> Mean:
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Mean(float(values.mean()), np.inf, 0)
    return Mean(float(values.mean()), float(np.sqrt(factor * values.var(ddof=1))), len(values) - 1)


def estimate(values: np.ndarray) -> Estimate:
    """Returns the mean of independent values [n] with Student's 95 % interval."""
    return of_seeds(values).interval()


class Bootstrap(NamedTuple):
    """How a mean varies with the examples it is taken over.

    Attributes:
      interval: the 95 % percentile interval.
      inner: the 90 % one.
      error: standard deviation of the resampled means.
      p_value: twice the smaller part of them on one side of 0.
    """

    interval: Estimate
    inner: Estimate
    error: float
    p_value: float

    @property
    def detectable(self) -> float:
        """The smallest true mean that shows in 80 % of sets of examples; as `Mean.detectable`."""
        quantiles = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)
        return float(quantiles) * self.error

    def is_equivalent(self, margin: float) -> bool:
        """Returns whether the 90 % interval lies within the margin; as `Mean.is_equivalent`."""
        return -margin < self.inner.low and self.inner.high < margin


def bootstrap(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Returns how the mean of examples [N] varies, by drawing them again with replacement.

    Source: Efron, Tibshirani, 'An Introduction to the Bootstrap', 1993, chapter 13.
    """
    values, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    rows = max(_CHUNK // len(values), 1)
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(rows, resamples - i), len(values)))].mean(1)
            for i in range(0, resamples, rows)
        ]
    )

    mean = float(values.mean())
    low, inner_low, inner_high, high = map(
        float, np.quantile(means, [(1 - LEVEL) / 2, 1 - LEVEL, LEVEL, (1 + LEVEL) / 2])
    )

    # The sample itself counts as one of them, so that no p-value is 0.
    sides = ((means <= 0).sum() + 1, (means >= 0).sum() + 1)
    p_value = float(min(2 * min(sides) / (resamples + 1), 1.0))
    return Bootstrap(
        interval=Estimate(mean, low, high),
        inner=Estimate(mean, inner_low, inner_high),
        error=float(means.std(ddof=1)),
        p_value=p_value,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number: p_(i) -> max_{j <= i} min(1, (m - j + 1) p_(j)).

    Rejecting those below 5 % makes any false rejection in the family at most 5 % likely.

    Source: Holm, 'A simple sequentially rejective multiple test procedure', 1979.
    """
    order, corrected, largest = np.argsort(p_values, kind="stable"), [1.0] * len(p_values), 0.0

    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest

    return corrected
