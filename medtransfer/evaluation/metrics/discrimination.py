"""AUC and its interval, partial AUC, average precision, ROC and precision-recall curves: all of
scores of one model.

Of several models they are means over these, see `resample.Within` and `influence.auc`. Metrics for
resampling take `weights` (draw, image) and return one value per draw; the estimate is the same
function with weights of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.estimate import Estimate, mass_of
from medtransfer.evaluation.intervals.variance import NORMAL_95
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores

# Patients of a class below which DeLong's variance is not reliable.
_SMALL = 10
# The partial AUC looks at specificities above this.
SPECIFICITY = 0.8


def weighted_auc(score: Float, target: NDArray[Any], weights: Float) -> Float:
    """Area under the ROC curve, ties counted half (Hanley & McNeil 1982,
    doi:10.1148/radiology.143.1.7063747).

    Args:
        score: (image,), any monotone score.
        target: (image,), 0 or 1.
        weights: (draw, image), not negative.

    Returns:
        (draw,), 0 to 1; NaN where a draw lacks a class.
    """
    positive, negative = _by_threshold(score, target, weights)
    below = np.cumsum(negative, axis=1) - negative
    concordant = (positive * (below + 0.5 * negative)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(concordant / (positive.sum(1) * negative.sum(1)), dtype=np.float64)


def weighted_partial_auc(score: Float, target: NDArray[Any], weights: Float) -> Float:
    """Area where the specificity is at least 0.8, standardised to 0.5 for chance and 1 for a
    perfect score.

    McClish 1989, doi:10.1177/0272989X8900900307; arguments as `weighted_auc`.
    """
    positive, negative = (part[:, ::-1] for part in _by_threshold(score, target, weights))
    limit = 1 - SPECIFICITY
    with np.errstate(invalid="ignore", divide="ignore"):
        true, false = (
            np.cumsum(part, axis=1) / part.sum(1, keepdims=True) for part in (positive, negative)
        )
        before_true, before_false = (
            np.pad(rate[:, :-1], ((0, 0), (1, 0))) for rate in (true, false)
        )
        width = np.clip(np.minimum(false, limit) - before_false, 0, None)
        reached = before_true + (true - before_true) * np.where(
            false > before_false, width / (false - before_false), 0.0
        )
    area = (width * (before_true + reached) / 2).sum(1)
    least = limit**2 / 2
    return np.asarray((1 + (area - least) / (limit - least)) / 2, np.float64)


def weighted_average_precision(score: Float, target: NDArray[Any], weights: Float) -> Float:
    """Average precision, the sum over thresholds of precision times the step in recall; arguments
    as `weighted_auc`.
    """
    positive, negative = (part[:, ::-1] for part in _by_threshold(score, target, weights))
    true, called = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, true / called, 0.0)
        return np.asarray((positive * precision).sum(1) / positive.sum(1), dtype=np.float64)


def _by_threshold(score: Float, target: NDArray[Any], weights: Float) -> tuple[Float, Float]:
    """Weight of positives and of negatives at each distinct score, ascending: (draw, threshold)."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    ordered, truth = weights[:, order], target[order] == 1
    positive = np.add.reduceat(ordered * truth, starts, axis=1)
    negative = np.add.reduceat(ordered * ~truth, starts, axis=1)
    return positive, negative


def auc_interval(estimate: Estimate) -> dict[str, Any]:
    """AUC with its 95 % interval: DeLong on the logit scale, or Newcombe's where that fails.

    With several images of a patient it is Obuchowski's; with several seeds, the variance between
    them is added. Student's t with Satterthwaite's degrees of freedom stands in for the normal
    distribution, as few patients of a class know their variance badly.

    DeLong gives [1, 1] for a perfect separation and is not to be trusted with fewer than 10
    patients of a class with one image each; there, method 5 of Newcombe 2006 (doi:10.1002/sim.2324)
    is taken, which never collapses.
    """
    value = estimate.value
    if not np.isfinite(value):
        missing = [
            name
            for name, count in zip(("positive", "negative"), estimate.members, strict=False)
            if count == 0
        ]
        reason = f"no {missing[0]} image" if missing else "no model tested both classes"
        return {
            "estimate": None,
            "low": None,
            "high": None,
            "method": "none",
            "reason": f"not estimable: {reason}",
        }
    positives, negatives, patients = estimate.members
    several = len(estimate.by_seed) > 1
    variance = estimate.variance
    small = (
        min(positives, negatives) < _SMALL
        and positives + negatives == patients
        and not estimate.clustered
        and not several
    )
    if small or not 0 < value < 1 or not (np.isfinite(variance) and variance > 0):
        low, high = _newcombe(value, estimate.by_fold)
        return {"estimate": value, "low": low, "high": high, "method": "Newcombe 2006, method 5"}
    method = "DeLong, logit scale"
    if estimate.clustered:
        method += ", clustered by patient"
    if several and not estimate.given:
        method += ", with the variance between seeds"
    return {**estimate.interval("logit"), "method": method}


def _newcombe(auc: float, members: Int) -> tuple[float, float]:
    """Interval of the AUCs whose own Hanley-McNeil error reaches the estimate; for a mean over
    folds, from the intervals of the folds.

    Args:
        auc: mean over folds, weighted by their pairs.
        members: (fold, 2), positives and negatives.
    """
    pairs = members.prod(1).astype(np.float64)
    m, n = members[pairs > 0].T
    share = pairs[pairs > 0] / pairs.sum()
    middle = (m + n) / 2 - 1
    auc = float(np.round(auc, 12))  # a sum of ranks may miss 0 or 1 by its last bit

    def excess(value: float) -> float:
        spread = (
            value
            * (1 - value)
            * (1 + middle * (1 - value) / (2 - value) + middle * value / (1 + value))
            / (m * n)
        )
        return (auc - value) ** 2 - NORMAL_95**2 * float(share**2 @ spread)

    # At 0 and 1 the equation has a second, trivial root at the estimate itself; stay a hair inside
    # of it.
    inside = min(max(auc, 1e-9), 1 - 1e-9)
    low = brentq(excess, 0.0, inside) if auc > 0 else 0.0
    high = brentq(excess, inside, 1.0) if auc < 1 else 1.0
    return float(low), float(high)


def auc_within(score: Float, target: NDArray[Any], model: NDArray[Any]) -> float:
    """AUC over pairs scored by the same model, (image,) each; NaN where there is no pair."""
    return influence.auc(score, target, np.ones(len(score)), np.asarray(model))[0]


def roc_curve(scores: Scores, points: int = 101) -> dict[str, list[float]]:
    """Sensitivity at evenly spaced false-positive rates, averaged over models (vertical averaging);
    empty where a class is missing.
    """
    grid = np.linspace(0.0, 1.0, points)

    def curve(positive: Float, negative: Float) -> Float:
        true, false = (
            np.r_[0.0, np.cumsum(positive)] / positive.sum(),
            np.r_[0.0, np.cumsum(negative)] / negative.sum(),
        )
        return np.asarray(np.interp(grid, false, true), np.float64)

    mean = _mean_curve(scores, curve)
    return (
        {"false_positive_rate": grid.tolist(), "sensitivity": mean.tolist()}
        if mean is not None
        else {"false_positive_rate": [], "sensitivity": []}
    )


def precision_recall_curve(scores: Scores, points: int = 101) -> dict[str, list[float]]:
    """Precision at evenly spaced recalls, taken at the first threshold that reaches them, averaged
    over models.
    """
    grid = np.linspace(0.0, 1.0, points)[1:]

    def curve(positive: Float, negative: Float) -> Float:
        true, called = np.cumsum(positive), np.cumsum(positive + negative)
        reached = np.searchsorted(true / true[-1], grid - 1e-12)
        return np.asarray(true[reached] / called[reached], np.float64)

    mean = _mean_curve(scores, curve)
    return (
        {"recall": grid.tolist(), "precision": mean.tolist()}
        if mean is not None
        else {"recall": [], "precision": []}
    )


def _mean_curve(scores: Scores, curve: Callable[[Float, Float], Float]) -> Float | None:
    """Mean over models, weighted by their pairs, of a curve from the positives and negatives at
    each score, descending.
    """
    total, mass = np.zeros(0), 0.0
    for row, _, inside in scores.cells:
        target, weight = scores.target[inside], scores.weight[inside][None]
        pairs = float(mass_of("pairs", target, weight)[0])
        if pairs > 0:
            positive, negative = (
                part[0, ::-1] for part in _by_threshold(scores.logit[row, inside], target, weight)
            )
            drawn = pairs * curve(positive, negative)
            total, mass = drawn + (total if len(total) else 0.0), mass + pairs
    return total / mass if mass else None
