"""COCO files of boxes (Lin et al. 2014, arXiv:1405.0312); see `annotations` for the facts that are
compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtransfer.data.annotations.annotations import PlanarBoxes
from medtransfer.data.annotations.boxes import LESION
from medtransfer.data.annotations.file_names import Names, tell_spellings
from medtransfer.errors import CohortError, list_unusable
from medtransfer.files import decode_text
from medtransfer.text.names import normalise, show

# Pixels by which a bbox may miss the outline of its annotation, and its share of the outline's
# longer side.
_ROUNDING, _SHARE = 2.0, 0.02


def read_coco(
    path: Path, images: Iterable[str], root: Path, left_out: Sequence[str]
) -> PlanarBoxes:
    """The boxes of a COCO file.

    Args:
        path: of the file. images: ids of the cohort. root: of the ids. left_out: ids of images that
            are none of it on purpose.

    Raises:
        CohortError: with every fault.
    """
    images = list(images)
    content = _parse(path)
    files, kinds = content["files"], content["kinds"]
    names, aside = Names(images, root), Names(left_out, root)
    faults: list[str] = []
    matched = _match(files, names, faults)
    rows: list[tuple[Any, ...]] = []
    rest: list[tuple[str, str, bool]] = []
    crowds: list[tuple[str, str]] = []
    lost: dict[str, str] = {}
    for number, mark in enumerate(content["annotations"]):
        where = f"annotation {number}"
        try:
            image, crowd = str(mark["image_id"]), bool(mark.get("iscrowd", 0))
            x, y, width, height = map(float, mark.get("bbox") or _bound(mark["segmentation"]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            faults.append(
                f"{where}: needs image_id and bbox (x, y, width, height); of masks alone, boxes "
                "have to be made first"
            )
            continue
        if image not in files:
            faults.append(f"{where}: no image with id {image}")
            continue
        kind = str(mark["category_id"]) if "category_id" in mark else None
        if kinds and kind not in kinds:
            faults.append(f"{where}: no category with id {kind}")
            continue
        meant = matched[image]
        if crowd:
            crowds.append((where, meant))
        elif not meant:
            excluded = bool(aside.find(files[image]))
            rest.append(
                (
                    where,
                    "of an image that was left out" if excluded else "of an image that is not here",
                    not excluded,
                )
            )
            if not excluded and not names.find(files[image]):
                lost[files[image]] = where
        else:
            faults += _compare_outline(where, mark, (x, y, width, height))
            rows.append((meant, x, y, x + width, y + height, kinds.get(kind or "", LESION)))
    faults += _tell_near(lost, names, {meant for meant in matched.values() if meant})
    if faults:
        raise CohortError(list_unusable(path, faults))
    boxed = {row[0] for row in rows}
    # Where nothing else is drawn the image is left out, and that is asked about.
    rest += [(where, "a crowd (iscrowd 1)", meant in boxed) for where, meant in crowds]
    crowded = {meant for _, meant in crowds if meant}
    unknown = dict.fromkeys(
        sorted(crowded - boxed),
        "annotated as a crowd alone (iscrowd 1), which does not say whether it holds a lesion",
    )
    listed = {meant for meant in matched.values() if meant}
    notes = tell_spellings((name, matched[number]) for number, name in files.items())
    asks = []
    if absent := [image for image in images if image not in listed]:
        asks.append(
            f"{len(absent)} image(s) are not listed in {path.name}, such as {show(absent[0])}, "
            "and count as without lesion: did somebody "
            "look at them?"
        )
    sizes = {matched[number]: size for number, size in content["sizes"].items() if matched[number]}
    return PlanarBoxes(rows, rest, tuple(notes), tuple(asks), unknown, sizes)


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(decode_text(path.read_bytes())[0])
        if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
            held = (
                f"keys {', '.join(map(str, list(content)[:5]))}"
                if isinstance(content, dict)
                else f"a {type(content).__name__}"
            )
            raise CohortError(
                f"{path}: holds {show(held)}, and COCO has images and annotations. Export the "
                "boxes as COCO (detection)."
            )
        entries = list(content["images"])
        files = {str(entry["id"]): str(entry["file_name"]) for entry in entries}
        categories = [
            (str(entry["id"]), normalise(str(entry["name"])))
            for entry in content.get("categories", [])
        ]
        annotations = list(content["annotations"])
        sizes = {
            str(entry["id"]): (float(entry["width"]), float(entry["height"]))
            for entry in entries
            if entry.get("width") and entry.get("height")
        }
    except CohortError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CohortError(
            f"{path}: not a COCO annotation file ({type(error).__name__}: {str(error)[:200]}). It "
            "needs images and annotations."
        ) from error
    faults = []
    if len(files) < len(entries):
        faults.append(f"{len(entries) - len(files)} image(s) have the id of another one")
    counts = Counter(files.values())
    if twice := sorted(name for name, count in counts.items() if count > 1):
        faults.append(f"{len(twice)} file name(s) are listed twice, such as {show(twice[0])}")
    if len(dict(categories)) < len(categories):
        faults.append("two categories have the same id")
    if faults:
        raise CohortError(list_unusable(path, faults))
    return {"files": files, "kinds": dict(categories), "annotations": annotations, "sizes": sizes}


def _match(files: Mapping[Any, str], names: Names, faults: list[str]) -> dict[Any, str]:
    """By number of the file, the image that it means; "" where it is not here."""
    matched: dict[Any, str] = {}
    first: dict[str, str] = {}
    for number, name in files.items():
        images = names.find(name)
        if len(images) > 1:
            faults.append(
                f"{show(name)!r} may be {' or '.join(sorted(images)[:3])}; name the folder too"
            )
        matched[number] = images[0] if len(images) == 1 else ""
        if matched[number] and (other := first.setdefault(matched[number], name)) != name:
            faults.append(f"{show(name)!r} and {show(other)!r} both mean {show(matched[number])}")
    return matched


def _tell_near(lost: Mapping[str, str], names: Names, taken: set[str]) -> list[str]:
    """Faults where annotations are of nearly the name of an image that no other entry means: it
    would count as without a lesion.
    """
    faults = []
    for name, where in lost.items():
        near = [image for image in names.near(name) if image not in taken]
        if near:
            faults.append(
                f"{where}: is of {show(name)!r}, which is not here; is it {show(near[0])}? Give "
                "both one name"
            )
    return faults


def _bound(outline: Any) -> tuple[float, float, float, float]:
    """x, y, width and height around the points of an outline."""
    points = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in outline])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def _compare_outline(where: str, mark: Mapping[str, Any], bbox: tuple[float, ...]) -> list[str]:
    """A fault where the outline of an annotation has other ends than its bbox."""
    outline, area = mark.get("segmentation"), mark.get("area")
    x, y, width, height = bbox
    if (
        isinstance(area, int | float)
        and not outline
        and abs(area - width * height) > 1
        and abs(area - (width - x) * (height - y)) <= 1
    ):
        return [
            f"{where}: by its area, its bbox holds two corners, where COCO has x, y, width, height"
        ]
    if not isinstance(outline, list) or not outline:
        return []
    try:
        low_x, low_y, wide, high = _bound(outline)
    except (ValueError, TypeError):
        return []
    ends = np.array([low_x, low_y, low_x + wide, low_y + high])
    off = np.abs(ends - np.array([x, y, x + width, y + height])).max()
    if off <= _ROUNDING + _SHARE * float(np.max(ends[2:] - ends[:2])):
        return []
    corners = np.abs(ends - np.array(bbox)).max() <= _ROUNDING
    how = (
        "it seems to hold two corners, where COCO has x, y, width, height"
        if corners
        else f"they differ by {off:.0f} pixels"
    )
    return [f"{where}: bbox and outline disagree; {how}"]
