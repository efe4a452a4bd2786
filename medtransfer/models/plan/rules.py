"""How much of a backbone to freeze: from cohort and architecture to a plan with its reason.

The size of a cohort is the geometric mean of its classes in training. Shares of trained stages and
learning rates follow it along lines that rest, from 150 upwards, on 3,200 published runs of five
depths on ten data sets (`tests/benchmarks/bench_plan_grid.py`); below, they are drawn from smaller
studies and one cohort, and are marked as weak evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from medtransfer.errors import ConfigError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.cache import CacheBudget, plan_cache
from medtransfer.models.plan.overrides import fix_plan
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.models.plan.settings import STRIDES

Domain = Literal["near", "far"]
Family = Literal["cnn", "dense_or_hierarchical", "plain_vit"]
# Values by size, straight between points whose sizes are on the logarithm, level beyond the ends.
Line = Sequence[tuple[float, float]]

# Share of stages that train. Far domains train more where evidence is weak; from 150 on the runs
# show no gain from it, and a loss of 3.6 points of AUC for a plain ViT on ultrasound.
_SHARES: dict[tuple[Family, Domain], Line] = {
    ("cnn", "near"): ((25, 0.4), (150, 0.6), (1000, 0.6), (5000, 1.0)),
    ("cnn", "far"): ((20, 0.4), (40, 0.6), (1000, 0.6), (5000, 1.0)),
    ("dense_or_hierarchical", "near"): ((20, 0.4), (40, 0.95), (400, 1.0)),
    ("dense_or_hierarchical", "far"): ((20, 0.4), (40, 1.0)),
    **{
        ("plain_vit", domain): ((100, 0.3), (200, 0.4), (500, 0.6), (10_000, 0.6), (30_000, 1.0))
        for domain in ("near", "far")
    },
}
# Learning rates up to 1,000: three times those in the literature, which under-trained breast
# ultrasound (BUSI, inner folds of one training part of 517 images: AUC 0.919 at 1e-4, 0.933 at
# 3e-4).
_BACKBONE_LR: Line = ((500, 3e-4), (3000, 1e-4))
_HEAD_LR: Line = ((500, 1e-3), (3000, 5e-4), (30_000, 3e-4))
_STAGE_DECAY: Line = ((500, 0.78), (3000, 0.8), (30_000, 0.9))
_L2_SP: Line = ((50, 0.01), (300, 0.0))
# Below so many patients in the smallest class nothing is fine-tuned.
FEWEST_TO_TUNE = 8
# From so large a cohort on the runs above speak. Below it the head reads all stages, and these are
# unfrozen one by one. At the border this changes nothing (AUC on BUSI: draws of 120 patients a
# class -0.003, all of it 0.000 (-0.017 to 0.016, five folds)); further below it depends on the
# cohort: BreastMNIST, 38 and 90 patients, +0.031 (five seeds); BUSI, draws of 60 and 25, -0.007 and
# -0.029 (four draws).
_STRONG = 150
# Below so large a cohort the pretrained weights are mixed in; below so large a one batch norms keep
# their statistics.
_MIXED, _OWN_STATISTICS = 25, 1000
_BATCH = 32
# The decays were published for networks of about twelve layers.
_DECAY_LAYERS = 12
# The budget: a floor of steps by the images of the training part, then epochs, fewer for very many
# images, so that steps never fall.
_STEPS: Line = ((20, 300), (100, 1000))
_EPOCHS, _MANY_IMAGES, _GROWTH = 40, 2000, 0.75
# From scratch, by the layout of stages or a word of the name; found in the same way, on inner folds
# of BUSI and of the phantom, so that neither side is favoured (`bench_scratch.py rates`): batches
# of 8, 16 and 32 images ask for the same.
_SCRATCH_LR = {"NLC": 3e-4, "NHWC": 2e-4, "densenet": 1e-3, "convnext": 2e-3}
_SCRATCH_LR_OF_OTHERS = 3e-3
# Of detectors: brain MRI with 893 training images; see `configs/brain_tumor_detection.yaml`.
_MANY_LESIONS = 1000
_DETECTION_LR, _DETECTION_BODY_LR = 5e-4, 1.5e-4
_DETECTION_EPOCHS, _FEWEST_DETECTION_STEPS = 12, 600


def cohort_size(counts: Mapping[str, int]) -> float:
    """The geometric mean of the classes, 0 where one is empty.

    Of six measures the mean and the geometric mean choose best for a data set that they have not
    seen (`bench_plan_grid.py`); where classes are very unequal, as in no set of that bench, the
    latter is the more cautious.
    """
    return (
        round(math.exp(sum(map(math.log, counts.values())) / len(counts)), 6)
        if min(counts.values())
        else 0.0
    )


def count_budget(images: int, batch: int) -> int:
    """Optimiser steps for a training part of so many images."""
    epochs = _EPOCHS * min(1.0, math.pow(images / _MANY_IMAGES, _GROWTH - 1))
    return round(max(at_size(_STEPS, images), epochs * images / batch))


def at_size(line: Line, size: float) -> float:
    """The value of a line at a size; see `Line`."""
    sizes, values = zip(*line, strict=True)
    return float(np.interp(math.log(max(size, 1.0)), np.log(sizes), values))


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
        domain: near (colour photographs, histology, endoscopy) or far (grey US, MR, CT), in place
            of the fingerprint's.
        transfer: plan for pretrained weights; left out: whether the backbone has any.
        batch: images at a step of training.
        cache: budget of the cache of frozen activations; the defaults where left out.
        finest: plan for lesion boxes, found on a pyramid whose finest level has this stride in
            pixels; patients are then those with a lesion. 0: for the classification of whole
            images.
        **fixed: fields of `FreezePlan` set by hand; None means planned.

    Raises:
        ConfigError: a field that does not exist or does not fit the backbone.
    """
    if isinstance(finest, bool) or finest not in (0, *STRIDES):
        raise ConfigError(
            f"plan: finest is {finest!r}; expected 0, or of a detector "
            f"{', '.join(map(str, STRIDES))}."
        )
    counts = dict(fingerprint.patients_per_class)
    images = sum(fingerprint.images_per_class.values())
    by_hand = {key: value for key, value in fixed.items() if value is not None}
    pretrained = backbone.weights.source != "none" if transfer is None else transfer
    if finest:
        return _detection_plan(
            backbone,
            counts["1"],
            images,
            batch,
            cache or CacheBudget(),
            pretrained,
            finest,
            by_hand,
        )
    if not pretrained:
        # A frozen stage of random weights would learn nothing: this arm trains everything, whatever
        # is set by hand.
        return _scratch_plan(backbone, images, batch)
    plan = _transfer_plan(backbone, counts, images, domain or fingerprint.domain, batch)
    plan = fix_plan(plan, backbone, **by_hand)
    if plan.strategy == "linear_probe" and not {"strategy", "frozen_stages"} & set(by_hand):
        plan = replace(plan, views=0)  # views are for arms and sizes that are fine-tuned
    return plan_cache(
        plan, backbone, images, cache or CacheBudget(), choose=fixed.get("views") is None
    )


def _transfer_plan(
    backbone: Backbone, counts: Mapping[str, int], images: int, domain: Domain, batch: int
) -> FreezePlan:
    stages, family = len(backbone.stages), family_of(backbone)
    fewest, size = min(counts.values()), cohort_size(counts)
    share = 0.0 if fewest < FEWEST_TO_TUNE else at_size(_SHARES[family, domain], size)
    trainable = (
        min(stages, math.ceil(round(share * stages, 6)))
        if backbone.exact
        else stages * round(share)
    )
    probe, strong = trainable == 0, size >= _STRONG and fewest >= FEWEST_TO_TUNE
    what = (
        f"too few patients to fine-tune (from {FEWEST_TO_TUNE} on it would be), so a linear probe "
        "on the frozen features of all stages"
        if fewest < FEWEST_TO_TUNE
        else "it has no exact chain of stages, so all or nothing, and with so few patients a "
        "linear probe"
        if probe
        else f"the last {trainable} of {stages} stages are trained after a linear probe"
    )
    further = share > at_size(_SHARES[family, "near"], size)
    deeper = (
        "grey images are far from ImageNet, so more is trained than for photographs; "
        if further
        else ""
    )
    weak = (
        ""
        if strong
        else f"weak evidence: fewer than {_STRONG} patients a class; "
        if size < _STRONG
        else "weak evidence; "
    )
    about = f"{fewest} patients in the smallest class of the training part"
    mean = "" if len(set(counts.values())) == 1 else f" (geometric mean of the classes {size:.0f})"
    return FreezePlan(
        strategy="linear_probe" if probe else "lp_ft",
        stages=stages,
        frozen_stages=stages - trainable,
        trainable_fraction=0.0,
        head_lr=_rounded(at_size(_HEAD_LR, size)),
        backbone_lr=_rounded(at_size(_BACKBONE_LR, size)),
        stage_decay=round(at_size(_STAGE_DECAY, size) ** min(1.0, _DECAY_LAYERS / stages), 4),
        steps=0 if probe else count_budget(images, batch),
        norm_policy="eval" if size < _OWN_STATISTICS else "train",
        evidence="strong" if strong else "weak",
        reason=f"{about}{mean}, {backbone.name} ({family.replace('_', ' ')}): "
        f"{deeper}{weak}{what}.",
        read="last" if strong else "all",
        unfreeze="at_once" if strong or probe else "gradual",
        l2_sp=0.0 if probe else _rounded(at_size(_L2_SP, size)),
        mix=size < _MIXED and not probe,
    )


def _rounded(value: float) -> float:
    """Two digits, as nothing is known better."""
    return float(f"{value:.2g}")


def _detection_plan(
    backbone: Backbone,
    units: int,
    images: int,
    batch: int,
    cache: CacheBudget,
    pretrained: bool,
    finest: int,
    by_hand: dict[str, Any],
) -> FreezePlan:
    """Of detectors: the stages below the pyramid rest where lesions are few; what lies above, and
    the head, trains.
    """
    few = units < _MANY_LESIONS
    below = [
        place
        for place, stage in enumerate(backbone.stages, 1)
        if stage.reduction <= finest and stage.layout == "NCHW"
    ]
    frozen = max(below, default=0) if few and pretrained and backbone.exact else 0
    steps = _DETECTION_EPOCHS * max(1, images // batch)
    what = (
        f"the stages below the pyramid ({frozen} of {len(backbone.stages)}) rest"
        if frozen
        else "everything trains"
    )
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
        reason=f"{units} patients with lesions in the training part, {backbone.name}: weak "
        f"evidence (one cohort of brain MRI): {what}."
        if pretrained
        else "Random weights: everything is trained.",
        finest=finest,
    )
    if not pretrained:
        return plan
    plan = fix_plan(plan, backbone, **by_hand)
    return plan_cache(plan, backbone, images, cache, choose="views" not in by_hand)


def _scratch_plan(backbone: Backbone, images: int, batch: int) -> FreezePlan:
    return FreezePlan(
        strategy="scratch",
        stages=len(backbone.stages),
        frozen_stages=0,
        trainable_fraction=1.0,
        head_lr=(rate := scratch_rate(backbone)),
        backbone_lr=rate,
        stage_decay=1.0,
        steps=count_budget(images, batch),
        norm_policy="train",
        evidence="strong",
        reason="Random weights: everything is trained, at the higher learning rate that training "
        "from scratch needs.",
    )


def scratch_rate(backbone: Backbone) -> float:
    """Peak learning rate of training from random weights."""
    about = {stage.layout for stage in backbone.stages}, backbone.name
    return next(
        (rate for kind, rate in _SCRATCH_LR.items() if any(kind in of for of in about)),
        _SCRATCH_LR_OF_OTHERS,
    )


def family_of(backbone: Backbone) -> Family:
    """Which column of the table an architecture belongs to."""
    layouts = {stage.layout for stage in backbone.stages}
    if "NLC" in layouts:
        return "plain_vit"
    hierarchical = "NHWC" in layouts or any(
        part in backbone.name for part in ("densenet", "swin", "convnext")
    )
    return "dense_or_hierarchical" if hierarchical else "cnn"
