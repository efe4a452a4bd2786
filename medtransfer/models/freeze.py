"""How much of a backbone to freeze: from cohort and architecture to a plan with its reason.

The first rule is a table over the patients of the smallest class in training. Its rows from 150
upwards rest on 3,200 published runs of five depths on ten data sets; the rows below are drawn from
smaller studies and are marked as weak evidence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from medtransfer.errors import ConfigError, WeightsError
from medtransfer.models.backbone import Backbone

Strategy = Literal["linear_probe", "lp_ft", "scratch"]
Domain = Literal["near", "far"]
Family = Literal["cnn", "dense_or_hierarchical", "plain_vit"]


@dataclass(frozen=True)
class FreezePlan:
    """What is trained, and how fast.

    Attributes:
        strategy: linear_probe (convex head on frozen features), lp_ft (that head first, then
            fine-tuning; Kumar et al. 2022, arXiv:2202.10054), or scratch (all from random weights).
        stages: number of stages of the backbone.
        frozen_stages: the first so many stages never change.
        trainable_fraction: share of the backbone's parameters that train, 0 to 1.
        head_lr, backbone_lr: peak learning rates of AdamW; the latter for the last stage.
        stage_decay: factor on the learning rate from each stage to the one before it.
        steps: training steps of the whole budget; 0 for a linear probe.
        norm_policy: batch norm of trainable stages in training: train (batch statistics) or eval (kept).
        evidence: strong, or weak where the rule is extrapolated.
        reason: why, in words.
    """

    strategy: Strategy
    stages: int
    frozen_stages: int
    trainable_fraction: float
    head_lr: float
    backbone_lr: float
    stage_decay: float
    steps: int
    norm_policy: Literal["train", "eval"]
    evidence: Literal["strong", "weak"]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


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


def _shares(cnn: float, dense_or_hierarchical: float, plain_vit: float) -> dict[Family, float]:
    return {"cnn": cnn, "dense_or_hierarchical": dense_or_hierarchical, "plain_vit": plain_vit}


# Learning rates from 25 to 1,000: three times those in the literature, which under-trained breast
# ultrasound (BUSI, inner folds of one training part of 517 images: AUC 0.919 at 1e-4, 0.933 at 3e-4).
_TABLE = (
    _Row(25, _shares(0.0, 0.0, 0.0), 3e-5, 1e-3, 0.65, 0, 0, False),
    _Row(150, _shares(0.4, 0.95, 0.3), 3e-4, 1e-3, 0.78, 1000, 0, False),
    _Row(1000, _shares(0.6, 1.0, 0.4), 3e-4, 1e-3, 0.78, None, 40, True),
    _Row(10_000, _shares(1.0, 1.0, 0.6), 1e-4, 5e-4, 0.8, None, 25, True),
    _Row(math.inf, _shares(1.0, 1.0, 0.8), 2e-4, 3e-4, 0.9, None, 15, True),
)
_BATCH = 32
_FEWEST_STEPS = 500
# The decays of the table were published for networks of about twelve layers.
_DECAY_LAYERS = 12
# Found in the same way and on the same folds as the rates above, so that neither side is favoured:
# AUC 0.748 at 1e-3, 0.830 at 3e-3, 0.826 at 6e-3.
_SCRATCH_LR = 3e-3


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
    fingerprint: Counts, backbone: Backbone, domain: Domain | None = None, transfer: bool | None = None, batch: int = _BATCH, **fixed: Any
) -> FreezePlan:
    """Plans from the fingerprint of the *training* images and the backbone.

    Args:
        fingerprint: of the cohort, or `PlainCounts`.
        backbone: the architecture, with its weights or without.
        domain: near (colour photographs, histology, endoscopy) or far (grey US, MR, CT), in place of the fingerprint's.
        transfer: plan for pretrained weights; left out: whether the backbone has any.
        batch: images at a step of training.
        **fixed: fields of `FreezePlan` set by hand; None means planned.

    Raises:
        ConfigError: a field that does not exist or does not fit the backbone.
    """
    counts = dict(fingerprint.patients_per_class)
    units, images = min(counts.values()), sum(fingerprint.images_per_class.values())
    if not (backbone.weights.source != "none" if transfer is None else transfer):
        # A frozen stage of random weights would learn nothing: this arm trains everything, whatever is set by hand.
        return _scratch_plan(len(backbone.stages), units, images, batch)
    plan = _transfer_plan(backbone, units, images, domain or fingerprint.domain, batch)
    return fix_plan(plan, backbone, **{key: value for key, value in fixed.items() if value is not None})


def _transfer_plan(backbone: Backbone, units: int, images: int, domain: str, batch: int) -> FreezePlan:
    stages, family = len(backbone.stages), _family(backbone)
    index = next(i for i, row in enumerate(_TABLE) if units < row.below)
    row = _TABLE[index]
    # One row deeper for far domains, but never from a probe into fine-tuning: too few patients stay too few.
    deeper = _TABLE[min(index + 1, len(_TABLE) - 1)] if domain == "far" and index > 0 else row
    share = deeper.trainable[family]
    trainable = min(stages, math.ceil(share * stages)) if backbone.exact else stages * round(share)
    probe = trainable == 0
    evidence: Literal["strong", "weak"] = "strong" if row.strong else "weak"
    what = "a linear probe on frozen features" if probe else f"the last {trainable} of {stages} stages are trained after a linear probe"
    far = "grey images are far from ImageNet, so one row of the table deeper; " if domain == "far" and deeper is not row else ""
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
        evidence=evidence,
        reason=f"{units} patients in the smaller class of the training part, {backbone.name} ({family.replace('_', ' ')}): "
        f"{far}{weak}{what}.",
    )


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


_RATES = ("head_lr", "backbone_lr", "stage_decay")
_BY_HAND = ("strategy", "frozen_stages", *_RATES, "norm_policy")


def fix_plan(plan: FreezePlan, backbone: Backbone, **fields: Any) -> FreezePlan:
    """The plan with some fields set by hand; fraction and reason follow.

    Raises:
        ConfigError: a field that cannot be set, or a value that does not fit the backbone.
    """
    for key, value in fields.items():
        if key not in _BY_HAND:
            hint = "; the budget is one for all arms, set train.epochs" if key == "steps" else ""
            raise ConfigError(f"plan: {key} cannot be set by hand{hint}. These can: {', '.join(_BY_HAND)}.")
        _check_field(plan, key, value)
    frozen = fields.get("frozen_stages")
    wants_probe = fields.get("strategy") == "linear_probe" or frozen == plan.stages
    if wants_probe:
        if frozen not in {None, plan.stages} or fields.get("strategy") == "lp_ft":
            raise ConfigError(
                f"plan: a linear probe freezes all {plan.stages} stages, fine-tuning fewer; set strategy or frozen_stages, not both."
            )
        changed = {**fields, "strategy": "linear_probe", "frozen_stages": plan.stages, "steps": 0}
    elif frozen is not None or fields.get("strategy") == "lp_ft":
        deepest = plan.stages - 1 if plan.frozen_stages == plan.stages else plan.frozen_stages
        changed = {"frozen_stages": deepest, "steps": plan.steps or _FEWEST_STEPS, **fields, "strategy": "lp_ft"}
    else:
        changed = dict(fields)
    reason = plan.reason + (f" Set by hand: {', '.join(f'{key} {fields[key]}' for key in sorted(fields))}." if fields else "")
    plan = replace(plan, **changed, reason=reason)
    return replace(plan, trainable_fraction=_trainable_fraction(backbone, plan.frozen_stages))


def refuse_random_prefix(backbone: Backbone, plan: FreezePlan) -> None:
    """Frozen stages must hold trained weights: of random ones nothing is learnt, and nobody would notice.

    Raises:
        WeightsError: stages are frozen, and the weights are random or look so.
    """
    if plan.frozen_stages and not backbone.weights.trained:
        found = backbone.weights.proof.get("sentence", "they are random")
        raise WeightsError(
            f"{backbone.name}, weights {backbone.weights.source}: {plan.frozen_stages} stages are to be frozen, but these do not look like "
            f"trained weights ({found}). Give another file, or train everything (plan.frozen_stages=0)."
        )


def _check_field(plan: FreezePlan, key: str, value: Any) -> None:
    if plan.strategy == "scratch" and key not in _RATES:
        # A frozen stage of random weights would learn nothing.
        raise ConfigError(f"plan: {key} cannot be set for an arm trained from scratch; it trains everything.")
    if key == "frozen_stages":
        fits, allowed = type(value) is int and 0 <= value <= plan.stages, f"a whole number from 0 to {plan.stages}"
    elif key in _RATES:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits, allowed = number and 0 < value <= 1, "a number above 0, at most 1"
    else:
        choices = ("linear_probe", "lp_ft") if key == "strategy" else ("train", "eval")
        fits, allowed = value in choices, " or ".join(choices)
    if not fits:
        raise ConfigError(f"plan: {key} is {value!r}; expected {allowed}.")


def _steps(row: _Row, images: int, batch: int) -> int:
    return row.steps if row.steps is not None else row.epochs * max(1, images // batch)


def _family(backbone: Backbone) -> Family:
    layouts = {stage.layout for stage in backbone.stages}
    if "NLC" in layouts:
        return "plain_vit"
    hierarchical = "NHWC" in layouts or any(part in backbone.name for part in ("densenet", "swin", "convnext"))
    return "dense_or_hierarchical" if hierarchical else "cnn"


def _trainable_fraction(backbone: Backbone, frozen: int) -> float:
    sizes = [sum(p.numel() for p in backbone.stage_parameters(index)) for index in range(len(backbone.stages))]
    return round(sum(sizes[frozen:]) / max(1, sum(sizes)), 4)


def parameter_groups(backbone: Backbone, head: Any, plan: FreezePlan, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: a learning rate per stage, no weight decay on norms and biases; frozen stages have none."""
    groups: list[dict[str, Any]] = []

    def add(name: str, parameters: list[Any], rate: float) -> None:
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == matrices and p.requires_grad]
            if chosen:
                groups.append({"name": name, "params": chosen, "lr": rate, "weight_decay": decay})

    last = len(backbone.stages) - 1
    for index in range(plan.frozen_stages, last + 1):
        add(backbone.stages[index].name, backbone.stage_parameters(index), plan.backbone_lr * plan.stage_decay ** (last - index))
    add("head", list(head.parameters()), plan.head_lr)
    return groups
