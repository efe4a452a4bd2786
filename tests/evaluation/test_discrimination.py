from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medtransfer.evaluation.discrimination import (
    auc_interval,
    delong_covariance,
    placements,
    roc_curve,
    weighted_auc,
    weighted_average_precision,
)
from sklearn.metrics import average_precision_score, roc_auc_score

TARGET = np.array([0, 1, 0, 1, 1])
SCORE = np.array([0.1, 0.4, 0.4, 0.8, 0.3])


def test_auc_of_a_hand_worked_case():
    # Six pairs: (.4, .1) 1, (.4, .4) 1/2, (.8, .1) 1, (.8, .4) 1, (.3, .1) 1, (.3, .4) 0 -> 4.5 / 6.
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
    assert weighted_auc(score, target, weight[None])[0] == pytest.approx(roc_auc_score(target, score, sample_weight=weight), abs=1e-12)
    expected = average_precision_score(target, score, sample_weight=weight)
    assert weighted_average_precision(score, target, weight[None])[0] == pytest.approx(expected, abs=1e-12)


def delong_by_definition(score: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    x, y = score[target == 1], score[target == 0]
    psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    return float(psi.mean()), float(psi.mean(1).var(ddof=1) / len(x) + psi.mean(0).var(ddof=1) / len(y))


def test_fast_delong_equals_its_definition():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 80)
    score = np.round(rng.normal(size=80) + target, 1)  # rounded, so that there are ties
    aucs, covariance = delong_covariance([score[None]], target, np.arange(80).astype(str))
    auc, variance = delong_by_definition(score, target)
    assert aucs[0] == pytest.approx(auc, abs=1e-12)
    assert covariance[0, 0] == pytest.approx(variance, abs=1e-12)


def test_delong_of_a_hand_worked_case():
    # Placements of positives 3/4, 1, 1/2 and of negatives 1, 1/2; AUC 3/4.
    # Variance: (0 + 1/16 + 1/16) / 2 / 3 + (1/16 + 1/16) / 1 / 2 = 1/48 + 1/16 = 1/12.
    v10, v01 = placements(SCORE[None], TARGET)
    assert v10 == pytest.approx([0.75, 1.0, 0.5])
    assert v01 == pytest.approx([1.0, 0.5])
    _, covariance = delong_covariance([SCORE[None]], TARGET, np.array(list("abcde")))
    assert covariance[0, 0] == pytest.approx(1 / 12)


def test_repeating_every_image_of_a_patient_changes_nothing():
    """Clustered by patient, copies carry no information: the AUC and its variance stay."""
    rng = np.random.default_rng(2)
    target = rng.integers(0, 2, 60)
    score = rng.normal(size=60) + target
    patient = np.arange(60).astype(str)
    once = delong_covariance([score[None]], target, patient)
    thrice = delong_covariance([np.repeat(score, 3)[None]], np.repeat(target, 3), np.repeat(patient, 3))
    assert thrice[0] == pytest.approx(once[0])
    assert thrice[1] == pytest.approx(once[1])
    naive = delong_covariance([np.repeat(score, 3)[None]], np.repeat(target, 3), np.arange(180).astype(str))
    assert naive[1][0, 0] < 0.5 * once[1][0, 0]


def test_clustered_variance_agrees_with_bootstrap_over_patients():
    rng = np.random.default_rng(3)
    patients, views = 80, 4
    effect = rng.normal(size=patients)
    target = rng.integers(0, 2, (patients, views))  # images of both classes within a patient
    score = (target + effect[:, None] + 0.5 * rng.normal(size=target.shape)).ravel()
    code = np.repeat(np.arange(patients), views)
    _, covariance = delong_covariance([score[None]], target.ravel(), code.astype(str))
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), 4000)[:, code].astype(float)
    bootstrap = weighted_auc(score, target.ravel(), weights).std(ddof=1)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(bootstrap, rel=0.08)


def test_interval_is_delong_on_the_logit_scale():
    rng = np.random.default_rng(4)
    target = np.repeat([0, 1], 60)
    score = rng.normal(size=120) + 1.2 * target
    auc, variance = delong_by_definition(score, target)
    half = 1.959964 * np.sqrt(variance) / (auc * (1 - auc))
    center = np.log(auc / (1 - auc))
    interval = auc_interval(score[None], target, np.arange(120).astype(str))
    assert interval["method"] == "DeLong, logit scale"
    assert interval["low"] == pytest.approx(1 / (1 + np.exp(-(center - half))), abs=1e-6)
    assert interval["high"] == pytest.approx(1 / (1 + np.exp(-(center + half))), abs=1e-6)


@pytest.mark.parametrize("n", [3, 30])
def test_perfect_separation_is_not_certainty(n):
    target = np.repeat([0, 1], n)
    interval = auc_interval(np.arange(2.0 * n)[None], target, np.arange(2 * n).astype(str))
    assert interval["estimate"] == 1
    assert interval["high"] == 1
    assert 0.3 < interval["low"] < 0.97
    worst = auc_interval(-np.arange(2.0 * n)[None], target, np.arange(2 * n).astype(str))
    assert worst["low"] == 0
    assert worst["high"] == pytest.approx(1 - interval["low"])


def test_newcombe_bounds_solve_their_equation():
    from medtransfer.evaluation.discrimination import _newcombe

    low, high = _newcombe(0.8, 12, 20)
    middle = (12 + 20) / 2 - 1
    for bound in (low, high):
        variance = bound * (1 - bound) * (1 + middle * (1 - bound) / (2 - bound) + middle * bound / (1 + bound)) / (12 * 20)
        assert (0.8 - bound) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)
    assert low < 0.8 < high


def test_averaging_seeds_gives_the_mean_auc():
    rng = np.random.default_rng(5)
    target = rng.integers(0, 2, 50)
    scores = rng.normal(size=(3, 50)) + target
    aucs, _ = delong_covariance([scores], target, np.arange(50).astype(str))
    assert aucs[0] == pytest.approx(np.mean([roc_auc_score(target, s) for s in scores]))


def test_roc_curve_runs_from_corner_to_corner():
    curve = roc_curve(SCORE[None], TARGET)
    assert (curve["false_positive_rate"][0], curve["false_positive_rate"][-1], curve["sensitivity"][-1]) == (0, 1, 1)
    assert np.all(np.diff(curve["sensitivity"]) >= 0)


def test_the_interval_holds_the_variance_between_seeds():
    rng = np.random.default_rng(6)
    target = rng.integers(0, 2, 300)
    patients = np.arange(300)
    seeds = np.stack([strength * target + rng.normal(size=300) for strength in (0.5, 1.5, 2.5)])
    one = auc_interval(seeds[1:2], target, patients)
    several = auc_interval(seeds, target, patients)
    assert several["method"].endswith("with the variance between seeds")
    assert several["high"] - several["low"] > 2 * (one["high"] - one["low"])
