from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics.calibration_curve import curve_metric
from medtransfer.evaluation.metrics.discrimination import (
    weighted_auc,
)
from medtransfer.evaluation.metrics.smooth_ece import weighted_smooth_ece
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from scored import ONE_MODEL, delong_by_definition, estimate_auc, ones


def test_slope_equals_unpenalised_logistic_regression(cohort):
    logit, target = cohort
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], target)
    assert influence.slope(logit, target, ones(logit)[0], ONE_MODEL[: len(logit)])[
        0
    ] == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert influence.slope(logit, target, ones(logit)[0], ONE_MODEL[: len(logit)])[0] < 0.7


def test_intercept_and_robust_variances_are_those_of_statsmodels(cohort):
    import statsmodels.api as sm

    logit, target = cohort
    patients = np.arange(400) // 4
    for estimator, design, offset in (
        (influence.intercept, np.ones((400, 1)), logit),
        (influence.slope, sm.add_constant(logit), None),
    ):
        model = sm.GLM(target, design, family=sm.families.Binomial(), offset=offset)
        plain = model.fit(tol=1e-12)
        robust = model.fit(
            tol=1e-12, cov_type="cluster", cov_kwds={"groups": patients, "use_correction": False}
        )
        value, own = estimator(logit, target, np.ones(400), ONE_MODEL[:400])
        assert value == pytest.approx(plain.params[-1], abs=1e-8)
        summed = np.bincount(patients, own)
        assert summed @ summed == pytest.approx(np.asarray(robust.cov_params())[-1, -1], rel=1e-6)


def test_influences_are_derivatives(cohort):
    """What an image adds is the change of the estimate as its weight grows."""
    logit, target = cohort
    for name in (
        "auc",
        "brier",
        "brier_skill",
        "log_loss",
        "intercept",
        "slope",
        "observed_expected",
    ):
        estimator = getattr(influence, name)
        _, own = estimator(logit, target, np.ones(400), ONE_MODEL[:400])
        assert own.sum() == pytest.approx(0, abs=1e-9)
        for row in (0, 7, 200):
            more, less = np.ones(400), np.ones(400)
            more[row], less[row] = 1 + 1e-4, 1 - 1e-4
            slope = (
                estimator(logit, target, more, ONE_MODEL[:400])[0]
                - estimator(logit, target, less, ONE_MODEL[:400])[0]
            ) / 2e-4
            assert own[row] == pytest.approx(slope, rel=1e-4, abs=1e-9), name


def test_weights_mean_repetition(cohort):
    logit, target = cohort
    counts = np.random.default_rng(1).integers(0, 4, len(logit))
    rows = np.repeat(np.arange(len(logit)), counts)
    weights, edges = counts[None].astype(float), cal.bin_edges(logit)
    for name in (
        "auc",
        "brier",
        "brier_skill",
        "log_loss",
        "intercept",
        "slope",
        "observed_expected",
    ):
        estimator = getattr(influence, name)
        assert estimator(logit, target, weights[0], ONE_MODEL[: len(logit)])[0] == pytest.approx(
            estimator(logit[rows], target[rows], ones(rows)[0], ONE_MODEL[: len(rows)])[0], abs=1e-7
        )
    for metric in (
        cal.weighted_brier,
        cal.weighted_log_loss,
        weighted_smooth_ece,
        cal.weighted_corp,
        lambda *rows: cal.weighted_ece(*rows, edges),
        lambda *rows: cal.weighted_l2_ece(*rows, edges),
        curve_metric(logit[None]),
    ):
        assert metric(logit, target, weights)[0] == pytest.approx(
            metric(logit[rows], target[rows], ones(rows))[0], abs=1e-6
        )


def test_what_cannot_be_estimated_is_nan():
    logit, target, weight = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]), np.ones(4)
    assert np.isnan(influence.slope(logit, target, weight, ONE_MODEL[:4])[0])  # separated
    assert np.isnan(
        influence.slope(np.zeros(4), target, weight, ONE_MODEL[:4])[0]
    )  # one single probability
    for estimator in (influence.slope, influence.intercept, influence.brier_skill, influence.auc):
        assert np.isnan(estimator(logit, np.ones(4, int), weight, ONE_MODEL[:4])[0])


def test_a_slope_has_an_intercept_for_every_model(cohort):
    logit, target = cohort
    fold = np.arange(400) % 4
    alone = influence.slope(logit, target, np.ones(400), np.zeros(400, int))[0]
    shifted = influence.slope(logit + 3.0 * fold, target, np.ones(400), fold)
    assert shifted[0] == pytest.approx(alone, rel=0.1)
    assert (
        influence.slope(logit + 3.0 * fold, target, np.ones(400), np.zeros(400, int))[0]
        < 0.5 * alone
    )
    import statsmodels.api as sm

    design = np.column_stack([logit, np.eye(4)[fold]])
    groups = np.arange(400) // 4
    model = sm.GLM(target, design, family=sm.families.Binomial())
    robust = model.fit(
        tol=1e-12, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    assert shifted[0] == pytest.approx(robust.params[0], abs=1e-8)
    assert np.square(np.bincount(groups, shifted[1])).sum() == pytest.approx(
        robust.cov_params()[0, 0], rel=1e-6
    )


TARGET = np.array([0, 1, 0, 1, 1])


SCORE = np.array([0.1, 0.4, 0.4, 0.8, 0.3])


def test_auc_of_a_hand_worked_case():
    # Six pairs: (.4, .1) 1, (.4, .4) 1/2, (.8, .1) 1, (.8, .4) 1, (.3, .1) 1, (.3, .4) 0 -> 4.5 /
    # 6.
    assert weighted_auc(SCORE, TARGET, np.ones((1, 5)))[0] == pytest.approx(4.5 / 6)


def test_fast_delong_equals_its_definition():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 80)
    score = np.round(rng.normal(size=80) + target, 1)  # rounded, so that there are ties
    found = estimate_auc(score, target)
    auc, variance = delong_by_definition(score, target)
    assert found.value == pytest.approx(auc, abs=1e-12)
    assert found.variance == pytest.approx(variance, abs=1e-12)


def test_delong_of_a_hand_worked_case():
    # Placements of positives 3/4, 1, 1/2 and of negatives 1, 1/2; AUC 3/4.
    # Variance: (0 + 1/16 + 1/16) / 2 / 3 + (1/16 + 1/16) / 1 / 2 = 1/48 + 1/16 = 1/12.
    value, own = influence.auc(SCORE, TARGET, np.ones(5), ONE_MODEL[:5])
    assert value == 0.75
    assert own[TARGET == 1] * 3 + value == pytest.approx([0.75, 1.0, 0.5])
    assert own[TARGET == 0] * 2 + value == pytest.approx([1.0, 0.5])
    assert estimate_auc(SCORE, TARGET).variance == pytest.approx(1 / 12)


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
