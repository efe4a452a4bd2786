"""The most confident errors of a study, with their pictures: what a reader looks at to see why a model fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.cache import read_entry
from medtransfer.data.slices import Slices
from medtransfer.evaluation import write_aside
from medtransfer.record import Prepared
from medtransfer.report.sheet import encode_picture

# Of either kind, per arm.
_SHOWN = 6


def write_gallery(prepared: Prepared, table: pd.DataFrame, output: Path) -> None:
    """Writes `gallery.json`: per arm the worst false positives and negatives on test images, probability averaged over seeds.

    Args:
        prepared: the study. table: its predictions, without those of a learning curve. output: its folder.
    """
    entries = dict(zip(prepared.facts["image"], prepared.facts["entry"], strict=True))
    axis = Slices(plane=prepared.config.image.plane).axis
    arms = []
    for arm in prepared.config.arms:
        rows = table[(table["arm"] == arm) & (table["part"] == "test")]
        mean = rows.groupby("image", sort=False).agg(probability=("probability", "mean"), target=("target", "first"))
        high, low = mean[mean["target"] == 0].nlargest(_SHOWN, "probability"), mean[mean["target"] == 1].nsmallest(_SHOWN, "probability")
        wrong = {"false_positives": high[high["probability"] >= 0.5], "false_negatives": low[low["probability"] < 0.5]}
        arms.append(
            {"arm": arm, **{kind: [_describe(image, row, entries, axis) for image, row in own.iterrows()] for kind, own in wrong.items()}}
        )
    write_aside(output / "gallery.json", json.dumps({"heat": False, "arms": arms}, indent=1))


def _describe(image: Any, row: pd.Series, entries: dict[str, str], axis: int) -> dict[str, Any]:
    pixels = read_entry(Path(entries[image]))
    picture = "" if pixels is None else encode_picture(_flatten(pixels, axis))
    return {"image": str(image), "probability": float(row["probability"]), "picture": picture, "heat": None}


def _flatten(pixels: NDArray[Any], axis: int) -> NDArray[np.uint8]:
    """(channel, *space) in 0..1 -> uint8 (row, column[, colour]); of a volume, the middle slice."""
    if pixels.ndim == 4:
        pixels = np.take(pixels, pixels.shape[1 + axis] // 2, axis=1 + axis)
    shown = np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels.mean(0)
    return np.clip(np.rint(255 * shown.astype(np.float64)), 0, 255).astype(np.uint8)
