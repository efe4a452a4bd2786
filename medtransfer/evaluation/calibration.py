"""Calibration from bins and curves: ECE with its null, debiased and smooth ECE, the flexible curve with ICI, Brier in parts.

Intercept, slope and observed / expected are in `influence`. Metrics for resampling take `weights` (draw, image) and return one
value per draw; the estimate is the same function with weights of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.optimize import isotonic_regression
from scipy.sparse import csr_array
from scipy.special import expit

Float = NDArray[np.float64]
# Points at which a smooth curve is fitted in the draws.
_GRID = 101
# Cells of the probability axis for kernel smoothing, and halvings of the bandwidth, to 1e-5.
_CELLS, _HALVINGS = 2048, 17


def weighted_brier(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Mean squared error of the probability (Brier 1950); 0 is best."""
    return _weighted_mean((expit(logit) - target) ** 2, weights)


def weighted_log_loss(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Mean negative log-likelihood in nats, from the logits so that no probability is rounded to 0 or 1."""
    return _weighted_mean(np.logaddexp(0.0, np.where(target == 1, -logit, logit)), weights)


def _weighted_mean(values: Float, weights: Float) -> Float:
    """NaN for a draw without any image, as a fold may have."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ values / weights.sum(1), np.float64)


def bin_edges(logits: Float) -> Float:
    """Inner edges, as probabilities, of equal-mass bins: 10, or fewer so that a bin holds about 10 images; at least 2.

    Args:
        logits: (image,); or (seed, image), for bins shared by the seeds, as a curve over them needs. Errors are counted in each
            seed's own: in shared bins, models that differ would fill only some each, and seem better calibrated than they are.
    """
    bins = int(np.clip(logits.shape[-1] // 10, 2, 10))
    return np.unique(np.quantile(expit(logits), np.linspace(0, 1, bins + 1)[1:-1]))


def binned_metric(error: Callable[[Float, NDArray[Any], Float, Float], Float]) -> Callable[[Float, NDArray[Any], Float], Float]:
    """`weighted_ece` or `weighted_l2_ece` over the bins of a sample, as a metric for draws from it."""

    def metric(logit: Float, target: NDArray[Any], weights: Float) -> Float:
        return error(logit, target, weights, bin_edges(logit))

    return metric


def weighted_ece(logit: Float, target: NDArray[Any], weights: Float, edges: Float) -> Float:
    """Expected calibration error over equal-mass bins (Nixon et al. 2019, arXiv:1904.01685).

    The plain estimate is biased upwards: compare it with `ece_null`, or take `weighted_l2_ece`. `target` may be (image,) or
    (draw, image). `edges`: inner edges of the bins, see `bin_edges`.
    """
    gaps, _, _ = _bins(logit, target, weights, edges)
    return np.asarray(np.abs(gaps).sum(1) / weights.sum(1), dtype=np.float64)


def weighted_l2_ece(logit: Float, target: NDArray[Any], weights: Float, edges: Float) -> Float:
    """Debiased root mean squared calibration error over equal-mass bins (Kumar, Liang & Ma 2019, arXiv:1909.10155, section 5).

    From the square of each bin's gap the variance of its mean outcome is taken off; 0 where that leaves less than nothing.
    Arguments as `weighted_ece`.
    """
    gaps, sizes, positives = _bins(logit, target, weights, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = positives / sizes
        square = (gaps / sizes) ** 2 - mean * (1 - mean) / (sizes - 1)
    total = np.where(sizes > 1, sizes * square, 0.0).sum(1) / weights.sum(1)
    return np.asarray(np.sqrt(np.maximum(total, 0.0)), np.float64)


def _bins(logit: Float, target: NDArray[Any], weights: Float, edges: Float) -> tuple[Float, Float, Float]:
    """Per draw and bin: sum of probability - outcome, images, positives."""
    probability = expit(logit)
    members = _members(probability, edges)
    return (weights * (probability - target)) @ members, weights @ members, (weights * target) @ members


def _members(probability: Float, edges: Float) -> Float:
    """1 where an image lies in a bin, else 0; (image, bin)."""
    return np.asarray(np.eye(len(edges) + 1)[np.searchsorted(edges, probability, side="right")])


def ece_null(logits: Float, weight: Float, codes: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Float:
    """ECE that a perfectly calibrated model with these probabilities would show: y ~ Bernoulli(p).

    Args:
        logits: (seed, image).
        weight: (image,).
        codes: (image,), numbers of the patients. Images of one patient share their uniform number, as they share their
            diagnosis; drawn one by one they would make the null too narrow. Seeds share it too.
        draws: number of draws.
        rng: of the draws.

    Returns:
        (draw,), the mean over seeds.
    """
    seeds, images = logits.shape
    null = np.zeros(draws)
    members = [_members(expit(logit), bin_edges(logit)) for logit in logits]
    for chunk in np.array_split(np.arange(draws), max(1, draws * images // 4_000_000)):
        uniform = rng.random((len(chunk), codes.max() + 1))[:, codes]
        for logit, inside in zip(logits, members, strict=True):
            probability = expit(logit)
            gaps = ((uniform < probability) * weight) @ inside - (probability * weight) @ inside
            null[chunk] += np.abs(gaps).sum(1) / weight.sum() / seeds
    return null


def weighted_smooth_ece(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Smooth calibration error: the integral of |residual| smoothed over the bandwidth that equals it.

    Błasiok & Nakkiran 2024, arXiv:2309.12236; no bins to choose. Arguments as `weighted_ece`.
    """
    spectrum = _residual_spectrum(logit, target, weights)
    low, high = np.full(len(weights), 1e-6), np.ones(len(weights))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = smoothed_error(spectrum, middle) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray((low + high) / 2, np.float64)


def _residual_spectrum(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Cosine transform of the mean residual over the probability axis, (draw, cell)."""
    probability = expit(logit)
    # Shared between the two nearest cells, so that the grid shifts nothing.
    place = np.clip(probability * _CELLS - 0.5, 0, _CELLS - 1)
    left = np.minimum(place.astype(int), _CELLS - 2)
    share = place - left
    residual = weights * (target - probability)
    mass = np.zeros((len(weights), _CELLS))
    for at, part in ((left, 1 - share), (left + 1, share)):
        order = np.argsort(at, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(at[order]) > 0])
        mass[:, at[order][starts]] += np.add.reduceat((residual * part)[:, order], starts, axis=1)
    return np.asarray(dct(mass / weights.sum(1, keepdims=True), type=2, axis=1), np.float64)


def smoothed_error(spectrum: Float, bandwidth: Float) -> Float:
    """Integral of |residual| smoothed by a Gaussian reflected at 0 and 1, which is a product in cosines; (draw,)."""
    decay = np.exp(-((np.pi * np.arange(_CELLS)) ** 2) / 2 * bandwidth[:, None] ** 2)
    return np.asarray(np.abs(idct(spectrum * decay, type=2, axis=1)).sum(1), np.float64)


def calibration_curve(logit: Float, target: NDArray[Any]) -> Float:
    """Lowess of the outcome on the probability, no robustness weights, span 2/3 (as R's rms::val.prob); (image,)."""
    from statsmodels.nonparametric.smoothers_lowess import lowess  # here, as it takes long to import

    probability = expit(logit)
    if not np.ptp(probability) > 0:
        return np.full(len(probability), float(np.mean(target)))
    order = np.argsort(probability, kind="stable")
    delta = 0.01 * float(np.ptp(probability))
    x, y = probability[order], target[order].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = lowess(y, x, frac=2 / 3, it=0, delta=delta, is_sorted=True, return_sorted=False)
    # Where a whole neighbourhood shares one probability there is no line to fit: its mean outcome, as in R.
    _, same = np.unique(x, return_inverse=True)
    smooth = np.where(np.isfinite(smooth), smooth, (np.bincount(same, y) / np.bincount(same))[same])
    curve = np.empty(len(probability))
    curve[order] = smooth
    return np.clip(curve, 0.0, 1.0)


def curve_errors(logit: Float, target: NDArray[Any], weight: Float) -> dict[str, float]:
    """Distances |p - smooth curve|: `ici` their weighted mean, `e50`, `e90` their quantiles, `emax` the largest.

    Austin & Steyerberg 2019, doi:10.1002/sim.8281.
    """
    distance = np.abs(expit(logit) - calibration_curve(logit, target))
    e50, e90 = np.quantile(distance, [0.5, 0.9])
    return {"ici": float(weight @ distance / weight.sum()), "e50": float(e50), "e90": float(e90), "emax": float(distance.max())}


def curve_metric(logit: Float) -> Callable[[Float, NDArray[Any], Float], Float]:
    """The smooth curve in draws, at `curve_grid(logit)`, with the neighbourhoods of the sample: lines fitted with tricube weights.

    Returns:
        A metric that gives (draw, 2 * point + 1): ICI, and the curve.
    """
    probability = np.sort(expit(logit).ravel())
    grid = curve_grid(logit)
    near = max(2, int(np.ceil(2 / 3 * len(probability))))
    # Width of the neighbourhood of every point: the distance to its farthest neighbour.
    left = np.clip(np.searchsorted(probability, grid) - near, 0, len(probability) - near)
    width = np.empty(len(grid))
    for i, point in enumerate(grid):
        window = np.arange(left[i], min(left[i] + 2 * near, len(probability)))
        distance = np.sort(np.abs(probability[window] - point))
        width[i] = max(distance[min(near, len(distance)) - 1], 1e-9)

    def metric(rows: Float, target: NDArray[Any], weights: Float) -> Float:
        x = expit(rows)
        apart = x[:, None] - grid
        kernel = np.clip(1 - np.abs(apart / width) ** 3, 0, None) ** 3
        s0, s1, s2 = (weights @ (kernel * apart**power) for power in (0, 1, 2))
        positive = weights * target
        t0, t1 = (positive @ (kernel * apart**power) for power in (0, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            slope_free = s0 * s2 - s1**2 <= 1e-12 * s0 * np.maximum(s2, 1e-300)
            height = np.where(slope_free, t0 / s0, (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))
        curve = np.clip(height, 0, 1)
        inside = np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2) if len(grid) > 1 else np.zeros(len(x), int)
        if len(grid) > 1:
            share = np.clip((x - grid[inside]) / (grid[inside + 1] - grid[inside]), 0, 1)
            fitted = curve[:, inside] * (1 - share) + curve[:, inside + 1] * share
        else:
            fitted = curve[:, inside]
        ici = (weights * np.abs(x - fitted)).sum(1) / weights.sum(1)
        return np.concatenate([ici[:, None], curve], axis=1)

    return metric


def curve_grid(logit: Float) -> Float:
    """Where `curve_metric` reads the curve: 101 points over the range of the probabilities, or the one there is."""
    probability = expit(logit)
    low, high = float(probability.min()), float(probability.max())
    return np.linspace(low, high, _GRID) if high > low else np.array([low])


def weighted_corp(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """The Brier score in parts: miscalibration - discrimination + uncertainty; (draw, 3).

    The recalibrated forecast is the isotonic regression of the outcome on the score (CORP: Dimitriadis, Gneiting & Jordan 2021,
    doi:10.1073/pnas.2016191118): no bins to choose, and the first two parts are never negative.
    """
    y, p = np.asarray(target, float), expit(logit)
    different, level = np.unique(logit, return_inverse=True)
    members = np.eye(len(different))[level] if len(different) <= 64 else csr_array((np.ones(len(y)), (np.arange(len(y)), level)))
    mass, positive = weights @ members, (weights * y) @ members
    parts = np.empty((len(weights), 3))
    for draw, weight in enumerate(weights):
        here = mass[draw] > 0
        fitted = isotonic_regression(positive[draw, here] / mass[draw, here], weights=mass[draw, here]).x
        total = weight.sum()
        prevalence = float(weight @ y / total)
        # sum of w (f - y)^2 over the images, from the sums of each level
        recalibrated = float(mass[draw, here] @ fitted**2 - 2 * positive[draw, here] @ fitted + weight @ y) / total
        score = float(weight @ (p - y) ** 2) / total
        reference = prevalence * (1 - prevalence)
        parts[draw] = score - recalibrated, reference - recalibrated, reference
    return parts


def reliability(
    logits: Float, target: NDArray[Any], weight: Float, codes: NDArray[np.int64], draws: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Reliability diagram over equal-mass bins with a 90 % consistency band (Bröcker & Smith 2007, doi:10.1175/WAF993.1).

    The band shows where the observed frequency of a bin would fall if the probabilities were true.

    Args:
        logits: (seed, image).
        target, weight: (image,).
        codes, draws, rng: as in `ece_null`.
    """
    probability = expit(logits)
    edges = bin_edges(logits)
    which = np.searchsorted(edges, probability, side="right")
    count = len(edges) + 1
    weights = np.broadcast_to(weight, probability.shape)
    size = np.bincount(which.ravel(), weights.ravel(), minlength=count)
    full = size > 0
    truth = np.broadcast_to(target, probability.shape)
    sums = [np.bincount(which.ravel(), (weights * values).ravel(), count)[full] for values in (probability, truth)]
    simulated = np.empty((draws, int(full.sum())))
    for draw in range(draws):
        ones = weights * (rng.random(codes.max() + 1)[codes] < probability)
        simulated[draw] = np.bincount(which.ravel(), ones.ravel(), count)[full] / size[full]
    low, high = np.quantile(simulated, [0.05, 0.95], axis=0)
    return {
        "predicted": (sums[0] / size[full]).tolist(),
        "observed": (sums[1] / size[full]).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "images": (size[full] / len(logits)).tolist(),
    }
