"""What the names of files say: whose images they are, and which part of an official split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medtransfer.data.cohort.manifest import PART_NAMES
from medtransfer.errors import CohortError


@dataclass(frozen=True)
class FileNames:
    """How the names of files are read.

    Attributes:
        patient: regular expression that finds the patient in the name of a file: its first group,
            or all of it. Where left out, patients are those of DICOM headers, else each image
            stands for one.
        unnamed: images whose name gives no patient: `own` (each stands for one) or `leave_out`;
            None: there may be none.
        parts: folder below the root -> train, tune or test: an official split.
    """

    patient: str | None = None
    unnamed: Literal["own", "leave_out"] | None = None
    parts: Mapping[str, str] = field(default_factory=dict)


def find_patients(images: Sequence[str], pattern: str, silent_is_an_error: bool) -> list[str]:
    """The patient of each image: the first group of a regular expression in the name of its file,
    or all of it; "" where there is none.

    Raises:
        CohortError: no regular expression, one that is found nowhere, or with `silent_is_an_error`
            not everywhere.
    """
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise CohortError(
            f"cohort.patient: {pattern!r} is no regular expression ({error})."
        ) from error
    matches = [search.search(image.rsplit("/", 1)[-1]) for image in images]
    names = [(match.group(1 if search.groups else 0) or "") if match else "" for match in matches]
    silent = [image for image, name in zip(images, names, strict=True) if not name]
    if len(silent) == len(names):
        raise CohortError(
            f"cohort.patient: {pattern!r} is found in none of {len(names)} file names, such as "
            f"{silent[0]}."
        )
    if silent and silent_is_an_error:
        raise CohortError(
            f"cohort.patient: {pattern!r} is not found in {len(silent)} of {len(names)} file "
            f"names, such as {silent[0]}. Set "
            "cohort.unnamed to leave_out, or to own where each of these is known to be of another "
            "patient."
        )
    return names


def find_parts(images: Sequence[str], parts: Mapping[str, str]) -> list[str]:
    """The part (train, tune or test) of each image by the folder it lies in, "" for those in none.

    Raises:
        CohortError: a part of another name, or a folder without an image.
    """
    wrong = [
        f"{folder}: {part}" for folder, part in parts.items() if part.lower() not in PART_NAMES
    ]
    if wrong:
        raise CohortError(f"cohort.parts: {', '.join(wrong)}; a part is train, tune or test.")
    part_of = {f"{folder.strip('/')}/": PART_NAMES[part.lower()] for folder, part in parts.items()}
    absent = [folder for folder in part_of if not any(image.startswith(folder) for image in images)]
    if absent:
        raise CohortError(f"cohort.parts: no image in {', '.join(absent)}.")
    innermost = sorted(part_of, key=len, reverse=True)
    return [
        next((part_of[folder] for folder in innermost if image.startswith(folder)), "")
        for image in images
    ]
