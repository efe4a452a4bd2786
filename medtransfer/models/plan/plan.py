"""A freeze plan: what is trained and how fast, set by hand where somebody wants to, and shown stage
by stage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from medtransfer.errors import ConfigError, WeightsError
from medtransfer.models.chain.backbone import Backbone, NormPolicy, Tuned
from medtransfer.models.chain.costs import StageCost, measure_stages
from medtransfer.models.heads.pyramid import choose_levels

Strategy = Literal["linear_probe", "lp_ft", "fine_tune", "scratch"]
Unfreeze = Literal["at_once", "gradual"]
Read = Literal["last", "all"]


@dataclass(frozen=True)
class FreezePlan:
    """What is trained, and how fast.

    Attributes:
        strategy: linear_probe (convex head on frozen features), lp_ft (that head first, then
            fine-tuning; Kumar et al. 2022, arXiv:2202.10054), fine_tune (no head first, as of
            detection, where none is convex), or scratch (all from random weights).
        stages: number of stages of the backbone.
        frozen_stages: so many stages never change: the first ones, or the last ones where tuned is
            first.
        trainable_fraction: share of the backbone's parameters that train, 0 to 1.
        head_lr, backbone_lr: peak learning rates of AdamW; the latter for the last stage.
        stage_decay: factor on the learning rate from each stage to the one before it.
        steps: training steps of the budget; 0 for a linear probe.
        norm_policy: batch norm of trainable stages in training: train (batch statistics) or eval
            (kept).
        evidence: strong, or weak where the rule is extrapolated.
        reason: why, in words.
        dropped_stages: so many stages are cut off the top, and the head reads what is below them.
        tuned: last (the stages behind the frozen ones), first (those before them; surgical
            fine-tuning, Lee et al. 2023, arXiv:2210.11466), or norms (of the last, scale and shift
            of norms alone).
        unfreeze: at_once, or gradual: stage by stage from the top, over the first half of the steps
            (Howard & Ruder 2018, doi:10.18653/v1/P18-1031).
        read: the stages whose pooled features the head reads: the last one, or all (Evci et al.
            2022, arXiv:2201.03529).
        l2_sp: weight of the squared distance from the pretrained weights in the loss, halved
            (L2-SP; Li et al. 2018, arXiv:1802.01483).
        dropout: of the features the head reads, in training, 0 to 1.
        adapt_norm: batch-norm statistics are taken anew from the training images first (AdaBN; Li
            et al. 2016, arXiv:1603.04779).
        mix: the weights kept are the mixture of pretrained and fine-tuned ones with the lowest tune
            loss (WiSE-FT; Wortsman et al. 2022, arXiv:2109.01903).
        cache_cut: the stage up to which activations are computed once and kept; "" for none.
        bytes_per_image: of one view of an image in that cache.
        views: random views per image in that cache, replayed in turn; 0: every epoch draws its own
            and nothing is kept.
        finest: stride in pixels of the finest level of a detector's pyramid; 0 of a classifier.
        level: training goes on beyond the budget until the tune loss has levelled off, up to four
            times as long.
    """

    strategy: Strategy
    stages: int
    frozen_stages: int
    trainable_fraction: float
    head_lr: float
    backbone_lr: float
    stage_decay: float
    steps: int
    norm_policy: NormPolicy
    evidence: Literal["strong", "weak"]
    reason: str
    dropped_stages: int = 0
    tuned: Tuned = "last"
    unfreeze: Unfreeze = "at_once"
    read: Read = "last"
    l2_sp: float = 0.0
    dropout: float = 0.0
    adapt_norm: bool = False
    mix: bool = False
    cache_cut: str = ""
    bytes_per_image: int = 0
    views: int = 0
    finest: int = 0
    level: bool = False

    @property
    def kept_stages(self) -> int:
        """Stages that run."""
        return self.stages - self.dropped_stages

    @property
    def convex(self) -> bool:
        """Whether a convex head comes first."""
        return self.strategy in {"linear_probe", "lp_ft"}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def decisive(self) -> dict[str, Any]:
        """What decides a training: all but the words."""
        return {
            key: value for key, value in asdict(self).items() if key not in {"reason", "evidence"}
        }


@dataclass(frozen=True)
class CacheBudget:
    """What decides whether activations of the frozen stages are kept.

    Attributes:
        gb: of disk that they may take, in 2^30 bytes; 0 keeps none.
        size: side of the images in pixels; None: that of the recipe.
        slices: of each volume; 1 for images.
        images: of the whole cohort, as folds share what is kept; None: those the plan is for.
        seeds: of the study, each of which has its own random views.
    """

    gb: float = 4.0
    size: int | None = None
    slices: int = 1
    images: int | None = None
    seeds: int = 1


# Of the finest level of a detector.
STRIDES = (4, 8, 16)
# Fields that can be set by hand: their words, or the range of their numbers (the upper end of a
# share is excluded).
_CHOICES: dict[str, tuple[Any, ...]] = {
    "strategy": ("linear_probe", "lp_ft"),
    "norm_policy": get_args(NormPolicy),
    "tuned": get_args(Tuned),
    "unfreeze": get_args(Unfreeze),
    "read": get_args(Read),
    "adapt_norm": (True, False),
    "mix": (True, False),
    "finest": STRIDES,
}
_RATES = ("head_lr", "backbone_lr", "stage_decay")
# Of fine-tuning by hand where a probe was planned.
FINE_TUNING_STEPS = 500
_BY_HAND = ("frozen_stages", "dropped_stages", *_RATES, "l2_sp", "dropout", "views", *_CHOICES)


def fix_plan(plan: FreezePlan, backbone: Backbone, **fields: Any) -> FreezePlan:
    """The plan with some fields set by hand; fraction and reason follow.

    Raises:
        ConfigError: a field that cannot be set, or a value that does not fit the backbone or
            another field.
    """
    for key, value in fields.items():
        if key not in _BY_HAND:
            hint = (
                "; the budget is one for all arms, set train.epochs, or budget of an arm"
                if key == "steps"
                else ""
            )
            raise ConfigError(
                f"plan: {key} cannot be set by hand{hint}. These can: {', '.join(_BY_HAND)}."
            )
        _check_field(plan, key, value)
    kept = plan.stages - fields.get("dropped_stages", plan.dropped_stages)
    frozen, strategy = fields.get("frozen_stages"), fields.get("strategy")
    if frozen is not None and frozen > kept:
        raise ConfigError(
            f"plan: frozen_stages is {frozen}; {kept} of {plan.stages} stages are left after "
            "dropped_stages."
        )
    if plan.strategy == "fine_tune":
        # No head of boxes is convex: all frozen, its head still trains step by step.
        changed = dict(fields)
        return _described(replace(plan, **changed), backbone, fields)
    by_default = "linear_probe" if plan.strategy == "linear_probe" and frozen is None else "lp_ft"
    probe = (
        frozen == kept
        if strategy is None and frozen is not None
        else (strategy or by_default) == "linear_probe"
    )
    if probe:
        if frozen not in {None, kept}:
            raise ConfigError(
                f"plan: a linear probe freezes all {kept} stages, fine-tuning fewer; set strategy "
                "or frozen_stages, not both."
            )
        nothing_trains: dict[str, Any] = {
            "unfreeze": "at_once",
            "l2_sp": 0.0,
            "dropout": 0.0,
            "mix": False,
        }
        changed = {
            **nothing_trains,
            **fields,
            "strategy": "linear_probe",
            "frozen_stages": kept,
            "steps": 0,
        }
    elif plan.strategy != "scratch":
        if frozen == kept:
            raise ConfigError(
                f"plan: a linear probe freezes all {kept} stages, fine-tuning fewer; set strategy "
                "or frozen_stages, not both."
            )
        changed = {
            "frozen_stages": min(plan.frozen_stages, kept - 1),
            "steps": plan.steps or FINE_TUNING_STEPS,
            **fields,
            "strategy": "lp_ft",
        }
    else:
        changed = dict(fields)
    return _described(replace(plan, **changed), backbone, fields)


def _described(plan: FreezePlan, backbone: Backbone, fields: dict[str, Any]) -> FreezePlan:
    """The plan with what follows from its other fields, and the reason."""
    reason = plan.reason + (
        f" Set by hand: {', '.join(f'{key} {fields[key]}' for key in sorted(fields))}."
        if fields
        else ""
    )
    plan = replace(plan, reason=reason)
    plan = replace(plan, trainable_fraction=_trainable_fraction(backbone, plan))
    if (
        plan.tuned == "norms"
        and plan.strategy in {"lp_ft", "fine_tune"}
        and not trained_sizes(backbone, plan)
    ):
        raise ConfigError(
            f"plan: tuned is norms, but {backbone.name} has no norms with parameters behind its "
            "frozen stages."
        )
    return plan


def _check_field(plan: FreezePlan, key: str, value: Any) -> None:
    if key == "finest" and not plan.finest:
        raise ConfigError("plan: finest is for detectors, which read stages of several strides.")
    if plan.strategy == "scratch" and key not in {*_RATES, "dropout", "finest"}:
        # A frozen stage of random weights would learn nothing.
        raise ConfigError(
            f"plan: {key} cannot be set for an arm trained from scratch; it trains everything."
        )
    if plan.strategy == "fine_tune" and key in {"strategy", "dropped_stages", "read", "mix"}:
        raise ConfigError(
            f"plan: {key} is for heads that classify whole images; a detector reads a stage of "
            "every size."
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = type(value) is int
    if key in _CHOICES:
        fits, allowed = (
            value in _CHOICES[key] and isinstance(value, type(_CHOICES[key][0])),
            " or ".join(map(str, _CHOICES[key])),
        )
    elif key == "frozen_stages":
        fits, allowed = (
            whole and 0 <= value <= plan.stages,
            f"a whole number from 0 to {plan.stages}",
        )
    elif key == "dropped_stages":
        fits, allowed = (
            whole and 0 <= value < plan.stages,
            f"a whole number from 0 to {plan.stages - 1}",
        )
    elif key == "views":
        fits, allowed = (
            whole and 0 <= value <= _MOST_VIEWS,
            f"a whole number from 0 to {_MOST_VIEWS}",
        )
    elif key in _RATES:
        fits, allowed = number and 0 < value <= 1, "a number above 0, at most 1"
    else:
        fits, allowed = number and 0 <= value < 1, "a number from 0 to below 1"
    if not fits:
        raise ConfigError(f"plan: {key} is {value!r}; expected {allowed}.")


# Replayed views in place of new ones in every epoch: no loss was seen with eight (BUSI, 25 and 100
# patients a class).
_FEWEST_VIEWS, _VIEWS, _MOST_VIEWS = 4, 8, 64


def plan_cache(
    plan: FreezePlan, backbone: Backbone, images: int, budget: CacheBudget, choose: bool = False
) -> FreezePlan:
    """The plan with its cut and what an image takes there, in each view.

    Of a linear probe the pooled activations of the images as they are are kept, which take next to
    nothing.

    Args:
        plan: whose `views` must fit the budget, with the images as they are beside them.
        backbone: as the plan was made for.
        images: whose activations are kept, where the budget does not say.
        budget: of the cache.
        choose: set `views` to as many as the budget holds, up to eight; 0 where it holds fewer than
            four.

    Raises:
        ConfigError: views set by hand that have no frozen prefix to be cached, or do not fit the
            budget.
    """
    probe = plan.strategy == "linear_probe"
    prefix = plan.frozen_stages if plan.tuned != "first" and plan.strategy != "scratch" else 0
    if (
        plan.finest
        and prefix > backbone.names.index(choose_levels(backbone, plan.finest)[0].name) + 1
    ):
        # of activations before the cut only the mean over space is kept, and the pyramid reads them
        # whole
        prefix = 0
    if plan.views and not choose and (probe or not prefix):
        raise ConfigError(
            "plan: views is set, but there is no frozen prefix to cache: set strategy lp_ft, "
            "frozen stages, and tuned last or norms; of "
            "a detector, no more frozen stages than lie below its finest level."
        )
    if not prefix:
        return replace(plan, cache_cut="", bytes_per_image=0, views=0)
    slices = budget.slices if backbone.ndim == 2 else 1
    pooled = [4 * stage.channels for stage in backbone.stages[:prefix]]
    before = sum(pooled[:-1]) if plan.read == "all" else 0
    if probe:
        return replace(
            plan,
            cache_cut=backbone.names[prefix - 1],
            bytes_per_image=slices * (pooled[-1] + before),
            views=0,
        )
    costs = measure_stages(backbone, budget.size, budget.slices)
    held = slices * (costs[prefix - 1].bytes + before)
    images = budget.images or images
    fit = max(0, int(budget.gb * 2**30 // max(1, held * images)) - 1) // budget.seeds
    if choose:
        plan = replace(plan, views=min(_VIEWS, fit) if fit >= _FEWEST_VIEWS else 0)
    if plan.views > fit:
        raise ConfigError(
            f"plan: views is {plan.views}; {images} images of {held / 2**20:.1f} MiB fit {fit} "
            f"times into {budget.gb:g} GiB "
            "(train.cache_gb), besides once as they "
            f"are{f', for each of {budget.seeds} seeds' if budget.seeds > 1 else ''}."
        )
    return replace(
        plan, cache_cut=costs[prefix - 1].name if plan.views else "", bytes_per_image=held
    )


def refuse_random_prefix(backbone: Backbone, plan: FreezePlan) -> None:
    """Frozen stages must hold trained weights: of random ones nothing is learnt, and nobody would
    notice.

    Raises:
        WeightsError: stages are frozen, and the weights are random or look so.
    """
    if plan.frozen_stages and not backbone.weights.trained:
        found = backbone.weights.proof.get("sentence", "they are random")
        raise WeightsError(
            f"{backbone.name}, weights {backbone.weights.source}: {plan.frozen_stages} stages are "
            "to be frozen, but these do not look like "
            f"trained weights ({found}). Give another file, or train everything "
            "(plan.frozen_stages=0)."
        )


def _trainable_fraction(backbone: Backbone, plan: FreezePlan) -> float:
    """Share of all parameters, those of dropped stages included."""
    trained = sum(size for _, size in trained_sizes(backbone, plan))
    return round(trained / max(1, sum(p.numel() for p in backbone.network.parameters())), 4)


def trained_sizes(backbone: Backbone, plan: FreezePlan) -> list[tuple[int, int]]:
    """Stage and number of parameters that a plan trains, of the stages in which it trains any."""
    resting = (
        range(plan.kept_stages - plan.frozen_stages, plan.kept_stages)
        if plan.tuned == "first"
        else range(plan.frozen_stages)
    )
    norms = backbone.norm_parameters() if plan.tuned == "norms" else None
    sizes = [
        (
            index,
            sum(
                p.numel()
                for p in backbone.stage_parameters(index)
                if norms is None or id(p) in norms
            ),
        )
        for index in range(plan.kept_stages)
        if index not in resting
    ]
    return [(index, size) for index, size in sizes if size]


def describe_stages(
    backbone: Backbone, plan: FreezePlan, costs: tuple[StageCost, ...]
) -> list[dict[str, Any]]:
    """The plan stage by stage: `stage, trained, parameters, learning_rate, compute, cache_bytes`.

    Args:
        backbone: as the plan was made for.
        plan: what trains.
        costs: of its stages; see `measure_stages`.

    Returns:
        One row per stage; `trained` is trained, norms, frozen or dropped, `compute` the share of
        the forward pass, and `cache_bytes` what the activation behind the stage takes in float32
        for one view of one image or slice.
    """
    trained = {index for index, _ in trained_sizes(backbone, plan)}
    last = plan.kept_stages - 1
    rows = []
    for index, cost in enumerate(costs):
        word = (
            "dropped"
            if index > last
            else "frozen"
            if index not in trained
            else "norms"
            if plan.tuned == "norms"
            else "trained"
        )
        rate = plan.backbone_lr * plan.stage_decay ** (last - index) if index in trained else 0.0
        rows.append(
            {
                "stage": cost.name,
                "trained": word,
                "parameters": cost.parameters,
                "learning_rate": rate,
                "compute": cost.share,
                "cache_bytes": cost.bytes,
            }
        )
    return rows
