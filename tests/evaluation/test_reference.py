"""Every number against R (pROC 1.18, rms) and Python packages of other authors; see
reference/make_cases.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.analyses.comparison import holm
from medtransfer.evaluation.analyses.sample_size import (
    required_n,
    required_n_net_benefit,
    required_n_observed_expected,
    required_n_slope,
)
from medtransfer.evaluation.analyses.sites import pool_sites
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.intervals.variance import quantile
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics.smooth_ece import residual_spectrum, smoothed_error
from medtransfer.evaluation.metrics.utility import THRESHOLDS, wilson

from scored import estimate_of, make_scores

HERE = Path(__file__).parent / "reference"
EXPECTED = pd.read_csv(HERE / "reference.csv").set_index("name")["value"].to_dict()
CASES = pd.read_csv(HERE / "cases.csv")


@pytest.fixture(scope="module")
def report():
    table = pd.concat(
        [CASES[["patient", "target"]].assign(arm=m, probability=CASES[m]) for m in ("a", "b")]
    )
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
    assert entry["smooth_ece"]["estimate"] == pytest.approx(
        EXPECTED[f"{model}.smooth_ece"], abs=1e-3
    )


def test_variances_and_the_paired_test_equal_proc(report):
    logits = {m: of(m)[0] for m in ("a", "b")}
    target = CASES["target"].to_numpy()
    found = {m: estimate_of(make_scores(z, target)) for m, z in logits.items()}
    for m, estimate in found.items():
        assert estimate.variance == pytest.approx(EXPECTED[f"{m}.variance"], rel=1e-9)
        half = quantile(estimate.parts) * np.sqrt(estimate.variance)
        assert estimate.value - half == pytest.approx(EXPECTED[f"{m}.plain_low"], abs=1e-6)
        assert estimate.value + half == pytest.approx(EXPECTED[f"{m}.plain_high"], abs=1e-6)
    difference = found["a"] - found["b"]
    shared = (found["a"].variance + found["b"].variance - difference.variance) / 2
    assert shared == pytest.approx(EXPECTED["paired.covariance"], rel=1e-8)
    assert difference.value / np.sqrt(difference.variance) == pytest.approx(
        EXPECTED["paired.z"], rel=1e-8
    )
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
    assert cal.weighted_l2_ece(logit, target, one, edges)[0] ** 2 == pytest.approx(
        EXPECTED[f"{model}.l2_ece_squared"], abs=1e-12
    )
    smoothed = smoothed_error(residual_spectrum(logit, target, one), np.array([0.1]))[0]
    assert smoothed == pytest.approx(
        EXPECTED[f"{model}.smooth_ece_at_0.1"], abs=2e-6
    )  # both on a grid


def test_wilson_and_holm_equal_r():
    found = wilson(37 / 50, 50)
    assert (found["low"], found["high"]) == pytest.approx(
        (EXPECTED["wilson.low"], EXPECTED["wilson.high"]), abs=1e-8
    )
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([EXPECTED[f"holm.{i}"] for i in (1, 2, 3)])
    assert holm([None, 0.02]) == [None, 0.04]


SITES = {
    "apart": ([1.20, 1.65, 0.90, 2.10, 1.40, 1.75], [0.040, 0.055, 0.030, 0.090, 0.025, 0.060]),
    "alike": ([0.05, 0.02, 0.08, 0.04], [0.002, 0.003, 0.002, 0.004]),
    "two": ([0.5, 1.5], [0.02, 0.03]),
}


@pytest.mark.parametrize("name", SITES)
def test_random_effects_over_sites_equal_metafor(name):
    effects, variances = map(np.array, SITES[name])
    found = pool_sites(effects, variances)
    expected = pd.read_csv(HERE / "sites.csv").set_index("name")["value"]
    for key in ("mean", "error", "between", "low", "high", "new_low", "new_high", "p"):
        assert found[key] == pytest.approx(expected[f"{name}.{key}"], rel=2e-4, abs=1e-8), key


def test_the_variance_between_sites_solves_its_equation_whatever_the_rounding():
    rng = np.random.default_rng(0)
    for _ in range(300):
        sites = rng.integers(2, 12)
        effects, variances = (
            rng.normal(1, rng.choice([0.01, 0.3, 2]), sites),
            rng.uniform(0.01, 0.2, sites),
        )
        between = pool_sites(effects, variances)["between"]
        weight = 1 / (variances + between)
        excess = weight @ (effects - weight @ effects / weight.sum()) ** 2 - (sites - 1)
        assert excess == pytest.approx(0, abs=1e-6) or (between == 0 and excess < 0)


def ledell(score, target, fold):
    """cvAUC and its standard error as R's cvAUC::ci.cvAUC has them (LeDell et al. 2015, section 4),
    term by term.
    """
    of_one, of_none = 1 / (target == 1).mean(), 1 / (target == 0).mean()
    values, squares = [], []
    for k in np.unique(fold):
        z, y = score[fold == k], target[fold == k]
        ones, zeros = z[y == 1], z[y == 0]
        auc = np.mean([(a > zeros).mean() + 0.5 * (a == zeros).mean() for a in ones])
        influence = [
            of_one * ((zeros < a).mean() + 0.5 * (zeros == a).mean() - auc)
            if own == 1
            else of_none * ((ones > a).mean() + 0.5 * (ones == a).mean() - auc)
            for a, own in zip(z, y, strict=True)
        ]
        values.append(auc)
        squares.append(np.mean(np.square(influence)))
    return np.mean(values), np.sqrt(np.mean(squares) / len(target))


def test_the_auc_within_models_is_that_of_cvauc():
    """R's cvAUC cannot be had here, so it is followed by hand; with folds of one make its mean over
    folds is that over pairs.
    """
    rng = np.random.default_rng(3)
    target = np.tile(np.repeat([0, 1], [60, 40]), 5)
    fold = np.repeat(np.arange(5), 100)
    score = np.round(1.3 * target + rng.normal(size=500), 1) + 4 * fold
    value, error = ledell(score, target, fold)
    found = estimate_of(make_scores(score, target, fold=fold))
    assert found.value == pytest.approx(value, abs=1e-12)
    # Ours knows the mean from all folds, and counts one degree of freedom less for each class.
    assert np.sqrt(found.of_patients) == pytest.approx(error, rel=0.02)


def test_sizes_of_a_validation_equal_pmvalsampsize():
    expected = pd.read_csv(HERE / "validation_sizes.csv").set_index("name")["value"]
    rng = np.random.default_rng(0)
    for name, (prevalence, auc, mean, spread) in {
        "rare": (0.018, 0.8, -5, 2.5),
        "common": (0.3, 0.75, -1, 1.2),
    }.items():
        # It steps through standard errors of 0.0001, and simulates the linear predictor.
        assert required_n_observed_expected(prevalence) == pytest.approx(
            expected[f"{name}.observed_expected"], rel=0.005
        )
        assert required_n_slope(rng.normal(mean, spread, 1_000_000)) == pytest.approx(
            expected[f"{name}.slope"], rel=0.005
        )
        assert required_n(auc, prevalence) == expected[f"{name}.auc"]
    rates = [expected[f"common.{key}"] for key in ("sensitivity", "specificity")]
    assert required_n_net_benefit(*rates, 0.3, 0.2) == pytest.approx(
        expected["common.net_benefit"], rel=0.01
    )
