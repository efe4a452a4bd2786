from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.errors import PredictionsError
from medtransfer.evaluation import evaluate
from medtransfer.evaluation.recalibration import METHODS, adjust_prevalence, fit_map, recalibrate
from medtransfer.evaluation.scores import align_scores
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression


def sample(seed=0, n=4000):
    rng = np.random.default_rng(seed)
    truth = rng.normal(-0.3, 1.5, n)
    return truth, (rng.random(n) < expit(truth)).astype(int)


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.4, 3.0), shift=st.floats(-1.0, 1.0))
def test_platt_undoes_scale_and_shift(factor, shift):
    truth, target = sample()
    plain, fitted = fit_map("platt", truth, target), fit_map("platt", factor * truth + shift, target)
    assert (plain.parameters["factor"], plain.parameters["shift"]) == (pytest.approx(1, abs=0.1), pytest.approx(0, abs=0.1))
    # But for the weak priors, it does not matter how the logits were distorted.
    assert np.abs(fitted.apply(factor * truth + shift) - plain.apply(truth)).max() < 0.04


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
    from medtransfer.evaluation.recalibration import _linear

    a, shift = same.parameters["factor"], same.parameters["shift"]
    assert _linear(np.array([a, a, shift]), truth) == pytest.approx(same.apply(truth))


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


def aligned(table):
    (scores,), _ = align_scores(table)
    return scores, table[table["part"] == "tune"]


def test_auto_stays_with_temperature_unless_another_wins(scores):
    plain = aligned(scores({"a": 1.0}, patients=400))
    assert recalibrate(*plain).method == "temperature"
    shifted = scores({"a": 1.0}, patients=400)
    shifted["logit"] += 3  # no temperature mends a shift
    found = recalibrate(*aligned(shifted))
    assert found.method in {"platt", "beta"}
    assert "lower than with temperature by" in found.chosen


def test_isotonic_is_refused_for_small_tune_parts(scores):
    with pytest.raises(PredictionsError, match="refused below 1000"):
        recalibrate(*aligned(scores({"a": 1.0})), "isotonic")


def test_every_method_is_fitted_on_tune_rows_only(scores):
    table = scores({"a": 1.0}, patients=300)
    changed = table.copy()
    test = changed["part"] == "test"
    changed.loc[test, "target"] = 1 - changed.loc[test, "target"]
    for method in METHODS[:3]:
        first, second = (recalibrate(*aligned(t), method) for t in (table, changed))
        assert [m.parameters for m in first.maps.values()] == [m.parameters for m in second.maps.values()]
        assert len(first.maps) == 2


def test_the_report_says_what_was_chosen(scores):
    entry = evaluate(scores({"a": 1.0}), bootstrap=100, recalibration="platt").to_dict()["arms"]["a"]["recalibrated"]
    assert (entry["method"], entry["chosen"]) == ("platt", "set by hand")
    assert {"seed", "fold", "factor", "shift"} == set(entry["maps"][0])


def test_prevalence_moves_the_logit_by_the_odds():
    # 20 % against 50 %: odds 1/4 against 1.
    assert adjust_prevalence(np.array([0.0, 2.0]), 0.5, 0.2) == pytest.approx([-np.log(4), 2 - np.log(4)])
    truth, target = sample(n=200_000)
    keep = (target == 1) | (np.random.default_rng(1).random(len(target)) < 0.2)
    prevalence, wanted = target.mean(), target[keep].mean()
    moved = expit(adjust_prevalence(truth[keep], prevalence, wanted))
    assert moved.mean() == pytest.approx(target[keep].mean(), abs=0.005)


def test_rows_of_tune_parts_that_lack_a_class_leave_the_arm_as_it_is(scores):
    table = scores({"a": 1.0})
    table.loc[(table["part"] == "tune") & (table["fold"] == 0), "target"] = 0
    report = evaluate(table, bootstrap=100).to_dict()
    assert report["arms"]["a"]["recalibrated"] is None
    assert report["arms"]["a"]["operating_points"] == []
    assert report["arms"]["a"]["prediction_sets"] is None
    assert isinstance(pd.DataFrame(report["arms"]["a"]["curves"]["histogram"]["negative"]), pd.DataFrame)
