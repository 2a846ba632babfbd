"""Means, intervals, corrections and paired differences."""

import numpy as np
import pytest
from scipy import stats

from train.study.contrasts import compare, conclude, find, over_replicas, paired, what_would_change
from train.study.intervals import Mean, bootstrap, estimate, holm, of_folds, of_seeds
from train.study.results import Results, decode, encode

RNG = np.random.default_rng(0)
FOLDS, TEST, TRAIN = 5, 320, 1277
RATIO = TEST / TRAIN


def test_the_interval_is_students():
    values = RNG.normal(3.0, 2.0, 7)
    reference = stats.ttest_1samp(values, 0.0)
    mean, low, high = estimate(values)
    interval = reference.confidence_interval(0.95)
    np.testing.assert_allclose([mean, low, high], [values.mean(), *interval], rtol=1e-9)
    np.testing.assert_allclose(of_seeds(values).p_value, reference.pvalue, rtol=1e-9)


def test_the_interval_covers_as_often_as_it_says():
    samples = RNG.normal(1.0, 3.0, (2000, 5))
    covered = [low <= 1.0 <= high for _, low, high in map(estimate, samples)]
    assert 0.93 < np.mean(covered) < 0.97


def test_one_value_has_no_interval():
    alone = of_seeds(np.array([0.5]))
    assert alone.interval() == (0.5, -np.inf, np.inf) and alone.p_value == 1
    assert alone.detectable == np.inf and not alone.is_equivalent(100)


def test_values_without_spread():
    assert of_seeds(np.array([0.5, 0.5])).p_value == 0
    assert of_seeds(np.zeros(3)).p_value == 1


def test_students_sleep():
    """Student 1908, the hours that ten patients gained more by the second drug: t = 4.0621."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    gained = of_seeds(np.subtract(second, first))
    assert round(gained.value, 2) == 1.58 and round(gained.value / gained.error, 4) == 4.0621
    assert round(gained.p_value, 6) == 0.002833
    np.testing.assert_allclose(gained.interval()[1:], [0.7001142, 2.4598858], atol=5e-8)


def test_the_interval_of_folds_is_nadeaus_and_bengios():
    """By hand: s^2 = 2.5, (1/5 + 1/4) s^2 = 1.125, and t_{0.975, 4} = 2.7764451."""
    mean = of_folds(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), test_per_train=1 / 4)
    assert (mean.value, mean.degrees) == (3.0, 4)
    np.testing.assert_allclose(mean.error, np.sqrt(1.125), rtol=1e-9)
    reach = stats.t.ppf(0.975, 4) * np.sqrt(1.125)
    np.testing.assert_allclose(mean.interval(), [3.0, 3.0 - reach, 3.0 + reach], rtol=1e-9)
    assert round(reach, 5) == 2.94486

    t = 3.0 / np.sqrt(1.125)
    np.testing.assert_allclose(mean.p_value, 2 * (1 - stats.t.cdf(t, 4)), rtol=1e-9)


def test_seeds_are_averaged_within_their_fold():
    """By hand: folds of 1 and 4, and not four values; no fold weighs more for its seeds."""
    values = {(0, 0): 0.0, (0, 1): 2.0, (1, 0): 3.0, (1, 1): 5.0}
    mean = over_replicas(values, test_per_train=0.25)
    assert (mean.value, mean.degrees) == (2.5, 1)
    np.testing.assert_allclose(mean.error**2, (1 / 2 + 0.25) * 4.5, rtol=1e-9)

    assert over_replicas(values, test_per_train=None).degrees == 3


def test_holms_correction():
    """Holm 1979 as in R's p.adjust(c(0.01, 0.02, 0.03, 0.04), 'holm'); its order is kept."""
    np.testing.assert_allclose(holm([0.01, 0.02, 0.03, 0.04]), [0.04, 0.06, 0.06, 0.06], rtol=1e-9)
    np.testing.assert_allclose(holm([0.06, 0.01, 0.03, 0.005]), [0.06, 0.03, 0.06, 0.02], rtol=1e-9)
    assert holm([0.4, 0.9]) == [0.8, 0.9] and holm([0.7, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_smallest_detectable_effect():
    """By hand with t_{0.975, 4} = 2.7764451 and t_{0.8, 4} = 0.9409646."""
    mean = Mean(0.0, 2.0, 4)
    np.testing.assert_allclose(mean.detectable, 2 * (2.7764451052 + 0.9409645763), rtol=1e-9)

    # The approximation holds against the power of the test itself.
    t = stats.nct(4, mean.detectable / 2.0)
    assert abs(t.sf(stats.t.ppf(0.975, 4)) - 0.8) < 0.03


def test_equivalence_is_two_one_sided_tests():
    for value, error in ((0.3, 0.4), (0.3, 0.6), (-0.9, 0.25), (-0.9, 0.3)):
        mean = Mean(value, error, 4)
        tests = [stats.t.sf((1.5 - value) / error, 4), stats.t.sf((1.5 + value) / error, 4)]
        assert mean.is_equivalent(1.5) == (max(tests) < 0.05)


def test_the_bootstrap_is_scipys():
    values = RNG.normal(0.3, 2.0, 50)
    ours = bootstrap(values, resamples=999, seed=7)
    reference = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=999,
        method="percentile",
        random_state=np.random.default_rng(7),
    )
    np.testing.assert_allclose(ours.interval[1:], reference.confidence_interval, rtol=1e-9)
    below = (reference.bootstrap_distribution <= 0).sum()
    np.testing.assert_allclose(ours.error, reference.standard_error, rtol=1e-9)
    np.testing.assert_allclose(ours.detectable, (1.959963985 + 0.841621234) * ours.error, rtol=1e-9)
    inner = np.quantile(reference.bootstrap_distribution, [0.05, 0.95])
    np.testing.assert_allclose(ours.inner[1:], inner, rtol=1e-9)
    for margin in (inner[1] - 1e-6, inner[1] + 1e-6):
        assert ours.is_equivalent(margin) == (margin > inner[1] and -margin < inner[0])
    np.testing.assert_allclose(ours.p_value, 2 * (min(below, 999 - below) + 1) / 1000, rtol=1e-9)


def line(fold, seed, correct, **rest):
    correct = np.asarray(correct, np.float32)
    return {
        "fold": fold,
        "seed": seed,
        "test/accuracy": float(correct.mean(dtype=np.float64)),
        "examples": encode(correct),
        "train_examples": TRAIN,
        "test_examples": len(correct),
        **rest,
    }


def test_pairing_removes_what_examples_share():
    """Easy and hard test images, which both rows share, say nothing of their difference."""
    hard = RNG.random(4000) < 0.5
    row, baseline = (
        {(0, seed): line(None, seed, ~hard & (RNG.random(4000) < p)) for seed in range(3)}
        for p in (0.99, 0.97)
    )
    each = compare(row, baseline, "accuracy")
    means = [100 * (row[key]["test/accuracy"] - baseline[key]["test/accuracy"]) for key in row]
    np.testing.assert_allclose(
        each.mean.interval()[1:],
        stats.ttest_rel(
            *[[100 * one["test/accuracy"] for one in lines.values()] for lines in (row, baseline)]
        ).confidence_interval(0.95),
        rtol=1e-9,
    )
    np.testing.assert_allclose(each.examples.interval.mean, np.mean(means), rtol=1e-9)
    assert each.examples.interval.is_zero_excluded

    # The seeds are averaged first: 4,000 images, and not 12,000.
    differences = paired(
        *[{k: decode(one["examples"]) for k, one in lines.items()} for lines in (row, baseline)]
    )
    averaged = 100 * np.mean(list(differences.values()), axis=0)
    assert each.examples == bootstrap(averaged)

    # A verdict holds over the seeds and over the images.
    both = each.mean, each.examples
    assert each.p_value == max(one.p_value for one in both)
    assert each.detectable == max(one.detectable for one in both)
    assert not each.is_equivalent(1.0) and each.is_equivalent(10.0)


def test_rows_of_other_replicas_are_refused():
    with pytest.raises(ValueError, match="the same replicas"):
        paired({(0, 0): 1.0}, {(0, 1): 1.0})


def results_of(differences, margin=None, expected="better"):
    """A study of one row per contrast against one baseline, by differences [contrasts, folds]."""
    rows = [f"row {i}" for i in range(len(differences))]
    runs = [
        {"row": row, "steps": 1, "fold": fold, "seed": 0, "train_examples": TRAIN}
        | {"test_examples": TEST, "test/accuracy": 0.5 + difference / 100}
        for row, each in zip([*rows, "base"], [*differences, np.zeros(FOLDS)], strict=True)
        for fold, difference in enumerate(each)
    ]
    contrasts = [dict(text="", row=row, baseline="base", expected=expected) for row in rows]
    declared = dict(contrasts=contrasts, metric="accuracy", margin=margin, folds=FOLDS, rows=[])
    declared["seeds"] = [0]
    return Results(declared | {"lengths": [1]}, runs, [])


def correlated(studies, contrasts, effect=0.0):
    """Differences [studies, contrasts, folds] of variance 1, correlated as folds are."""
    rho = TEST / (TEST + TRAIN)
    shared = RNG.normal(size=(studies, contrasts, 1))
    alone = RNG.normal(size=(studies, contrasts, FOLDS))
    return effect + np.sqrt(rho) * shared + np.sqrt(1 - rho) * alone


def test_studies_without_effect_find_one_in_a_twentieth():
    """Of 1,000 families of four contrasts; the uncorrected interval errs far more often."""
    found, uncorrected = 0, 0
    for study in correlated(1000, 4):
        findings = find(results_of(study), 1)
        found += any(finding.verdict != "not distinguishable" for finding in findings)
        uncorrected += any(estimate(each).is_zero_excluded for each in study)
    assert found / 1000 <= 0.065
    assert uncorrected / 1000 > 0.1

    # Of one contrast alone, too.
    alone = [estimate(each).is_zero_excluded for each in correlated(1000, 1)[:, 0]]
    assert np.mean(alone) > 0.1


def test_the_interval_covers_an_effect_of_two_standard_errors():
    effect = 2 * np.sqrt(1 / FOLDS + RATIO)
    intervals = [of_folds(each, RATIO).interval() for each in correlated(1000, 1, effect)[:, 0]]
    assert 0.93 <= np.mean([low <= effect <= high for _, low, high in intervals]) <= 0.97


@pytest.mark.parametrize(
    ("values", "margin", "expected", "verdict"),
    [
        ([5.0, 5.1, 4.9, 5.0, 5.2], 1.5, "better", "yes"),
        ([5.0, 5.1, 4.9, 5.0, 5.2], 1.5, "worse", "no: the opposite"),
        ([-5.0, -5.1, -4.9, -5.0, -5.2], 1.5, "worse", "yes"),
        ([0.5, 0.51, 0.49, 0.5, 0.5], 1.5, "better", "yes, by less than the margin"),
        ([0.2, -0.2, 0.1, -0.1, 0.0], 1.5, "better", "equivalent"),
        ([9.0, -9.0, 5.0, -5.0, 1.0], 1.5, "better", "not reachable here"),
        ([9.0, -9.0, 5.0, -5.0, 1.0], None, "better", "not distinguishable"),
        ([1.3, 0.9, 0.5, 1.2, 0.0], 1.5, "better", "not distinguishable"),
    ],
)
def test_verdicts(values, margin, expected, verdict):
    (finding,) = find(results_of(np.array([values]), margin, expected), 1)
    assert finding.verdict == verdict
    assert conclude([finding], [1]) == f"at 1 steps alone: {verdict}"


def test_a_claim_needs_both_lengths():
    results = results_of(np.array([[5.0, 5.1, 4.9, 5.0, 5.2]]), 1.5)
    (yes,) = find(results, 1)
    later = [run | {"steps": 2} for run in results.runs]
    both = Results(results.declared | {"lengths": [1, 2]}, results.runs + later, [])
    assert conclude([yes, *find(both, 2)], [1, 2]) == "yes"
    assert conclude([yes], [1, 2]) == "at 1 steps so far: yes"
    assert conclude([], [1, 2]) == "not run yet"

    (other,) = find(results_of(np.zeros((1, FOLDS)), 1.5), 1)
    later = type(other)(other.claim, 2, other.comparison, 1.0, other.verdict)
    assert conclude([yes, later], [1, 2]) == "open: yes at 1 steps; equivalent at 2 steps"


@pytest.mark.parametrize(
    ("values", "change"),
    [
        ([5.0, 5.1], "the runs that are left"),
        ([9.0, -9.0, 5.0, -5.0, 1.0], "more folds or test examples: effects below 18 do not show"),
        ([0.2, -0.2, 0.1, -0.1, 0.0], "a margin below 1.5"),
        ([5.0, 5.1, 4.9, 5.0, 5.2], "another task, size or budget"),
    ],
)
def test_what_would_change_a_verdict(values, change):
    results = results_of(np.array([values]), 1.5)
    said = what_would_change(find(results, 1), results.declared)
    assert said.startswith(change) and said.endswith(
        "; runs of twice the steps, which a claim needs"
    )
    assert what_would_change([], results.declared) == "a run"


def test_an_unfinished_study_has_no_verdict():
    """Two runs may differ alike by chance, and would leave no doubt."""
    values = np.array([[5.0, 5.0, 1.0, -4.0, 9.0]])
    whole = results_of(values, 1.5)
    part = Results(whole.declared, [run for run in whole.runs if run["fold"] < 2], [])
    (finding,) = find(part, 1)
    assert finding.corrected == 0.0 and finding.comparison.mean.value == pytest.approx(5.0)
    assert finding.verdict == "unfinished, 2 of 5 pairs"
    assert find(whole, 1)[0].verdict == "not reachable here"

    one = Results(whole.declared | {"folds": 1}, [run for run in whole.runs if not run["fold"]], [])
    change = what_would_change(find(one, 1), one.declared)
    assert change.startswith("more folds: one alone has no interval")


def test_losses_are_better_when_they_are_lower():
    results = results_of(np.array([[-5.0, -5.1, -4.9, -5.0, -5.2]]), None)
    runs = [run | {"test/loss": run["test/accuracy"]} for run in results.runs]
    lower = Results(results.declared | {"metric": "loss"}, runs, [])
    assert [finding.verdict for finding in find(lower, 1)] == ["yes"]


def test_scores_are_stored_as_they_are():
    for scores in (np.array([0, 1, 1], np.float32), RNG.normal(size=7).astype(np.float32)):
        np.testing.assert_array_equal(decode(encode(scores)), scores)
