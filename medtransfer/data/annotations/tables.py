"""Tables of boxes: one row per box, or per image without a lesion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.data.annotations.annotations import Annotations
from medtransfer.data.annotations.boxes import LESION, PLANE, VOLUME
from medtransfer.data.annotations.file_names import Names, tell_spellings
from medtransfer.errors import CohortError, list_unusable
from medtransfer.text.account import make_account
from medtransfer.text.names import show
from medtransfer.text.tables import MISSING, describe_missing, describe_shape, read_table, row_of

_SIZES = ("width", "height")


def look_up(names: Names, name: str, where: str, faults: list[str]) -> str:
    """The one image that a name means, or "" (and a fault where there are several)."""
    images = names.find(name)
    if len(images) > 1:
        faults.append(
            f"{where}: {show(name)!r} may be {' or '.join(sorted(images)[:3])}; name the folder too"
        )
    return images[0] if len(images) == 1 else ""


def read_box_table(
    path: Path, images: pd.DataFrame, root: Path, left_out: Sequence[str]
) -> Annotations:
    """The boxes of a table.

    Args:
        path: of the table, in the columns that `BoxSource` names.
        images: columns `image` (id, relative to the root) and `path`.
        root: of the ids.
        left_out: images that the table may name though they are not among these.

    Raises:
        CohortError: with every fault, each with its row (the header is row 1).
    """
    needed = "Give a table with the columns image, x0, y0, x1, y1 (and z0, z1 of volumes)."
    table = read_table(path, CohortError, needed, ("image", *VOLUME, "label", *_SIZES))
    volumes = "z0" in table.columns or "z1" in table.columns
    wanted = VOLUME if volumes else PLANE
    missing = [name for name in ("image", *wanted) if name not in table.columns]
    if missing:
        raise CohortError(f"{path}: {describe_missing(missing, table)}")
    rows = [row_of(table, place) for place in range(len(table))]
    table[list(wanted)] = table[list(wanted)].map(
        lambda cell: "" if cell.lower() in MISSING else cell
    )
    # An image without a lesion may stand in a row without a box.
    bare = (table[list(wanted)] == "").all(axis=1).to_numpy()
    numbers = table[list(wanted)].apply(pd.to_numeric, errors="coerce")
    faults: list[str] = []
    names = Names(images["image"], root)
    ids = [
        look_up(names, image, f"row {row}", faults)
        for image, row in zip(table["image"], rows, strict=True)
    ]
    all_names = Names([*images["image"], *left_out], root)
    for row, image, match in zip(rows, table["image"], ids, strict=True):
        if not match and not all_names.find(image):
            near = names.near(image)
            faults.append(
                f"row {row}: no image {show(image)!r} in the cohort"
                + (f"; is it {show(near[0])}?" if near else "")
            )
    first: dict[str, str] = {}
    for row, image, match in zip(rows, table["image"], ids, strict=True):
        if match and (other := first.setdefault(match, image)) != image:
            faults.append(
                f"row {row}: {show(image)!r} and {show(other)!r} both mean {show(match)}; give an "
                "image one name"
            )
    # A table of planes and volumes leaves z0 and z1 of planes empty.
    empty = (table[list(wanted)] == "").to_numpy() & np.array(
        [volumes and c in {"z0", "z1"} for c in wanted]
    )
    for i in map(int, np.flatnonzero((numbers.isna().to_numpy() & ~empty).any(axis=1) & ~bare)):
        faults.append(
            f"row {rows[i]}: {', '.join(c for c in wanted if pd.isna(numbers.loc[i, c]))} is no "
            "number"
        )
    if not faults:
        faults += tell_shares(numbers[~bare], len(images))
    if faults:
        raise CohortError(list_unusable(path, faults))
    label = table["label"] if "label" in table.columns else pd.Series(LESION, index=table.index)
    boxes = pd.DataFrame(
        {"image": ids, **{c: numbers[c] for c in wanted}, "label": label.replace("", LESION)}
    )
    used = (boxes["image"] != "") & ~bare
    rest = [
        (
            f"row {row}",
            "of an image that was left out" if not image else "an image without a box",
            False,
        )
        for row, image, use in zip(rows, ids, used, strict=True)
        if not use
    ]
    shape = [describe_shape(table)] if describe_shape(table) else []
    account = make_account("rows", path.name, int(used.sum()), rest, shape)
    sizes = _stated_sizes(table, ids, rows, str(path)) if set(_SIZES) <= set(table.columns) else {}
    return Annotations(
        boxes[used].reset_index(drop=True),
        (account,),
        tuple(tell_spellings(zip(table["image"], ids, strict=True))),
        sizes=sizes,
    )


def _stated_sizes(
    table: pd.DataFrame, ids: Sequence[str], rows: Sequence[int], source: str
) -> dict[str, tuple[float, float]]:
    sizes: dict[str, tuple[float, float]] = {}
    faults = []
    for row, image, width, height in zip(
        rows, ids, *(pd.to_numeric(table[c], errors="coerce") for c in _SIZES), strict=True
    ):
        if (
            image
            and np.isfinite(width)
            and np.isfinite(height)
            and sizes.setdefault(image, (width, height)) != (width, height)
        ):
            faults.append(
                f"row {row}: {show(image)} is {width:g} x {height:g} here, and of another size in "
                "a row above"
            )
    if faults:
        raise CohortError(list_unusable(source, faults))
    return sizes


def tell_shares(numbers: pd.DataFrame, images: int) -> list[str]:
    """A fault where all coordinates lie within 0 and 1, in a system that counts pixels."""
    values = numbers.to_numpy(float)
    if len(values) and np.nanmin(values) >= 0 and np.nanmax(values) <= 1 + 1e-6:
        return [
            (
                f"all coordinates of {len(values)} boxes of {images} images lie between 0 and 1: "
                "are they shares of the image? Multiply "
                "them by its columns and rows, or give them as YOLO files."
            )
        ]
    return []
