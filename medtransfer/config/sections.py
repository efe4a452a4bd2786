"""The sections of a configuration that are of the study as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from medtransfer.models.plan.settings import PlanSettings
from medtransfer.text.section import Place, Section, WithPlace


class CohortSection(Section):
    """Which images, which patients, which label."""

    root: Place = Field(
        Path("."), description="Folder that image paths (or class folders) are relative to."
    )
    manifest: Place | None = Field(
        None, description="CSV with image, patient and label columns, or a MedMNIST archive (.npz)."
    )
    labels: tuple[str, ...] = Field((), description="Label columns of the manifest.")
    classes: tuple[str, ...] = Field(
        (), description="Class folders below root, in place of a manifest."
    )
    positive: str | None = Field(None, description="The class that counts as 1.")
    boxes: WithPlace | None = Field(
        None,
        description="Lesion boxes: FILE.csv (image, x0, y0, x1, y1[, z0, z1][, label]), FILE.json "
        "(COCO), yolo, voc or masks (of the same "
        "name as each image), or one of these with :FOLDER.",
    )
    kinds: tuple[str, ...] = Field(
        (), description="Labels of boxes that count as lesions; left out: all."
    )
    patient: str | None = Field(
        None,
        description="Without a manifest: regular expression that finds the patient in a file name.",
    )
    unnamed: Literal["own", "leave_out"] | None = Field(
        None, description="Of images whose name gives no patient."
    )
    parts: dict[str, Literal["train", "tune", "test"]] = Field(
        {}, description="Without a manifest: folder -> part, an official split."
    )
    skip_unreadable: bool = Field(
        False, description="Leave unreadable images out (and list them) instead of stopping."
    )
    axes: Literal["file", "ras", "mm"] | None = Field(
        None,
        description="Of boxes, what their coordinates count: pixels or voxels in the order of the "
        "file (as stored, before an EXIF turn), "
        "voxels to the right, front and head of the patient (ras), or mm in that system; left "
        "out: pixels as shown, and voxels as ras.",
    )
    look_alikes: Literal["ask", "same", "different"] = Field(
        "ask",
        description="Patients whose ids look alike, such as 7 and 007: one patient, different "
        "ones, or the study stops and asks.",
    )
    outside: bool = Field(
        False,
        description="Whether files outside the root, or behind links that lead out of it, may be "
        "read.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> CohortSection:
        if self.manifest is not None and self.classes:
            raise ValueError("give either manifest (with labels) or classes, not both")
        if self.manifest is None and not self.classes and self.boxes is None:
            raise ValueError(
                "give manifest: FILE.csv with labels: [COLUMN], or classes: [FOLDER, FOLDER] with "
                "positive: FOLDER"
            )
        if self.boxes is None and self.kinds:
            raise ValueError("kinds are those of boxes; set boxes")
        if self.unnamed is not None and self.patient is None:
            raise ValueError("unnamed is about names that give no patient; set patient")
        if (self.manifest is not None or self.classes) and (
            self.patient or self.unnamed or self.parts
        ):
            raise ValueError(
                "patient, unnamed and parts are for images without a manifest; it has columns "
                "patient and split"
            )
        if self.manifest is not None and self.manifest.suffix.lower() == ".npz":
            if self.labels:
                raise ValueError(
                    "a MedMNIST archive has its own labels; name the class that counts as 1 with "
                    "positive"
                )
        elif self.manifest is not None and not self.labels and self.boxes is None:
            raise ValueError("manifest needs labels: [COLUMN]")
        return self


class PlanSection(PlanSettings):
    """Overrides of the freeze plan, and how it is made."""

    search: bool = Field(
        False, description="Search for the depth on the training and tune patients of every fold."
    )
    domain: Literal["near", "far"] | None = Field(
        None, description="near: colour photographs, histology; far: grey US, MR, CT."
    )

    def by_hand(self) -> dict[str, Any]:
        """The fields set by hand."""
        return self.model_dump(include=set(PlanSettings.model_fields), exclude_none=True)


class ProtocolSection(Section):
    """How patients are divided, and how often training is repeated."""

    folds: int = Field(5, ge=2, le=20)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    split_seed: int = Field(0, ge=0, lt=2**31)
    tune: float = Field(
        0.2,
        gt=0.0,
        lt=0.6,
        description="Share of the training patients kept for early stopping and recalibration.",
    )
    leave_out: str | None = Field(
        None,
        description="Column of the manifest, such as site: each value is tested by models trained "
        "on the others, in place of folds.",
    )
    group: Literal["patient", "cluster"] = Field(
        "patient",
        description="What is never divided: patient, or cluster: patients that share "
        "near-duplicate images are one.",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"seeds must differ from each other, not {list(value)}")
        if any(not 0 <= seed < 2**31 for seed in value):
            raise ValueError(f"seeds must lie between 0 and 2147483647, not {list(value)}")
        return value


class AuditSection(Section):
    """What is looked for in a cohort before anything is learnt from it."""

    shortcuts: bool = Field(
        True,
        description="Whether facts beside the lesion (site, size, border, header) predict the "
        "label; false: not looked for.",
    )


class ReportSection(Section):
    """What the page shows. No number depends on it, so it may be changed for a study that is
    finished.
    """

    figures: tuple[Literal["svg", "pdf", "png"], ...] = Field(
        ("svg", "pdf", "png"),
        description="Formats of the files in figures/; the page shows SVG. []: no figures, on the "
        "page neither.",
    )
    gallery: bool = Field(
        True,
        description="Pictures of test images: the worst errors, or hits, misses and false alarms.",
    )
    reuse: bool = Field(
        True,
        description="Measure what was reused of the pretrained weights; what was measured stays "
        "until a run changes.",
    )


class LearningCurveSection(Section):
    """Small cohorts drawn from the training patients, to see how results grow with the number of
    patients.
    """

    sizes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (), description="Patients per class, such as [5, 10, 20, 50]."
    )
    episodes: int = Field(3, ge=1, le=1000, description="Draws of each size, in every fold.")
    steps: int | None = Field(
        None,
        ge=1,
        description="Of every draw (times an arm's budget); left out: train.epochs, else those of "
        "the plan.",
    )

    @model_validator(mode="before")
    @classmethod
    def _sizes_alone(cls, value: Any) -> Any:
        return (
            {"sizes": value}
            if isinstance(value, (list, tuple, int)) and not isinstance(value, bool)
            else value
        )

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))
