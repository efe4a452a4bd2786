"""The smooth calibration curve (lowess), the distances from it (ICI, E50, E90, Emax), and its form
for draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation.tables.arrays import Float

# Points at which a smooth curve is fitted in the draws.
_GRID = 101


def calibration_curve(logit: Float, target: NDArray[Any]) -> Float:
    """Lowess of the outcome on the probability, no robustness weights, span 2/3 (as R's
    rms::val.prob); (image,).
    """
    from statsmodels.nonparametric.smoothers_lowess import (
        lowess,  # here, as it takes long to import
    )

    probability = expit(logit)
    if not np.ptp(probability) > 0:
        return np.full(len(probability), float(np.mean(target)))
    order = np.argsort(probability, kind="stable")
    delta = 0.01 * float(np.ptp(probability))
    x, y = probability[order], target[order].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = lowess(y, x, frac=2 / 3, it=0, delta=delta, is_sorted=True, return_sorted=False)
    # Where a whole neighbourhood shares one probability there is no line to fit: its mean outcome,
    # as in R.
    _, same = np.unique(x, return_inverse=True)
    smooth = np.where(np.isfinite(smooth), smooth, (np.bincount(same, y) / np.bincount(same))[same])
    curve = np.empty(len(probability))
    curve[order] = smooth
    return np.clip(curve, 0.0, 1.0)


def curve_errors(logit: Float, target: NDArray[Any], weight: Float) -> dict[str, float]:
    """Distances |p - smooth curve|: `ici` their weighted mean, `e50`, `e90` their quantiles, `emax`
    the largest.

    Austin & Steyerberg 2019, doi:10.1002/sim.8281.
    """
    distance = np.abs(expit(logit) - calibration_curve(logit, target))
    e50, e90 = np.quantile(distance, [0.5, 0.9])
    return {
        "ici": float(weight @ distance / weight.sum()),
        "e50": float(e50),
        "e90": float(e90),
        "emax": float(distance.max()),
    }


def curve_metric(logit: Float) -> Callable[[Float, NDArray[Any], Float], Float]:
    """The smooth curve in draws, at `curve_grid(logit)`, with the neighbourhoods of the sample:
    lines fitted with tricube weights.

    Returns:
        A metric that gives (draw, 2 * point + 1): ICI, and the curve.
    """
    probability = np.sort(expit(logit).ravel())
    grid = curve_grid(logit)
    near = max(2, int(np.ceil(2 / 3 * len(probability))))
    # Width of the neighbourhood of every point: the distance to its farthest neighbour.
    lower = np.clip(np.searchsorted(probability, grid) - near, 0, len(probability) - near)
    width = np.empty(len(grid))
    for i, point in enumerate(grid):
        window = np.arange(lower[i], min(lower[i] + 2 * near, len(probability)))
        distance = np.sort(np.abs(probability[window] - point))
        width[i] = max(distance[min(near, len(distance)) - 1], 1e-9)

    def metric(rows: Float, target: NDArray[Any], weights: Float) -> Float:
        x = expit(rows)
        distance_to = x[:, None] - grid
        kernel = np.clip(1 - np.abs(distance_to / width) ** 3, 0, None) ** 3
        s0, s1, s2 = (weights @ (kernel * distance_to**power) for power in (0, 1, 2))
        positive = weights * target
        t0, t1 = (positive @ (kernel * distance_to**power) for power in (0, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            slope_free = s0 * s2 - s1**2 <= 1e-12 * s0 * np.maximum(s2, 1e-300)
            height = np.where(slope_free, t0 / s0, (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))
        curve = np.clip(height, 0, 1)
        inside = (
            np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2)
            if len(grid) > 1
            else np.zeros(len(x), int)
        )
        if len(grid) > 1:
            share = np.clip((x - grid[inside]) / (grid[inside + 1] - grid[inside]), 0, 1)
            # Between far apart scores the curve has no value; an image at a grid point needs that
            # of this point alone.
            lower, upper = curve[:, inside], curve[:, inside + 1]
            fitted = np.where(
                share <= 0, lower, np.where(share >= 1, upper, lower * (1 - share) + upper * share)
            )
        else:
            fitted = curve[:, inside]
        ici = (weights * np.abs(x - fitted)).sum(1) / weights.sum(1)
        return np.concatenate([ici[:, None], curve], axis=1)

    return metric


def curve_grid(logit: Float) -> Float:
    """The points at which `curve_metric` reads the curve: 101 over the range of the probabilities,
    or the single one.
    """
    probability = expit(logit)
    low, high = float(probability.min()), float(probability.max())
    return np.linspace(low, high, _GRID) if high > low else np.array([low])
