"""The sections of a configuration, each with its keys, their ranges and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medtransfer.data.images.windows import parse_window
from medtransfer.text.yaml import holds_items, open_home


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_below(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any, field: ValidationInfo) -> Any:
        alone = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return (
            (value,)
            if alone and holds_items(cls.model_fields[str(field.field_name)].annotation)
            else value
        )


# A path, or a text that may hold one, with the home folder in place of `~`.
_Place = Annotated[Path, AfterValidator(open_home)]
_WithPlace = Annotated[str, AfterValidator(open_home)]


def _check_budget(value: object) -> object:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 100
    if value is None or value == "level" or number:
        return float(value) if isinstance(value, (int, float)) else value
    raise ValueError(f"a number above 0, at most 100, or level, not {value!r}")


class CohortSection(Section):
    """Which images, which patients, which label."""

    root: _Place = Field(
        Path("."), description="Folder that image paths (or class folders) are relative to."
    )
    manifest: _Place | None = Field(
        None, description="CSV with image, patient and label columns, or a MedMNIST archive (.npz)."
    )
    labels: tuple[str, ...] = Field((), description="Label columns of the manifest.")
    classes: tuple[str, ...] = Field(
        (), description="Class folders below root, in place of a manifest."
    )
    positive: str | None = Field(None, description="The class that counts as 1.")
    boxes: _WithPlace | None = Field(
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


class ImageSection(Section):
    """How pixels become the network's input."""

    size: int = Field(128, ge=32, le=1024, description="Side of the square input in pixels.")
    spacing: Annotated[float, Field(gt=0)] | tuple[Annotated[float, Field(gt=0)], ...] | None = (
        Field(
            None,
            description="mm per pixel of the input, one number or one per axis; left out: the "
            "longest side fills size.",
        )
    )
    slices: int = Field(24, ge=1, le=512, description="Of a volume: number of slices.")
    slice_spacing: float | None = Field(
        None,
        gt=0,
        description="Of a volume: mm from slice to slice; left out: slices are spread over the "
        "whole volume.",
    )
    plane: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="Of the slices of a volume."
    )
    window: str | tuple[Any, ...] = Field(
        "percentile",
        description="What becomes 0..1: percentile (0.5 to 99.5), full (minimum to maximum), "
        "from_header (DICOM), "
        "lung, brain, soft_tissue, bone (CT, in HU), [center, width], or a list of three of these "
        "for three channels.",
    )

    @field_validator("window")
    @classmethod
    def _known_window(cls, value: Any) -> Any:
        return parse_window(value)

    @field_validator("spacing")
    @classmethod
    def _axes(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(value) not in {2, 3}:
            raise ValueError(f"spacing is one number, or one per axis (2 or 3), not {len(value)}")
        return value


class AugmentSection(Section):
    """Random changes of images in training, as far as the labels allow them."""

    flip: Literal["auto", "none", "left_right", "all"] = Field(
        "auto",
        description="all: planes upside down too, where images have no up, as in histology; auto: "
        "left_right, or none where a label names "
        "a side.",
    )
    rotate: float = Field(
        15.0,
        ge=0,
        le=180,
        description="Degrees to either side, at the most; images with boxes are not turned.",
    )
    intensity: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the usual changes of gamma, contrast and brightness; 0: none.",
    )


class RecipeSection(Section):
    """Mean and standard deviation of the input, of intensities in 0..1: one number, or one per
    channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> RecipeSection:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError("mean and std have as many numbers as each other, and std is above 0")
        return self


class PlanFields(Section):
    """Fields of the freeze plan set by hand. Whatever is left out is planned from the cohort; see
    `FreezePlan`.
    """

    strategy: Literal["linear_probe", "lp_ft"] | None = None
    frozen_stages: int | None = Field(
        None, ge=0, description="The first so many never change; with tuned first, the last."
    )
    dropped_stages: int | None = Field(None, ge=0, description="So many are cut off the top.")
    head_lr: float | None = Field(None, gt=0)
    backbone_lr: float | None = Field(None, gt=0)
    stage_decay: float | None = Field(None, gt=0, le=1)
    norm_policy: Literal["train", "eval"] | None = None
    tuned: Literal["last", "first", "norms"] | None = Field(
        None, description="Which stages train: last, first (surgical), norms alone."
    )
    unfreeze: Literal["at_once", "gradual"] | None = Field(
        None, description="gradual: stage by stage from the top."
    )
    read: Literal["last", "all"] | None = Field(
        None, description="Stages whose features the head reads."
    )
    l2_sp: float | None = Field(
        None, ge=0, lt=1, description="Pull towards the pretrained weights."
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Of the features the head reads.")
    adapt_norm: bool | None = Field(
        None, description="Batch-norm statistics taken anew from the training images (AdaBN)."
    )
    mix: bool | None = Field(
        None, description="Keep the best mixture of pretrained and fine-tuned weights (WiSE-FT)."
    )
    views: int | None = Field(
        None, ge=0, description="Random views per image whose frozen activations are kept; 0: none."
    )
    finest: Literal[4, 8, 16] | None = Field(
        None, description="Of a detector: stride of the finest level of its pyramid, in pixels."
    )


class PlanSection(PlanFields):
    """Overrides of the freeze plan, and how it is made."""

    search: bool = Field(
        False, description="Search for the depth on the training and tune patients of every fold."
    )
    domain: Literal["near", "far"] | None = Field(
        None, description="near: colour photographs, histology; far: grey US, MR, CT."
    )

    def by_hand(self) -> dict[str, Any]:
        """The fields set by hand."""
        return self.model_dump(include=set(PlanFields.model_fields), exclude_none=True)


class ArmSection(Section):
    """One contestant: a backbone, where its weights come from, and how it sees volumes."""

    kind: Literal["network", "features"] = Field(
        "network",
        description="features: intensity, texture and shape by formula, with a logistic "
        "regression; a baseline to beat.",
    )
    backbone: str
    weights: _WithPlace | None = Field(
        None,
        description="imagenet, timm:TAG, radimagenet, radimagenet:PATH, file:PATH, study:FOLDER, "
        "or none for random weights.",
    )
    channels: int = Field(
        3,
        ge=1,
        le=64,
        description="Of the input; 1: the first convolution is summed over the colours.",
    )
    recipe: RecipeSection | None = Field(
        None, description="Mean and std of the input, in place of those of the weights."
    )
    pooling: Literal["attention", "mean", "max"] = Field(
        "attention", description="How the slices of a volume become one case."
    )
    slab: int = Field(
        1,
        ge=1,
        le=15,
        description="Odd number of neighbouring slices that become the channels of each (2.5D).",
    )
    budget: Annotated[float | Literal["level"] | None, BeforeValidator(_check_budget)] = Field(
        None,
        description="So many times the training of the other arms; or level: on until the tune "
        "loss has levelled off, at most four times "
        "as long, as arms without weights do where it is left out.",
    )
    plan: PlanFields = Field(
        PlanFields(),
        description="Fields of the freeze plan for this arm alone, before those of the section "
        "plan.",
    )

    @model_validator(mode="before")
    @classmethod
    def _formulas(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "features" not in (
            value.get("kind"),
            value.get("backbone"),
        ):
            return value
        plan = value.get("plan")
        empty = plan is None or (
            isinstance(plan, dict) and all(field is None for field in plan.values())
        )
        idle = {"plan"} if empty else set()
        idle |= {"budget"} if value.get("budget") == 1 else set()
        given = {key for key, setting in value.items() if setting is not None and setting != "none"}
        extra = sorted(map(str, given - idle - {"kind", "backbone", "pooling", "channels", "slab"}))
        if extra or value.get("backbone", "features") != "features":
            raise ValueError(
                f"kind: features takes no {', '.join(extra) or 'backbone'}; it is measured by "
                "formula"
            )
        return {**value, "kind": "features", "backbone": "features"}

    @property
    def times(self) -> float:
        """The budget of this arm, in budgets of the study."""
        return self.budget if isinstance(self.budget, float) else 1.0

    @property
    def level(self) -> bool:
        """Whether training goes on beyond the budget until the tune loss has levelled off."""
        return self.kind == "network" and (
            self.budget == "level" or (self.budget is None and self.weights is None)
        )

    @model_validator(mode="after")
    def _slab(self) -> ArmSection:
        if self.slab % 2 == 0:
            raise ValueError(
                "slab is an odd number of slices, the middle one with as many on either side, "
                f"not {self.slab}"
            )
        if self.slab > 1 and self.channels not in {3, self.slab}:
            raise ValueError(f"slab {self.slab} makes {self.slab} channels; leave channels out")
        return self

    @field_validator("weights", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) == 1:  # YAML takes `file: PATH` apart
            kind, rest = next(iter(value.items()))
            if rest is None:
                raise ValueError(
                    f"{kind}: stands alone; write what follows it, without a space: {kind}:PATH"
                )
            return f"{kind}:{rest}"
        return None if isinstance(value, str) and value.lower() == "none" else value


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


class TrainSection(Section):
    """The budget, the same for every arm whose own `budget` does not say otherwise."""

    epochs: int | None = Field(
        None, ge=1, description="Passes over the training images; the plan's steps where left out."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Epochs without a better tune log-loss before training stops, but not that of "
        "arms until level; left out: all are run.",
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        description="Images at a step; left out: 32 images, or 8 volumes; of detection 8, or 2.",
    )
    weight_decay: float = Field(0.05, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    layout: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto", description="Order of memory of images and convolutions."
    )
    compile: Literal["auto", True, False] = Field(
        "auto",
        description="Whether torch compiles what trains; auto: on CUDA, where that saves more "
        "time than it takes.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache_gb: float = Field(
        4.0,
        ge=0,
        description="Disk for activations of frozen stages during a study, in 2^30 bytes; 0: none.",
    )
    track: Literal["tensorboard", "mlflow"] | None = Field(
        None, description="Where the curves of trainings go, besides metrics.jsonl."
    )


_Share = Annotated[float, Field(gt=0, lt=1)]


class EvaluateSection(Section):
    """What is measured and how; to be chosen before the results are seen."""

    bootstrap: int = Field(2000, ge=100, le=100_000)
    seed: int = Field(0, ge=0, lt=2**31)
    unit: Literal["auto", "image", "patient"] = Field(
        "auto",
        description="What is counted; the other is shown beside it. auto: patients, where they "
        "have several images.",
    )
    aggregate: Literal["auto", "max", "mean", "noisy_or"] = Field(
        "auto",
        description="How the images of a patient become one score. auto: mean, or noisy_or where "
        "labels are of images.",
    )
    recalibration: Literal["auto", "temperature", "platt", "beta", "isotonic"] = Field(
        "auto",
        description="Fitted on tune patients; auto: platt, unless another is better in "
        "cross-validation among them.",
    )
    sensitivity: _Share | None = Field(
        0.9, description="Of an operating point, reached on tune patients."
    )
    specificity: _Share | None = Field(
        0.9, description="Of an operating point, reached on tune patients."
    )
    threshold: _Share | None = Field(
        None, description="Probability of an operating point, from the harm / benefit of acting."
    )
    prevalences: tuple[_Share, ...] = Field(
        (), description="At which predictive values are told, besides that of the cohort."
    )
    target_prevalence: _Share | None = Field(
        None, description="Of the patients the model is meant for."
    )
    margin: _Share | None = Field(None, description="Of non-inferiority in AUC, such as 0.05.")
    coverage: _Share = Field(0.9, description="Of prediction sets.")
    subgroups: tuple[str, ...] = Field(
        (), description="Columns of the manifest: results within their groups."
    )
    weight: str | None = Field(
        None, description="Column of a predictions table that says how much an image counts."
    )
    leave_out: str | None = Field(
        None,
        description="What each fold of a predictions table leaves out, such as site; a study "
        "takes it from protocol.leave_out.",
    )
    arms: tuple[str, ...] = Field(
        (), description="Order of the arms; others follow by name. The later of two is subtracted."
    )
    look_alikes: Literal["ask", "different"] = Field(
        "ask",
        description="different: patients whose names look alike, such as 7 and 007, are different "
        "people, on whatever side.",
    )
    models: Literal["sampled", "given"] = Field(
        "sampled",
        description="given: figures are about the models of the table alone, as in an external "
        "validation.",
    )


class DetectionSection(Section):
    """What counts as a lesion that was found; to be chosen before the results are seen."""

    hit: Literal["overlap", "centre"] = Field(
        "overlap", description="overlap, or centre: of the candidate, within the lesion's box."
    )
    overlap: float = Field(0.5, gt=0, le=1, description="Least intersection over union of a hit.")


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
