"""Calibration from bins: ECE with its null, debiased ECE, Brier in parts, the joint test and the
reliability diagram.

Intercept, slope and observed / expected are in `influence`, the smooth curve in
`calibration_curve`, the smooth ECE in `smooth_ece`. Metrics for resampling take `weights`
(draw, image) and return one value per draw; the estimate is the same function with weights of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.sparse import csr_array
from scipy.special import expit, ndtr
from scipy.stats import chi2

from medtransfer.evaluation.metrics.calibration_curve import curve_metric
from medtransfer.evaluation.metrics.smooth_ece import CELLS, weighted_smooth_ece
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.probabilities import log_losses, squared_errors
from medtransfer.evaluation.tables.scores import Scores, gather_levels

# Share of the level that the test of intercept and slope has; that of differences between models
# has the rest.
_OF_LEVEL = 0.8
# Patients of a class below which the test is not made.
_FEWEST = 5


def weighted_brier(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Mean squared error of the probability (Brier 1950); 0 is best."""
    return _weighted_mean(squared_errors(logit, target), weights)


def weighted_log_loss(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Mean negative log-likelihood in nats; 0 is best."""
    return _weighted_mean(log_losses(logit, target), weights)


def _weighted_mean(values: Float, weights: Float) -> Float:
    """Weighted mean of each draw; NaN for a draw without any image, as a fold may have."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ values / weights.sum(1), np.float64)


def bin_edges(logits: Float) -> Float:
    """Inner edges, as probabilities, of equal-mass bins: 10, or fewer so that a bin holds about 10
    images; at least 2.

    Args:
        logits: (image,); or (seed, image), for bins shared by the seeds, as a curve over them
            needs. Errors are counted in each seed's own: in shared bins, models that differ would
            fill only some each, and seem better calibrated than they are.
    """
    bins = int(np.clip(logits.shape[-1] // 10, 2, 10))
    return np.unique(np.quantile(expit(logits), np.linspace(0, 1, bins + 1)[1:-1]))


def binned_metric(
    error: Callable[[Float, NDArray[Any], Float, Float], Float],
) -> Callable[[Float, NDArray[Any], Float], Float]:
    """`weighted_ece` or `weighted_l2_ece` over the bins of a sample, as a metric for draws from
    it.
    """

    def metric(logit: Float, target: NDArray[Any], weights: Float) -> Float:
        return error(logit, target, weights, bin_edges(logit))

    return metric


def weighted_ece(logit: Float, target: NDArray[Any], weights: Float, edges: Float) -> Float:
    """Expected calibration error over equal-mass bins (Nixon et al. 2019, arXiv:1904.01685).

    The plain estimate is biased upwards: compare it with `null_errors`, or take `weighted_l2_ece`.
    `target` may be (image,) or (draw, image). `edges`: inner edges of the bins, see `bin_edges`.
    """
    gaps, _, _ = _bins(logit, target, weights, edges)
    return np.asarray(np.abs(gaps).sum(1) / weights.sum(1), dtype=np.float64)


def weighted_l2_ece(logit: Float, target: NDArray[Any], weights: Float, edges: Float) -> Float:
    """Debiased root mean squared calibration error over equal-mass bins (Kumar, Liang & Ma 2019,
    arXiv:1909.10155, section 5).

    From the square of each bin's gap the variance of its mean outcome is taken off; 0 where that
    leaves less than nothing. Arguments as `weighted_ece`.
    """
    gaps, sizes, positives = _bins(logit, target, weights, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = positives / sizes
        square = (gaps / sizes) ** 2 - mean * (1 - mean) / (sizes - 1)
    total = np.where(sizes > 1, sizes * square, 0.0).sum(1) / weights.sum(1)
    return np.asarray(np.sqrt(np.maximum(total, 0.0)), np.float64)


def _bins(
    logit: Float, target: NDArray[Any], weights: Float, edges: Float
) -> tuple[Float, Float, Float]:
    """Sums of probability - outcome, of images and of positives, (draw, bin) each."""
    probability = expit(logit)
    members = _members(probability, edges)
    return (
        (weights * (probability - target)) @ members,
        weights @ members,
        (weights * target) @ members,
    )


def _members(probability: Float, edges: Float) -> Float:
    """(image, bin), 1 where an image lies in a bin, else 0."""
    return np.asarray(np.eye(len(edges) + 1)[np.searchsorted(edges, probability, side="right")])


def null_errors(
    scores: Scores, codes: Int, draws: int, rng: np.random.Generator
) -> dict[str, Float]:
    """Errors that perfectly calibrated models with these probabilities would show: y ~
    Bernoulli(p).

    None of them can be negative, so that chance alone makes each larger than 0.

    Args:
        scores: of an arm.
        codes: (image,), numbers of the patients. Images of a patient are as alike as their labels
            are beyond what the probabilities explain, see `likeness`; seeds share their outcomes.
        draws: number of draws.
        rng: of the draws.

    Returns:
        `ece, smooth_ece, ici, miscalibration`, (draw,) each, the mean over seeds.
    """
    alike = likeness(scores, codes)
    tables = [_levels(logit, scores.weight) for logit in scores.logit]
    edges, curve = [bin_edges(logit) for logit in scores.logit], curve_metric(scores.logit)
    errors = {name: np.zeros(draws) for name in ("ece", "smooth_ece", "ici", "miscalibration")}
    for chunk in np.array_split(np.arange(draws), max(1, draws * len(scores.target) // 4_000_000)):
        uniform = _uniforms(len(chunk), codes, alike, rng)
        for logit, (level, members, mass), inner in zip(scores.logit, tables, edges, strict=True):
            positive = np.asarray(((uniform < expit(logit)) * scores.weight) @ members)
            z, y = np.r_[level, level], np.r_[np.ones(len(level)), np.zeros(len(level))]
            weights = np.concatenate([positive, mass - positive], axis=1)
            for name, values in (
                ("ece", weighted_ece(z, y, weights, inner)),
                ("smooth_ece", weighted_smooth_ece(z, y, weights)),
                ("ici", curve(z, y, weights)[:, 0]),
                ("miscalibration", weighted_corp(z, y, weights)[:, 0]),
            ):
                errors[name][chunk] += values / len(scores.logit)
    return errors


def likeness(scores: Scores, codes: Int) -> float:
    """How much the outcomes of one patient's images resemble each other beyond what their
    probabilities explain, 0 to 1.

    1 where the label is the patient's; else the mean product of two standardised residuals of one
    patient, not below 0.
    """
    if not scores.clustered:
        return 1.0
    count = np.bincount(codes)
    positives = np.bincount(codes, scores.target)
    if ((positives == 0) | (positives == count)).all():
        return 1.0
    p = expit(scores.logit.mean(0))
    residual = (scores.target - p) / np.sqrt(np.maximum(p * (1 - p), 1e-6))
    total, square = np.bincount(codes, residual), np.bincount(codes, residual**2)
    return float(
        np.clip(
            (total**2 - square).sum()
            / max((count * (count - 1)).sum(), 1)
            / max(float(np.mean(residual**2)), 1e-9),
            0.0,
            1.0,
        )
    )


def _uniforms(draws: int, codes: Int, alike: float, rng: np.random.Generator) -> Float:
    """Uniform numbers (draw, image), correlated within a patient (Gaussian copula)."""
    if alike == 1:
        return rng.random((draws, codes.max() + 1))[:, codes]
    if alike == 0:
        return rng.random((draws, len(codes)))
    shared = rng.standard_normal((draws, codes.max() + 1))[:, codes]
    return np.asarray(
        ndtr(
            np.sqrt(alike) * shared + np.sqrt(1 - alike) * rng.standard_normal((draws, len(codes)))
        ),
        np.float64,
    )


def _levels(logit: Float, weight: Float) -> tuple[Float, csr_array, Float]:
    """The distinct scores, or means of thousands of neighbouring scores, with the images at each
    and their weight.
    """
    different, level = gather_levels(logit, CELLS)
    members = csr_array(
        (np.ones(len(logit)), (np.arange(len(logit)), level)), shape=(len(logit), len(different))
    )
    return different, members, np.bincount(level, weight).astype(np.float64)


def joint_p_value(scores: Scores, codes: Int) -> tuple[float | None, float | None]:
    """P-values of calibration: intercept 0 and slope 1 together, and the intercept of every single
    model 0.

    The first is the score test of Miller, Hui & Tierney 1991 (doi:10.1002/sim.4780100805), the
    slope within models, the mean over seeds; it has four fifths of the level. The second, of the
    intercepts of single models, whose errors may cancel in the first, has the rest (weighted
    Bonferroni). It is made for each seed, whose models test different patients; the least p-value
    counts, times the number of seeds. The variances are those of calibrated probabilities, images
    of a patient as alike as `likeness` says. None where all probabilities are the same, or a class
    has fewer than five patients.

    Returns:
        of both, each at its share of the level, at most 1; of the second alone, times its share,
        None of a single model.
    """
    if min(len(set(scores.patients[scores.target == value])) for value in (0, 1)) < _FEWEST:
        return None, None
    model = scores.fold[0] if scores.folds is not None else np.zeros(len(scores.target), np.int64)
    number = np.unique(model, return_inverse=True)[1]
    mass = np.maximum(np.bincount(number, scores.weight), 1e-300)
    z = (
        scores.logit
        - (np.stack([np.bincount(number, scores.weight * logit) for logit in scores.logit]) / mass)[
            :, number
        ]
    )
    alike = likeness(scores, codes)
    members = csr_array(
        (np.ones(len(codes)), (codes, np.arange(len(codes)))),
        shape=(int(codes.max()) + 1, len(codes)),
    )

    def test(total: Float, p: Float, direction: Float) -> float | None:
        """P-value of sums that should be 0; `direction` (image, sum) says how an outcome of
        probability `p` moves them.
        """
        terms = (scores.weight * np.sqrt(p * (1 - p)))[:, None] * direction
        of_patients = np.asarray(members @ terms, np.float64)
        variance = (1 - alike) * terms.T @ terms + alike * of_patients.T @ of_patients
        if not np.linalg.cond(variance) < 1e12:
            return None
        return float(chi2.sf(float(total @ np.linalg.solve(variance, total)), len(total)))

    p = expit(scores.logit)
    residual = scores.weight * (scores.target - p)
    both = np.array([residual.sum(), (residual * z).sum()]) / len(p)
    first = test(both, p.mean(0), np.stack([np.ones(len(codes)), z.mean(0)], 1))
    if first is None or len(mass) * len(p) == 1:
        return first, None
    singles = [
        test(np.asarray(np.bincount(number, r), np.float64), of, np.eye(len(mass))[number])
        for r, of in zip(residual, p, strict=True)
    ]
    p_values = [single for single in singles if single is not None]
    if len(p_values) < len(singles):
        return first, None
    between = min(1.0, min(p_values) * len(p_values) / (1 - _OF_LEVEL))
    return min(first / _OF_LEVEL, between), between


def weighted_corp(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """The Brier score in parts: miscalibration - discrimination + uncertainty; (draw, 3).

    The recalibrated forecast is the isotonic regression of the outcome on the score (CORP:
    Dimitriadis, Gneiting & Jordan 2021, doi:10.1073/pnas.2016191118): no bins to choose, and the
    first two parts are never negative.
    """
    y, errors = np.asarray(target, float), squared_errors(logit, target)
    different, level = np.unique(logit, return_inverse=True)
    members = (
        np.eye(len(different))[level]
        if len(different) <= 64
        else csr_array((np.ones(len(y)), (np.arange(len(y)), level)))
    )
    mass, positive = weights @ members, (weights * y) @ members
    parts = np.empty((len(weights), 3))
    for draw, weight in enumerate(weights):
        in_draw = mass[draw] > 0
        fitted = isotonic_regression(
            positive[draw, in_draw] / mass[draw, in_draw], weights=mass[draw, in_draw]
        ).x
        total = weight.sum()
        prevalence = float(weight @ y / total)
        # sum of w (f - y)^2 over the images, from the sums of each level
        recalibrated = (
            float(
                mass[draw, in_draw] @ fitted**2 - 2 * positive[draw, in_draw] @ fitted + weight @ y
            )
            / total
        )
        score = float(weight @ errors) / total
        reference = prevalence * (1 - prevalence)
        parts[draw] = score - recalibrated, reference - recalibrated, reference
    return parts


def reliability(
    scores: Scores, codes: Int, draws: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Reliability diagram over equal-mass bins with a 90 % consistency band (Bröcker & Smith 2007,
    doi:10.1175/WAF993.1).

    The band shows where the observed frequency of a bin would fall if the probabilities were true.

    Args:
        scores: of an arm.
        codes, draws, rng: as in `null_errors`.
    """
    probability = expit(scores.logit)
    edges = bin_edges(scores.logit)
    which = np.searchsorted(edges, probability, side="right")
    count = len(edges) + 1
    weights = np.broadcast_to(scores.weight, probability.shape)
    size = np.bincount(which.ravel(), weights.ravel(), minlength=count)
    full = size > 0
    truth = np.broadcast_to(scores.target, probability.shape)
    sums = [
        np.bincount(which.ravel(), (weights * values).ravel(), count)[full]
        for values in (probability, truth)
    ]
    simulated, alike = np.empty((draws, int(full.sum()))), likeness(scores, codes)
    for draw in range(draws):
        ones = weights * (_uniforms(1, codes, alike, rng)[0] < probability)
        simulated[draw] = np.bincount(which.ravel(), ones.ravel(), count)[full] / size[full]
    low, high = np.quantile(simulated, [0.05, 0.95], axis=0)
    return {
        "predicted": (sums[0] / size[full]).tolist(),
        "observed": (sums[1] / size[full]).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "images": (size[full] / len(scores.logit)).tolist(),
    }
