"""Fields of a freeze plan that are set by hand, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pydantic import ValidationError

from medtransfer.errors import ConfigError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import (
    FINE_TUNING_STEPS,
    FreezePlan,
    trainable_fraction,
    trained_sizes,
)
from medtransfer.models.plan.settings import PlanSettings

_RATES = {"head_lr", "backbone_lr", "stage_decay"}
# Fields that mean something where all stages train from random weights.
_OF_SCRATCH = {*_RATES, "dropout", "finest"}
_NOT_OF_DETECTORS = {"strategy", "dropped_stages", "read", "mix"}
# Values of fields that say nothing where only a convex head is fitted.
_OF_PROBES = {"unfreeze": "at_once", "l2_sp": 0.0, "dropout": 0.0, "mix": False}


def fix_plan(plan: FreezePlan, backbone: Backbone, **fields: Any) -> FreezePlan:
    """The plan with some fields set by hand; its other fields follow from them.

    Args:
        plan: as the rules made it.
        backbone: as the plan was made for.
        **fields: those of `PlanSettings`.

    Raises:
        ConfigError: a field that cannot be set, or a value that does not fit the backbone or
            another field.
    """
    fields = {key: _check_field(plan, key, value) for key, value in fields.items()}
    running = plan.stages - fields.get("dropped_stages", plan.dropped_stages)
    if fields.get("frozen_stages", 0) > running:
        raise ConfigError(
            f"plan: frozen_stages is {fields['frozen_stages']}; {running} of {plan.stages} stages "
            "are left after dropped_stages."
        )
    # The head of a detector is not convex: where all stages are frozen, it still trains by steps.
    rest = {} if plan.strategy in {"fine_tune", "scratch"} else _follow(plan, fields, running)
    changed = replace(plan, **{**fields, **rest}, reason=plan.reason + _describe(fields))
    return _refuse_idle(
        replace(changed, trainable_fraction=trainable_fraction(backbone, changed)), backbone
    )


def _follow(plan: FreezePlan, fields: Mapping[str, Any], running: int) -> dict[str, Any]:
    """What follows for a classifier from the fields that are set.

    Args:
        plan: a linear probe or fine-tuning behind one.
        fields: set by hand.
        running: number of stages that run.
    """
    frozen, strategy = fields.get("frozen_stages"), fields.get("strategy")
    if strategy is not None:
        probe = strategy == "linear_probe"
    else:
        probe = plan.strategy == "linear_probe" if frozen is None else frozen == running
    if frozen is not None and probe != (frozen == running):
        raise ConfigError(
            f"plan: a linear probe freezes all {running} stages, fine-tuning fewer; set strategy "
            "or frozen_stages, not both."
        )
    if probe:
        settled = {key: value for key, value in _OF_PROBES.items() if key not in fields}
        return {**settled, "strategy": "linear_probe", "frozen_stages": running, "steps": 0}
    return {
        "strategy": "lp_ft",
        "frozen_stages": min(plan.frozen_stages, running - 1) if frozen is None else frozen,
        "steps": plan.steps or FINE_TUNING_STEPS,
    }


def _describe(fields: Mapping[str, Any]) -> str:
    if not fields:
        return ""
    return f" Set by hand: {', '.join(f'{key} {fields[key]}' for key in sorted(fields))}."


def _refuse_idle(plan: FreezePlan, backbone: Backbone) -> FreezePlan:
    """The plan, unless it is to train norms of stages that have none."""
    fine_tuned = plan.strategy in {"lp_ft", "fine_tune"}
    if plan.tuned == "norms" and fine_tuned and not trained_sizes(backbone, plan):
        raise ConfigError(
            f"plan: tuned is norms, but {backbone.name} has no norms with parameters behind its "
            "frozen stages."
        )
    return plan


def _check_field(plan: FreezePlan, key: str, value: Any) -> Any:
    """The value of a field, as `PlanSettings` declares it."""
    if key not in PlanSettings.model_fields:
        hint = (
            "; the budget is one for all arms, set train.epochs, or budget of an arm"
            if key == "steps"
            else ""
        )
        raise ConfigError(
            f"plan: {key} cannot be set by hand{hint}. These can: "
            f"{', '.join(PlanSettings.model_fields)}."
        )
    if key == "finest" and not plan.finest:
        raise ConfigError("plan: finest is for detectors, which read stages of several strides.")
    if plan.strategy == "scratch" and key not in _OF_SCRATCH:
        # A frozen stage of random weights would learn nothing.
        raise ConfigError(
            f"plan: {key} cannot be set for an arm trained from scratch; it trains everything."
        )
    if plan.strategy == "fine_tune" and key in _NOT_OF_DETECTORS:
        raise ConfigError(
            f"plan: {key} is for heads that classify whole images; a detector reads a stage of "
            "every size."
        )
    most = {"frozen_stages": plan.stages, "dropped_stages": plan.stages - 1}.get(key)
    try:
        valid = getattr(PlanSettings.model_validate({key: value}, strict=True), key)
    except ValidationError:
        valid = None
    if valid is None or (most is not None and valid > most):
        raise ConfigError(f"plan: {key} is {value!r}; expected {_describe_range(key, most)}.")
    return valid


def _describe_range(key: str, most: int | None) -> str:
    """The values that a field can have, in words.

    Args:
        key: name of the field.
        most: its highest value where that depends on the backbone.
    """
    field = PlanSettings.model_fields[key]
    kind = get_args(field.annotation)[0]  # the other is None
    choices = (True, False) if kind is bool else get_args(kind)
    if choices:
        return " or ".join(map(str, choices))
    limits = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(limit, name)
    }
    if kind is int:
        return f"a whole number from {limits['ge']} to {limits['le'] if most is None else most}"
    if "gt" in limits:
        return f"a number above {limits['gt']}, at most {limits['le']}"
    return f"a number from {limits['ge']} to below {limits['lt']}"
