from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics.recalibration import fit_map
from scipy.special import expit
from scipy.stats import binom, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from scored import make_scores


@pytest.fixture
def cohort() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.normal(-0.5, 1.3, 400)
    target = (rng.random(400) < expit(truth)).astype(int)
    return 2.2 * truth + 0.4, target  # over-confident and too high


ONE = np.zeros(100_000, int)


def ones(logit: np.ndarray) -> np.ndarray:
    return np.ones((1, len(logit)))


def test_brier_and_log_loss_equal_scikit_learn(cohort):
    logit, target = cohort
    for found, expected in (
        (cal.weighted_brier, brier_score_loss),
        (cal.weighted_log_loss, log_loss),
    ):
        assert found(logit, target, ones(logit))[0] == pytest.approx(expected(target, expit(logit)))
    assert influence.brier(logit, target, ones(logit)[0], ONE[: len(logit)])[0] == pytest.approx(
        brier_score_loss(target, expit(logit))
    )
    assert influence.log_loss(logit, target, ones(logit)[0], ONE[: len(logit)])[0] == pytest.approx(
        log_loss(target, expit(logit))
    )


def test_brier_of_a_hand_worked_case():
    logit, target, weight = (
        np.log([1 / 3, 3.0]),
        np.array([0, 1]),
        np.ones(2),
    )  # probabilities 1/4 and 3/4
    assert influence.brier(logit, target, weight, ONE[:2])[0] == pytest.approx(1 / 16)
    assert influence.brier_skill(logit, target, weight, ONE[:2])[0] == pytest.approx(
        1 - (1 / 16) / (1 / 4)
    )
    assert influence.observed_expected(logit, target, weight, ONE[:2])[0] == pytest.approx(1)


def test_slope_equals_unpenalised_logistic_regression(cohort):
    logit, target = cohort
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], target)
    assert influence.slope(logit, target, ones(logit)[0], ONE[: len(logit)])[0] == pytest.approx(
        model.coef_[0, 0], abs=1e-6
    )
    assert influence.slope(logit, target, ones(logit)[0], ONE[: len(logit)])[0] < 0.7


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
        value, own = estimator(logit, target, np.ones(400), ONE[:400])
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
        _, own = estimator(logit, target, np.ones(400), ONE[:400])
        assert own.sum() == pytest.approx(0, abs=1e-9)
        for row in (0, 7, 200):
            more, less = np.ones(400), np.ones(400)
            more[row], less[row] = 1 + 1e-4, 1 - 1e-4
            slope = (
                estimator(logit, target, more, ONE[:400])[0]
                - estimator(logit, target, less, ONE[:400])[0]
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
        assert estimator(logit, target, weights[0], ONE[: len(logit)])[0] == pytest.approx(
            estimator(logit[rows], target[rows], ones(rows)[0], ONE[: len(rows)])[0], abs=1e-7
        )
    for metric in (
        cal.weighted_brier,
        cal.weighted_log_loss,
        cal.weighted_smooth_ece,
        cal.weighted_corp,
        lambda *rows: cal.weighted_ece(*rows, edges),
        lambda *rows: cal.weighted_l2_ece(*rows, edges),
        cal.curve_metric(logit[None]),
    ):
        assert metric(logit, target, weights)[0] == pytest.approx(
            metric(logit[rows], target[rows], ones(rows))[0], abs=1e-6
        )


def test_what_cannot_be_estimated_is_nan():
    logit, target, weight = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]), np.ones(4)
    assert np.isnan(influence.slope(logit, target, weight, ONE[:4])[0])  # separated
    assert np.isnan(
        influence.slope(np.zeros(4), target, weight, ONE[:4])[0]
    )  # one single probability
    for estimator in (influence.slope, influence.intercept, influence.brier_skill, influence.auc):
        assert np.isnan(estimator(logit, np.ones(4, int), weight, ONE[:4])[0])


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


def test_ici_of_perfect_and_of_shifted_probabilities():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.95, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert cal.curve_errors(logit, target, ones(logit)[0])["ici"] < 0.015
    assert cal.curve_errors(logit + 1.0, target, ones(logit)[0])["ici"] == pytest.approx(
        np.mean(expit(logit + 1.0) - p), abs=0.02
    )


@settings(max_examples=25, deadline=None)
@given(st.floats(0.4, 3.0), st.floats(-2.5, 1.0), st.integers(0, 1000))
def test_temperature_undoes_over_confidence_about_the_prevalence(factor, middle, seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(middle, 1.5, 6000)
    target = (rng.random(6000) < expit(truth)).astype(int)
    share = target.mean()
    centre = np.log(share / (1 - share))
    logit = factor * (truth - centre) + centre
    found = fit_map("temperature", logit, target)
    assert found.parameters["temperature"] == pytest.approx(factor, rel=0.2)
    assert found.parameters["centre"] == pytest.approx(centre)
    assert expit(found.apply(logit)).mean() == pytest.approx(share, abs=0.02)


def test_temperature_of_a_separated_tune_part_stays_finite():
    found = fit_map("temperature", np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert 0.05 < found.parameters["temperature"] < 2


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
    monkeypatch.setattr("medtransfer.evaluation.metrics.calibration._HALVINGS", 9)
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
            "smooth_ece": cal.weighted_smooth_ece(logit, target, ones(logit))[0],
            "miscalibration": cal.weighted_corp(logit, target, ones(logit))[0, 0],
            "ici": cal.curve_errors(logit, target, ones(logit)[0])["ici"],
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


def test_the_curve_of_draws_is_the_lowess_of_the_sample(cohort):
    """With every image once, lines fitted in the neighbourhoods of the sample are lowess, but for
    reading between grid points.
    """
    logit, target = cohort
    curve = cal.curve_metric(logit[None])(logit, target, ones(logit))[0]
    assert curve[0] == pytest.approx(
        cal.curve_errors(logit, target, ones(logit)[0])["ici"], abs=2e-3
    )
    smooth = np.interp(expit(logit), cal.curve_grid(logit[None]), curve[1:])
    assert np.abs(smooth - cal.calibration_curve(logit, target)).max() < 0.02


def test_smooth_ece_needs_no_bins():
    """A calibrated model has a small one that falls with its size; a shifted one that of the
    shift.
    """
    rng = np.random.default_rng(7)
    p = rng.uniform(0.1, 0.9, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert cal.weighted_smooth_ece(logit, target, ones(logit))[0] < 0.02
    shifted = np.log((p + 0.1) / (0.9 - p + 1e-9))
    assert cal.weighted_smooth_ece(shifted, target, ones(logit))[0] == pytest.approx(0.1, abs=0.015)
