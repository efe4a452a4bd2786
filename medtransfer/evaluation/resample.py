"""Bootstrap over patients and seeds, the same draws for every arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.evaluation.predictions import Scores

Float = NDArray[np.float64]
Metric = Callable[[Float, NDArray[Any], Float], Float]
# Weights of one chunk of draws stay below about 64 MB.
_CHUNK = 8_000_000


def draw_values(
    scores: Sequence[Scores], metrics: dict[str, Metric], draws: int, seed: int, recalibrated: bool = False
) -> list[dict[str, Float]]:
    """Values of each metric in each draw, paired between arms and metrics.

    A draw takes patients with replacement, all images of a patient together, and, crossed with that,
    seeds with replacement. A metric is computed per seed and averaged over the seeds drawn. Arms with
    the same number of seeds share the draw of seeds.

    Args:
        scores: arms over the same images.
        metrics: functions (logit, target, weights) -> (draw,).
        draws: number of draws.
        seed: of the draws.
        recalibrated: on the recalibrated logits.

    Returns:
        Per arm, by metric: (draw,); NaN where a draw lacks a class.
    """
    patients, code = np.unique(scores[0].patients.astype(str), return_inverse=True)
    count, images = len(patients), len(code)
    rng = np.random.default_rng(seed)
    seed_counts = {n: rng.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in sorted({len(s.seeds) for s in scores})}
    result = [{name: np.empty(draws) for name in metrics} for _ in scores]
    step = max(1, _CHUNK // images)
    for start in range(0, draws, step):
        rows = slice(start, min(start + step, draws))
        weights = rng.multinomial(count, np.full(count, 1 / count), size=rows.stop - start)[:, code].astype(np.float64)
        for arm, values in zip(scores, result, strict=True):
            share = seed_counts[len(arm.seeds)][rows]
            for name, metric in metrics.items():
                values[name][rows] = (share.T * _per_seed(arm, metric, weights, recalibrated)).sum(0)
    return result


def estimates(scores: Scores, metrics: dict[str, Metric], recalibrated: bool = False) -> dict[str, float]:
    """Each metric on the data as they are, averaged over seeds."""
    ones = np.ones((1, len(scores.target)))
    return {name: float(_per_seed(scores, metric, ones, recalibrated).mean()) for name, metric in metrics.items()}


def _per_seed(scores: Scores, metric: Metric, weights: Float, recalibrated: bool) -> Float:
    logits = scores.recalibrated if recalibrated else scores.logit
    assert logits is not None  # callers ask for recalibrated only where it is there
    return np.array([metric(logit, scores.target, weights) for logit in logits])


def percentile_interval(estimate: float, values: Float, recentre: bool = False) -> dict[str, Any]:
    """Estimate with the 2.5 and 97.5 % quantiles of the draws.

    Args:
        recentre: for errors that cannot be negative (ECE, ICI), whose draws lie too high because a
            resample is rougher than its sample: the draws are shifted so that their mean is the
            estimate, and cut at 0.
    """
    finite = values[np.isfinite(values)]
    if not np.isfinite(estimate) or len(finite) < 0.9 * len(values):
        reason = "not estimable: the classes are separated, or too few resamples hold both"
        return {"estimate": float(estimate) if np.isfinite(estimate) else None, "low": None, "high": None, "reason": reason}
    if recentre:
        finite = np.maximum(finite - finite.mean() + estimate, 0.0)
    low, high = np.quantile(finite, [0.025, 0.975])
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}


def two_sided_p(values: Float) -> float | None:
    """Share of draws on the far side of 0, doubled; never below 2 / (draws + 1)."""
    finite = values[np.isfinite(values)]
    if len(finite) < 0.9 * len(values):
        return None
    tail = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return float(min(1.0, 2 * (tail + 1) / (len(finite) + 1)))
