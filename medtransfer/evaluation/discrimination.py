"""AUC with its DeLong interval, average precision, ROC curves.

Metrics for resampling take `weights` (draw, image) and return one value per draw; the estimate is the
same function with weights of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm, rankdata

Float = NDArray[np.float64]
_Z = float(norm.ppf(0.975))
# Below so many patients of a class the normal approximation of DeLong is not to be trusted.
_SMALL = 10


def weighted_auc(score: Float, target: NDArray[Any], weights: Float) -> Float:
    """Area under the ROC curve, ties counted half (Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747).

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


def weighted_average_precision(score: Float, target: NDArray[Any], weights: Float) -> Float:
    """Average precision, the sum over thresholds of precision times the step in recall; arguments as `weighted_auc`."""
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


def placements(scores: Float, target: NDArray[Any]) -> tuple[Float, Float]:
    """DeLong's structural components by mid-ranks (Sun & Xu 2014, doi:10.1109/LSP.2014.2337313).

    Args:
        scores: (seed, image). The components of several seeds are averaged: their mean AUC is again a
            U-statistic over the same patients.
        target: (image,).

    Returns:
        One value per positive (share of negatives below it) and one per negative (share of positives above it).
    """
    truth = target == 1
    m, n = int(truth.sum()), int((~truth).sum())
    v10, v01 = np.zeros(m), np.zeros(n)
    for score in scores:
        everywhere = rankdata(score)
        v10 += (everywhere[truth] - rankdata(score[truth])) / n
        v01 += 1 - (everywhere[~truth] - rankdata(score[~truth])) / m
    return v10 / len(scores), v01 / len(scores)


def delong_covariance(scores: list[Float], target: NDArray[Any], patients: NDArray[Any]) -> tuple[Float, Float]:
    """AUCs and their covariance over patients.

    With one image per patient this is DeLong et al. 1988 (doi:10.2307/2531595); with several, the
    components are summed within the patient first (Obuchowski 1997, doi:10.2307/2533958).

    Args:
        scores: one (seed, image) array per arm.
        target, patients: (image,).

    Returns:
        (arm,) AUCs, and the (arm, arm) covariance; NaN where a class has fewer than two patients.
    """
    truth = target == 1
    _, code = np.unique(patients.astype(str), return_inverse=True)
    count = int(code.max()) + 1
    aucs, in_positives, in_negatives = [], [], []
    for arm in scores:
        v10, v01 = placements(arm, target)
        auc = float(v10.mean())
        aucs.append(auc)
        in_positives.append(np.bincount(code[truth], v10 - auc, count) / truth.sum())
        in_negatives.append(np.bincount(code[~truth], v01 - auc, count) / (~truth).sum())
    a, b = np.array(in_positives), np.array(in_negatives)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = _correction(code[truth]) * (a @ a.T) + _correction(code[~truth]) * (b @ b.T)
        mixed = a @ b.T
        if mixed.any():  # only patients with images of both classes
            covariance = covariance + count / (count - 1) * (mixed + mixed.T)
    return np.array(aucs), covariance


def _correction(codes: NDArray[Any]) -> float:
    patients = len(set(codes.tolist()))
    return patients / (patients - 1) if patients > 1 else float("nan")


def auc_interval(scores: Float, target: NDArray[Any], patients: NDArray[Any]) -> dict[str, Any]:
    """AUC with its 95 % interval: DeLong on the logit scale, or Newcombe's where that fails.

    With several seeds the AUC is their mean, and its variance is DeLong's over patients plus the
    variance between the seeds' AUCs divided by their number.

    DeLong gives [1, 1] for a perfect separation and is not to be trusted with fewer than 10 patients of
    a class; there, method 5 of Newcombe 2006 (doi:10.1002/sim.2324) is taken, which never collapses.

    Args:
        scores: (seed, image). target, patients: (image,).
    """
    aucs, covariance = delong_covariance([scores], target, patients)
    auc, variance = float(aucs[0]), float(covariance[0, 0])
    if len(scores) > 1:
        ones = np.ones((1, len(target)))
        variance += float(np.var([weighted_auc(score, target, ones)[0] for score in scores], ddof=1)) / len(scores)
    m, n = (len(set(patients[target == c].astype(str))) for c in (1, 0))
    if min(m, n) < _SMALL or not 0 < auc < 1 or not variance > 0:
        low, high = _newcombe(auc, m, n)
        return {"estimate": auc, "low": low, "high": high, "method": "Newcombe 2006, method 5"}
    center, half = np.log(auc / (1 - auc)), _Z * np.sqrt(variance) / (auc * (1 - auc))
    method = "DeLong, logit scale"
    if len(target) > len(set(patients.astype(str))):
        method += ", clustered by patient"
    if len(scores) > 1:
        method += ", with the variance between seeds"
    return {"estimate": auc, "low": float(expit(center - half)), "high": float(expit(center + half)), "method": method}


def _newcombe(auc: float, m: int, n: int) -> tuple[float, float]:
    """Score-like interval: the AUCs whose own Hanley-McNeil error reaches the estimate."""
    middle = (m + n) / 2 - 1

    def excess(value: float) -> float:
        spread = value * (1 - value) * (1 + middle * (1 - value) / (2 - value) + middle * value / (1 + value)) / (m * n)
        return (auc - value) ** 2 - _Z**2 * spread

    # At 0 and 1 the equation has a second, trivial root at the estimate itself; stay a hair inside of it.
    inside = min(max(auc, 1e-9), 1 - 1e-9)
    low = brentq(excess, 0.0, inside) if auc > 0 else 0.0
    high = brentq(excess, inside, 1.0) if auc < 1 else 1.0
    return float(low), float(high)


def roc_curve(scores: Float, target: NDArray[Any], points: int = 101) -> dict[str, list[float]]:
    """Sensitivity at evenly spaced false-positive rates, averaged over seeds (vertical averaging).

    Args:
        scores: (seed, image). target: (image,).
    """
    grid = np.linspace(0.0, 1.0, points)
    curves = []
    for score in scores:
        positive, negative = (part[0, ::-1] for part in _by_threshold(score, target, np.ones((1, len(score)))))
        true = np.r_[0.0, np.cumsum(positive)] / positive.sum()
        false = np.r_[0.0, np.cumsum(negative)] / negative.sum()
        curves.append(np.interp(grid, false, true))
    return {"false_positive_rate": grid.tolist(), "sensitivity": np.mean(curves, axis=0).tolist()}
