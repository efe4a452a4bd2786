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
from medtransfer.data.reading import is_image_file, read_image, split_member
from medtransfer.errors import CohortError, ImageError, list_faults

Float = NDArray[np.float64]
PLANE, VOLUME = ("x0", "y0", "x1", "y1"), ("x0", "y0", "x1", "y1", "z0", "z1")
LESION = "lesion"
# Annotations are rounded: what lies outside by less is cut off, what lies outside by more is a fault.
_SLACK = 1.5
_WORDS = ("yolo", "voc", "masks")
_SUFFIXES = {"png", "jpg", "jpeg", "tif", "tiff", "bmp", "dcm", "dicom", "ima", "nii", "nrrd", "mha", "mhd", "txt", "xml"}


def read_boxes(source: str, images: pd.DataFrame, root: Path, kinds: Sequence[str] = (), left_out: Sequence[str] = ()) -> pd.DataFrame:
    """Boxes of a cohort.

    Args:
        source: `FILE.csv` (columns `image, x0, y0, x1, y1[, z0, z1][, label]`), `FILE.json` (COCO), or `yolo`, `voc` or
            `masks`: a file of the same name beside each image, or in a folder `labels`, `Annotations` or `masks` in place of
            `images`; `yolo:FOLDER`, `voc:FOLDER`, `masks:FOLDER` say where, relative to the root.
        images: columns `image` (id, relative to the root) and `path`.
        root: of the ids, and of relative paths in `source`.
        kinds: labels of boxes that count; the others are left out. All where left out.
        left_out: images that a table may name though they are not among these.

    Returns:
        `image`, the coordinates (four columns, or six where any image is a volume) and `label`, in the order of the source.

    Raises:
        CohortError: with every fault.
    """
    word, _, place = source.partition(":")
    if word in _WORDS:
        boxes = {"yolo": _read_yolo, "voc": _read_voc, "masks": _read_masks}[word](images, root, place)
    elif Path(source).suffix.lower() == ".csv":
        boxes = _read_csv(_find(source, root), images, left_out)
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
    fitted = pd.DataFrame(cut, columns=[c for c in VOLUME if c in boxes.columns]).dropna(axis=1, how="all")
    # Twice the same box is one lesion.
    return pd.concat([boxes[["image"]], fitted, boxes[["label"]]], axis=1).drop_duplicates(["image", *fitted.columns], ignore_index=True)


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


def _read_csv(path: Path, images: pd.DataFrame, left_out: Sequence[str]) -> pd.DataFrame:
    table = read_table(path)
    volumes = "z0" in table.columns or "z1" in table.columns
    wanted = VOLUME if volumes else PLANE
    missing = [name for name in ("image", *wanted) if name not in table.columns]
    if missing:
        raise CohortError(f"{path}: no column {', '.join(missing)}. Columns here: {', '.join(table.columns)}.")
    numbers = table[list(wanted)].apply(pd.to_numeric, errors="coerce")
    faults: list[str] = []
    names = _Names(images["image"])
    ids = [_look_up(names, image, f"row {i + 2}", faults) for i, image in enumerate(table["image"])]
    known = _Names([*images["image"], *left_out])
    for i, (image, found) in enumerate(zip(table["image"], ids, strict=True)):
        if not found and not known.find(image):
            faults.append(f"row {i + 2}: no image {image!r} in the cohort")
    # A table of planes and volumes leaves z0 and z1 of planes empty.
    empty = (table[list(wanted)] == "").to_numpy() & np.array([volumes and c in {"z0", "z1"} for c in wanted])
    for i in map(int, np.flatnonzero((numbers.isna().to_numpy() & ~empty).any(axis=1))):
        faults.append(f"row {i + 2}: {', '.join(c for c in wanted if pd.isna(numbers.loc[i, c]))} is no number")
    if faults:
        raise CohortError(list_faults(f"{path}: {len(faults)} fault(s)", faults))
    label = table["label"] if "label" in table.columns else pd.Series(LESION, index=table.index)
    boxes = pd.DataFrame({"image": ids, **{c: numbers[c] for c in wanted}, "label": label.replace("", LESION)})
    return boxes[boxes["image"] != ""].reset_index(drop=True)


class _Names:
    """Images by their ids, or by what ends them, such as the name of the file."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = set(ids)
        self.by_last: dict[str, list[str]] = {}
        for image in self.ids:
            self.by_last.setdefault(image.rsplit("/", 1)[-1], []).append(image)

    def find(self, name: str) -> list[str]:
        """The images that a name may mean: all that end with it, whole folders at a time; none where it has other folders."""
        if name in self.ids:
            return [name]
        alike = self.by_last.get(name.rsplit("/", 1)[-1], [])
        return [image for image in alike if image.endswith(f"/{name}") or name.endswith(f"/{image}")]


def _look_up(names: _Names, name: str, where: str, faults: list[str]) -> str:
    """The one image that a name means, or "" (and a fault where there are several)."""
    found = names.find(name)
    if len(found) > 1:
        faults.append(f"{where}: {name!r} may be {' or '.join(sorted(found)[:3])}; name the folder too")
    return found[0] if len(found) == 1 else ""


def _read_coco(path: Path, images: pd.DataFrame) -> pd.DataFrame:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        kinds = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        annotations = list(content["annotations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{path}: not a COCO annotation file ({type(error).__name__}: {error}). It needs images and annotations."
        ) from error
    names, rows, faults = _Names(images["image"]), [], []
    for number, mark in enumerate(annotations):
        where = f"annotation {number}"
        try:
            image, crowd = mark["image_id"], bool(mark.get("iscrowd", 0))
            x, y, width, height = map(float, mark["bbox"])
        except (KeyError, TypeError, ValueError, AttributeError):
            faults.append(f"{where}: needs image_id and bbox (x, y, width, height); of masks alone, boxes have to be made first")
            continue
        if image not in files:
            faults.append(f"{where}: no image with id {image}")
            continue
        found = _look_up(names, files[image], where, faults)
        # A file of annotations may be about more images than are studied; a crowd is no lesion.
        if found and not crowd:
            rows.append((found, x, y, x + width, y + height, kinds.get(mark.get("category_id"), LESION)))
    if faults:
        raise CohortError(list_faults(f"{path}: {len(faults)} fault(s)", faults))
    return _table(rows)


def is_annotation(name: str, source: str) -> bool:
    """Whether a file below the root, by its name, is one that `source` reads boxes from."""
    word, _, place = source.partition(":")
    inside = Path(place).parts if place and not Path(place).is_absolute() else ()
    parts = Path(name).parts
    if word == "masks":
        # A `x_mask.png` beside `x.png` is known as a mask anyway.
        folder = tuple(part for part in inside if part != ".")
        return parts[: len(folder)] == folder if folder else "masks" in parts[:-1]
    return name.lower().endswith({"yolo": ".txt", "voc": ".xml"}.get(word, "\0")) or name == source


def _beside(images: pd.DataFrame, root: Path, place: str, folder: str, suffixes: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """Files that annotate each image, by the same stem: in `place`, else beside it, else in `folder` in place of `images`.

    Raises:
        CohortError: none at all, images that would share a file, or one of several in a file.
    """
    listed: dict[Path, dict[str, list[Path]]] = {}

    def files_in(where: Path) -> dict[str, list[Path]]:
        if where not in listed:
            own: dict[str, list[Path]] = {}
            for path in sorted(where.iterdir()) if where.is_dir() else []:
                if suffixes(path):
                    own.setdefault(re.sub(r"_mask(_\d+)?$", "", _stem(path)), []).append(path)
            listed[where] = own
        return listed[where]

    found: dict[str, list[Path]] = {}
    faults: list[str] = []
    owner: dict[Path, str] = {}
    for image in images["image"]:
        file, member = split_member(root / image)
        if member:
            faults.append(f"{image}: is one of several in a file, which no file of the same name can annotate; use a CSV of boxes")
            continue
        places = [root / place / file.parent.relative_to(root), root / place] if place else [file.parent, file.parent.parent / folder]
        if not place and "images" in file.parent.parts:
            at = len(file.parent.parts) - 1 - file.parent.parts[::-1].index("images")
            places.append(Path(*file.parent.parts[:at], folder, *file.parent.parts[at + 1 :]))
        own = next((own for where in places if (own := [p for p in files_in(where).get(_stem(file), []) if p != file])), [])
        found[image] = own
        faults += [f"{image}: has the annotation of {owner[path]} ({path}); rename one" for path in own if path in owner]
        owner |= dict.fromkeys(own, image)
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} image(s) cannot be told apart", faults))
    if not any(found.values()):
        where = str(root / place) if place else f"beside the images, nor in folders {folder}"
        raise CohortError(f"boxes: no file in {where} has the name of an image. Say where they are, such as yolo:FOLDER.")
    return found


def _stem(path: Path) -> str:
    """The name without the suffix of a kind of file; a UID has dots that are none."""
    name = path.name.removesuffix(".gz")
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix.lower() in _SUFFIXES else name


def _read_yolo(images: pd.DataFrame, root: Path, place: str) -> pd.DataFrame:
    """Lines `class x y width height [confidence]`, the centre and the sides as shares of the image; or `class x y x y x y ...`, an outline.

    An image without a file has no box.
    """
    files = _beside(images, root, place, "labels", lambda path: path.suffix.lower() == ".txt" and path.name != "classes.txt")
    paths = dict(zip(images["image"], images["path"], strict=True))
    rows: list[tuple[Any, ...]] = []
    faults: list[str] = []
    for image, (file, *_) in ((image, own) for image, own in files.items() if own):
        lines = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        size = _size_of(paths[image], faults, image) if any(lines) else None
        if size is None:
            continue
        for number, (kind, *rest) in ((number, line) for number, line in enumerate(lines, 1) if line):
            try:
                shares = np.array(rest, float)
            except ValueError:
                shares = np.zeros(0)
            if len(shares) in {4, 5}:
                low, high = shares[:2] - shares[2:4] / 2, shares[:2] + shares[2:4] / 2
            elif len(shares) >= 6 and len(shares) % 2 == 0:
                low, high = shares.reshape(-1, 2).min(0), shares.reshape(-1, 2).max(0)
            else:
                faults.append(f"{file}, line {number}: expected class, x, y, width, height, found {' '.join([kind, *rest])[:60]!r}")
                continue
            rows.append((image, *(low * size), *(high * size), kind))
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
    """`object` elements with `name` and `bndbox`. Both ends belong to the box; pixels count from 1, or from 0 where any begins there."""
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
            if file.suffix.lower() in {".jpg", ".jpeg"}:
                faults.append(f"{file}: JPEG blurs the edges of a mask; save masks as PNG")
                continue
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
