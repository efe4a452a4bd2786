"""Text files of boxes and outlines, one for each image: YOLO and Pascal VOC; see `annotations` for
the facts that are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.annotations.annotations import PlanarBoxes
from medtransfer.data.annotations.boxes import LESION
from medtransfer.data.annotations.file_names import Names
from medtransfer.data.images.reading import read_image
from medtransfer.errors import CohortError, ImageError, list_faults
from medtransfer.files import decode_text
from medtransfer.text.names import letters, show

Float = NDArray[np.float64]


def read_yolo(files: Mapping[str, Path], paths: Mapping[str, str], axes: str | None) -> PlanarBoxes:
    """Lines `class x y width height [confidence or track]`, the centre and the sides as shares of
    the image; or `class x y x y x y ...`.

    Which of these a line is follows from the lines of all files. An image without a file, or with
    an empty one, has no box.

    Args:
        files: by image. paths: of the images. axes: `file`: shares are of the image as stored,
            before its EXIF turn.

    Raises:
        CohortError: lines that are neither, or that may be boxes with keypoints.
    """
    lines: list[tuple[str, str, str, Float]] = []
    faults: list[str] = []
    for image, file in files.items():
        for number, text in enumerate(_read_text(file).splitlines(), 1):
            kind, *rest = text.split() or [""]
            where = f"{file}, line {number}"
            if not kind:
                continue
            try:
                shares = np.array(
                    [
                        part.replace(",", ".") if re.fullmatch(r"\d+,\d+", part) else part
                        for part in rest
                    ],
                    float,
                )
            except ValueError:
                shares = np.zeros(0)
            if len(shares) not in {4, 5} and (len(shares) < 6 or len(shares) % 2):
                more = (
                    "; boxes with keypoints are not read: keep the first five columns"
                    if len(shares) > 5
                    else ""
                )
                faults.append(
                    f"{where}: expected class, x, y, width, height, found "
                    f"{show(' '.join([kind, *rest]))[:60]!r}{more}"
                )
                continue
            lines.append((image, where, kind, shares))
    faults = faults or _refuse_keypoints(lines) or _refuse_pixels(lines)
    sizes: dict[str, Float | None] = {}
    rows: list[tuple[Any, ...]] = []
    unread: list[tuple[str, str, bool]] = []
    for image, where, kind, shares in lines if not faults else ():
        if image not in sizes:
            sizes[image] = _size_of(paths[image], axes, faults, image)
        size = sizes[image]
        if size is None:
            unread.append((where, "of an image that cannot be read", False))
            continue
        low, high = _ends(shares)
        rows.append((image, *(low * size), *(high * size), kind))
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} fault(s)", faults))
    fifth = [shares[4] for _, _, _, shares in lines if len(shares) == 5]
    notes = []
    if fifth:
        what = (
            "a confidence" if all(0 <= value <= 1 for value in fifth) else "the number of a track"
        )
        notes.append(f"{len(fifth)} line(s) of YOLO have {what} behind the box, which is not used")
    if outlines := sum(len(shares) > 5 for _, _, _, shares in lines):
        notes.append(f"{outlines} line(s) of YOLO are outlines, which are boxed")
    return PlanarBoxes(rows, unread, tuple(notes), (), {}, {})


def _ends(shares: Float) -> tuple[Float, Float]:
    if len(shares) in {4, 5}:
        return shares[:2] - shares[2:4] / 2, shares[:2] + shares[2:4] / 2
    points = shares.reshape(-1, 2)
    return points.min(0), points.max(0)


def _refuse_keypoints(lines: list[tuple[str, str, str, Float]]) -> list[str]:
    """Lines of one length, longer than a box, whose pairs all lie within the box that the first
    four numbers make, may be poses.
    """
    long = [(where, shares) for _, where, _, shares in lines if len(shares) > 5]
    if not long or len({len(shares) for _, shares in long}) > 1 or len(long) < len(lines):
        return []

    def posed(shares: Float) -> bool:
        low, high = shares[:2] - shares[2:4] / 2, shares[:2] + shares[2:4] / 2
        points = shares[4:].reshape(-1, 2)
        points = points[(points > 0).any(1)]  # 0, 0: not seen
        return bool(((points >= low - 0.01) & (points <= high + 0.01)).all())

    if not all(posed(shares) for _, shares in long):
        return []
    count = len(long[0][1])
    return [
        (
            f"{long[0][0]} and {len(long) - 1} more: all lines have {count} numbers, which may be "
            f"an outline of {count // 2} points, or "
            f"a box with {(count - 4) // 2} keypoints. Of poses keep the first five columns; of "
            "outlines the file of boxes"
        )
    ]


def _refuse_pixels(lines: list[tuple[str, str, str, Float]]) -> list[str]:
    outside = [
        where
        for _, where, _, shares in lines
        if (np.abs(shares[: 4 if len(shares) == 5 else None]) > 1.5).any()
    ]
    if 2 * len(outside) > len(lines) > 0:
        return [
            (
                f"{outside[0]} and {len(outside) - 1} more: YOLO has shares of the image, "
                "from 0 to "
                "1, and these are pixels. Divide them"
            )
        ]
    return []


def _size_of(path: str, axes: str | None, faults: list[str], image: str) -> Float | None:
    """Columns and rows of an image; one that cannot be read is reported where all images are
    read.
    """
    try:
        read = read_image(path)
    except (ImageError, OSError):
        return None
    shape = read.array.shape[1:]
    if len(shape) != 2:
        faults.append(f"{image}: is a volume; YOLO files are for planes. Use a table of boxes.")
        return None
    if axes == "file" and len(read.provenance["stored_shape"]) == 2:
        shape = tuple(read.provenance["stored_shape"])
    return np.array([shape[1], shape[0]], float)


def read_voc(files: Mapping[str, Path], images: Iterable[str]) -> PlanarBoxes:
    """`object` elements with `name` and `bndbox`. Both ends belong to the box; pixels count from 1,
    or from 0 where any begins there.

    Raises:
        CohortError: with every fault.
    """
    names = Names(images)
    rows: list[tuple[Any, ...]] = []
    faults: list[str] = []
    sizes: dict[str, tuple[float, float]] = {}
    renamed: list[tuple[str, str]] = []
    for image, file in files.items():
        try:
            tree = _parse_xml(file)
            stated = (tree.findtext("filename") or "").strip()
            others = [other for other in names.find(stated) if other != image] if stated else []
            if stated and image not in names.find(stated) and letters(stated) != letters(image):
                if others:
                    raise ValueError(
                        f"says that it is of {show(stated)}, and has the name of {show(image)}"
                    )
                renamed.append((file.name, stated))
            size = [float(tree.findtext(f"size/{name}") or 0) for name in ("width", "height")]
            if min(size) > 0:
                sizes[image] = (size[0], size[1])
            for part in tree.iter("object"):
                box = part.find("bndbox")
                if box is None:
                    raise ValueError("an object has no bndbox")
                ends = [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
                rows.append((image, *ends, part.findtext("name", LESION)))
        except (ElementTree.ParseError, ValueError) as error:
            faults.append(f"{file}: no Pascal VOC annotation ({error})")
    corners = np.array([row[1:5] for row in rows], float).reshape(-1, 4)
    if len(corners) and np.abs(corners).max() <= 1:
        faults.append(
            "all corners lie between 0 and 1: VOC has pixels, and these are shares of the image. "
            "Multiply them by its size"
        )
    if faults:
        raise CohortError(list_faults(f"boxes: {len(faults)} fault(s)", faults))
    first = 0.0 if len(corners) and corners[:, :2].min() < 1 else 1.0
    shifted = [
        (image, x0 - first, y0 - first, x1 + 1 - first, y1 + 1 - first, kind)
        for image, x0, y0, x1, y1, kind in rows
    ]
    notes = [f"VOC: pixels count from {first:g}"] if rows else []
    if renamed:
        notes.append(
            f"{len(renamed)} file(s) of VOC name another image than theirs, such as "
            f"{show(renamed[0][1])} in {show(renamed[0][0])}"
        )
    return PlanarBoxes(shifted, [], tuple(notes), (), {}, sizes)


def _parse_xml(file: Path) -> Any:
    text = _read_text(file)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise ValueError("declares entities, which annotations do not need")
    # The declaration names an encoding that the text no longer has.
    return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))


def _read_text(file: Path) -> str:
    return decode_text(file.read_bytes())[0]
