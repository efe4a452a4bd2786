"""Images with lesion boxes: whose they are by the names of their files, and which of them the
source of boxes says something about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.cohort.patterns import find_parts, find_patients
from medtransfer.errors import CohortError
from medtransfer.text.account import make_account
from medtransfer.text.names import look_alikes

if TYPE_CHECKING:
    from medtransfer.data.cohort.cohort import Cohort


def name_by_files(
    cohort: Cohort, patient: str | None, unnamed: str | None, parts: Mapping[str, str]
) -> Cohort:
    """The cohort with patients from the names of files, and official parts from their folders; see
    `Cohort.from_boxes`.

    Raises:
        CohortError: a name that gives no patient, with `unnamed` None; or a folder without an
            image.
    """
    images = cohort.images["image"].tolist()
    if patient is not None:
        names = find_patients(images, patient, unnamed is None)
        patients = [name or image for name, image in zip(names, images, strict=True)]
        named = "" not in names or unnamed == "leave_out"
        alike = tuple(look_alikes(filter(None, names)))
        cohort = replace(
            cohort,
            images=cohort.images.assign(patient=patients),
            patients_known=named,
            by_study=(),
            alike=alike,
        )
        cohort = keep_images(
            cohort, [bool(name) or unnamed == "own" for name in names], "its name gives no patient"
        )
    if parts:
        where = find_parts(cohort.images["image"].tolist(), parts)
        cohort = keep_images(
            replace(cohort, images=cohort.images.assign(split=where)),
            list(map(bool, where)),
            "in none of cohort.parts",
        )
    return cohort


def add_boxes(cohort: Cohort, source: str, kinds: Sequence[str], axes: str | None) -> Cohort:
    """The cohort with the boxes of a source, without the images of which that does not say whether
    they hold a lesion.

    Raises:
        CohortError: see `read_annotations`; or it says so of no image.
    """
    read = read_annotations(
        source, cohort.images, cohort.root, kinds, [name for name, _ in cohort.ignored], axes
    )
    cohort = keep_images(
        cohort,
        [image not in read.unknown for image in cohort.images["image"]],
        next(iter(read.unknown.values()), ""),
    )
    if cohort.images.empty:
        raise CohortError(f"{source}: says of no image whether it holds a lesion.")
    notes = [*read.notes]
    if len(cohort.labels) == 1:  # what the label says, and whether there is a lesion
        boxed = cohort.images["image"].isin(set(read.boxes["image"]))
        positive = cohort.images[cohort.labels[0]] == 1
        counts = int((boxed & ~positive).sum()), int((positive & ~boxed).sum())
        if any(counts):
            notes.append(
                f"{counts[0]} image(s) with {cohort.labels[0]} = 0 have a box, and {counts[1]} "
                f"with {cohort.labels[0]} = 1 have none"
            )
    return replace(
        cohort,
        boxes=read.boxes,
        annotated=read,
        source={
            **cohort.source,
            "boxes": source,
            "kinds": list(kinds),
            **({"axes": axes} if axes else {}),
        },
        accounts=(*cohort.accounts, *read.accounts),
        notes=(*cohort.notes, *notes),
        asks=(*cohort.asks, *read.asks),
    )


def keep_images(cohort: Cohort, kept: Sequence[bool], reason: str) -> Cohort:
    """The cohort with some of its images; why the others were left out is noted."""
    left_out = [image for image, keep in zip(cohort.images["image"], kept, strict=True) if not keep]
    if not left_out:
        return cohort
    account = make_account(
        "images",
        cohort.root.name,
        len(kept) - len(left_out),
        [(name, reason, False) for name in left_out],
    )
    images, ignored = (
        cohort.images[list(kept)].reset_index(drop=True),
        (*cohort.ignored, *((name, reason) for name in left_out)),
    )
    return replace(cohort, images=images, ignored=ignored, accounts=(*cohort.accounts, account))
