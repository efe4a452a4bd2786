"""Can the probabilities be trusted? Brier, ECE with its null, intercept, slope, O:E, ICI, temperature.

Metrics for resampling take `weights` (draw, image) and return one value per draw; the estimate is the
same function with weights of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from statsmodels.nonparametric.smoothers_lowess import lowess

Float = NDArray[np.float64]
# Slopes beyond this mean that the classes are separated and no slope can be estimated.
_STEEPEST = 1e3


def weighted_brier(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Mean squared error of the probability (Brier 1950); 0 is best."""
    return np.asarray(weights @ (expit(logit) - target) ** 2 / weights.sum(1), dtype=np.float64)


def weighted_brier_skill(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """1 - Brier / Brier of the prevalence: 1 is perfect, 0 no better than the prevalence, below 0 worse."""
    prevalence = weights @ target / weights.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = 1 - weighted_brier(logit, target, weights) / (prevalence * (1 - prevalence))
    return np.asarray(np.where(prevalence * (1 - prevalence) > 0, skill, np.nan), dtype=np.float64)


def weighted_log_loss(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Mean negative log-likelihood in nats, from the logits so that no probability is rounded to 0 or 1."""
    return np.asarray(weights @ np.logaddexp(0.0, np.where(target == 1, -logit, logit)) / weights.sum(1), dtype=np.float64)


def weighted_observed_expected(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Observed positives / sum of probabilities; 1 is best."""
    return np.asarray((weights @ target) / (weights @ expit(logit)), dtype=np.float64)


def bin_edges(probability: Float, images: int) -> Float:
    """Inner edges of equal-mass bins: 10, or fewer so that a bin holds about 10 images; at least 2."""
    bins = int(np.clip(images // 10, 2, 10))
    return np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))


def weighted_ece(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Expected calibration error over equal-mass bins (Nixon et al. 2019, arXiv:1904.01685).

    The plain estimate is biased upwards: compare it with `ece_null`. `target` may be (image,) or (draw, image).
    """
    probability = expit(logit)
    which = np.searchsorted(bin_edges(probability, len(logit)), probability, side="right")
    members = np.eye(which.max() + 1)[which]
    gaps = np.abs((weights * (probability - target)) @ members)
    return np.asarray(gaps.sum(1) / weights.sum(1), dtype=np.float64)


def ece_null(logits: Float, patients: NDArray[Any], draws: int, rng: np.random.Generator) -> Float:
    """ECE that a perfectly calibrated model with these probabilities would show: y ~ Bernoulli(p).

    Args:
        logits: (seed, image).
        patients: (image,). Images of one patient share their uniform number, as they share their diagnosis;
            drawn one by one they would make the null too narrow. Seeds share it too.
        draws: number of draws.

    Returns:
        (draw,), the mean over seeds.
    """
    seeds, images = logits.shape
    _, code = np.unique(patients.astype(str), return_inverse=True)
    null = np.zeros(draws)
    for chunk in np.array_split(np.arange(draws), max(1, draws * images // 2_000_000)):
        uniform = rng.random((len(chunk), code.max() + 1))[:, code]
        ones = np.ones((len(chunk), images))
        for logit in logits:
            null[chunk] += weighted_ece(logit, (uniform < expit(logit)).astype(np.float64), ones) / seeds
    return null


def weighted_intercept(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Calibration-in-the-large: a in logit P(y) = a + logit p, slope 1. 0 is best.

    Above 0 the probabilities are too low on the whole (Van Calster et al. 2016, doi:10.1016/j.jclinepi.2015.12.005).
    """
    a = np.zeros(len(weights))
    lacks_class = (weights @ target == 0) | (weights @ (1 - target) == 0)
    for _ in range(60):
        p = expit(a[:, None] + logit)
        gradient = (weights * (target - p)).sum(1)
        curvature = np.maximum((weights * p * (1 - p)).sum(1), 1e-12)
        step = np.clip(gradient / curvature, -2.0, 2.0)
        step[lacks_class] = 0.0
        a += step
        if np.abs(step).max() < 1e-10:
            break
    return np.where(lacks_class, np.nan, a)


def weighted_slope(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Calibration slope: b in logit P(y) = a + b logit p. 1 is best, below 1 over-confident.

    NaN where it cannot be estimated: one class only, one single probability, or classes separated by the score.
    """
    result = np.full(len(weights), np.nan)
    spread = np.ptp(logit)
    if not spread > 1e-12:
        return result
    # Centred and scaled for a well-conditioned Newton step; the slope is scaled back at the end.
    x = (logit - logit.mean()) / spread
    for d in range(0, len(weights), 256):
        result[d : d + 256] = _newton_slope(x, target.astype(float), weights[d : d + 256]) / spread
    result[np.abs(result) > _STEEPEST] = np.nan
    return result


def _newton_slope(x: Float, target: Float, weights: Float) -> Float:
    """Two-parameter logistic regression by damped Newton steps, one per draw; NaN where it does not converge."""
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    step_size = np.full(len(weights), np.inf)
    for _ in range(100):
        p = expit(a[:, None] + b[:, None] * x)
        residual, spread = weights * (target - p), weights * p * (1 - p)
        g0, g1 = residual.sum(1), residual @ x
        h00, h01, h11 = spread.sum(1), spread @ x, spread @ (x * x)
        determinant = np.maximum(h00 * h11 - h01**2, 1e-300)
        da, db = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # Full Newton steps can overshoot from a flat start; this bound keeps every draw inside its basin.
        shrink = np.minimum(1.0, 8.0 / np.maximum(np.hypot(da, db), 1e-300))
        a, b = a + shrink * da, b + shrink * db
        step_size = np.hypot(da, db)
        if np.nanmax(step_size) < 1e-9:
            break
    one_class = (weights @ target == 0) | (weights @ (1 - target) == 0)
    separated = (weights * p * (1 - p)).sum(1) < 1e-6 * weights.sum(1)
    return np.where((step_size < 1e-6) & ~one_class & ~separated, b, np.nan)


def calibration_curve(logit: Float, target: NDArray[Any]) -> Float:
    """Lowess of the outcome on the probability, no robustness weights, span 2/3 (as R's rms::val.prob); (image,)."""
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


def ici(logit: Float, target: NDArray[Any]) -> float:
    """Integrated calibration index: mean |p - smooth curve| (Austin & Steyerberg 2019, doi:10.1002/sim.8281)."""
    return float(np.mean(np.abs(expit(logit) - calibration_curve(logit, target))))


def weighted_ici(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """`ici` of each draw; the weights are whole numbers, how often an image was drawn."""
    result = np.empty(len(weights))
    for draw, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(logit)), counts.astype(int))
        result[draw] = ici(logit[rows], target[rows])
    return result


def fit_temperature(logit: Float, target: NDArray[Any]) -> float:
    """Temperature T > 0 that minimises the log-loss of logit / T (Guo et al. 2017, arXiv:1706.04599).

    With a weak prior, log T ~ Normal(0, 1): a few dozen tuning images outweigh it, and without it a
    tune part that the model separates would send T to 0.
    """
    truth = np.asarray(target) == 1

    def objective(log_t: float) -> float:
        scaled = logit * np.exp(-log_t)
        return float(np.logaddexp(0.0, np.where(truth, -scaled, scaled)).sum() + 0.5 * log_t**2)

    return float(np.exp(minimize_scalar(objective, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-9}).x))


def reliability(
    logits: Float, target: NDArray[Any], patients: NDArray[Any], draws: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Reliability diagram over equal-mass bins with a 90 % consistency band (Bröcker & Smith 2007, doi:10.1175/WAF993.1).

    The band shows where the observed frequency of a bin would fall if the probabilities were true.

    Args:
        logits: (seed, image). target, patients: (image,); patients as in `ece_null`.
    """
    probability = expit(logits)
    _, code = np.unique(patients.astype(str), return_inverse=True)
    edges = bin_edges(probability.ravel(), logits.shape[1])
    which = np.searchsorted(edges, probability, side="right")
    count = len(edges) + 1
    size = np.bincount(which.ravel(), minlength=count)
    full = size > 0
    sums = [np.bincount(which.ravel(), values.ravel(), count)[full] for values in (probability, np.broadcast_to(target, probability.shape))]
    simulated = np.empty((draws, int(full.sum())))
    for draw in range(draws):
        ones = rng.random(code.max() + 1)[code] < probability
        simulated[draw] = np.bincount(which.ravel(), ones.ravel(), count)[full] / size[full]
    low, high = np.quantile(simulated, [0.05, 0.95], axis=0)
    return {
        "predicted": (sums[0] / size[full]).tolist(),
        "observed": (sums[1] / size[full]).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "images": (size[full] / len(logits)).tolist(),
    }
