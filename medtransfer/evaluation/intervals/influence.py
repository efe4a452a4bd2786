"""Estimates with their influence functions.

The influence of an image is what it adds to the error of an estimate: estimate - truth is about
their sum. Summed within patients and squared, they give the variance over patients whatever the
number of images of each (Obuchowski 1997, doi:10.2307/2533958, for the AUC; Huber's sandwich for
the others), and differences between arms come from differences of influences.

Every function takes `logit`, `target` (0 or 1), `weight` (not negative; 1 each where all count
alike) and `model` (number of the model that scored it), all (image,), and returns the estimate and
(image,) influences. An estimate is NaN where it does not exist. Scores of different models are
never ranked against each other: where they differ in scale, an AUC of pooled scores is too low
(Airola et al. 2011, doi:10.1016/j.csda.2010.11.018; LeDell, Petersen & van der Laan 2015,
doi:10.1214/15-EJS1035).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.probabilities import log_losses, squared_errors

Estimator = Callable[[Float, NDArray[Any], Float, Int], tuple[float, Float]]


def split_models(model: Int) -> Iterator[Any]:
    """Rows of each model."""
    if len(model) and (model == model[0]).all():
        yield slice(None)
        return
    for number in np.unique(model):
        yield np.flatnonzero(model == number)


def auc(logit: Float, target: NDArray[Any], weight: Float, model: Int) -> tuple[float, Float]:
    """Share of pairs, a positive and a negative scored by the same model, that are in order; ties
    counted half.

    Of one model it is the area under the ROC curve (Hanley & McNeil 1982,
    doi:10.1148/radiology.143.1.7063747), and influences are DeLong's structural components (DeLong
    et al. 1988, doi:10.2307/2531595; by sorting: Sun & Xu 2014, doi:10.1109/LSP.2014.2337313) less
    the AUC, divided by the number of their class. Of several it is their mean, weighted by their
    pairs.
    """
    truth = np.asarray(target) == 1
    placement, share = np.zeros(len(logit)), np.zeros(len(logit))
    concordant = pairs = 0.0
    for rows in split_models(model):
        _, level = np.unique(logit[rows], return_inverse=True)
        positive_rows, w = truth[rows], weight[rows]
        positive, negative = (
            np.bincount(level, w * positive_rows),
            np.bincount(level, w * ~positive_rows),
        )
        p, n = positive.sum(), negative.sum()
        if not (p > 0 and n > 0):
            continue
        below = np.cumsum(negative) - negative / 2
        above = p - (np.cumsum(positive) - positive / 2)
        placement[rows] = np.where(positive_rows, below[level] / n, above[level] / p)
        share[rows] = w * np.where(positive_rows, n, p)
        concordant, pairs = concordant + float(positive @ below), pairs + float(p * n)
    if not pairs > 0:
        return float("nan"), np.zeros(len(logit))
    value = min(1.0, concordant / pairs)
    return value, np.where(share > 0, share / pairs * (placement - value), 0.0)


def brier(logit: Float, target: NDArray[Any], weight: Float, _model: Int) -> tuple[float, Float]:
    """Mean squared error of the probability (Brier 1950); 0 is best."""
    return mean(squared_errors(logit, target), weight)


def log_loss(logit: Float, target: NDArray[Any], weight: Float, _model: Int) -> tuple[float, Float]:
    """Mean negative log-likelihood in nats; 0 is best."""
    return mean(log_losses(logit, target), weight)


def mean(values: Float, weight: Float) -> tuple[float, Float]:
    """A weighted mean with its influences."""
    total = weight.sum()
    value = float(weight @ values / total)
    return value, weight * (values - value) / total


def brier_skill(
    logit: Float, target: NDArray[Any], weight: Float, _model: Int
) -> tuple[float, Float]:
    """1 - Brier / Brier of the prevalence: 1 is perfect, 0 no better than the prevalence, below 0
    worse.
    """
    prevalence, of_prevalence = mean(np.asarray(target, float), weight)
    reference = prevalence * (1 - prevalence)
    if reference == 0:
        return float("nan"), np.zeros(len(logit))
    value, of_brier = brier(logit, target, weight, _model)
    return 1 - value / reference, -of_brier / reference + value / reference**2 * (
        1 - 2 * prevalence
    ) * of_prevalence


def observed_expected(
    logit: Float, target: NDArray[Any], weight: Float, _model: Int
) -> tuple[float, Float]:
    """Observed positives / sum of probabilities; 1 is best."""
    expected = float(weight @ expit(logit))
    if expected == 0:
        return float("nan"), np.zeros(len(logit))
    value = float(weight @ target) / expected
    return value, weight * (target - value * expit(logit)) / expected


def intercept(
    logit: Float, target: NDArray[Any], weight: Float, _model: Int
) -> tuple[float, Float]:
    """Calibration-in-the-large: a in logit P(y) = a + logit p, slope 1. 0 is best.

    Above 0 the probabilities are too low on the whole (Van Calster et al. 2016,
    doi:10.1016/j.jclinepi.2015.12.005).
    """
    value, p = _fit_intercept(logit, np.asarray(target, float), weight)
    information = float(weight @ (p * (1 - p)))
    if not np.isfinite(value) or information <= 0:
        return float("nan"), np.zeros(len(logit))
    return value, weight * (target - p) / information


def slope(logit: Float, target: NDArray[Any], weight: Float, model: Int) -> tuple[float, Float]:
    """Calibration slope: b in logit P(y) = a + b logit p, with an intercept a for every model. 1 is
    best, below 1 over-confident.

    NaN where it cannot be estimated: one class only, one single probability, or classes separated
    by the score. Models of which only one class was tested tell nothing of it.
    """
    nothing = float("nan"), np.zeros(len(logit))
    code = np.unique(model, return_inverse=True)[1]
    mass = np.bincount(code, weight)
    positives = np.bincount(code, weight * target)
    tells = ((positives > 0) & (positives < mass))[code] & (weight > 0)
    if not tells.any():
        return nothing
    z, y, w = logit[tells], np.asarray(target, np.float64)[tells], weight[tells]
    code = np.unique(code[tells], return_inverse=True)[1]
    # Centred within models and scaled, for well-conditioned Newton steps; scaled back at the end.
    x = z - (np.bincount(code, w * z) / np.bincount(code, w))[code]
    spread = float(np.ptp(x))
    if not spread > 1e-12:
        return nothing
    x = x / spread
    a, b = np.zeros(code.max() + 1), 0.0
    for _ in range(100):
        p = expit(a[code] + b * x)
        residual, curvature = w * (y - p), w * p * (1 - p)
        h00, h01 = np.bincount(code, curvature), np.bincount(code, curvature * x)
        h11, g0 = float(curvature @ (x * x)), np.bincount(code, residual)
        with np.errstate(divide="ignore", invalid="ignore"):
            information = h11 - float((h01**2 / h00).sum())
        if not information > 1e-14 * h11 or (h00 < 1e-6 * np.bincount(code, w)).any():
            return nothing  # separated: the likelihood has no maximum
        db = (float(residual @ x) - float((h01 * g0 / h00).sum())) / information
        da = (g0 - h01 * db) / h00
        # Full Newton steps can overshoot from a flat start.
        length = float(np.sqrt(da @ da + db**2))
        shrink = min(1.0, 8.0 / max(length, 1e-300))
        a, b = a + shrink * da, b + shrink * db
        if length < 1e-10:
            influence = np.zeros(len(logit))
            influence[tells] = residual * (x - (h01 / h00)[code]) / information / spread
            return b / spread, influence
    return nothing


def _both(target: NDArray[Any], weight: Float) -> bool:
    return float(weight @ target) > 0 and float(weight @ (1 - np.asarray(target))) > 0


def _fit_intercept(logit: Float, target: Float, weight: Float) -> tuple[float, Float]:
    if not _both(target, weight):
        return float("nan"), expit(logit)
    a = 0.0
    for _ in range(200):
        p = expit(a + logit)
        step = float(
            np.clip(weight @ (target - p) / max(float(weight @ (p * (1 - p))), 1e-300), -2.0, 2.0)
        )
        a += step
        if abs(step) < 1e-12:
            break
    return a, expit(a + logit)
