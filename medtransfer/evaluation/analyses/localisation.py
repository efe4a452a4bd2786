"""How well heat maps of a classifier point at lesions that it was never shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.evaluation.analyses.comparison import judged_by
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.resample import DrawnMetric, make_drawn_metric
from medtransfer.evaluation.metrics.matching import by_image, pairwise_iou
from medtransfer.evaluation.tables.arrays import Float
from medtransfer.evaluation.tables.candidates import coordinates

# Key, title and help of each measure.
MEASURES = (
    (
        "pointing",
        "Pointing game",
        (
            "share of images whose map is highest within a lesion's box (Zhang et al. 2018, "
            "doi:10.1007/s11263-017-1059-x)"
        ),
    ),
    (
        "found",
        "Box found",
        "share of images whose map, at half its height, overlaps a lesion's box by 0.3 or more",
    ),
    ("overlap", "Overlap", "mean of that overlap, 0 to 1"),
)
_FOUND = 0.3


def evaluate_localisation(
    table: pd.DataFrame, lesions: pd.DataFrame, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Evaluates maps on the images that have a lesion box; intervals by a bootstrap over patients.

    Args:
        table: one row per arm, seed and image: `arm, seed, image, patient`, the highest point `x,
            y[, z]`, the box of the map `x0, ...` (empty where the map is 0) and the size of the
            image `width, height[, depth]`, all in pixels of the image.
        lesions: see `read_lesions`.

    Returns:
        `images, lesions, centre` (the share that pointing at the middle of every image would hit),
        `arms.<arm>.{pointing, found, overlap}` and `comparisons[].{a, b, delta_pointing,
        delta_found, delta_overlap}`.
    """
    columns = coordinates(lesions)
    axes = len(columns) // 2
    truth = by_image(list(dict.fromkeys(table["image"])), lesions, columns)
    rows = table[table["image"].map(lambda image: len(truth[image]) > 0)]
    arms = list(dict.fromkeys(rows["arm"]))
    draws = Draws(np.array(sorted(set(rows["patient"].astype(str))), object), bootstrap, seed)
    drawn = {arm: _draw(rows[rows["arm"] == arm], truth, columns, draws) for arm in arms}
    first = rows[(rows["arm"] == arms[0])].drop_duplicates("image")
    middle = first[["width", "height", "depth"][:axes]].to_numpy(float) / 2
    centre = np.mean(
        [_inside(point, truth[image]) for point, image in zip(middle, first["image"], strict=True)]
    )
    comparisons = []
    for a, b in combinations(arms, 2):
        entry: dict[str, Any] = {"a": a, "b": b}
        for name, _, _ in MEASURES:
            difference = drawn[a][name] - drawn[b][name]
            parts = judged_by(difference)
            p = (
                difference.p_value(parts) if name == MEASURES[0][0] else None
            )  # one of three is tested
            entry[f"delta_{name}"] = {
                **difference.interval(least=-1.0, greatest=1.0, parts=parts),
                "p": p,
            }
        comparisons.append(entry)
    return {
        "images": len(first),
        "lesions": int(sum(len(truth[image]) for image in first["image"])),
        "centre": float(centre),
        "arms": {
            arm: {name: drawn[arm][name].interval("logit", 0.0, 1.0) for name, _, _ in MEASURES}
            for arm in arms
        },
        "comparisons": comparisons,
    }


def _draw(
    rows: pd.DataFrame, truth: Mapping[Any, Float], columns: Sequence[str], draws: Draws
) -> dict[str, DrawnMetric]:
    axes = len(columns) // 2
    by_seed, values = [], []
    for _, of_seed in rows.groupby("seed", sort=True):
        points, boxes = (
            of_seed[["x", "y", "z"][:axes]].to_numpy(float),
            of_seed[list(columns)].to_numpy(float),
        )
        measured = np.array(
            [
                _measure(p, b, truth[i])
                for p, b, i in zip(points, boxes, of_seed["image"], strict=True)
            ]
        )
        codes = draws.codes(of_seed["patient"].astype(str).to_numpy(object))
        total = np.stack(
            [np.bincount(codes, column, len(draws.patients)) for column in measured.T], 1
        )
        count = np.bincount(codes, minlength=len(draws.patients))
        by_seed.append(measured.mean(0))
        with np.errstate(invalid="ignore"):
            values.append(
                np.concatenate(
                    [
                        (weight @ total) / (weight @ count)[:, None]
                        for _, weight in draws.chunks(len(count))
                    ]
                )
            )
    drawn, freedom = np.stack(values), float(rows["patient"].nunique() - 1)
    return {
        name: make_drawn_metric(np.array(by_seed)[:, place], drawn[:, :, place], freedom)
        for place, (name, _, _) in enumerate(MEASURES)
    }


def _measure(point: Float, box: Float, lesions: Float) -> tuple[float, float, float]:
    if not np.isfinite(point).all():
        return 0.0, 0.0, 0.0
    best = float(pairwise_iou(box[None], lesions).max())
    return float(_inside(point, lesions)), float(best >= _FOUND), best


def _inside(point: Float, lesions: Float) -> bool:
    axes = len(point)
    return bool(((point >= lesions[:, :axes]) & (point < lesions[:, axes:])).all(1).any())
