"""The page of `medtransfer check`: what was found, with the images it was found in."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medtransfer.files import write_aside, write_json
from medtransfer.report.build import load_template

# Groups and images shown of each kind; check.json holds all.
SHOWN_GROUPS = 60
SHOWN_IMAGES = 24


def build_sheet(
    folder: Path,
    title: str,
    findings: Mapping[str, Any],
    pictures: Mapping[str, NDArray[np.uint8]],
    captions: Mapping[str, str],
    boxed: Mapping[str, tuple[NDArray[np.uint8], str]] | None = None,
) -> Path:
    """Writes `check.html` and `check.json`; returns the page.

    Args:
        folder: made where it is not there.
        title: what was checked.
        findings: the answer of the check, see `Audit.to_dict`.
        pictures: by image, uint8 (row, column).
        captions: by image, such as its labels.
        boxed: by image, uint8 (row, column, 3) with its boxes, and a caption.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "check.json", findings)
    by_hazard: dict[str, list[tuple[str, str]]] = {}
    for row in findings["hazards"]:
        by_hazard.setdefault(row["hazard"], []).append((row["image"], row["detail"]))
    contradictions: dict[frozenset[str], list[str]] = {}
    for conflict in findings["conflicts"]:
        contradictions.setdefault(frozenset(conflict["images"]), []).append(conflict["detail"])
    groups = [(group, contradictions.get(frozenset(group), [])) for group in findings["clusters"]]
    # Contradicting labels first, then other contradictions.
    groups.sort(key=lambda pair: (not any("label" in detail for detail in pair[1]), not pair[1]))
    shown = {image for group, _ in groups[:SHOWN_GROUPS] for image in group[:SHOWN_IMAGES]}
    shown |= {image for rows in by_hazard.values() for image, _ in rows[:SHOWN_IMAGES]}
    others = [
        conflict
        for conflict in findings["conflicts"]
        if conflict["kind"] in {"patient_labels", "patient_split"}
    ]
    page = folder / "check.html"
    content = load_template("check.html").render(
        title=title,
        findings=findings,
        groups=groups[:SHOWN_GROUPS],
        hazards=sorted(by_hazard.items(), key=lambda item: -len(item[1])),
        others=others,
        sources={
            image: encode_picture(pictures[image]) for image in sorted(shown) if image in pictures
        },
        captions=captions,
        shown_images=SHOWN_IMAGES,
        boxed=[
            (image, encode_picture(picture), text)
            for image, (picture, text) in (boxed or {}).items()
        ],
    )
    write_aside(page, content)
    return page


def encode_picture(picture: NDArray[np.uint8]) -> str:
    """uint8 (row, column[, colour]) as what an <img> shows."""
    stream = io.BytesIO()
    Pillow.fromarray(picture).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
