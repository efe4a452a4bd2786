from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.metrics.discrimination import (
    auc_interval,
    precision_recall_curve,
    roc_curve,
    weighted_auc,
    weighted_average_precision,
    weighted_partial_auc,
)
from sklearn.metrics import average_precision_score, roc_auc_score

from scored import delong_by_definition, estimate_auc, make_scores

TARGET = np.array([0, 1, 0, 1, 1])


SCORE = np.array([0.1, 0.4, 0.4, 0.8, 0.3])


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
    assert weighted_auc(score, target, weight[None])[0] == pytest.approx(
        roc_auc_score(target, score, sample_weight=weight), abs=1e-12
    )
    expected = average_precision_score(target, score, sample_weight=weight)
    assert weighted_average_precision(score, target, weight[None])[0] == pytest.approx(
        expected, abs=1e-12
    )


def test_interval_is_delong_on_the_logit_scale():
    rng = np.random.default_rng(4)
    target = np.repeat([0, 1], 60)
    score = rng.normal(size=120) + 1.2 * target
    auc, variance = delong_by_definition(score, target)
    half = 1.959964 * np.sqrt(variance) / (auc * (1 - auc))
    center = np.log(auc / (1 - auc))
    interval = auc_interval(estimate_auc(score, target))
    assert interval["method"].startswith("DeLong, logit scale")
    assert interval["low"] == pytest.approx(1 / (1 + np.exp(-(center - half))), abs=1e-6)
    assert interval["high"] == pytest.approx(1 / (1 + np.exp(-(center + half))), abs=1e-6)


@pytest.mark.parametrize("n", [3, 30])
def test_perfect_separation_is_not_certainty(n):
    target = np.repeat([0, 1], n)
    interval = auc_interval(estimate_auc(np.arange(2.0 * n), target))
    assert interval["estimate"] == 1
    assert interval["high"] == 1
    assert 0.3 < interval["low"] < 0.97
    worst = auc_interval(estimate_auc(-np.arange(2.0 * n), target))
    assert worst["low"] == 0
    assert worst["high"] == pytest.approx(1 - interval["low"])


def test_newcombe_bounds_solve_their_equation():
    from medtransfer.evaluation.metrics.discrimination import _newcombe

    low, high = _newcombe(0.8, np.array([[12, 20]]))
    middle = (12 + 20) / 2 - 1
    for bound in (low, high):
        variance = (
            bound
            * (1 - bound)
            * (1 + middle * (1 - bound) / (2 - bound) + middle * bound / (1 + bound))
            / (12 * 20)
        )
        assert (0.8 - bound) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)
    assert low < 0.8 < high


def test_curves_run_from_corner_to_corner():
    curve = roc_curve(make_scores(SCORE, TARGET))
    assert (
        curve["false_positive_rate"][0],
        curve["false_positive_rate"][-1],
        curve["sensitivity"][-1],
    ) == (0, 1, 1)
    assert np.all(np.diff(curve["sensitivity"]) >= 0)
    other = precision_recall_curve(make_scores(SCORE, TARGET))
    assert (other["recall"][-1], other["precision"][0], other["precision"][-1]) == (
        1,
        1,
        pytest.approx(3 / 4),
    )
    assert roc_curve(make_scores(SCORE, np.ones(5, int))) == {
        "false_positive_rate": [],
        "sensitivity": [],
    }


@settings(max_examples=40, deadline=None)
@given(
    score=arrays(float, 25, elements=st.sampled_from([-2.0, -1.0, 0.0, 0.3, 1.0])),
    weight=arrays(float, 25, elements=st.sampled_from([0.0, 1.0, 2.0])),
    target=arrays(int, 25, elements=st.integers(0, 1)),
)
def test_weights_mean_repetition(score, weight, target):
    rows = np.repeat(np.arange(25), weight.astype(int))
    if len(set(target[rows])) < 2:
        return
    ones = np.ones((1, len(rows)))
    for metric in (weighted_auc, weighted_partial_auc, weighted_average_precision):
        assert metric(score, target, weight[None])[0] == pytest.approx(
            metric(score[rows], target[rows], ones)[0], abs=1e-12
        )
    assert influence.auc(score, target, weight, np.zeros(25, int))[0] == pytest.approx(
        roc_auc_score(target[rows], score[rows]), abs=1e-12
    )


def test_partial_auc_equals_scikit_learn():
    rng = np.random.default_rng(8)
    target = rng.integers(0, 2, 90)
    score = np.round(rng.normal(size=90) + target, 1)
    assert weighted_partial_auc(score, target, np.ones((1, 90)))[0] == pytest.approx(
        roc_auc_score(target, score, max_fpr=0.2), abs=1e-12
    )


def test_newcombe_of_several_folds_is_that_of_each_with_its_share():
    interval = auc_interval(
        estimate_auc(
            np.r_[1.0, 0.0, 0.1, 1.0, 0.0, 0.1],
            np.array([1, 0, 0, 1, 0, 0]),
            fold=np.array([0, 0, 0, 1, 1, 1]),
        )
    )
    whole = auc_interval(estimate_auc(np.r_[1.0, 0.0, 0.1], np.array([1, 0, 0])))
    assert whole["low"] < interval["low"] < 1 == interval["high"]
