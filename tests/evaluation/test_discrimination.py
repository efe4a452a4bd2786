from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.variance import quantile
from medtransfer.evaluation.metrics.discrimination import (
    auc_interval,
    precision_recall_curve,
    roc_curve,
    weighted_auc,
    weighted_average_precision,
    weighted_partial_auc,
)
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, roc_auc_score

from scored import estimate_of, make_scores


def of_auc(scores, target, patients=None, fold=None):
    return estimate_of(make_scores(scores, target, patients, fold))


ONE_MODEL = np.zeros(5, int)


TARGET = np.array([0, 1, 0, 1, 1])
SCORE = np.array([0.1, 0.4, 0.4, 0.8, 0.3])


def test_auc_of_a_hand_worked_case():
    # Six pairs: (.4, .1) 1, (.4, .4) 1/2, (.8, .1) 1, (.8, .4) 1, (.3, .1) 1, (.3, .4) 0 -> 4.5 /
    # 6.
    assert weighted_auc(SCORE, TARGET, np.ones((1, 5)))[0] == pytest.approx(4.5 / 6)


@settings(max_examples=60, deadline=None)
@given(
    score=arrays(float, 30, elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.3, 1.0, 2.0])),
    weight=arrays(float, 30, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0])),
    target=arrays(int, 30, elements=st.integers(0, 1)),
)
def test_weighted_metrics_equal_scikit_learn(score, weight, target):
    if not (weight[target == 1].sum() and weight[target == 0].sum()):
        assert np.isnan(weighted_auc(score, target, weight[None])[0])
        return
    assert weighted_auc(score, target, weight[None])[0] == pytest.approx(
        roc_auc_score(target, score, sample_weight=weight), abs=1e-12
    )
    expected = average_precision_score(target, score, sample_weight=weight)
    assert weighted_average_precision(score, target, weight[None])[0] == pytest.approx(
        expected, abs=1e-12
    )


def delong_by_definition(score: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    x, y = score[target == 1], score[target == 0]
    psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    return float(psi.mean()), float(
        psi.mean(1).var(ddof=1) / len(x) + psi.mean(0).var(ddof=1) / len(y)
    )


def test_fast_delong_equals_its_definition():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 80)
    score = np.round(rng.normal(size=80) + target, 1)  # rounded, so that there are ties
    found = of_auc(score, target)
    auc, variance = delong_by_definition(score, target)
    assert found.value == pytest.approx(auc, abs=1e-12)
    assert found.variance == pytest.approx(variance, abs=1e-12)


def test_delong_of_a_hand_worked_case():
    # Placements of positives 3/4, 1, 1/2 and of negatives 1, 1/2; AUC 3/4.
    # Variance: (0 + 1/16 + 1/16) / 2 / 3 + (1/16 + 1/16) / 1 / 2 = 1/48 + 1/16 = 1/12.
    value, own = influence.auc(SCORE, TARGET, np.ones(5), ONE_MODEL)
    assert value == 0.75
    assert own[TARGET == 1] * 3 + value == pytest.approx([0.75, 1.0, 0.5])
    assert own[TARGET == 0] * 2 + value == pytest.approx([1.0, 0.5])
    assert of_auc(SCORE, TARGET).variance == pytest.approx(1 / 12)


def test_repeating_every_image_of_a_patient_changes_nothing():
    """Clustered by patient, copies carry no information: the AUC and its variance stay."""
    rng = np.random.default_rng(2)
    target = rng.integers(0, 2, 60)
    score = rng.normal(size=60) + target
    once = of_auc(score, target)
    thrice = of_auc(np.repeat(score, 3), np.repeat(target, 3), np.repeat(np.arange(60), 3))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.variance == pytest.approx(once.variance)
    assert of_auc(np.repeat(score, 3), np.repeat(target, 3)).variance < 0.5 * once.variance


def test_clustered_variance_agrees_with_bootstrap_over_patients():
    rng = np.random.default_rng(3)
    patients, views = 80, 4
    effect = rng.normal(size=patients)
    target = rng.integers(0, 2, (patients, views))  # images of both classes within a patient
    score = (target + effect[:, None] + 0.5 * rng.normal(size=target.shape)).ravel()
    code = np.repeat(np.arange(patients), views)
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), 4000)[:, code].astype(
        float
    )
    bootstrap = weighted_auc(score, target.ravel(), weights).std(ddof=1)
    assert np.sqrt(of_auc(score, target.ravel(), code).variance) == pytest.approx(
        bootstrap, rel=0.08
    )


def test_interval_is_delong_on_the_logit_scale():
    rng = np.random.default_rng(4)
    target = np.repeat([0, 1], 60)
    score = rng.normal(size=120) + 1.2 * target
    auc, variance = delong_by_definition(score, target)
    half = 1.959964 * np.sqrt(variance) / (auc * (1 - auc))
    center = np.log(auc / (1 - auc))
    interval = auc_interval(of_auc(score, target))
    assert interval["method"].startswith("DeLong, logit scale")
    assert interval["low"] == pytest.approx(1 / (1 + np.exp(-(center - half))), abs=1e-6)
    assert interval["high"] == pytest.approx(1 / (1 + np.exp(-(center + half))), abs=1e-6)


def test_few_patients_widen_the_interval():
    """With 12 patients of a class their variance is known badly: Student's t takes the place of the
    normal distribution.
    """
    rng = np.random.default_rng(9)
    target = np.repeat([0, 1], [100, 12])
    score = rng.normal(size=112) + 1.2 * target
    found = of_auc(score, target)
    (part,) = found.parts
    assert 11 < part.freedom < 60
    assert quantile(found.parts) == pytest.approx(student.ppf(0.975, part.freedom))
    assert quantile(found.parts) > 1.97


@pytest.mark.parametrize("n", [3, 30])
def test_perfect_separation_is_not_certainty(n):
    target = np.repeat([0, 1], n)
    interval = auc_interval(of_auc(np.arange(2.0 * n), target))
    assert interval["estimate"] == 1
    assert interval["high"] == 1
    assert 0.3 < interval["low"] < 0.97
    worst = auc_interval(of_auc(-np.arange(2.0 * n), target))
    assert worst["low"] == 0
    assert worst["high"] == pytest.approx(1 - interval["low"])


def test_newcombe_bounds_solve_their_equation():
    from medtransfer.evaluation.metrics.discrimination import _newcombe

    low, high = _newcombe(0.8, np.array([[12, 20]]))
    middle = (12 + 20) / 2 - 1
    for bound in (low, high):
        variance = (
            bound
            * (1 - bound)
            * (1 + middle * (1 - bound) / (2 - bound) + middle * bound / (1 + bound))
            / (12 * 20)
        )
        assert (0.8 - bound) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)
    assert low < 0.8 < high


def test_averaging_seeds_gives_the_mean_auc():
    rng = np.random.default_rng(5)
    target = rng.integers(0, 2, 50)
    scores = rng.normal(size=(3, 50)) + target
    assert of_auc(scores, target).value == pytest.approx(
        np.mean([roc_auc_score(target, s) for s in scores])
    )


def test_curves_run_from_corner_to_corner():
    curve = roc_curve(make_scores(SCORE, TARGET))
    assert (
        curve["false_positive_rate"][0],
        curve["false_positive_rate"][-1],
        curve["sensitivity"][-1],
    ) == (0, 1, 1)
    assert np.all(np.diff(curve["sensitivity"]) >= 0)
    other = precision_recall_curve(make_scores(SCORE, TARGET))
    assert (other["recall"][-1], other["precision"][0], other["precision"][-1]) == (
        1,
        1,
        pytest.approx(3 / 4),
    )
    assert roc_curve(make_scores(SCORE, np.ones(5, int))) == {
        "false_positive_rate": [],
        "sensitivity": [],
    }


def test_the_interval_holds_the_variance_between_seeds():
    rng = np.random.default_rng(6)
    target = rng.integers(0, 2, 300)
    seeds = np.stack([strength * target + rng.normal(size=300) for strength in (0.5, 1.5, 2.5)])
    one, several = auc_interval(of_auc(seeds[1], target)), auc_interval(of_auc(seeds, target))
    assert several["method"].endswith("with the variance between seeds")
    assert several["high"] - several["low"] > 2 * (one["high"] - one["low"])


@settings(max_examples=40, deadline=None)
@given(
    score=arrays(float, 25, elements=st.sampled_from([-2.0, -1.0, 0.0, 0.3, 1.0])),
    weight=arrays(float, 25, elements=st.sampled_from([0.0, 1.0, 2.0])),
    target=arrays(int, 25, elements=st.integers(0, 1)),
)
def test_weights_mean_repetition(score, weight, target):
    rows = np.repeat(np.arange(25), weight.astype(int))
    if len(set(target[rows])) < 2:
        return
    ones = np.ones((1, len(rows)))
    for metric in (weighted_auc, weighted_partial_auc, weighted_average_precision):
        assert metric(score, target, weight[None])[0] == pytest.approx(
            metric(score[rows], target[rows], ones)[0], abs=1e-12
        )
    assert influence.auc(score, target, weight, np.zeros(25, int))[0] == pytest.approx(
        roc_auc_score(target[rows], score[rows]), abs=1e-12
    )


def test_partial_auc_equals_scikit_learn():
    rng = np.random.default_rng(8)
    target = rng.integers(0, 2, 90)
    score = np.round(rng.normal(size=90) + target, 1)
    assert weighted_partial_auc(score, target, np.ones((1, 90)))[0] == pytest.approx(
        roc_auc_score(target, score, max_fpr=0.2), abs=1e-12
    )


def fold_aucs(score, target, fold):
    return {k: roc_auc_score(target[fold == k], score[fold == k]) for k in np.unique(fold)}


def test_scores_of_different_models_are_never_ranked_together():
    """Two models, worked by hand: 2 of 2 and 3 of 4 pairs in order give 5 of 6; a shift of one
    model changes nothing.
    """
    target, fold = np.array([1, 0, 0, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 1, 1, 1])
    score = np.array([0.9, 0.2, 0.4, 5.0, 1.0, 2.0, 0.0])
    for moved in (score, score + 100.0 * fold, np.where(fold == 1, 3 * score, score)):
        value, own = influence.auc(moved, target, np.ones(7), fold)
        assert value == pytest.approx(5 / 6)
        assert own.sum() == pytest.approx(0, abs=1e-12)
    assert roc_auc_score(target, score - 100 * fold) != pytest.approx(5 / 6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_auc_within_models_is_that_of_folds_weighted_by_their_pairs(seed, folds):
    rng = np.random.default_rng(seed)
    target, fold = rng.integers(0, 2, 80), rng.integers(0, folds, 80)
    score = np.round(rng.normal(size=80) + target, 1)
    pairs = {k: target[fold == k].sum() * (1 - target[fold == k]).sum() for k in range(folds)}
    known = {k: auc for k, auc in fold_aucs(score, target, fold).items() if pairs[k]}
    expected = sum(pairs[k] * auc for k, auc in known.items()) / sum(pairs[k] for k in known)
    assert influence.auc(score, target, np.ones(80), fold)[0] == pytest.approx(expected, abs=1e-12)


def test_the_influences_are_those_of_a_jackknife():
    rng = np.random.default_rng(0)
    target, fold = rng.integers(0, 2, 200), rng.integers(0, 4, 200)
    score = rng.normal(size=200) + target + fold
    value, own = influence.auc(score, target, np.ones(200), fold)
    for row in range(0, 200, 17):
        step = 1e-6
        weight = np.ones(200)
        weight[row] += step
        assert (influence.auc(score, target, weight, fold)[0] - value) / step == pytest.approx(
            own[row], abs=1e-6
        )


def test_of_a_fold_of_one_positive_the_variance_is_known_from_the_others():
    """Each fold alone shows no variance of its one positive; together they do."""
    rng = np.random.default_rng(1)
    target = np.r_[np.ones(8, int), np.zeros(80, int)]
    fold = np.r_[np.arange(8), np.repeat(np.arange(8), 10)]
    values, errors = [], []
    for _ in range(300):
        found = of_auc(rng.normal(size=88) + 1.2 * target, target, fold=fold)
        values.append(found.value)
        errors.append(found.variance)
    assert np.mean(errors) == pytest.approx(np.var(values), rel=0.2)


def test_newcombe_of_several_folds_is_that_of_each_with_its_share():
    interval = auc_interval(
        of_auc(
            np.r_[1.0, 0.0, 0.1, 1.0, 0.0, 0.1],
            np.array([1, 0, 0, 1, 0, 0]),
            fold=np.array([0, 0, 0, 1, 1, 1]),
        )
    )
    whole = auc_interval(of_auc(np.r_[1.0, 0.0, 0.1], np.array([1, 0, 0])))
    assert whole["low"] < interval["low"] < 1 == interval["high"]
