"""Candidates of a detector, ranked within each of its models: average precision, FROC, sensitivity
by size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.evaluation.metrics.matching import interpolate, last_of_ties
from medtransfer.evaluation.tables.arrays import Float, Int

# False positives per image at which the sensitivity is read; their mean is the CPM (van Ginneken et
# al. 2010, doi:10.1016/j.media.2010.05.005).
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# IoU of the average precisions that are reported alone, and of those whose mean is COCO's mAP.
ALONE = (0.1, 0.3, 0.5)
COCO = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2))
OVERLAPS = tuple(sorted({*ALONE, *COCO}))
_SIZES = 3


@dataclass(frozen=True, eq=False)
class Detections:
    """The candidates of one model on the images it tested, in descending order of their scores.

    Attributes:
        tested: (patient,), whether the model tested this patient.
        score: (candidate,), logit.
        patient: (candidate,), number of the patient.
        hits: (candidate, overlap), whether it finds a lesion at each of `OVERLAPS`.
        hit: (candidate,), by the rule of the evaluation.
        lesion: (candidate,), number of that lesion, or -1.
        chance: (candidate,), calibrated probability of being a lesion; NaN where nothing could be
            fitted.
    """

    tested: NDArray[np.bool_]
    score: Float
    patient: Int
    hits: NDArray[np.bool_]
    hit: NDArray[np.bool_]
    lesion: Int
    chance: Float


@dataclass(frozen=True, eq=False)
class Truth:
    """The test images and their lesions.

    Attributes:
        images: (patient,), number of images.
        lesions: (patient,), number of lesions.
        owner: (lesion,), number of its patient.
        size: (lesion,), side of a square (or cube) as large, in pixels.
    """

    images: Float
    lesions: Float
    owner: Int
    size: Float


def sort_candidates(
    tested: NDArray[np.bool_], score: Float, patient: Any, hits: Any, number: Any, chance: Float
) -> Detections:
    """The candidates of a model in descending order of their scores; see `Detections`."""
    order = np.argsort(-score, kind="stable")
    return Detections(
        tested,
        score[order],
        patient[order],
        hits[order],
        number[order] >= 0,
        number[order],
        chance[order],
    )


def pool_models(models: Sequence[Detections]) -> Detections:
    """All models of a seed in one ranking."""
    columns = [
        np.concatenate([getattr(m, name) for m in models])
        for name in ("score", "patient", "hits", "lesion", "chance")
    ]
    return sort_candidates(np.any([m.tested for m in models], axis=0), *columns)


def mean_of_models(models: Sequence[Detections], truth: Truth, counts: Float, bins: Int) -> Float:
    """The numbers of `measure_model`, (draw, number), averaged over models: weighted by the lesions
    drawn, or by those of a size; the last two are sums.
    """
    if len(models) == 1:
        return measure_model(models[0], truth, counts, bins)
    sizes = bins.max() + 1
    ranked = len(OVERLAPS) + len(RATES)
    total, mass = np.zeros((len(counts), ranked + sizes)), np.zeros((len(counts), ranked + sizes))
    sums = np.zeros((len(counts), 2))
    for detections in models:
        values = measure_model(detections, truth, counts, bins)
        sampled = counts * detections.tested
        of_sizes = np.stack(
            [(sampled[:, truth.owner] * (bins == place)).sum(1) for place in range(sizes)], 1
        )
        weight = np.concatenate(
            [np.repeat((sampled @ truth.lesions)[:, None], ranked, 1), of_sizes], 1
        )
        total += np.where(weight > 0, weight * np.nan_to_num(values[:, :-2]), 0.0)
        mass += weight
        sums += values[:, -2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([total / mass, sums], 1)


def size_bins(truth: Truth) -> Int:
    """Thirds of the lesions by size, (lesion,), numbered from 0; fewer where many are equal."""
    size = truth.size.round(6)
    edges = np.quantile(size, np.arange(1, _SIZES) / _SIZES)
    return np.asarray(
        np.unique(np.searchsorted(edges, size, side="left"), return_inverse=True)[1], np.int64
    )


def measure_model(detections: Detections, truth: Truth, counts: Float, bins: Int) -> Float:
    """The numbers of one model, (draw, number): average precisions, sensitivities of the FROC,
    sensitivities by size, and the hits that are expected and observed; `counts` (draw, patient).
    """
    counts = counts * detections.tested
    weights = counts[:, detections.patient]
    lesions, images = counts @ truth.lesions, counts @ truth.images
    last = last_of_ties(detections.score)
    precision = [
        interpolate(detections.hits[:, place], weights, lesions, last)
        for place in range(len(OVERLAPS))
    ]
    sensitivity = froc(detections.score, detections.hit, weights, lesions, images)
    # Sensitivity by size, at the score that lets one false positive per image through.
    least = least_score(detections.score, detections.hit, truth.images[detections.tested].sum())
    caught = np.zeros(len(truth.owner), bool)
    caught[detections.lesion[(detections.score >= least) & detections.hit]] = True
    by_size = []
    for place in range(bins.max() + 1):
        weight = counts[:, truth.owner] * (bins == place)
        with np.errstate(invalid="ignore"):
            by_size.append((weight * caught).sum(1) / weight.sum(1))
    calibrated = np.isfinite(detections.chance)
    expected, observed = (
        weights[:, calibrated] @ v[calibrated]
        for v in (detections.chance, detections.hit.astype(float))
    )
    return np.stack([*precision, *sensitivity.T, *by_size, expected, observed], 1)


def froc(
    score: Float,
    hit: NDArray[np.bool_],
    weights: Float,
    lesions: Float,
    images: Float,
    rates: Sequence[float] = RATES,
) -> Float:
    """Sensitivity at rates of false positives per image, linear between the points of the curve, as
    MONAI's `compute_froc_score`.

    Args:
        score: (candidate,), descending.
        hit: whether it finds a lesion.
        weights: (draw, candidate).
        lesions: (draw,), number of lesions.
        images: (draw,), number of images.
        rates: false positives per image at which the sensitivity is read.

    Returns:
        (draw, rate); NaN without lesions.
    """
    x, y = froc_curve(score, hit, weights, lesions, images)
    return np.stack(
        [
            np.interp(rates, a, b) if len(a) else np.zeros(len(rates))
            for a, b in zip(x, y, strict=True)
        ]
    )


def froc_curve(
    score: Float, hit: NDArray[np.bool_], weights: Float, lesions: Float, images: Float
) -> tuple[Float, Float]:
    """False positives per image and sensitivity, (draw, point) each, from no candidate at all to
    all; see `froc`.
    """
    last = last_of_ties(score)
    with np.errstate(divide="ignore", invalid="ignore"):
        false = np.cumsum(weights * ~hit, 1)[:, last] / images[:, None]
        true = np.cumsum(weights * hit, 1)[:, last] / lesions[:, None]
    start = np.zeros((len(weights), 1))
    return np.concatenate([start, false], 1), np.concatenate(
        [start + 0 * lesions[:, None], true], 1
    )


def least_score(score: Float, hit: NDArray[np.bool_], images: float) -> float:
    """The lowest score at which candidates still bring one false positive per image at most;
    infinite where the first candidates bring more.

    Args:
        score: (candidate,), descending.
        hit: whether it finds a lesion.
        images: how many there are.
    """
    last = last_of_ties(score)
    few = last[np.cumsum(~hit)[last] <= images]
    return float(score[few[-1]]) if len(few) else np.inf
