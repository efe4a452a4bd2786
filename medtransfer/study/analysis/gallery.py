"""The most confident errors of a study, with their pictures: what a reader looks at to see why a
model fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.grid.cache import read_entry
from medtransfer.data.grid.slices import Slices
from medtransfer.files import write_aside
from medtransfer.report.build import GALLERY
from medtransfer.report.sheet import encode_picture
from medtransfer.study.analysis.pointing import map_images
from medtransfer.study.record import Prepared
from medtransfer.training.device import Engine

# Of either kind, per arm.
_SHOWN = 6


def write_gallery(
    prepared: Prepared, engines: Mapping[str, Engine], table: pd.DataFrame, output: Path
) -> None:
    """Writes `gallery.json`: per arm the worst false positives and negatives on test images,
    probability averaged over seeds.

    Args:
        prepared: the study. engines: of its arms, for the maps of where the networks looked (of the
            first seed).
        table: its predictions, without those of a learning curve. output: its folder.
    """
    entries = dict(zip(prepared.facts["image"], prepared.facts["entry"], strict=True))
    axis = Slices(plane=prepared.config.image.plane).axis
    arms: list[dict[str, Any]] = []
    for arm in prepared.config.arms:
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
        shown = [image for own in wrong.values() for image in own.index]
        heat = _look(prepared, engines[arm], rows, output, arm, shown)
        described = {
            kind: [
                _describe(image, row, entries, axis, heat.get(image))
                for image, row in own.iterrows()
            ]
            for kind, own in wrong.items()
        }
        arms.append({"arm": arm, **described})
    looked = any(
        row["heat"] for arm in arms for own in arm.values() if isinstance(own, list) for row in own
    )
    write_aside(
        output / GALLERY, json.dumps({"boxes": False, "heat": looked, "arms": arms}, indent=1)
    )


def _look(
    prepared: Prepared,
    engine: Engine,
    rows: pd.DataFrame,
    output: Path,
    arm: str,
    images: Sequence[Any],
) -> dict[Any, Any]:
    """Maps of these images, by the networks of the first seed that did not train on them."""
    first = (
        rows[rows["seed"] == rows["seed"].min()].drop_duplicates("image").set_index("image")["fold"]
    )
    numbers = dict(zip(prepared.cohort.images["image"], range(len(prepared.cohort)), strict=True))
    found: dict[Any, Any] = {}
    for fold in sorted(set(first.loc[list(images)])):
        own = [image for image in images if first[image] == fold]
        maps = map_images(
            prepared,
            engine,
            output,
            arm,
            int(fold),
            int(rows["seed"].min()),
            [numbers[image] for image in own],
        )
        found |= {} if maps is None else dict(zip(own, maps, strict=True))
    return found


def _describe(
    image: Any, row: pd.Series, entries: dict[str, str], axis: int, heat: NDArray[Any] | None
) -> dict[str, Any]:
    about = {"image": str(image), "probability": float(row["probability"])}
    pixels = read_entry(Path(entries[image]))
    if pixels is None:
        return {**about, "picture": "", "heat": None}
    # Of a volume the slice the network looked at most, else the middle one.
    level = (
        None if heat is None or heat.ndim == 2 else int(heat.reshape(len(heat), -1).max(1).argmax())
    )
    flat = _flatten(pixels, axis, level)
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
