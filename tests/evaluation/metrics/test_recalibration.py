from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.conformal import conformal_sets
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.metrics.recalibration import (
    METHODS,
    Map,
    adjust_prevalence,
    fit_map,
    fit_maps,
    make_comparable,
    recalibrate,
)
from medtransfer.evaluation.tables.predictions import check_predictions
from medtransfer.evaluation.tables.tuning import pair_tune
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from predicted import (
    overconfident_arm,
)
from scored import align_arm, estimate_of, measure_question, youden_sum

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def sample(seed=0, n=4000):
    rng = np.random.default_rng(seed)
    truth = rng.normal(-0.3, 1.5, n)
    return truth, (rng.random(n) < expit(truth)).astype(int)


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.4, 3.0), shift=st.floats(-1.0, 1.0))
def test_platt_undoes_scale_and_shift(factor, shift):
    truth, target = sample()
    plain, fitted = (
        fit_map("platt", truth, target),
        fit_map("platt", factor * truth + shift, target),
    )
    assert (plain.parameters["factor"], plain.parameters["shift"]) == (
        pytest.approx(1, abs=0.1),
        pytest.approx(0, abs=0.1),
    )
    # But for the weak priors, it does not matter how the logits were distorted; that of the shift
    # takes a share of it.
    assert np.abs(fitted.apply(factor * truth + shift) - plain.apply(truth)).max() < 0.2


def test_platt_is_logistic_regression_where_data_outweigh_the_prior():
    truth, target = sample(n=40_000)
    fitted = fit_map("platt", 2 * truth + 1, target)
    model = LogisticRegression(C=np.inf, tol=1e-8).fit((2 * truth + 1)[:, None], target)
    assert fitted.parameters["factor"] == pytest.approx(model.coef_[0, 0], abs=1e-3)
    assert fitted.parameters["shift"] == pytest.approx(model.intercept_[0], abs=1e-3)


def test_beta_holds_platt_and_treats_both_ends_apart():
    truth, target = sample()
    p = expit(truth) ** 2  # too low near 0 alone
    logit = np.log(p / (1 - p))
    fitted = fit_map("beta", logit, target)
    assert np.abs(expit(fitted.apply(logit)) - expit(truth)).mean() < 0.02
    # With a = b it is Platt's map: a (log p - log(1 - p)) + shift.
    same = fit_map("platt", truth, target)
    a, shift = same.parameters["factor"], same.parameters["shift"]
    assert Map("beta", {"a": a, "b": a, "shift": shift}).apply(truth) == pytest.approx(
        same.apply(truth)
    )


def test_isotonic_equals_scikit_learn():
    truth, target = sample(n=1500)
    fitted = expit(fit_map("isotonic", truth, target).apply(truth))
    model = IsotonicRegression(out_of_bounds="clip").fit(truth, target)
    assert fitted == pytest.approx(np.clip(model.predict(truth), 1e-6, 1 - 1e-6), abs=1e-9)


@pytest.mark.parametrize("method", ["temperature", "platt", "beta"])
def test_a_separated_tune_part_does_not_send_a_map_to_infinity(method):
    fitted = fit_map(method, np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert np.abs(fitted.apply(np.array([-2.0, 2.0]))).max() < 12
    assert np.all(np.diff(fitted.apply(np.linspace(-9, 9, 50))) > 0)


def test_auto_stays_with_platt_unless_another_wins(scores):
    assert recalibrate(*align_arm(scores({"a": 1.0}, patients=400))).method == "platt"
    bent = scores({"a": 1.0}, patients=1500)
    p = expit(bent["logit"]) ** 6  # too low near 0 alone
    bent["logit"] = np.log(p / (1 - p))
    found = recalibrate(*align_arm(bent))
    assert found.method == "beta"
    assert "lower than with platt by" in found.chosen


def test_models_with_few_rows_keep_to_the_others_and_those_with_many_do_not():
    rng = np.random.default_rng(0)
    truth = rng.normal(-0.5, 1.5, 4000)
    target = (rng.random(4000) < expit(truth)).astype(int)
    model = np.r_[np.zeros(1990, int), np.ones(2000, int), np.full(10, 2)]
    logit = np.where(model == 1, 4 * truth, 2 * truth)
    maps = fit_maps("platt", logit, target, np.ones(4000), model)
    assert maps[0].parameters["factor"] == pytest.approx(1 / 2, rel=0.1)
    assert maps[1].parameters["factor"] == pytest.approx(1 / 4, rel=0.1)
    # Ten rows say little: about the mean of the others, on the logarithmic scale.
    assert maps[2].parameters["factor"] == pytest.approx(np.exp(-1.5 * np.log(2)), rel=0.25)
    assert maps[-1].parameters["factor"] == pytest.approx(np.exp(-1.5 * np.log(2)), rel=0.25)


def test_tune_rows_of_models_that_differ_are_made_comparable():
    scores, tune = align_arm(overconfident_arm(patients=2000, apart=0.4, shifted=1.0))
    for model in make_comparable(scores, tune):
        reference = model.tune[model.cell.model == model.cell.number]
        others = model.tune[model.cell.model != model.cell.number]
        assert np.quantile(others, [0.25, 0.5, 0.75]) == pytest.approx(
            np.quantile(reference, [0.25, 0.5, 0.75]), abs=0.5
        )
        assert model.undo.undo(model.test[0]) == pytest.approx(
            scores.logit[0, model.cell.inside][0]
        )


@pytest.mark.slow
@pytest.mark.parametrize(("prevalence", "patients"), [(0.05, 500), (0.3, 250), (0.5, 250)])
def test_after_recalibration_slope_and_mean_are_right_on_average(prevalence, patients):
    """Networks that are twice as confident as they should be, 40 to 80 tune patients each."""
    found = []
    for seed in range(40):
        scores, tune = align_arm(
            overconfident_arm(patients=patients, prevalence=prevalence, seed=seed)
        )
        new = recalibrate(scores, tune)
        middle = np.log(prevalence / (1 - prevalence))
        for cell in pair_tune(scores, tune):
            fitted = new.maps[cell.seed, cell.fold]
            # The slope of the truth on the map's logits, and the mean of its probabilities, in a
            # large population.
            rng = np.random.default_rng(seed)
            target = (rng.random(4000) < prevalence).astype(int)
            truth = middle + 1.5 * (1.5 * target + rng.normal(size=4000)) - 1.125
            z = fitted.apply(2 * (truth - middle) + middle)
            found.append((np.cov(truth, z)[0, 1] / z.var(), target.sum() / expit(z).sum()))
    slope, ratio = np.mean(found, axis=0)
    assert 0.93 < slope < 1.07
    assert 0.95 < ratio < 1.05


def test_nothing_leaks_where_labels_are_independent_of_images():
    """Noise stays noise: sensitivity + specificity is 1, coverage what is asked, and no log-loss
    below that of the prevalence.
    """
    measured = []
    for seed in range(20):
        table = overconfident_arm(patients=150, prevalence=0.5, seed=seed)
        rng = np.random.default_rng(seed)
        table["logit"] = rng.normal(size=len(table))
        scores, tune = align_arm(table)
        question = conformal_sets(scores, make_comparable(scores, tune), 0.8)
        loss = estimate_of(recalibrate(scores, tune).scores, influence.log_loss).value
        coverage = measure_question(question)["sets"][0]
        measured.append((youden_sum(scores, tune), coverage, loss))
    sums, coverage, loss = np.mean(measured, axis=0)
    assert sums == pytest.approx(1, abs=0.04)
    assert coverage == pytest.approx(0.8, abs=0.03)
    assert loss > np.log(2)


def test_isotonic_is_refused_for_small_tune_parts(scores):
    with pytest.raises(PredictionsError, match="refused below 1000"):
        recalibrate(*align_arm(scores({"a": 1.0})), "isotonic")


def test_every_method_is_fitted_on_tune_rows_only(scores):
    table = scores({"a": 1.0}, patients=300)
    changed = table.copy()
    test = changed["part"] == "test"
    changed.loc[test, "target"] = 1 - changed.loc[test, "target"]
    for method in METHODS[:3]:
        first, second = (recalibrate(*align_arm(t), method) for t in (table, changed))
        assert [m.parameters for m in first.maps.values()] == [
            m.parameters for m in second.maps.values()
        ]
        assert len(first.maps) == 2


def test_the_report_says_what_was_chosen(scores):
    entry = evaluate(scores({"a": 1.0}), bootstrap=100, recalibration="platt").to_dict()["arms"][
        "a"
    ]["recalibrated"]
    assert (entry["method"], entry["chosen"]) == ("platt", "set by hand")
    assert {"seed", "fold", "factor", "shift"} == set(entry["maps"][0])
    entry = evaluate(scores({"a": 1.0}), bootstrap=100, recalibration="temperature").to_dict()[
        "arms"
    ]["a"]["recalibrated"]
    assert {"seed", "fold", "temperature", "centre"} == set(entry["maps"][0])


def test_prevalence_moves_the_logit_by_the_odds():
    # 20 % against 50 %: odds 1/4 against 1.
    assert adjust_prevalence(np.array([0.0, 2.0]), 0.5, 0.2) == pytest.approx(
        [-np.log(4), 2 - np.log(4)]
    )
    truth, target = sample(n=200_000)
    keep = (target == 1) | (np.random.default_rng(1).random(len(target)) < 0.2)
    prevalence, wanted = target.mean(), target[keep].mean()
    moved = expit(adjust_prevalence(truth[keep], prevalence, wanted))
    assert moved.mean() == pytest.approx(target[keep].mean(), abs=0.005)


def test_rows_of_tune_parts_that_lack_a_class_leave_the_arm_as_it_is(scores):
    table = scores({"a": 1.0})
    table.loc[table["part"] == "tune", "target"] = 0
    report = evaluate(table, bootstrap=100).to_dict()
    assert report["arms"]["a"]["recalibrated"] is None
    assert report["arms"]["a"]["operating_points"] == []
    assert report["arms"]["a"]["prediction_sets"] is None
    assert isinstance(
        pd.DataFrame(report["arms"]["a"]["curves"]["histogram"]["negative"]), pd.DataFrame
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


def test_temperature_comes_from_tune_rows_only(scores):
    table = scores({"a": 1.0})
    changed = table.copy()
    test = changed["part"] == "test"
    changed.loc[test, "target"] = 1 - changed.loc[test, "target"]
    first, second = (
        evaluate(t, bootstrap=100).to_dict()["arms"]["a"]["recalibrated"]["maps"]
        for t in (table, changed)
    )
    assert len(first) == 2
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def test_recalibration_mends_over_confidence(scores):
    table = scores({"a": 0.9}, patients=600)
    table["logit"] *= 3
    table["probability"] = 1 / (1 + np.exp(-table["logit"]))
    arm = evaluate(table, bootstrap=200).to_dict()["arms"]["a"]
    assert "over-confident" in arm["trust"]
    assert arm["calibration"]["slope"]["high"] < 1
    assert abs(arm["recalibrated"]["calibration"]["slope"]["estimate"] - 1) < 0.25
    assert arm["recalibrated"]["log_loss"]["estimate"] < arm["log_loss"]["estimate"]


def test_nothing_leaks_from_models_that_learnt_their_labels_by_heart():
    """Labels independent of images; every model knows its training labels, tune and test labels are
    known to others: still noise.
    """
    from sklearn.linear_model import LogisticRegression

    sums, losses = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        features, target = rng.normal(size=(120, 60)), rng.permutation(np.arange(120) % 2)
        fold, frames = np.arange(120) // 2 % 4, []
        for model in range(4):
            others = rng.permutation(np.flatnonzero(fold != model))
            tune, train = others[:20], others[20:]
            fitted = LogisticRegression(C=1.0).fit(features[train], target[train])
            for part, rows in (("test", np.flatnonzero(fold == model)), ("tune", tune)):
                logit = fitted.decision_function(features[rows])
                about = {
                    "patient": rows,
                    "image": rows,
                    "target": target[rows],
                    "fold": model,
                    "part": part,
                    "logit": logit,
                }
                frames.append(pd.DataFrame(about))
        scores, tune = align_arm(check_predictions(pd.concat(frames)))
        sums.append(youden_sum(scores, tune))
        losses.append(estimate_of(recalibrate(scores, tune).scores, influence.log_loss).value)
    assert np.mean(sums) == pytest.approx(1, abs=0.05)
    assert np.mean(losses) > np.log(2)
