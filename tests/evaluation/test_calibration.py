from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import influence
from medtransfer.evaluation.recalibration import fit_temperature
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss


@pytest.fixture
def cohort() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.normal(-0.5, 1.3, 400)
    target = (rng.random(400) < expit(truth)).astype(int)
    return 2.2 * truth + 0.4, target  # over-confident and too high


def ones(logit: np.ndarray) -> np.ndarray:
    return np.ones((1, len(logit)))


def test_brier_and_log_loss_equal_scikit_learn(cohort):
    logit, target = cohort
    for found, expected in ((cal.weighted_brier, brier_score_loss), (cal.weighted_log_loss, log_loss)):
        assert found(logit, target, ones(logit))[0] == pytest.approx(expected(target, expit(logit)))
    assert influence.brier(logit, target, ones(logit)[0])[0] == pytest.approx(brier_score_loss(target, expit(logit)))
    assert influence.log_loss(logit, target, ones(logit)[0])[0] == pytest.approx(log_loss(target, expit(logit)))


def test_brier_of_a_hand_worked_case():
    logit, target, weight = np.log([1 / 3, 3.0]), np.array([0, 1]), np.ones(2)  # probabilities 1/4 and 3/4
    assert influence.brier(logit, target, weight)[0] == pytest.approx(1 / 16)
    assert influence.brier_skill(logit, target, weight)[0] == pytest.approx(1 - (1 / 16) / (1 / 4))
    assert influence.observed_expected(logit, target, weight)[0] == pytest.approx(1)


def test_slope_equals_unpenalised_logistic_regression(cohort):
    logit, target = cohort
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], target)
    assert influence.slope(logit, target, ones(logit)[0])[0] == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert influence.slope(logit, target, ones(logit)[0])[0] < 0.7


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
        robust = model.fit(tol=1e-12, cov_type="cluster", cov_kwds={"groups": patients, "use_correction": False})
        value, own = estimator(logit, target, np.ones(400))
        assert value == pytest.approx(plain.params[-1], abs=1e-8)
        summed = np.bincount(patients, own)
        assert summed @ summed == pytest.approx(np.asarray(robust.cov_params())[-1, -1], rel=1e-6)


def test_influences_are_derivatives(cohort):
    """What an image adds is the change of the estimate as its weight grows."""
    logit, target = cohort
    for name in ("auc", "brier", "brier_skill", "log_loss", "intercept", "slope", "observed_expected"):
        estimator = getattr(influence, name)
        _, own = estimator(logit, target, np.ones(400))
        assert own.sum() == pytest.approx(0, abs=1e-9)
        for row in (0, 7, 200):
            more, less = np.ones(400), np.ones(400)
            more[row], less[row] = 1 + 1e-4, 1 - 1e-4
            slope = (estimator(logit, target, more)[0] - estimator(logit, target, less)[0]) / 2e-4
            assert own[row] == pytest.approx(slope, rel=1e-4, abs=1e-9), name


def test_weights_mean_repetition(cohort):
    logit, target = cohort
    counts = np.random.default_rng(1).integers(0, 4, len(logit))
    rows = np.repeat(np.arange(len(logit)), counts)
    weights, edges = counts[None].astype(float), cal.bin_edges(logit)
    for name in ("auc", "brier", "brier_skill", "log_loss", "intercept", "slope", "observed_expected"):
        estimator = getattr(influence, name)
        assert estimator(logit, target, weights[0])[0] == pytest.approx(estimator(logit[rows], target[rows], ones(rows)[0])[0], abs=1e-7)
    for metric in (
        cal.weighted_brier,
        cal.weighted_log_loss,
        cal.weighted_smooth_ece,
        cal.weighted_corp,
        lambda *rows: cal.weighted_ece(*rows, edges),
        lambda *rows: cal.weighted_l2_ece(*rows, edges),
        cal.curve_metric(logit[None]),
    ):
        assert metric(logit, target, weights)[0] == pytest.approx(metric(logit[rows], target[rows], ones(rows))[0], abs=1e-6)


def test_what_cannot_be_estimated_is_nan():
    logit, target, weight = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]), np.ones(4)
    assert np.isnan(influence.slope(logit, target, weight)[0])  # separated
    assert np.isnan(influence.slope(np.zeros(4), target, weight)[0])  # one single probability
    for estimator in (influence.slope, influence.intercept, influence.brier_skill, influence.auc):
        assert np.isnan(estimator(logit, np.ones(4, int), weight)[0])


def test_ece_of_a_hand_worked_case():
    # Two equal-mass bins: probabilities .2, .4 with outcomes 0, 1 and .6, .8 with 1, 1.
    p, target = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 1, 1])
    logit = np.log(p / (1 - p))
    edges = cal.bin_edges(logit[None])
    assert cal.weighted_ece(logit, target, ones(logit), edges)[0] == pytest.approx((abs(0.6 - 1) + abs(1.4 - 2)) / 4)
    # Debiased: 2/4 (0.2² - 0.25 / 1) + 2/4 (0.3² - 0) is below 0.
    assert cal.weighted_l2_ece(logit, target, ones(logit), edges)[0] == 0


def test_parts_of_the_brier_score_of_a_hand_worked_case():
    # Probabilities .2, .6, .4, .8 with outcomes 0, 0, 1, 1: isotonic means 0, 1/2, 1/2, 1 in the order of the scores.
    p, target = np.array([0.2, 0.6, 0.4, 0.8]), np.array([0, 0, 1, 1])
    logit = np.log(p / (1 - p))
    score, recalibrated, uncertainty = (0.04 + 0.36 + 0.36 + 0.04) / 4, 0.5 / 4, 0.25
    expected = [score - recalibrated, uncertainty - recalibrated, uncertainty]
    assert cal.weighted_corp(logit, target, ones(logit))[0] == pytest.approx(expected)
    assert expected[0] - expected[1] + expected[2] == pytest.approx(cal.weighted_brier(logit, target, ones(logit))[0])


def test_null_of_ece_matches_the_published_size():
    """A calibrated model with p ~ Beta(.5, 1) and 310 images shows an ECE of .05 to .06 by chance alone."""
    rng = np.random.default_rng(2)
    p = np.clip(rng.beta(0.5, 1, 310), 1e-9, 1 - 1e-9)
    null = cal.ece_null(np.log(p / (1 - p))[None], np.ones(310), np.arange(310), 400, rng)
    assert 0.035 < null.mean() < 0.06


def test_ici_of_perfect_and_of_shifted_probabilities():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.95, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert cal.curve_errors(logit, target, ones(logit)[0])["ici"] < 0.015
    assert cal.curve_errors(logit + 1.0, target, ones(logit)[0])["ici"] == pytest.approx(np.mean(expit(logit + 1.0) - p), abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.4, 3.0), st.integers(0, 1000))
def test_temperature_undoes_over_confidence(factor, seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, 3000)
    target = (rng.random(3000) < expit(truth)).astype(int)
    assert fit_temperature(factor * truth, target) == pytest.approx(factor, rel=0.2)


def test_temperature_of_a_separated_tune_part_stays_finite():
    assert 0.05 < fit_temperature(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1])) < 1


def test_reliability_band_holds_a_calibrated_model():
    rng = np.random.default_rng(4)
    p = rng.uniform(0.02, 0.98, 2000)
    target = (rng.random(2000) < p).astype(int)
    curve = cal.reliability(np.log(p / (1 - p))[None], target, np.ones(2000), np.arange(2000), 300, rng)
    inside = [low <= seen <= high for low, seen, high in zip(curve["low"], curve["observed"], curve["high"], strict=True)]
    assert len(inside) == 10
    assert sum(inside) >= 7
    assert sum(curve["images"]) == 2000


def test_the_null_of_ece_holds_with_several_images_per_patient():
    """A calibrated model on patients with three images each exceeds the 95 % point of its null in about 5 % of cohorts."""
    rng = np.random.default_rng(5)
    exceeded = 0
    for _ in range(150):
        p = np.repeat(rng.uniform(0.05, 0.95, 60), 3)
        patients = np.repeat(np.arange(60), 3)
        target = np.repeat((rng.random(60) < p[::3]).astype(int), 3)
        logit = np.log(p / (1 - p)) + rng.normal(0, 1e-3, 180)
        high = np.quantile(cal.ece_null(logit[None], np.ones(180), patients, 200, rng), 0.95)
        exceeded += cal.weighted_ece(logit, target, ones(logit), cal.bin_edges(logit[None]))[0] > high
    assert 1 <= exceeded <= 18


def test_the_curve_of_draws_is_the_lowess_of_the_sample(cohort):
    """With every image once, lines fitted in the neighbourhoods of the sample are lowess, but for reading between grid points."""
    logit, target = cohort
    curve = cal.curve_metric(logit[None])(logit, target, ones(logit))[0]
    assert curve[0] == pytest.approx(cal.curve_errors(logit, target, ones(logit)[0])["ici"], abs=2e-3)
    smooth = np.interp(expit(logit), cal.curve_grid(logit[None]), curve[1:])
    assert np.abs(smooth - cal.calibration_curve(logit, target)).max() < 0.02


def test_smooth_ece_needs_no_bins():
    """A calibrated model has a small one that falls with its size; a shifted one that of the shift."""
    rng = np.random.default_rng(7)
    p = rng.uniform(0.1, 0.9, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert cal.weighted_smooth_ece(logit, target, ones(logit))[0] < 0.02
    shifted = np.log((p + 0.1) / (0.9 - p + 1e-9))
    assert cal.weighted_smooth_ece(shifted, target, ones(logit))[0] == pytest.approx(0.1, abs=0.015)
