"""The most confident errors of a study, with their pictures: what a reader looks at to see why a
model fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.grid.cache import read_entry
from medtransfer.data.grid.fixed import slices_of
from medtransfer.report.sheet import encode_picture
from medtransfer.study.analysis.pointing import map_images
from medtransfer.study.recorded import Recorded

# Of either kind, per arm.
_SHOWN = 6


def write_gallery(study: Recorded, table: pd.DataFrame) -> None:
    """Writes `gallery.json`: per arm the worst false positives and negatives on test images, the
    probability averaged over seeds.

    Args:
        study: as its folder holds it.
        table: its predictions, without those of a learning curve.
    """
    arms: list[dict[str, Any]] = []
    for arm in study.config.arms:
        rows = table[(table["arm"] == arm) & (table["part"] == "test")]
        mean = rows.groupby("image", sort=False).agg(
            probability=("probability", "mean"), target=("target", "first")
        )
        high, low = (
            mean[mean["target"] == 0].nlargest(_SHOWN, "probability"),
            mean[mean["target"] == 1].nsmallest(_SHOWN, "probability"),
        )
        wrong = {
            "false_positives": high[high["probability"] >= 0.5],
            "false_negatives": low[low["probability"] < 0.5],
        }
        shown = [str(image) for errors in wrong.values() for image in errors.index]
        heat = _look(study, rows, arm, shown)
        described = {
            kind: [
                _describe(study, str(image), float(row["probability"]), heat.get(str(image)))
                for image, row in errors.iterrows()
            ]
            for kind, errors in wrong.items()
        }
        arms.append({"arm": arm, **described})
    looked = any(
        row["heat"]
        for arm in arms
        for errors in arm.values()
        if isinstance(errors, list)
        for row in errors
    )
    study.folder.write(study.folder.gallery, {"boxes": False, "heat": looked, "arms": arms})


def _look(
    study: Recorded, rows: pd.DataFrame, arm: str, images: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Maps of these images, by the networks of the first seed that did not train on them."""
    seed = int(rows["seed"].min())
    folds = rows[rows["seed"] == seed].drop_duplicates("image").set_index("image")["fold"]
    looks: dict[str, NDArray[Any]] = {}
    for fold in sorted(set(folds.loc[list(images)])):
        tested = [image for image in images if folds[image] == fold]
        maps = map_images(study, arm, int(fold), seed, tested)
        looks |= {} if maps is None else dict(zip(tested, maps, strict=True))
    return looks


def _describe(
    study: Recorded, image: str, probability: float, heat: NDArray[Any] | None
) -> dict[str, Any]:
    about = {"image": image, "probability": probability}
    pixels = read_entry(study.entries[image])
    if pixels is None:
        return {**about, "picture": "", "heat": None}
    # Of a volume the slice the network looked at most, else the middle one.
    level = (
        None if heat is None or heat.ndim == 2 else int(heat.reshape(len(heat), -1).max(1).argmax())
    )
    flat = _flatten(pixels, slices_of(study.config.image).axis, level)
    shown = None if heat is None else (heat if level is None else heat[level][::-1, ::-1].T)
    return {
        **about,
        "picture": encode_picture(flat),
        "heat": None if shown is None else encode_picture(_overlay(flat, shown)),
    }


def _overlay(picture: NDArray[np.uint8], heat: NDArray[Any]) -> NDArray[np.uint8]:
    """The picture in grey under the map in colour, as opaque as the map is high; uint8 (row,
    column, colour).
    """
    from matplotlib import colormaps  # takes a second, and a study begins without it

    grey = (picture.mean(-1) if picture.ndim == 3 else picture).astype(np.float64)[..., None] / 255
    opaque = 0.6 * np.clip(heat, 0, 1)[..., None]
    mixed = (1 - opaque) * grey + opaque * colormaps["inferno"](np.clip(heat, 0, 1))[..., :3]
    return np.asarray(np.rint(255 * mixed), np.uint8)


def _flatten(pixels: NDArray[Any], axis: int, level: int | None = None) -> NDArray[np.uint8]:
    """(channel, *space) in 0..1 -> uint8 (row, column[, colour]); of a volume a slice, the middle
    one where left out.
    """
    if pixels.ndim == 4:
        pixels = np.take(
            pixels, pixels.shape[1 + axis] // 2 if level is None else level, axis=1 + axis
        )
    shown = np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels.mean(0)
    return np.clip(np.rint(255 * shown.astype(np.float64)), 0, 255).astype(np.uint8)
