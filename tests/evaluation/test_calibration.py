from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation import calibration as cal
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
    assert cal.weighted_brier(logit, target, ones(logit))[0] == pytest.approx(brier_score_loss(target, expit(logit)))
    assert cal.weighted_log_loss(logit, target, ones(logit))[0] == pytest.approx(log_loss(target, expit(logit)))


def test_brier_of_a_hand_worked_case():
    logit, target = np.log([1 / 3, 3.0]), np.array([0, 1])  # probabilities 1/4 and 3/4
    assert cal.weighted_brier(logit, target, ones(logit))[0] == pytest.approx(1 / 16)
    assert cal.weighted_brier_skill(logit, target, ones(logit))[0] == pytest.approx(1 - (1 / 16) / (1 / 4))
    assert cal.weighted_observed_expected(logit, target, ones(logit))[0] == pytest.approx(1)


def test_slope_equals_unpenalised_logistic_regression(cohort):
    logit, target = cohort
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], target)
    assert cal.weighted_slope(logit, target, ones(logit))[0] == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert cal.weighted_slope(logit, target, ones(logit))[0] < 0.7


def test_intercept_is_the_offset_model_of_statsmodels(cohort):
    import statsmodels.api as sm

    logit, target = cohort
    model = sm.GLM(target, np.ones(len(target)), family=sm.families.Binomial(), offset=logit).fit(tol=1e-12)
    assert cal.weighted_intercept(logit, target, ones(logit))[0] == pytest.approx(model.params[0], abs=1e-8)


def test_weights_mean_repetition(cohort):
    logit, target = cohort
    counts = np.random.default_rng(1).integers(0, 4, len(logit))
    rows = np.repeat(np.arange(len(logit)), counts)
    weights = counts[None].astype(float)
    for metric in (cal.weighted_slope, cal.weighted_intercept, cal.weighted_brier, cal.weighted_log_loss, cal.weighted_observed_expected):
        assert metric(logit, target, weights)[0] == pytest.approx(metric(logit[rows], target[rows], ones(rows))[0], abs=1e-7)
    assert cal.weighted_ici(logit, target, weights)[0] == pytest.approx(cal.ici(logit[rows], target[rows]))


def test_what_cannot_be_estimated_is_nan():
    logit, target = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1])
    assert np.isnan(cal.weighted_slope(logit, target, ones(logit))[0])  # separated
    assert np.isnan(cal.weighted_slope(np.zeros(4), target, ones(logit))[0])  # one single probability
    assert np.isnan(cal.weighted_slope(logit, np.ones(4, int), ones(logit))[0])
    assert np.isnan(cal.weighted_intercept(logit, np.ones(4, int), ones(logit))[0])
    assert np.isnan(cal.weighted_brier_skill(logit, np.ones(4, int), ones(logit))[0])


def test_ece_of_a_hand_worked_case():
    # Two equal-mass bins: probabilities .2, .4 with outcomes 0, 1 and .6, .8 with 1, 1.
    p, target = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 1, 1])
    logit = np.log(p / (1 - p))
    expected = (abs(0.6 - 1) + abs(1.4 - 2)) / 4
    assert cal.weighted_ece(logit, target, ones(logit))[0] == pytest.approx(expected)


def test_null_of_ece_matches_the_published_size():
    """A calibrated model with p ~ Beta(.5, 1) and 310 images shows an ECE of .05 to .06 by chance alone."""
    rng = np.random.default_rng(2)
    p = np.clip(rng.beta(0.5, 1, 310), 1e-9, 1 - 1e-9)
    null = cal.ece_null(np.log(p / (1 - p))[None], np.arange(310), 400, rng)
    assert 0.035 < null.mean() < 0.06


def test_ici_of_perfect_and_of_shifted_probabilities():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.95, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert cal.ici(logit, target) < 0.015
    assert cal.ici(logit + 1.0, target) == pytest.approx(np.mean(expit(logit + 1.0) - p), abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.4, 3.0), st.integers(0, 1000))
def test_temperature_undoes_over_confidence(factor, seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, 3000)
    target = (rng.random(3000) < expit(truth)).astype(int)
    assert cal.fit_temperature(factor * truth, target) == pytest.approx(factor, rel=0.2)


def test_temperature_of_a_separated_tune_part_stays_finite():
    assert 0.05 < cal.fit_temperature(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1])) < 1


def test_reliability_band_holds_a_calibrated_model():
    rng = np.random.default_rng(4)
    p = rng.uniform(0.02, 0.98, 2000)
    target = (rng.random(2000) < p).astype(int)
    curve = cal.reliability(np.log(p / (1 - p))[None], target, np.arange(2000), 300, rng)
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
        high = np.quantile(cal.ece_null(logit[None], patients, 200, rng), 0.95)
        exceeded += cal.weighted_ece(logit, target, ones(logit))[0] > high
    assert 1 <= exceeded <= 18
