"""Hits, misses and false alarms of a detection study, drawn on the images: what a reader looks at
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.draw import rectangle_perimeter
from skimage.transform import resize

from medtransfer.data.annotations.boxes import from_axes
from medtransfer.data.grid.cache import read_entry
from medtransfer.data.grid.placement import Placement
from medtransfer.evaluation.metrics.boxes import least_score
from medtransfer.evaluation.metrics.matching import Rule, by_image, match
from medtransfer.evaluation.tables.candidates import coordinates
from medtransfer.report.sheet import encode_picture
from medtransfer.study.recorded import Recorded

Float = NDArray[np.float64]
# Of each kind, per arm; side of a picture in pixels.
_SHOWN, _SIDE = 6, 256
# Okabe & Ito: lesions blue, candidates orange.
_LESION, _CANDIDATE = (86, 180, 233), (230, 159, 0)


def write_box_gallery(study: Recorded, table: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Writes `gallery.json`: per arm, of its first seed, the surest hits, the largest misses and
    the surest false alarms.

    Missed is what is not found at the score of the image's model that lets one false positive
    through per image.

    Args:
        study: as its folder holds it.
        table: its predictions.
        candidates: see `read_candidates`.
    """
    boxes, rule = study.boxes, study.config.detection
    assert boxes is not None
    columns = coordinates(boxes)
    arms = []
    for arm in study.config.arms:
        tested = table[(table["arm"] == arm) & (table["part"] == "test")]
        seed = tested["seed"].min()
        folds = tested[tested["seed"] == seed].set_index("image")["fold"].to_dict()
        images = list(folds)
        rows = candidates[
            (candidates["arm"] == arm)
            & (candidates["seed"] == seed)
            & (candidates["part"] == "test")
        ]
        sights = _sort(
            folds,
            by_image(images, rows, [*columns, "logit"]),
            by_image(images, boxes, columns),
            rule.hit,
            rule.overlap,
        )
        drawn = {kind: [_draw(study, sight) for sight in shown] for kind, shown in sights.items()}
        arms.append({"arm": arm, **drawn})
    study.folder.write(study.folder.gallery, {"boxes": True, "heat": False, "arms": arms})


def _sort(
    folds: Mapping[str, int],
    candidates: dict[Any, Float],
    lesions: dict[Any, Float],
    rule: Rule,
    overlap: float,
) -> dict[str, list[dict[str, Any]]]:
    """By kind; `folds` are those of the images, as scores of different models are not compared for
    what is missed.
    """
    sights: list[dict[str, Any]] = []
    caught: dict[str, dict[int, float]] = {}
    for image in folds:
        boxes, score = candidates[image][:, :-1], candidates[image][:, -1]
        matched = match(boxes, score, lesions[image], overlap, rule)
        caught[image] = {
            int(lesion): float(s) for lesion, s in zip(matched, score, strict=True) if lesion >= 0
        }
        for box, logit, lesion in zip(boxes, score, matched, strict=True):
            sights.append(
                {
                    "image": image,
                    "score": float(logit),
                    "candidate": box,
                    "hit": lesion >= 0,
                    "lesions": lesions[image],
                }
            )
    sights.sort(key=lambda sight: -sight["score"])
    alarms = [sight for sight in sights if not sight["hit"]]
    least = {}
    for fold in set(folds.values()):
        of_fold = [sight for sight in sights if folds[sight["image"]] == fold]
        scores, hits = (
            np.array([sight["score"] for sight in of_fold]),
            np.array([sight["hit"] for sight in of_fold], bool),
        )
        least[fold] = least_score(scores, hits, sum(of == fold for of in folds.values()))
    missed: list[dict[str, Any]] = []
    for image, fold in folds.items():
        sure = [place for place, best in caught[image].items() if best >= least[fold]]
        left = [place for place in range(len(lesions[image])) if place not in sure]
        missed += [
            {"image": image, "candidate": None, "lesions": lesions[image], "missed": place}
            for place in left
        ]
    missed.sort(
        key=lambda sight: (
            -float(np.prod(np.diff(sight["lesions"][sight["missed"]].reshape(2, -1), axis=0)))
        )
    )
    surest = [sight for sight in sights if sight["hit"]]
    return {"hits": surest[:_SHOWN], "misses": missed[:_SHOWN], "false_alarms": alarms[:_SHOWN]}


def _draw(study: Recorded, sight: dict[str, Any]) -> dict[str, Any]:
    image = sight["image"]
    pixels, placement = read_entry(study.entries[image]), study.placements[image]
    about = {
        "image": image,
        "probability": None
        if sight["candidate"] is None
        else float(1 / (1 + np.exp(-sight["score"]))),
    }
    if pixels is None:
        return {**about, "picture": ""}
    volume = pixels.ndim == 4
    lesions, candidate = _on_grid(sight["lesions"], placement), sight["candidate"]
    shown = None if candidate is None else _on_grid(candidate[None], placement)[0]
    level = None
    if volume:
        focus = lesions[sight["missed"]] if shown is None else shown
        level = int(np.clip((focus[4] + focus[5]) / 2, 0, pixels.shape[3] - 1))
        lesions = (
            lesions[(lesions[:, 4] <= level + 1) & (lesions[:, 5] >= level)]
            if len(lesions)
            else lesions
        )
        pixels = pixels[..., level]
        # As radiologists see it: front up, the patient's right on the left.
        pixels = pixels[:, ::-1, ::-1].transpose(0, 2, 1)
        turn = np.array([placement.size[0], placement.size[1]] * 2, float)
        lesions, shown = (
            (turn - lesions[:, [2, 3, 0, 1]]),
            (None if shown is None else turn - shown[[2, 3, 0, 1]]),
        )
    picture = _colour(pixels)
    scale = picture.shape[0] / pixels.shape[1]
    for box in lesions:
        _frame(picture, box * scale, _LESION)
    if shown is not None:
        _frame(picture, shown * scale, _CANDIDATE)
    return {
        **about,
        "picture": encode_picture(picture),
        **({} if level is None else {"slice": level}),
    }


def _on_grid(boxes: Float, placement: Placement) -> Float:
    """Lower and upper ends as `matching` has them -> columns of a table, on the grid of the
    cache.
    """
    return placement.place_boxes(from_axes(boxes) if boxes.shape[1] == 6 else boxes)


def _colour(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(channel, row, column) in 0..1 -> uint8 (row, column, colour), at least 256 pixels high."""
    grey = np.asarray(pixels, np.float64).mean(0)
    factor = max(1, round(_SIDE / grey.shape[0]))
    large = resize(grey, (grey.shape[0] * factor, grey.shape[1] * factor), order=1)
    return np.repeat(np.clip(np.rint(255 * large), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _frame(picture: NDArray[np.uint8], box: Float, colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = np.rint(box[:4]).astype(int)
    for inset in (0, 1):
        start, end = (y0 + inset, x0 + inset), (max(y0, y1 - 1 - inset), max(x0, x1 - 1 - inset))
        rows, columns = rectangle_perimeter(start, end, shape=picture.shape[:2], clip=True)
        picture[rows, columns] = colour
