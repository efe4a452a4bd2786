"""Lesion boxes: read from what annotators write, and checked against their images.

A box is in pixel edges of the image as `read_image` gives it: x along columns, y along rows, upper ends exclusive; of a
volume along its axes x, y, z.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.measure import label as connected
from skimage.measure import regionprops

from medtransfer.data.image import Image
from medtransfer.data.manifest import read_table
from medtransfer.data.reading import is_image_file, read_image
from medtransfer.errors import CohortError, ImageError, list_faults

Float = NDArray[np.float64]
PLANE, VOLUME = ("x0", "y0", "x1", "y1"), ("x0", "y0", "x1", "y1", "z0", "z1")
LESION = "lesion"
# Annotations are rounded: what lies outside by less is cut off, what lies outside by more is a fault.
_SLACK = 1.5
_WORDS = ("yolo", "voc", "masks")


def read_boxes(source: str, images: pd.DataFrame, root: Path, kinds: Sequence[str] = ()) -> pd.DataFrame:
    """Boxes of a cohort.

    Args:
        source: `FILE.csv` (columns `image, x0, y0, x1, y1[, z0, z1][, label]`), `FILE.json` (COCO), or `yolo`, `voc` or
            `masks`: a file of the same name beside each image, or in a folder `labels`, `Annotations` or `masks` in place of
            `images`; `yolo:FOLDER`, `voc:FOLDER`, `masks:FOLDER` say where, relative to the root.
        images: columns `image` (id) and `path`.
        root: of the ids, and of relative paths in `source`.
        kinds: labels of boxes that count; the others are left out. All where left out.

    Returns:
        `image`, the coordinates (four columns, or six where any image is a volume) and `label`, in the order of the source.

    Raises:
        CohortError: with every fault.
    """
    word, _, place = source.partition(":")
    if word in _WORDS:
        boxes = {"yolo": _read_yolo, "voc": _read_voc, "masks": _read_masks}[word](images, root, place)
    elif Path(source).suffix.lower() == ".csv":
        boxes = _read_csv(_find(source, root), images)
    elif Path(source).suffix.lower() == ".json":
        boxes = _read_coco(_find(source, root), images)
    else:
        raise CohortError(f"boxes: {source!r} is none of FILE.csv, FILE.json (COCO), {', '.join(_WORDS)}, or one of these with :FOLDER.")
    if kinds:
        absent = sorted(set(kinds) - set(boxes["label"]))
        if absent:
            raise CohortError(f"{source}: no box has the label {', '.join(absent)}. Labels here: {', '.join(sorted(set(boxes['label'])))}.")
        boxes = boxes[boxes["label"].isin(list(kinds))]
    if boxes.empty:
        raise CohortError(f"{source}: holds no box of these {len(images)} images. Is the path right, and do the file names match?")
    return boxes.reset_index(drop=True)


def fit_boxes(boxes: pd.DataFrame, shapes: dict[str, tuple[int, ...]], where: str = "boxes") -> pd.DataFrame:
    """The boxes of these images, cut off at their borders.

    Args:
        boxes: see `read_boxes`. shapes: pixels of each image along its axes: rows and columns, or x, y, z.
        where: for messages.

    Raises:
        CohortError: boxes without extent, outside of their image by more than rounding, or with other axes than it; all of them.
    """
    boxes = boxes[boxes["image"].isin(shapes)].reset_index(drop=True)
    faults, cut = [], []
    volumes = set(VOLUME) <= set(boxes.columns)
    for row in boxes.to_dict("records"):
        shape = shapes[row["image"]]
        columns = VOLUME if len(shape) == 3 else PLANE
        values = np.array([row.get(c, np.nan) for c in columns], float)
        told = f"{row['image']}: box ({', '.join(f'{v:g}' for v in values)})"
        high = upper_ends(shape)
        if not np.isfinite(values).all():
            faults.append(f"{told} lacks coordinates; {'a volume needs z0 and z1' if len(shape) == 3 else 'all are numbers'}")
        elif volumes and len(shape) == 2 and np.isfinite(row["z0"]):
            faults.append(f"{told} has z0 and z1, but the image is a plane")
        elif (values < -_SLACK).any() or (values > high + _SLACK).any():
            faults.append(f"{told} lies outside of its image, which has {' x '.join(map(str, shape))} pixels")
        else:
            values = np.clip(values, 0.0, high)
            if (extents(values[None]) <= 0).any():
                faults.append(f"{told} has no extent; x1 must be above x0, and so on")
        cut.append(dict(zip(columns, values, strict=True)))
    if faults:
        raise CohortError(list_faults(f"{where}: {len(faults)} of {len(boxes)} boxes do not fit", faults, "Correct or remove them."))
    fitted = pd.DataFrame(cut, columns=[c for c in VOLUME if c in boxes.columns])
    return pd.concat([boxes[["image"]], fitted, boxes[["label"]]], axis=1)


def upper_ends(shape: Sequence[int]) -> Float:
    """The largest value of each coordinate column, from pixels along the axes of the array."""
    if len(shape) == 2:
        return np.array([shape[1], shape[0], shape[1], shape[0]], float)
    return np.array([shape[0], shape[1], shape[0], shape[1], shape[2], shape[2]], float)


def extents(boxes: Float) -> Float:
    """Sides of boxes in the order of their columns, (box, 4 or 6) -> (box, 2 or 3)."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    return np.concatenate([sides, boxes[:, 5:6] - boxes[:, 4:5]], 1) if boxes.shape[1] == 6 else sides


def to_axes(boxes: Float) -> Float:
    """Columns of the table -> lower, then upper ends along the axes of the array: (y0, x0, y1, x1), or (x0, y0, z0, x1, y1, z1)."""
    return boxes[:, [1, 0, 3, 2]] if boxes.shape[1] == 4 else boxes[:, [0, 1, 4, 2, 3, 5]]


def from_axes(boxes: Float) -> Float:
    """The inverse of `to_axes`."""
    return boxes[:, [1, 0, 3, 2]] if boxes.shape[1] == 4 else boxes[:, [0, 1, 3, 4, 2, 5]]


def boxes_of_mask(mask: NDArray[Any]) -> Float:
    """One box around each connected part (8 or 26 neighbours) of a mask, (row, column) or (x, y, z) -> (box, 4 or 6)."""
    found = [region.bbox for region in regionprops(connected(np.asarray(mask) > 0))]
    return from_axes(np.asarray(found, float).reshape(-1, 2 * np.ndim(mask)))


def _find(source: str, root: Path) -> Path:
    path = Path(source)
    return path if path.is_file() or path.is_absolute() else root / path


def _table(rows: list[tuple[Any, ...]], width: int = 4) -> pd.DataFrame:
    columns = ["image", *(VOLUME if width == 6 else PLANE), "label"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:-1], float))


def _read_csv(path: Path, images: pd.DataFrame) -> pd.DataFrame:
    table = read_table(path)
    volumes = "z0" in table.columns or "z1" in table.columns
    wanted = VOLUME if volumes else PLANE
    missing = [name for name in ("image", *wanted) if name not in table.columns]
    if missing:
        raise CohortError(f"{path}: no column {', '.join(missing)}. Columns here: {', '.join(table.columns)}.")
    numbers = table[list(wanted)].apply(pd.to_numeric, errors="coerce")
    known, name = set(images["image"]), _by_name(images["image"])
    ids = [image if image in known else name.get(image, "") for image in table["image"]]
    faults = [
        f"row {i + 2}: no image {image!r} in the cohort"
        for i, (image, found) in enumerate(zip(table["image"], ids, strict=True))
        if not found
    ]
    # A table of planes and volumes leaves z0 and z1 of planes empty.
    empty = (table[list(wanted)] == "").to_numpy() & volumes
    for i in np.flatnonzero((numbers.isna().to_numpy() & ~empty).any(axis=1)):
        faults.append(f"row {i + 2}: {', '.join(c for c in wanted if pd.isna(numbers.loc[i, c]))} is no number")
    if faults:
        raise CohortError(list_faults(f"{path}: {len(faults)} fault(s)", faults))
    label = table["label"] if "label" in table.columns else pd.Series(LESION, index=table.index)
    return pd.DataFrame({"image": ids, **{c: numbers[c] for c in wanted}, "label": label.replace("", LESION)})


def _by_name(ids: Iterable[str]) -> dict[str, str]:
    """Image by the last part of its id, where only one has it."""
    names = pd.Series(list(ids))
    last = names.str.rsplit("/", n=1).str[-1]
    alone = ~last.duplicated(keep=False)
    return dict(zip(last[alone], names[alone], strict=True))


def _read_coco(path: Path, images: pd.DataFrame) -> pd.DataFrame:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        marks = [(a["image_id"], *map(float, a["bbox"]), a.get("category_id"), bool(a.get("iscrowd", 0))) for a in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{path}: not a COCO annotation file ({type(error).__name__}: {error}). It needs images and annotations."
        ) from error
    known, by_name = set(images["image"]), _by_name(images["image"])
    rows, faults = [], []
    for number, (image, x, y, width, height, category, crowd) in enumerate(marks):
        if image not in files:
            faults.append(f"annotation {number}: no image with id {image}")
            continue
        file = files[image]
        found = file if file in known else by_name.get(file.rsplit("/", 1)[-1])
        # A file of annotations may be about more images than are studied; a crowd is no lesion.
        if found is not None and not crowd:
            rows.append((found, x, y, x + width, y + height, names.get(category, LESION)))
    if faults:
        raise CohortError(list_faults(f"{path}: {len(faults)} fault(s)", faults))
    return _table(rows)


def _beside(images: pd.DataFrame, root: Path, place: str, folder: str, suffixes: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """Files that annotate each image, by the same stem: in `place`, else beside it, else in `folder` in place of `images`."""
    listed: dict[Path, dict[str, list[Path]]] = {}

    def files_in(where: Path) -> dict[str, list[Path]]:
        if where not in listed:
            own: dict[str, list[Path]] = {}
            for path in sorted(where.iterdir()) if where.is_dir() else []:
                if suffixes(path):
                    own.setdefault(re.sub(r"_mask(_\d+)?$", "", _stem(path)), []).append(path)
            listed[where] = own
        return listed[where]

    found = {}
    for image, path in zip(images["image"], images["path"], strict=True):
        file = Path(path)
        if place:
            inner = file.parent.relative_to(root) if file.parent.is_relative_to(root) else Path()
            places = [root / place / inner, root / place]
        else:
            places = [file.parent, file.parent.parent / folder]
            if "images" in file.parent.parts:
                at = len(file.parent.parts) - 1 - file.parent.parts[::-1].index("images")
                places.append(Path(*file.parent.parts[:at], folder, *file.parent.parts[at + 1 :]))
        own = next((own for where in places if (own := [p for p in files_in(where).get(_stem(file), []) if p != file])), [])
        found[image] = own
    if not any(found.values()):
        where = str(root / place) if place else f"beside the images, nor in folders {folder}"
        raise CohortError(f"boxes: no file in {where} has the name of an image. Say where they are, such as yolo:FOLDER.")
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] if "." in path.name else path.name


def _read_yolo(images: pd.DataFrame, root: Path, place: str) -> pd.DataFrame:
    """Lines `class x y width height`, the centre and the sides as shares of the image. An image without a file has no box."""
    files = _beside(images, root, place, "labels", lambda path: path.suffix.lower() == ".txt" and path.name != "classes.txt")
    paths = dict(zip(images["image"], images["path"], strict=True))
    rows, faults = [], []
    for image, (file, *_) in ((image, own) for image, own in files.items() if own):
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                kind, x, y, width, height = line.split()[:5]
                shares = np.array([x, y, width, height], float)
            except ValueError:
                faults.append(f"{file}, line {number}: expected class, x, y, width, height, found {line[:60]!r}")
                continue
            size = _size_of(paths[image], faults, image)
            if size is None:
                break
            x0, y0 = (shares[:2] - shares[2:] / 2) * size
            x1, y1 = (shares[:2] + shares[2:] / 2) * size
            rows.append((image, x0, y0, x1, y1, kind))
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} fault(s)", faults))
    return _table(rows)


def _size_of(path: str, faults: list[str], image: str) -> Float | None:
    """Columns and rows of an image; one that cannot be read is reported where all images are read."""
    try:
        shape = read_image(path).array.shape[1:]
    except (ImageError, OSError):
        return None
    if len(shape) != 2:
        faults.append(f"{image}: is a volume; YOLO files are for planes. Use a CSV of boxes.")
        return None
    return np.array([shape[1], shape[0]], float)


def _read_voc(images: pd.DataFrame, root: Path, place: str) -> pd.DataFrame:
    """`object` elements with `name` and `bndbox`; pixels count from 1 and both ends belong to the box, unless one begins at 0."""
    files = _beside(images, root, place, "Annotations", lambda path: path.suffix.lower() == ".xml")
    rows, faults = [], []
    for image, (file, *_) in ((image, own) for image, own in files.items() if own):
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            if "<!ENTITY" in text or "<!DOCTYPE" in text:
                raise ValueError("declares entities, which annotations do not need")
            for part in ElementTree.fromstring(text).iter("object"):
                box = part.find("bndbox")
                if box is None:
                    raise ValueError("an object has no bndbox")
                ends = [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
                rows.append((image, *ends, part.findtext("name", LESION)))
        except (ElementTree.ParseError, ValueError) as error:
            faults.append(f"{file}: no Pascal VOC annotation ({error})")
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} fault(s)", faults))
    table = _table(rows)
    first = 0.0 if len(table) and table[["x0", "y0"]].to_numpy().min() < 1 else 1.0
    table[["x0", "y0"]] -= first
    table[["x1", "y1"]] += 1.0 - first
    return table


def _read_masks(images: pd.DataFrame, root: Path, place: str) -> pd.DataFrame:
    """One box around each connected part of the masks of an image."""
    files = _beside(images, root, place, "masks", lambda path: path.is_file() and is_image_file(path))
    rows: list[tuple[Any, ...]] = []
    faults, width = [], 4
    paths = dict(zip(images["image"], images["path"], strict=True))
    for image, own in files.items():
        for file in own:
            try:
                mask, shape = _read_mask(file), read_image(paths[image]).array.shape[1:]
            except ImageError as error:
                faults.append(str(error))
                continue
            if mask.shape != shape:
                faults.append(f"{file}: the mask has {mask.shape} pixels, its image {shape}")
                continue
            width = max(width, 2 * mask.ndim)
            rows += [(image, *box, LESION) for box in boxes_of_mask(mask)]
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} mask(s) do not fit", faults))
    return _table([row if len(row) == width + 2 else (*row[:-1], np.nan, np.nan, row[-1]) for row in rows], width)


def _read_mask(file: Path) -> NDArray[np.bool_]:
    image: Image = read_image(str(file))
    return np.asarray((image.array > 0).any(0))
