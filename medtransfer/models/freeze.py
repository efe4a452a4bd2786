"""How much of a backbone to freeze: from cohort and architecture to a plan with its reason.

The first rule is a table over the patients of the smallest class in training. Its rows from 150
upwards rest on 3,200 published runs of five depths on ten data sets (`tests/benchmarks/bench_plan_grid.py`);
the rows below are drawn from smaller studies and one cohort, and are marked as weak evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from medtransfer.errors import ConfigError
from medtransfer.models.backbone import Backbone
from medtransfer.models.plan import STRIDES, CacheBudget, FreezePlan, Read, Unfreeze, fix_plan, plan_cache

Domain = Literal["near", "far"]
Family = Literal["cnn", "dense_or_hierarchical", "plain_vit"]


@dataclass(frozen=True)
class _Row:
    """One row of the table: share of stages that train, by family, and the budget."""

    below: float
    trainable: dict[Family, float]
    backbone_lr: float
    head_lr: float
    decay: float
    steps: int | None
    epochs: int
    strong: bool
    read: Read = "last"
    unfreeze: Unfreeze = "at_once"
    l2_sp: float = 0.0
    mix: bool = False


def _shares(cnn: float, dense_or_hierarchical: float, plain_vit: float) -> dict[Family, float]:
    return {"cnn": cnn, "dense_or_hierarchical": dense_or_hierarchical, "plain_vit": plain_vit}


# Learning rates up to 1,000: three times those in the literature, which under-trained breast ultrasound (BUSI, inner
# folds of one training part of 517 images: AUC 0.919 at 1e-4, 0.933 at 3e-4). Rows below 150: EfficientNet-lite0 on draws
# of 10 to 100 patients a class from three folds of BUSI, tested on a fourth: a head on all stages won 0.01 to 0.06 of AUC
# over one on the last, gradual unfreezing 0.01, and from 8 patients in training on fine-tuning won over a probe.
_TABLE = (
    _Row(8, _shares(0.0, 0.0, 0.0), 3e-5, 1e-3, 0.65, 0, 0, False, read="all"),
    _Row(25, _shares(0.4, 0.4, 0.3), 3e-4, 1e-3, 0.78, 300, 0, False, read="all", unfreeze="gradual", l2_sp=0.01, mix=True),
    _Row(150, _shares(0.4, 0.95, 0.3), 3e-4, 1e-3, 0.78, 1000, 0, False, read="all", unfreeze="gradual", l2_sp=0.01),
    _Row(1000, _shares(0.6, 1.0, 0.4), 3e-4, 1e-3, 0.78, None, 40, True),
    _Row(10_000, _shares(1.0, 1.0, 0.6), 1e-4, 5e-4, 0.8, None, 25, True),
    _Row(math.inf, _shares(1.0, 1.0, 1.0), 2e-4, 3e-4, 0.9, None, 15, True),
)
# Below so many patients in the smaller class nothing is fine-tuned.
FEWEST_TO_TUNE = int(_TABLE[0].below)
# Below so many, training more for a far domain costs more than it brings.
_DEEPER = 25
_BATCH = 32
# The decays of the table were published for networks of about twelve layers.
_DECAY_LAYERS = 12
# Found in the same way and on the same folds as the rates above, so that neither side is favoured:
# AUC 0.748 at 1e-3, 0.830 at 3e-3, 0.826 at 6e-3.
_SCRATCH_LR = 3e-3
# Of detectors: brain MRI with 893 training images; see `configs/brain_tumor_detection.yaml`.
_MANY_LESIONS = 1000
_DETECTION_LR, _DETECTION_BODY_LR = 5e-4, 1.5e-4
_DETECTION_EPOCHS, _FEWEST_DETECTION_STEPS = 12, 600


class Counts(Protocol):
    """What a plan reads of a cohort's fingerprint."""

    @property
    def patients_per_class(self) -> dict[str, int]:
        """Patients by class."""
        ...

    @property
    def images_per_class(self) -> dict[str, int]:
        """Images by class."""
        ...

    @property
    def domain(self) -> Domain:
        """near or far."""
        ...


@dataclass(frozen=True)
class PlainCounts:
    """Counts without a cohort; each unit has one image."""

    patients_per_class: dict[str, int]
    domain: Domain

    @property
    def images_per_class(self) -> dict[str, int]:
        """As many images as patients."""
        return self.patients_per_class


def plan_freeze(
    fingerprint: Counts,
    backbone: Backbone,
    domain: Domain | None = None,
    transfer: bool | None = None,
    batch: int = _BATCH,
    cache: CacheBudget | None = None,
    finest: int = 0,
    **fixed: Any,
) -> FreezePlan:
    """Plans from the fingerprint of the *training* images and the backbone.

    Args:
        fingerprint: of the cohort, or `PlainCounts`.
        backbone: the architecture, with its weights or without.
        domain: near (colour photographs, histology, endoscopy) or far (grey US, MR, CT), in place of the fingerprint's.
        transfer: plan for pretrained weights; left out: whether the backbone has any.
        batch: images at a step of training.
        cache: budget of the cache of frozen activations; the defaults where left out.
        finest: plan for lesion boxes, found on a pyramid whose finest level has this stride in pixels; patients are then those with a
            lesion. 0: for the classification of whole images.
        **fixed: fields of `FreezePlan` set by hand; None means planned.

    Raises:
        ConfigError: a field that does not exist or does not fit the backbone.
    """
    if isinstance(finest, bool) or finest not in (0, *STRIDES):
        raise ConfigError(f"plan: finest is {finest!r}; expected 0, or of a detector {', '.join(map(str, STRIDES))}.")
    counts = dict(fingerprint.patients_per_class)
    units, images = counts["1"] if finest else min(counts.values()), sum(fingerprint.images_per_class.values())
    if finest:
        return _detection_plan(backbone, units, images, batch, cache or CacheBudget(), transfer, finest, fixed)
    if not (backbone.weights.source != "none" if transfer is None else transfer):
        # A frozen stage of random weights would learn nothing: this arm trains everything, whatever is set by hand.
        return _scratch_plan(len(backbone.stages), units, images, batch)
    plan = _transfer_plan(backbone, units, images, domain or fingerprint.domain, batch)
    plan = fix_plan(plan, backbone, **{key: value for key, value in fixed.items() if value is not None})
    if plan.strategy == "linear_probe" and not {"strategy", "frozen_stages"} & {key for key, value in fixed.items() if value is not None}:
        plan = replace(plan, views=0)  # views are for arms and sizes that are fine-tuned
    return plan_cache(plan, backbone, images, cache or CacheBudget(), choose=fixed.get("views") is None)


def _transfer_plan(backbone: Backbone, units: int, images: int, domain: str, batch: int) -> FreezePlan:
    stages, family = len(backbone.stages), family_of(backbone)
    index = next(i for i, row in enumerate(_TABLE) if units < row.below)
    row = _TABLE[index]
    # Far domains train one row deeper where evidence is weak. Above, 3,200 runs show no gain from it (and a loss of
    # 3.6 points of AUC for a plain ViT on ultrasound); below, too few patients stay too few.
    far = domain == "far" and units >= _DEEPER and not row.strong and family != "plain_vit"
    share = _TABLE[index + 1 if far else index].trainable[family]
    trainable = min(stages, math.ceil(share * stages)) if backbone.exact else stages * round(share)
    probe = trainable == 0
    what = (
        f"too few patients to fine-tune (from {FEWEST_TO_TUNE} on it would be), so a linear probe on the frozen features of all stages"
        if probe and row.read == "all" and units < FEWEST_TO_TUNE
        else "it has no exact chain of stages, so all or nothing, and with so few patients a linear probe"
        if probe
        else f"the last {trainable} of {stages} stages are trained after a linear probe"
    )
    deeper = "grey images are far from ImageNet, so one row of the table deeper; " if far else ""
    weak = "weak evidence: fewer than 150 patients in the smaller class; " if not row.strong else ""
    return FreezePlan(
        strategy="linear_probe" if probe else "lp_ft",
        stages=stages,
        frozen_stages=stages - trainable,
        trainable_fraction=0.0,
        head_lr=row.head_lr,
        backbone_lr=row.backbone_lr,
        stage_decay=round(row.decay ** min(1.0, _DECAY_LAYERS / stages), 4),
        steps=0 if probe else _steps(row, images, batch),
        norm_policy="eval" if units < 1000 else "train",
        evidence="strong" if row.strong else "weak",
        reason=f"{units} patients in the smaller class of the training part, {backbone.name} ({family.replace('_', ' ')}): "
        f"{deeper}{weak}{what}.",
        read=row.read,
        unfreeze=row.unfreeze,
        l2_sp=row.l2_sp,
        mix=row.mix,
    )


def _detection_plan(
    backbone: Backbone, units: int, images: int, batch: int, cache: CacheBudget, transfer: bool | None, finest: int, fixed: dict[str, Any]
) -> FreezePlan:
    """Of detectors: the stages below the pyramid rest where lesions are few; what lies above, and the head, trains."""
    pretrained = backbone.weights.source != "none" if transfer is None else transfer
    few = units < _MANY_LESIONS
    below = [place for place, stage in enumerate(backbone.stages, 1) if stage.reduction <= finest and stage.layout == "NCHW"]
    frozen = max(below, default=0) if few and pretrained and backbone.exact else 0
    steps = _DETECTION_EPOCHS * max(1, images // batch)
    what = f"the stages below the pyramid ({frozen} of {len(backbone.stages)}) rest" if frozen else "everything trains"
    what += f"; the finest level has a stride of {finest} pixels"
    plan = FreezePlan(
        strategy="fine_tune" if pretrained else "scratch",
        stages=len(backbone.stages),
        frozen_stages=frozen,
        trainable_fraction=0.0 if pretrained else 1.0,
        head_lr=_DETECTION_LR,
        backbone_lr=_DETECTION_BODY_LR if pretrained else _DETECTION_LR,
        stage_decay=1.0,
        steps=max(_FEWEST_DETECTION_STEPS, steps),
        norm_policy="eval" if pretrained else "train",
        evidence="weak",
        reason=f"{units} patients with lesions in the training part, {backbone.name}: weak evidence (one cohort of brain MRI): {what}."
        if pretrained
        else "Random weights: everything is trained.",
        finest=finest,
    )
    if not pretrained:
        return plan
    plan = fix_plan(plan, backbone, **{key: value for key, value in fixed.items() if value is not None})
    return plan_cache(plan, backbone, images, cache, choose=fixed.get("views") is None)


def _scratch_plan(stages: int, units: int, images: int, batch: int) -> FreezePlan:
    row = next(row for row in _TABLE if units < row.below and (row.steps or row.epochs))
    return FreezePlan(
        strategy="scratch",
        stages=stages,
        frozen_stages=0,
        trainable_fraction=1.0,
        head_lr=_SCRATCH_LR,
        backbone_lr=_SCRATCH_LR,
        stage_decay=1.0,
        steps=_steps(row, images, batch),
        norm_policy="train",
        evidence="strong",
        reason="Random weights: everything is trained, at the higher learning rate that training from scratch needs.",
    )


def _steps(row: _Row, images: int, batch: int) -> int:
    return row.steps if row.steps is not None else row.epochs * max(1, images // batch)


def family_of(backbone: Backbone) -> Family:
    """Which column of the table an architecture belongs to."""
    layouts = {stage.layout for stage in backbone.stages}
    if "NLC" in layouts:
        return "plain_vit"
    hierarchical = "NHWC" in layouts or any(part in backbone.name for part in ("densenet", "swin", "convnext"))
    return "dense_or_hierarchical" if hierarchical else "cnn"
