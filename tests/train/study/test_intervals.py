"""Means, intervals and paired differences."""

import numpy as np
import pytest
from scipy import stats

from train.study.intervals import estimate, paired_difference

RNG = np.random.default_rng(0)


def test_the_interval_is_students():
    values = RNG.normal(3.0, 2.0, 7)
    reference = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    mean, low, high = estimate(values)
    np.testing.assert_allclose([mean, low, high], [values.mean(), *reference], rtol=1e-12)


def test_the_interval_covers_as_often_as_it_says():
    samples = RNG.normal(1.0, 3.0, (2000, 5))
    covered = [low <= 1.0 <= high for _, low, high in map(estimate, samples)]
    assert 0.93 < np.mean(covered) < 0.97


def test_one_value_has_no_interval():
    alone = estimate(np.array([0.5]))
    assert alone == (0.5, -np.inf, np.inf) and not alone.is_zero_excluded


def replicas(shift, folds=5, seeds=1, size=40, noise=1.0):
    shared = {fold: RNG.normal(0, 5, size) for fold in range(folds)}
    make = lambda shift: {
        (fold, seed): shared[fold] + shift + RNG.normal(0, noise, size)
        for fold in range(folds)
        for seed in range(seeds)
    }
    return make(shift), make(0.0)


def test_pairing_removes_what_examples_share():
    row, baseline = replicas(shift=1.0)
    difference = paired_difference(row, baseline)
    np.testing.assert_allclose(difference.over_replicas.mean, difference.over_examples.mean)
    pooled = [np.concatenate(list(scores.values())) for scores in (row, baseline)]
    reference = stats.ttest_rel(*pooled).confidence_interval(0.95)
    np.testing.assert_allclose(difference.over_examples[1:], reference, rtol=1e-12)
    assert difference.is_distinguishable
    assert stats.ttest_ind(*pooled).pvalue > 0.01  # unpaired, the same data say little


def test_seeds_are_averaged_before_examples_are_compared():
    row, baseline = replicas(shift=0.5, folds=1, seeds=3)
    difference = paired_difference(row, baseline)
    by_seed = np.array([row[key] - baseline[key] for key in row])
    reference = stats.ttest_1samp(by_seed.mean(axis=0), 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(difference.over_examples[1:], reference, rtol=1e-12)
    reference = stats.ttest_1samp(by_seed.mean(axis=1), 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(difference.over_replicas[1:], reference, rtol=1e-12)


def test_no_difference_is_not_distinguishable():
    assert not paired_difference(*replicas(shift=0.0)).is_distinguishable


def test_rows_of_other_replicas_are_refused():
    row, baseline = replicas(shift=1.0)
    del baseline[(0, 0)]
    with pytest.raises(ValueError, match="the same replicas"):
        paired_difference(row, baseline)
