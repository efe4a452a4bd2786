"""What the plan needs to know of a cohort."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError

_TARGET, _UNIT = "(target)", "(unit)"


@dataclass(frozen=True)
class Fingerprint:
    """What the plan needs to know of a cohort.

    Attributes:
        patients_per_class, images_per_class: counts by class, "0" and "1" of the first label.
        ndim: 2 for images, 3 for volumes.
        modality: DICOM modality where all images agree, else "mixed" or "unknown".
        colour: True where images carry colour.
        domain: near (colour photographs, histology, endoscopy) or far (grey US, MR, CT) from
            ImageNet.
        shape: quantiles 0, 0.5 and 1 of the pixels along each axis of space.
        spacing: the same of the mm, of the images that state it; empty where none does.
        intensity: quantiles 0, 0.5 and 1 of the images' 99th percentile of intensity.
    """

    patients_per_class: dict[str, int]
    images_per_class: dict[str, int]
    ndim: int
    modality: str
    colour: bool
    domain: Literal["near", "far"]
    shape: tuple[tuple[float, float, float], ...]
    spacing: tuple[tuple[float, float, float], ...]
    intensity: tuple[float, float, float]

    @property
    def smallest_class(self) -> int:
        """Patients in the smaller class: the number the plan depends on."""
        return min(self.patients_per_class.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def fingerprint(cohort: Cohort) -> Fingerprint:
    """Reads every image of a cohort, and describes it; see `make_fingerprint`."""
    return make_fingerprint(cohort, inspect_images(cohort))


def make_fingerprint(cohort: Cohort, facts: pd.DataFrame) -> Fingerprint:
    """Describes a cohort from the facts of its images (see `inspection.inspect_images`), unreadable
    ones left out.
    """
    readable = facts[facts["error"] == ""]
    label = cohort.labels[0]
    images = cohort.images[["image"]].assign(**{_UNIT: cohort.units, _TARGET: cohort.images[label]})
    merged = images.merge(readable, on="image", how="inner", validate="one_to_one")
    if merged.empty:
        raise CohortError(
            f"{cohort.root}: none of the {len(cohort)} images can be read. `medtransfer check` "
            "lists the reasons."
        )
    # A patient (or group) with a positive and a negative image counts once, as positive.
    by_patient = merged.groupby(_UNIT)[_TARGET].max()
    modalities = sorted(set(merged["modality"]) - {""})
    colour = bool(merged["colour"].mean() > 0.5)

    dimensions = {len(shape) for shape in merged["shape"]}
    if len(dimensions) > 1:
        raise CohortError(f"{cohort.root}: images and volumes are mixed. Make one cohort of each.")

    return Fingerprint(
        patients_per_class={"0": int((by_patient == 0).sum()), "1": int((by_patient == 1).sum())},
        images_per_class={
            "0": int((merged[_TARGET] == 0).sum()),
            "1": int((merged[_TARGET] == 1).sum()),
        },
        ndim=dimensions.pop(),
        modality=modalities[0] if len(modalities) == 1 else ("mixed" if modalities else "unknown"),
        colour=colour,
        domain="near" if colour else "far",
        shape=_quantiles_by_axis(merged["shape"].tolist()),
        spacing=_quantiles_by_axis([spacing for spacing in merged["spacing"] if spacing]),
        intensity=_quantiles(merged["intensity"].to_numpy(float)),
    )


def _quantiles(values: Any) -> tuple[float, float, float]:
    low, middle, high = (float(q) for q in np.quantile(values, [0.0, 0.5, 1.0]))
    return low, middle, high


def _quantiles_by_axis(rows: list[tuple[float, ...]]) -> tuple[tuple[float, float, float], ...]:
    return tuple(_quantiles(np.array(axis, dtype=float)) for axis in zip(*rows, strict=True))
