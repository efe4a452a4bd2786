"""Whether labels or columns are about left and right: images that are mirrored would contradict
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.manifest import read_cells
from medtransfer.data.grid.settings import Augment
from medtransfer.data.images.medmnist import is_archive

# Words of a name, between anything that is no letter.
_SIDES = {"left", "right", "laterality", "side", "sided", "leftsided", "rightsided"}


def labels_of_a_side(cohort: Cohort) -> list[str]:
    """The labels whose name, meaning or class names a side of the body."""
    classes = cohort.source.get("classes") or ()
    return [
        label
        for label in cohort.labels
        if _names_side((label, cohort.meaning.get(label, ""), *classes))
    ]


def allowed_changes(cohort: Cohort, augment: Augment | None = None) -> Augment:
    """The random changes that are asked for; `flip: auto` is settled: images are mirrored unless a
    label names a side.
    """
    augment = augment or Augment()
    if augment.flip != "auto":
        return augment
    flip = "none" if labels_of_a_side(cohort) else "left_right"
    return augment.model_copy(update={"flip": flip})


def tell_sides(cohort: Cohort, flip: str = "auto") -> tuple[str, ...]:
    """What is to be known of left and right in a cohort, in sentences, where `flip` is asked for;
    see `allowed_changes`.
    """
    if flip == "none":
        return ()
    told = []
    if labels := ", ".join(labels_of_a_side(cohort)):
        told.append(
            f"{labels}: the label names a side, so that images are not mirrored in training "
            "(augment.flip sets it)."
            if flip == "auto"
            else f"{labels}: the label names a side, and images are mirrored all the same "
            f"(augment.flip={flip}), which makes it wrong."
        )
    if columns := ", ".join(
        name for name in _columns(cohort) if name not in cohort.labels and _names_side((name,))
    ):
        told.append(
            f"column {columns}: it may say which side an image shows. If a label depends on the "
            "side, set augment.flip=none."
        )
    return tuple(told)


def _columns(cohort: Cohort) -> list[str]:
    """Of the manifest, those among them that are not copied into a study."""
    manifest = Path(cohort.source.get("manifest") or "")
    listed = read_cells(manifest).columns if manifest.is_file() and not is_archive(manifest) else ()
    return [*dict.fromkeys([*map(str, cohort.images.columns), *map(str, listed)])]


def _names_side(names: Iterable[object]) -> bool:
    return any(set(re.split(r"[^a-z]+", str(name).lower())) & _SIDES for name in names)
