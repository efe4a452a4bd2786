"""A freeze plan: what is trained and how fast, and the same stage by stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from medtransfer.errors import WeightsError
from medtransfer.models.chain.backbone import Backbone, NormPolicy, Tuned
from medtransfer.models.chain.costs import StageCost
from medtransfer.models.plan.settings import Read, Unfreeze

Strategy = Literal["linear_probe", "lp_ft", "fine_tune", "scratch"]
# Steps of fine-tuning that is set by hand where a probe was planned.
FINE_TUNING_STEPS = 500


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


def refuse_random_prefix(backbone: Backbone, plan: FreezePlan) -> None:
    """Frozen stages must hold trained weights: of random ones nothing is learnt, and nobody would
    notice.

    Raises:
        WeightsError: stages are frozen, and the weights are random or look so.
    """
    if plan.frozen_stages and not backbone.weights.trained:
        finding = backbone.weights.proof.get("sentence", "they are random")
        raise WeightsError(
            f"{backbone.name}, weights {backbone.weights.source}: {plan.frozen_stages} stages are "
            "to be frozen, but these do not look like "
            f"trained weights ({finding}). Give another file, or train everything "
            "(plan.frozen_stages=0)."
        )


def trainable_fraction(backbone: Backbone, plan: FreezePlan) -> float:
    """The share of all parameters that a plan trains, 0 to 1; dropped stages count as untrained."""
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
