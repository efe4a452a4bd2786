"""Lesion boxes as annotators write them: tables, COCO, YOLO, Pascal VOC, masks.

Coordinate systems: tables and COCO state pixels, YOLO shares of the image, VOC pixels that count
from 1 or from 0; see `frames.Frame` for which corner they count from. Which of these holds is
decided for a whole source, not line by line.

Facts that a format states beside its boxes, and what is done where they differ:

- all, name of the image (compared with: names of the cohort): other spellings: matched, noted;
  nearly alike: refused; others: left out, noted.
- COCO, VOC, tables, width and height (compared with: pixels as shown, as stored): as stored: boxes
  are turned with the tag, noted; neither: refused.
- COCO, number of the image, of the category (compared with: those listed): refused.
- COCO, outline (compared with: bbox): refused: the bbox may hold two corners.
- COCO, iscrowd: no lesion; an image with nothing else is left out.
- VOC, filename (compared with: the image of the same stem): of another image of the cohort:
  refused; else noted.
- YOLO, number of values of a line (compared with: all lines): boxes, outlines, boxes with a
  confidence or a track; keypoints are refused.
- YOLO, tables, COCO, range of all values (compared with: 0 to 1): shares where pixels are meant,
  and the reverse: refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.data.annotations.annotations import Annotations, BoxSource, make_boxes
from medtransfer.data.annotations.beside import ABOUT, Beside, match_files
from medtransfer.data.annotations.boxes import LESION, PLANE, box_regions
from medtransfer.data.annotations.coco import read_coco
from medtransfer.data.annotations.masks import align_mask, read_lesions
from medtransfer.data.annotations.tables import read_box_table, tell_shares
from medtransfer.data.annotations.text_files import read_voc, read_yolo
from medtransfer.data.images.reading import is_image_file, read_image
from medtransfer.errors import CohortError, ImageError, list_faults, list_unusable
from medtransfer.text.account import Account, make_account
from medtransfer.text.names import look_alikes, show

_WORDS = ("yolo", "voc", "masks")
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".ods", ".xls")
# Labels that say that there is nothing.
_NOTHING = {
    "no finding",
    "no findings",
    "nofinding",
    "normal",
    "none",
    "negative",
    "healthy",
    "background",
    "no lesion",
    "no tumor",
    "no tumour",
}


def read_annotations(
    source: str | BoxSource,
    images: pd.DataFrame,
    root: Path,
    left_out: Sequence[str] = (),
) -> Annotations:
    """What annotators drew on the images of a cohort.

    Args:
        source: where it is read from; see `BoxSource`, of which text is the path.
        images: columns `image` (id, relative to the root) and `path`.
        root: of the ids, and of relative paths in `source`.
        left_out: images that a source may name though they are not among these.

    Raises:
        CohortError: with every fault.
    """
    source = BoxSource(source) if isinstance(source, str) else source
    word, _, place = source.path.partition(":")
    ending = Path(source.path).suffix.lower()
    if word == "masks":
        read = _read_masks(images, root, place, tuple(left_out), source.axes)
    elif word in _WORDS:
        read = _read_lines(word, images, root, place, tuple(left_out), source.axes)
    elif ending in _TABLES:
        read = read_box_table(_find(source.path, root), images, root, left_out)
    elif ending == ".json":
        read = _read_coco(_find(source.path, root), images, root, left_out)
    else:
        raise CohortError(
            f"boxes: {source.path!r} is none of FILE.csv (or another table), FILE.json (COCO), "
            f"{', '.join(_WORDS)}, or one of these with :FOLDER."
        )
    return _choose_kinds(read, source.kinds, source.path, len(images))


def _choose_kinds(read: Annotations, kinds: Sequence[str], source: str, images: int) -> Annotations:
    boxes, accounts = read.boxes, read.accounts
    if kinds:
        absent = sorted(set(kinds) - set(boxes["label"]))
        if absent:
            raise CohortError(
                f"{source}: no box has the label {', '.join(absent)}. Labels here: "
                f"{', '.join(sorted(set(boxes['label'])))}."
            )
        for group in look_alikes(boxes["label"]):
            if set(group) & set(kinds) and not set(group) <= set(kinds):
                raise CohortError(
                    f"{source}: the labels {' and '.join(map(show, group))} look alike. Name all "
                    "of them in kinds, or write them alike."
                )
        others = boxes[~boxes["label"].isin(list(kinds))]
        boxes = boxes.drop(others.index)
        rest = [
            (image, f"label {show(label)}, not among kinds", False)
            for image, label in zip(others["image"], others["label"], strict=True)
        ]
        accounts = (
            (*accounts, make_account("boxes", source, len(boxes), rest)) if rest else accounts
        )
    counts = Counter(map(str, boxes["label"]))
    notes, asks = list(read.notes), list(read.asks)
    if not kinds and len(counts) > 1:
        shown = ", ".join(f"{show(label)} {count}" for label, count in counts.most_common())
        notes.append(f"boxes have the labels {shown}; all count as lesions (cohort.kinds chooses)")
    if nothing := [label for label in counts if label.strip().lower() in _NOTHING]:
        asks.append(
            f"{counts[nothing[0]]} box(es) have the label {show(nothing[0])}, and count as "
            "lesions: name the labels that are some in kinds."
        )
    without = images - boxes["image"].nunique()
    if without and read.silent:
        notes.append(
            f"{without} of {images} images have no {read.silent}, and count as without lesion"
        )
    if boxes.empty:
        raise CohortError(
            f"{source}: holds no box of these {images} images. Is the path right, and do the file "
            "names match?"
        )
    return replace(
        read,
        boxes=boxes.reset_index(drop=True),
        accounts=accounts,
        notes=tuple(notes),
        asks=tuple(asks),
    )


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


def _find(source: str, root: Path) -> Path:
    path = Path(source)
    return path if path.is_file() or path.is_absolute() else root / path


def _read_coco(
    path: Path, images: pd.DataFrame, root: Path, left_out: Sequence[str]
) -> Annotations:
    content = read_coco(path, images["image"], root, left_out)
    boxes = make_boxes(content.rows)
    faults = tell_shares(boxes[list(PLANE)], len(images))
    if faults:
        raise CohortError(list_unusable(path, faults))
    account = make_account("annotations", path.name, len(boxes), content.left_out)
    asks = list(content.asks)
    if content.unknown:
        first, why = next(iter(content.unknown.items()))
        asks.append(
            f"{len(content.unknown)} image(s), such as {show(first)}, are left out: {why}. Set "
            "iscrowd to 0 where a crowd is one lesion, "
            "or remove the annotation."
        )
    return Annotations(
        boxes, (account,), content.notes, tuple(asks), content.unknown, content.sizes
    )


def _account_of(
    beside: Beside, what: str, where: str, unread: Sequence[tuple[str, str, bool]] = ()
) -> Account:
    strangers = [
        (path.name, reason, reason == "of no image here" and path.stat().st_size > 0)
        for path, reason in beside.strangers
    ]
    return make_account(
        what, where, sum(map(len, beside.of_image.values())) - len(unread), [*unread, *strangers]
    )


def _read_lines(
    word: str,
    images: pd.DataFrame,
    root: Path,
    place: str,
    left_out: tuple[str, ...],
    axes: str | None,
) -> Annotations:
    """YOLO and VOC: a text file for each image."""
    folder, suffix = {"yolo": ("labels", ".txt"), "voc": ("Annotations", ".xml")}[word]
    ours = lambda path: path.suffix.lower() == suffix and path.name not in ABOUT  # noqa: E731
    beside = match_files(images, root, place, folder, ours, left_out)
    if several := [
        f"{image}: has {len(files)} files, {', '.join(p.name for p in files)}; keep one"
        for image, files in beside.of_image.items()
        if len(files) > 1
    ]:
        raise CohortError(
            list_faults(f"boxes: {len(several)} image(s) have several annotation files", several)
        )
    files = {image: files[0] for image, files in beside.of_image.items() if files}
    paths = dict(zip(images["image"], images["path"], strict=True))
    read = read_yolo(files, paths, axes) if word == "yolo" else read_voc(files, images["image"])
    accounts = (
        _account_of(beside, "files", f"{word}:{place}" if place else word),
        make_account("boxes", word, len(read.rows), read.left_out),
    )
    boxes = make_boxes(read.rows)
    return Annotations(boxes, accounts, read.notes, sizes=read.sizes, silent="file with a box")


def _read_masks(
    images: pd.DataFrame, root: Path, place: str, left_out: tuple[str, ...], axes: str | None
) -> Annotations:
    """One box around each lesion of the masks of an image."""
    beside = match_files(
        images, root, place, "masks", lambda path: path.is_file() and is_image_file(path), left_out
    )
    rows: list[tuple[Any, ...]] = []
    faults: list[str] = []
    said: dict[str, list[str]] = {}
    width = 4
    paths = dict(zip(images["image"], images["path"], strict=True))
    unread: list[tuple[str, str, bool]] = []
    for image, files in beside.of_image.items():
        try:
            picture = read_image(paths[image]) if files else None
        except (ImageError, OSError):  # said where all images are read
            unread += [(file.name, "of an image that cannot be read", False) for file in files]
            continue
        if picture is None:
            continue
        for file in files:
            try:
                values, how = align_mask(read_image(str(file)), picture, axes)
                lesions, meaning = read_lesions(values)
            except ImageError as error:
                faults.append(str(error) if str(file) in str(error) else f"{file}: {error}")
                continue
            for note in filter(None, (how, meaning)):
                said.setdefault(note, []).append(file.name)
            width = max(width, 2 * lesions.ndim)
            rows += [(image, *box, LESION) for box in box_regions(lesions)]
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} mask(s) do not fit", faults))
    boxes = make_boxes(
        [row if len(row) == width + 2 else (*row[:-1], np.nan, np.nan, row[-1]) for row in rows],
        width,
    )
    notes = [
        f"{len(files)} mask(s), such as {show(files[0])}: {note}" for note, files in said.items()
    ]
    return Annotations(
        boxes,
        (_account_of(beside, "masks", f"masks:{place}" if place else "masks", unread),),
        tuple(notes),
        placed=True,
        silent="mask with a lesion",
    )
