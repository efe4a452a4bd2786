"""Every number against R (pROC 1.18, rms) and Python packages of other authors; see reference/make_cases.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import evaluate, influence
from medtransfer.evaluation.comparison import holm
from medtransfer.evaluation.spread import quantile
from medtransfer.evaluation.utility import THRESHOLDS, wilson

HERE = Path(__file__).parent / "reference"
EXPECTED = pd.read_csv(HERE / "reference.csv").set_index("name")["value"].to_dict()
CASES = pd.read_csv(HERE / "cases.csv")


@pytest.fixture(scope="module")
def report():
    table = pd.concat([CASES[["patient", "target"]].assign(arm=m, probability=CASES[m]) for m in ("a", "b")])
    return evaluate(table, bootstrap=200).to_dict()


def of(model):
    p = CASES[model].to_numpy()
    return np.log(p / (1 - p)), CASES["target"].to_numpy(), np.ones((1, len(CASES)))


@pytest.mark.parametrize("model", ["a", "b"])
def test_discrimination_and_calibration_equal_r(report, model):
    entry = report["arms"][model]
    calibration = entry["calibration"]
    found = {
        "auc": entry["auc"]["estimate"],
        "logit_low": entry["auc"]["low"],
        "logit_high": entry["auc"]["high"],
        "partial": entry["partial_auc"]["estimate"],
        "average_precision": entry["average_precision"]["estimate"],
        "brier": entry["brier"]["estimate"],
        "log_loss": entry["log_loss"]["estimate"],
        "intercept": calibration["intercept"]["estimate"],
        "slope_glm": calibration["slope"]["estimate"],
        "eavg": calibration["ici"]["estimate"],
        "e90": calibration["e90"],
        "emax": calibration["emax"],
    }
    assert len(found) == 12
    for name, value in found.items():
        assert value == pytest.approx(EXPECTED[f"{model}.{name}"], abs=1e-8), name
    # rms finds its slope with a looser stop.
    assert calibration["slope"]["estimate"] == pytest.approx(EXPECTED[f"{model}.slope"], abs=1e-6)
    # It can do without bins; the bandwidth of relplot is a multiple of 1/1024.
    assert entry["smooth_ece"]["estimate"] == pytest.approx(EXPECTED[f"{model}.smooth_ece"], abs=1e-3)


def test_variances_and_the_paired_test_equal_proc(report):
    logits = {m: of(m)[0] for m in ("a", "b")}
    target, codes = CASES["target"].to_numpy(), np.arange(len(CASES))
    found = {m: influence.estimate(z[None], target, np.ones(len(z)), codes, len(z), influence.auc) for m, z in logits.items()}
    for m, estimate in found.items():
        assert estimate.variance == pytest.approx(EXPECTED[f"{m}.variance"], rel=1e-9)
        half = quantile(estimate.parts) * np.sqrt(estimate.variance)
        assert estimate.value - half == pytest.approx(EXPECTED[f"{m}.plain_low"], abs=1e-6)
        assert estimate.value + half == pytest.approx(EXPECTED[f"{m}.plain_high"], abs=1e-6)
    difference = found["a"] - found["b"]
    shared = (found["a"].variance + found["b"].variance - difference.variance) / 2
    assert shared == pytest.approx(EXPECTED["paired.covariance"], rel=1e-8)
    assert difference.value / np.sqrt(difference.variance) == pytest.approx(EXPECTED["paired.z"], rel=1e-8)
    (comparison,) = report["comparisons"]
    assert comparison["delta_auc"]["p_delong"] == pytest.approx(EXPECTED["paired.p"], rel=1e-8)
    assert comparison["delta_auc"]["p"] == pytest.approx(EXPECTED["paired.p"], rel=1e-8)


@pytest.mark.parametrize("model", ["a", "b"])
def test_net_benefit_equals_dcurves(report, model):
    curve = report["decision_curves"]["arms"][model]["estimate"]
    for threshold in (0.1, 0.3, 0.5):
        at = int(np.argmin(np.abs(THRESHOLDS - threshold)))
        assert curve[at] == pytest.approx(EXPECTED[f"{model}.net_benefit_{threshold}"], abs=1e-12)


@pytest.mark.parametrize("model", ["a", "b"])
def test_calibration_errors_equal_those_of_their_authors(model):
    logit, target, one = of(model)
    edges = np.arange(1, 10) / 10 + 0.0005
    assert cal.weighted_l2_ece(logit, target, one, edges)[0] ** 2 == pytest.approx(EXPECTED[f"{model}.l2_ece_squared"], abs=1e-12)
    smoothed = cal.smoothed_error(cal._residual_spectrum(logit, target, one), np.array([0.1]))[0]
    assert smoothed == pytest.approx(EXPECTED[f"{model}.smooth_ece_at_0.1"], abs=2e-6)  # both on a grid


def test_wilson_and_holm_equal_r():
    found = wilson(37 / 50, 50)
    assert (found["low"], found["high"]) == pytest.approx((EXPECTED["wilson.low"], EXPECTED["wilson.high"]), abs=1e-8)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([EXPECTED[f"holm.{i}"] for i in (1, 2, 3)])
    assert holm([None, 0.02]) == [None, 0.04]
