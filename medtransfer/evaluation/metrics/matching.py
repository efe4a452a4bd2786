"""Which candidate finds which lesion.

Boxes here are (box, 2 x axes): lower ends along every axis, then upper ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.evaluation.tables.arrays import Float, Int

Rule = Literal["overlap", "centre"]


def pairwise_iou(first: Float, second: Float) -> Float:
    """Intersection over union of each pair, (n, m), 0 to 1."""
    axes = first.shape[1] // 2
    low = np.maximum(first[:, None, :axes], second[None, :, :axes])
    high = np.minimum(first[:, None, axes:], second[None, :, axes:])
    shared = np.prod(np.clip(high - low, 0.0, None), -1)
    sizes = [np.prod(boxes[:, axes:] - boxes[:, :axes], -1) for boxes in (first, second)]
    union = sizes[0][:, None] + sizes[1][None] - shared
    return np.asarray(
        np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float64
    )


def centres_inside(candidates: Float, lesions: Float) -> NDArray[np.bool_]:
    """Whether the centre of a candidate lies within a lesion's box, (candidate, lesion)."""
    axes = candidates.shape[1] // 2
    centre = (candidates[:, None, :axes] + candidates[:, None, axes:]) / 2
    return np.asarray(
        ((centre >= lesions[None, :, :axes]) & (centre < lesions[None, :, axes:])).all(-1)
    )


def match(
    candidates: Float, scores: Float, lesions: Float, least: float = 0.5, rule: Rule = "overlap"
) -> Int:
    """The lesion that each candidate of an image finds; each lesion is found once, as in COCO.

    From the highest score down (of equals that with the lower coordinates, so that the order of
    rows decides nothing), a candidate takes the lesion, not yet taken, that it overlaps most, by
    `least` at the least; by the rule `centre`, of those that hold its centre.

    Args:
        candidates: (candidate, 2 x axes), boxes, lower ends first.
        lesions: (lesion, 2 x axes), boxes.
        scores: (candidate,).
        least: intersection over union of a hit, 0 to 1; without effect on the rule `centre`.
        rule: `overlap`, or `centre` of the candidate within the lesion.

    Returns:
        (candidate,), index of a lesion, or -1.
    """
    lesion_of = np.full(len(candidates), -1, np.int64)
    if not len(candidates) or not len(lesions):
        return lesion_of
    shared = pairwise_iou(candidates, lesions)
    # As pycocotools, which takes 0.5 for reached within rounding.
    fits = (
        shared >= min(least, 1 - 1e-10)
        if rule == "overlap"
        else centres_inside(candidates, lesions)
    )
    free = np.ones(len(lesions), bool)
    # Among lesions with the same overlap the first by its coordinates is taken.
    places = np.lexsort(lesions.T[::-1])
    for candidate in np.lexsort((*candidates.T[::-1], -scores)):
        open_ = (fits[candidate] & free)[places]
        if open_.any():
            lesion = int(places[np.argmax(np.where(open_, shared[candidate, places], -1.0))])
            lesion_of[candidate], free[lesion] = lesion, False
    return lesion_of


def average_precision(
    scores: Float, hits: NDArray[np.bool_], lesions: float, weights: Float | None = None
) -> Any:
    """Average precision at 101 points of recall, as COCO has it (Lin et al. 2014, arXiv:1405.0312).

    Args:
        scores: (candidate,), of all images.
        hits: whether it found a lesion.
        lesions: number of lesions; with weights (draw,).
        weights: (draw, candidate), how often each draw holds the image; a single one of 1 where
            left out.

    Returns:
        A number, or (draw,); NaN without lesions.
    """
    order = np.argsort(-scores, kind="stable")
    counts = np.ones((1, len(order))) if weights is None else weights[:, order]
    drawn = interpolate(hits[order], counts, np.atleast_1d(lesions), last_of_ties(scores[order]))
    return drawn[0 if weights is None else slice(None)]


def last_of_ties(score: Float) -> Int:
    """Places of the last candidate of each score, in descending order: candidates of one score pass
    a threshold together.
    """
    return (
        np.append(np.flatnonzero(np.diff(score)), len(score) - 1).astype(np.int64)
        if len(score)
        else np.zeros(0, np.int64)
    )


def interpolate(hits: NDArray[np.bool_], weights: Float, lesions: Float, last: Int) -> Float:
    """Average precision of candidates in descending order; see `average_precision`.

    Candidates of one score are one operating point, at the `last` of them; pycocotools lets them
    through in the order of the file, which makes a figure of it.
    """
    true, false = np.cumsum(weights * hits, 1)[:, last], np.cumsum(weights * ~hits, 1)[:, last]
    total = true + false
    precision = np.divide(true, total, out=np.zeros_like(total), where=total > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    points = np.linspace(0, 1, 101)
    result = np.full(len(weights), np.nan)
    for draw in np.flatnonzero(lesions > 0):
        place = np.searchsorted(true[draw] / lesions[draw], points, side="left")
        reached = place < len(last)
        result[draw] = envelope[draw, place[reached]].sum() / len(points)
    return result


def by_image(images: Sequence[Any], table: Any, columns: Sequence[str]) -> dict[Any, Float]:
    """The rows of a table as arrays, by image."""
    groups = dict(iter(table.groupby("image", sort=False)))
    empty = np.zeros((0, len(columns)))
    return {
        image: groups[image][list(columns)].to_numpy(float) if image in groups else empty
        for image in images
    }
