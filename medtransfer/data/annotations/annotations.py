"""What annotators drew: where it is read from, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from medtransfer.data.annotations.boxes import PLANE, VOLUME
from medtransfer.text.account import Account


@dataclass(frozen=True)
class BoxSource:
    """Where lesion boxes are read from.

    Attributes:
        path: `FILE.csv`, or another table (columns `image, x0, y0, x1, y1[, z0, z1][, label][,
            width, height]`), `FILE.json` (COCO), or `yolo`, `voc` or `masks`: a file of the same
            name beside each image, or in a folder `labels`, `Annotations` or `masks` in place of
            `images`; `yolo:FOLDER`, `voc:FOLDER`, `masks:FOLDER` say where, relative to the root.
        kinds: labels of boxes that count; the others are left out. All count where it is empty.
        axes: what the coordinates count: `file`, `ras` or `mm`; see `frames.Frame`.
    """

    path: str
    kinds: Sequence[str] = ()
    axes: str | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """What a source of boxes says of the images of a cohort.

    Attributes:
        boxes: `image`, coordinates (four columns, or six where any image is a volume), `label`, in
            the order of the source.
        accounts: of its annotations and files.
        notes: what was decided in reading it, in sentences.
        asks: what somebody has to look at, in sentences.
        unknown: images of which it does not say whether they hold a lesion, with the reason.
        sizes: by image, columns and rows that the source states.
        placed: the coordinates are those of pixels as `read_image` gives them, whatever `axes`
            says: of masks.
        silent: what images without a lesion lack: a box, a file.
    """

    boxes: pd.DataFrame
    accounts: tuple[Account, ...] = ()
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    unknown: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    placed: bool = False
    silent: str = "box"


@dataclass(frozen=True, eq=False)
class PlanarBoxes:
    """What was read of a source of planar boxes.

    Attributes:
        rows: image, x0, y0, x1, y1, label.
        left_out: name, reason and whether it asks for a look, of every annotation that is not used.
        notes, asks, unknown, sizes: see `Annotations`.
    """

    rows: list[tuple[Any, ...]]
    left_out: list[tuple[str, str, bool]]
    notes: tuple[str, ...]
    asks: tuple[str, ...]
    unknown: dict[str, str]
    sizes: dict[str, tuple[float, float]]


def make_boxes(rows: Sequence[tuple[Any, ...]], width: int = 4) -> pd.DataFrame:
    """Rows `image, coordinates, label` as a table."""
    columns = ["image", *(VOLUME if width == 6 else PLANE), "label"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:-1], float))
