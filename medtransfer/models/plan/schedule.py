"""What of a plan holds at which step: parameter groups, learning rates, and what is frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import FreezePlan

_WARM_UP = 0.1
# Where the cycles of a training end, in budgets: each doubles what was spent before.
CYCLES = (1, 2, 4)
# Share of the steps over which gradual unfreezing goes down to the frozen stages.
_UNFROZEN_BY = 0.5


def frozen_at(plan: FreezePlan, step: int, steps: int) -> int:
    """Frozen stages at a step, from 0 to steps; a function of these alone, so that a resumed
    training goes on exactly.

    With gradual unfreezing the top stage trains from the first step, and the others follow one by
    one, evenly over the first half.
    """
    if plan.unfreeze == "at_once" or plan.tuned == "first":
        return plan.frozen_stages
    groups = plan.kept_stages - plan.frozen_stages
    reached = math.floor(groups * step / max(1.0, _UNFROZEN_BY * steps)) + 1
    return plan.kept_stages - min(groups, reached)


def cycles_of(plan: FreezePlan) -> tuple[int, ...]:
    """Where the cycles of a training end, in budgets: one, or those that lead to its most where it
    goes on until level.
    """
    return CYCLES if plan.level else CYCLES[:1]


def rate_at(step: int, ends: Sequence[int]) -> float:
    """Share of the peak learning rate: in every cycle linear warm-up over its first tenth, then
    half a cosine to 0.

    Warm restarts (Loshchilov & Hutter 2017, arXiv:1608.03983), so that a training that goes on is,
    to the end of its first cycle, the one that does not.

    Args:
        step: from 0.
        ends: steps at which cycles end, ascending.
    """
    begin, end = next(
        pair for pair in pairwise((0, *ends)) if step < pair[1] or pair[1] == ends[-1]
    )
    step, steps = step - begin, end - begin
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def parameter_groups(
    backbone: Backbone, head: nn.Module, plan: FreezePlan, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimiser groups of what trains at the end: a peak learning rate per stage, no weight decay
    on norms and biases.

    Args:
        backbone: frozen as at the end of the schedule; what carries no gradient is in no group.
        head: trains whole.
        plan: rates.
        weight_decay: of matrices.
    """
    groups: list[dict[str, Any]] = []

    def add(name: str, parameters: list[Any], rate: float, weight_decay: float) -> None:
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            trainable = [p for p in parameters if (p.ndim > 1) == matrices and p.requires_grad]
            if trainable:
                groups.append(
                    {
                        "name": name,
                        "params": trainable,
                        "lr": rate,
                        "peak": rate,
                        "weight_decay": decay,
                    }
                )

    last = len(backbone.stages) - 1
    # L2-SP pulls towards the pretrained weights; a pull towards 0 besides would undo it.
    pull = 0.0 if plan.l2_sp else weight_decay
    for index, stage in enumerate(backbone.stages):
        add(
            stage.name,
            backbone.stage_parameters(index),
            plan.backbone_lr * plan.stage_decay ** (last - index),
            pull,
        )
    add("head", list(head.parameters()), plan.head_lr, weight_decay)
    return groups
