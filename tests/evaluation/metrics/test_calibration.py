from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics.calibration_curve import (
    curve_errors,
)
from medtransfer.evaluation.metrics.smooth_ece import weighted_smooth_ece
from scipy.special import expit
from scipy.stats import binom, chi2
from sklearn.metrics import brier_score_loss, log_loss

from scored import ONE_MODEL, make_scores, ones


def test_brier_and_log_loss_equal_scikit_learn(cohort):
    logit, target = cohort
    for found, expected in (
        (cal.weighted_brier, brier_score_loss),
        (cal.weighted_log_loss, log_loss),
    ):
        assert found(logit, target, ones(logit))[0] == pytest.approx(expected(target, expit(logit)))
    assert influence.brier(logit, target, ones(logit)[0], ONE_MODEL[: len(logit)])[
        0
    ] == pytest.approx(brier_score_loss(target, expit(logit)))
    assert influence.log_loss(logit, target, ones(logit)[0], ONE_MODEL[: len(logit)])[
        0
    ] == pytest.approx(log_loss(target, expit(logit)))


def test_brier_of_a_hand_worked_case():
    logit, target, weight = (
        np.log([1 / 3, 3.0]),
        np.array([0, 1]),
        np.ones(2),
    )  # probabilities 1/4 and 3/4
    assert influence.brier(logit, target, weight, ONE_MODEL[:2])[0] == pytest.approx(1 / 16)
    assert influence.brier_skill(logit, target, weight, ONE_MODEL[:2])[0] == pytest.approx(
        1 - (1 / 16) / (1 / 4)
    )
    assert influence.observed_expected(logit, target, weight, ONE_MODEL[:2])[0] == pytest.approx(1)


def test_ece_of_a_hand_worked_case():
    # Two equal-mass bins: probabilities .2, .4 with outcomes 0, 1 and .6, .8 with 1, 1.
    p, target = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 1, 1])
    logit = np.log(p / (1 - p))
    edges = cal.bin_edges(logit[None])
    assert cal.weighted_ece(logit, target, ones(logit), edges)[0] == pytest.approx(
        (abs(0.6 - 1) + abs(1.4 - 2)) / 4
    )
    # Debiased: 2/4 (0.2² - 0.25 / 1) + 2/4 (0.3² - 0) is below 0.
    assert cal.weighted_l2_ece(logit, target, ones(logit), edges)[0] == 0


def test_parts_of_the_brier_score_of_a_hand_worked_case():
    # Probabilities .2, .6, .4, .8 with outcomes 0, 0, 1, 1: isotonic means 0, 1/2, 1/2, 1 in the
    # order of the scores.
    p, target = np.array([0.2, 0.6, 0.4, 0.8]), np.array([0, 0, 1, 1])
    logit = np.log(p / (1 - p))
    score, recalibrated, uncertainty = (0.04 + 0.36 + 0.36 + 0.04) / 4, 0.5 / 4, 0.25
    expected = [score - recalibrated, uncertainty - recalibrated, uncertainty]
    assert cal.weighted_corp(logit, target, ones(logit))[0] == pytest.approx(expected)
    assert expected[0] - expected[1] + expected[2] == pytest.approx(
        cal.weighted_brier(logit, target, ones(logit))[0]
    )


def test_null_of_ece_matches_the_published_size():
    """A calibrated model with p ~ Beta(.5, 1) and 310 images shows an ECE of .05 to .06 by chance
    alone.
    """
    rng = np.random.default_rng(2)
    p = np.clip(rng.beta(0.5, 1, 310), 1e-9, 1 - 1e-9)
    null = cal.null_errors(
        make_scores(np.log(p / (1 - p)), np.zeros(310)), np.arange(310), 400, rng
    )["ece"]
    assert 0.035 < null.mean() < 0.06


def test_reliability_band_holds_a_calibrated_model():
    rng = np.random.default_rng(4)
    p = rng.uniform(0.02, 0.98, 2000)
    target = (rng.random(2000) < p).astype(int)
    curve = cal.reliability(make_scores(np.log(p / (1 - p)), target), np.arange(2000), 300, rng)
    inside = [
        low <= seen <= high
        for low, seen, high in zip(curve["low"], curve["observed"], curve["high"], strict=True)
    ]
    assert len(inside) == 10
    assert sum(inside) >= 7
    assert sum(curve["images"]) == 2000


@pytest.mark.parametrize(
    "of_patients", [True, False], ids=["labels of patients", "labels of images"]
)
def test_the_null_holds_with_several_images_per_patient(of_patients, monkeypatch):
    """A calibrated model on patients with three images each exceeds the 95 % points of its nulls in
    about 5 % of cohorts.
    """
    rng = np.random.default_rng(5)
    # To 1/512; the digits beyond it take most of the time.
    monkeypatch.setattr("medtransfer.evaluation.metrics.smooth_ece._HALVINGS", 9)
    cohorts, exceeded = 60, dict.fromkeys(("ece", "smooth_ece", "miscalibration", "ici"), 0)
    for _ in range(cohorts):
        p = np.repeat(rng.uniform(0.05, 0.95, 60), 3)
        patients = np.repeat(np.arange(60), 3)
        target = (
            np.repeat((rng.random(60) < p[::3]).astype(int), 3)
            if of_patients
            else (rng.random(180) < p).astype(int)
        )
        logit = np.log(p / (1 - p)) + rng.normal(0, 1e-3, 180)
        scores = make_scores(logit, target, patients)
        null = cal.null_errors(scores, patients, 100, rng)
        seen = {
            "ece": cal.weighted_ece(logit, target, ones(logit), cal.bin_edges(logit))[0],
            "smooth_ece": weighted_smooth_ece(logit, target, ones(logit))[0],
            "miscalibration": cal.weighted_corp(logit, target, ones(logit))[0, 0],
            "ici": curve_errors(logit, target, ones(logit)[0])["ici"],
        }
        for name, value in seen.items():
            exceeded[name] += value > np.quantile(null[name], 0.95)
    assert max(exceeded.values()) <= binom.ppf(0.999, cohorts, 0.05), exceeded
    assert sum(exceeded.values()) >= 3, exceeded


def test_images_of_a_patient_are_as_alike_as_their_labels():
    rng = np.random.default_rng(0)
    p, patients = np.repeat(rng.uniform(0.2, 0.8, 300), 4), np.repeat(np.arange(300), 4)
    logit = np.log(p / (1 - p))
    assert (
        cal.likeness(make_scores(logit, np.repeat(rng.random(300) < 0.5, 4), patients), patients)
        == 1
    )
    assert cal.likeness(make_scores(logit, rng.random(1200) < p, patients), patients) < 0.1
    assert cal.likeness(make_scores(logit[::4], rng.random(300) < p[::4]), np.arange(300)) == 1


@pytest.mark.parametrize("views", [1, 3])
def test_intercept_and_slope_are_tested_together_at_five_percent(views):
    rng = np.random.default_rng(views)
    found = {1.0: 0, 1.8: 0}
    for factor in found:
        for _ in range(300):
            truth = rng.normal(-0.8, 1.4, 120)
            target = np.repeat(rng.random(120) < expit(truth), views)
            logit = np.repeat(factor * truth, views) + 1e-6 * rng.normal(size=120 * views)
            patients = np.repeat(np.arange(120), views)
            found[factor] += (
                cal.joint_p_value(make_scores(logit, target, patients), patients)[0] < 0.05
            )
    assert 4 <= found[1.0] <= 27
    assert found[1.8] > 150


def test_the_joint_test_of_a_hand_worked_case():
    """Two groups at p = 1/4 and 3/4 of eight each: sums of residuals 2 and 0; the test is that of
    two binomials.
    """
    logit = np.repeat([np.log(1 / 3), np.log(3.0)], 8)
    target = np.r_[[1, 1, 1, 1], [0] * 4, [1] * 6, [0, 0]]
    expected = chi2.sf((4 - 2) ** 2 / (8 * 3 / 16) + 0.0, 2)
    assert cal.joint_p_value(make_scores(logit, target), np.arange(16)) == (
        pytest.approx(expected),
        None,
    )
