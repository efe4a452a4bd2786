"""What every image of a cohort is, and what is wrong with the cohort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.data.cohort import Cohort
from medtransfer.data.reading import Image, read_image
from medtransfer.errors import ImageError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Audit:
    """Findings about a cohort. Images are named by their id.

    Attributes:
        found, readable: number of images in the cohort, and of those that can be read.
        patients: number of patients; of images where patients are not known.
        patients_known: False where each image stands for a patient.
        unreadable: (image, reason).
        hazards: (image, what to know of its pixels).
        duplicates: groups of images with equal decoded pixels.
        conflicts: groups of duplicates with different labels, or of different patients.
        ignored: files left out of class folders, with the reason.
    """

    found: int
    readable: int
    patients: int
    patients_known: bool
    unreadable: tuple[tuple[str, str], ...]
    hazards: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    conflicts: tuple[tuple[str, ...], ...]
    ignored: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per finding: `kind`, `images`, `detail`."""
        rows = [("unreadable", image, reason) for image, reason in self.unreadable]
        rows += [("hazard", image, reason) for image, reason in self.hazards]
        rows += [("duplicates", ", ".join(group), "equal pixels") for group in self.duplicates]
        rows += [("conflict", ", ".join(group), "equal pixels, but another label or patient") for group in self.conflicts]
        return pd.DataFrame(rows, columns=["kind", "images", "detail"])

    def __str__(self) -> str:
        who = f"{self.patients} patients" if self.patients_known else "no patient ids: each image stands for a patient"
        head = f"{self.found} images found, {self.readable} readable; {who}"
        frame = self.to_frame()
        return head if frame.empty else head + "\n" + frame.to_string(index=False, max_colwidth=100)


def inspect_images(cohort: Cohort, progress: Progress | None = None) -> pd.DataFrame:
    """Reads every image once and notes what it is; a bad file is noted, not raised.

    Returns:
        One row per image in the cohort's order: `image`, `error` ("" where readable), `file_digest`,
        `pixel_digest`, `rows`, `columns`, `colour`, `modality`, `bits_stored`, `intensity` (99th
        percentile), `hazard` ("" where none).
    """
    rows = []
    for done, (name, path) in enumerate(zip(cohort.images["image"], cohort.images["path"], strict=True), start=1):
        rows.append({"image": name, **_inspect(Path(path))})
        if progress is not None:
            progress("reading", done, len(cohort))
    return pd.DataFrame(rows)


def audit(cohort: Cohort, facts: pd.DataFrame | None = None) -> Audit:
    """Gathers findings from the facts of the images; reads the images where no facts are given."""
    facts = inspect_images(cohort) if facts is None else facts
    good = facts[facts["error"] == ""]
    table = cohort.images.set_index("image")
    duplicates: list[tuple[str, ...]] = []
    conflicts: list[tuple[str, ...]] = []
    for _, group in good.groupby("pixel_digest", sort=False)["image"]:
        if len(group) > 1:
            names = tuple(group)
            duplicates.append(names)
            rows = table.loc[list(names)]
            two_patients = cohort.patients_known and len(set(rows["patient"])) > 1
            if two_patients or any(len(set(rows[label])) > 1 for label in cohort.labels):
                conflicts.append(names)
    return Audit(
        found=len(facts),
        readable=len(good),
        patients=int(cohort.images["patient"].nunique()),
        patients_known=cohort.patients_known,
        unreadable=tuple(_pairs(facts[facts["error"] != ""], "error")),
        hazards=tuple(_pairs(good[good["hazard"] != ""], "hazard")),
        duplicates=tuple(duplicates),
        conflicts=tuple(conflicts),
        ignored=cohort.ignored,
    )


def _pairs(facts: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    return list(zip(facts["image"], facts[column], strict=True))


_UNREAD = {"pixel_digest": "", "rows": 0, "columns": 0, "colour": False, "modality": "", "bits_stored": 0, "intensity": 0.0, "hazard": ""}


def _inspect(path: Path) -> dict[str, Any]:
    try:
        file_digest = hashlib.sha256(path.read_bytes()).hexdigest()
        image = read_image(path)
    except (ImageError, OSError) as error:
        return {"error": str(error).removeprefix(f"{path}: "), "file_digest": "", **_UNREAD}
    array = image.array
    return {
        "error": "",
        "file_digest": file_digest,
        "pixel_digest": hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest(),
        "rows": array.shape[1],
        "columns": array.shape[2],
        "colour": array.shape[0] == 3,
        "modality": image.provenance["modality"],
        "bits_stored": image.provenance["bits_stored"],
        "intensity": float(np.percentile(array, 99)),
        "hazard": _hazard(image),
    }


def _hazard(image: Image) -> str:
    found = []
    if float(image.array.max()) == float(image.array.min()):
        found.append("constant: every pixel has the same value")
    if image.provenance.get("burned_in") == "YES":
        found.append("BurnedInAnnotation is YES: text in the pixels may name the patient or the diagnosis")
    return "; ".join(found)
