"""The plan of each arm: from counts and architecture, what is set by hand, and what was edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from medtransfer.config.study_config import StudyConfig
from medtransfer.errors import ConfigError
from medtransfer.files import read_json, write_json
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.cache import CacheBudget, plan_cache
from medtransfer.models.plan.overrides import fix_plan
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.models.plan.rules import Counts, plan_freeze
from medtransfer.models.plan.schedule import CYCLES
from medtransfer.tasks.task import Task
from medtransfer.training.settings import TrainSettings

# Fields of a plan that mean the same for arms with weights and without.
_OF_ALL_ARMS = ("dropout", "finest")
# Fields of a plan that follow from the others, or only describe.
_DERIVED = {
    "trainable_fraction",
    "reason",
    "evidence",
    "stages",
    "steps",
    "level",
    "cache_cut",
    "bytes_per_image",
}


class Counted(Counts, Protocol):
    """What a plan follows from, and the axes of space of the images."""

    @property
    def ndim(self) -> int:
        """2 for images, 3 for volumes."""
        ...


def plan_arm(
    config: StudyConfig,
    name: str,
    backbone: Backbone,
    counts: Counted,
    task: Task,
    images: int,
    **fields: Any,
) -> FreezePlan:
    """The plan of an arm: from counts and architecture, with what is set by hand for all arms, then
    for this one.

    Args:
        config: the study.
        name: of the arm.
        backbone: of the arm.
        counts: patients by class, and the rest that a plan follows from.
        task: what is learnt.
        images: of the whole cohort, whose folds share the activations that are kept of frozen
            stages.
        **fields: what the task tells `plan_freeze`.
    """
    own = config.arms[name].plan.model_dump(exclude_none=True)
    cache = cache_budget(config, counts.ndim, images)
    shared = config.plan.by_hand()
    if config.arms[name].kind == "features":
        # Nothing of it can be trained, whatever is set for all arms.
        plan = plan_freeze(counts, backbone, cache=cache, strategy="linear_probe")
        why = (
            "Features by formula: a logistic regression, its penalty chosen on inner folds of "
            "the training patients."
        )
        return replace(plan, evidence="strong", reason=f"{why}{_left_as_planned(shared)}")
    try:
        plan = plan_freeze(
            counts,
            backbone,
            config.plan.domain,
            batch=config.train.batch_size or task.batch_size(counts.ndim),
            cache=cache,
            **{**fields, **shared, **own},
        )
        if plan.strategy != "scratch":
            return plan
        # Rates for all arms are those of pretrained stages, and so is what is frozen; what is set
        # for this arm alone must fit it.
        by_hand = {
            key: value
            for key, value in {**shared, **own}.items()
            if key in own or key in _OF_ALL_ARMS
        }
        plan = fix_plan(plan, backbone, **by_hand) if by_hand else plan
        idle = {key: value for key, value in shared.items() if key not in {*own, *_OF_ALL_ARMS}}
        return replace(plan, reason=plan.reason + _left_as_planned(idle))
    except ConfigError as error:
        raise ConfigError(f"arms.{name}: {error}") from error


def _left_as_planned(fields: Mapping[str, object]) -> str:
    """Which fields that are set for all arms are not for this one, in words; they can be set for it
    alone.
    """
    return (
        f" Set for arms with weights, and not for this one: {', '.join(sorted(fields))}."
        if fields
        else ""
    )


def cache_budget(config: StudyConfig, ndim: int, images: int) -> CacheBudget:
    """What the configuration leaves to the cached activations of each arm."""
    pretrained = sum(
        arm.weights is not None or arm.kind == "features" for arm in config.arms.values()
    )
    # A draw of a learning curve has a seed of its own, counted on from the first.
    curve, first = config.learning_curve, config.protocol.seeds[0]
    draws = range(first + 1, first + 1 + curve.episodes) if curve.sizes else ()
    slices, seeds = config.image.slices if ndim == 3 else 1, len({*config.protocol.seeds, *draws})
    return CacheBudget(
        config.train.cache_gb / max(1, pretrained), config.image.size, slices, images, seeds
    )


def train_of(config: StudyConfig, arm: str, draws: bool = False) -> TrainSettings:
    """The training of an arm, whose epochs are its budget times those of the study; steps that are
    set for draws come before epochs.
    """
    epochs = None if draws and config.learning_curve.steps else config.train.epochs
    return config.train.model_copy(
        update={"epochs": epochs and max(1, round(epochs * config.arms[arm].times))}
    )


def count_steps(plan: FreezePlan, train: TrainSettings, batches: int) -> int:
    """Optimiser steps of a plan, where an epoch has so many batches."""
    if plan.strategy == "linear_probe":
        return 0
    return train.epochs * batches if train.epochs is not None else plan.steps


def share_steps(
    plans: dict[str, FreezePlan], config: StudyConfig, batches: int, draws: bool = False
) -> dict[str, FreezePlan]:
    """The plans with one budget, times that of each arm: the one that is set, or the longest any of
    them asks for.

    `batches` are those of an epoch; `draws` of a learning curve have their own budget, and end with
    it.
    """
    longest = max(plan.steps for plan in plans.values())
    shared: dict[str, FreezePlan] = {}
    for name, plan in plans.items():
        shared[name] = plan
        if plan.strategy == "linear_probe":
            if config.arms[name].budget not in {None, 1}:
                shared[name] = replace(
                    plan,
                    reason=f"{plan.reason} A linear probe has no budget, so that the one set is "
                    "not used.",
                )
        else:
            arm = config.arms[name]
            train = train_of(config, name, draws)
            steps = (
                max(1, round(longest * arm.times))
                if train.epochs is None
                else train.epochs * batches
            )
            reason = (
                plan.reason
                if arm.times == 1
                else f"{plan.reason} Its budget is {arm.times:g} times that of the study."
            )
            level = arm.level and not draws
            if level:
                reason += (
                    " Training goes on until the tune loss has levelled off, at most "
                    f"{CYCLES[-1]} times the budget."
                )
            shared[name] = replace(plan, steps=steps, reason=reason, level=level)
    return shared


def take_up_edits(
    path: Path,
    config: StudyConfig,
    plans: dict[str, FreezePlan],
    backbones: dict[str, Backbone],
    ndim: int,
    images: int,
) -> dict[str, FreezePlan]:
    """The plans with what was edited in `plan.json`; where a depth was edited and the views were
    not, these follow it.
    """
    cache, edited = cache_budget(config, ndim, images), {}
    for name, plan in read_plans(path, plans, backbones).items():
        by_hand = (
            config.plan.views is not None
            or config.arms[name].plan.views is not None
            or plan.views != plans[name].views
        )
        try:
            edited[name] = plan_cache(plan, backbones[name], images, cache, choose=not by_hand)
        except ConfigError as error:
            more = "Where an arm was added, it shares the cache; start another study with all arms."
            raise ConfigError(f"{path}: arm {name}: {error} {more}") from error
    return edited


def read_plans(
    path: Path, plans: dict[str, FreezePlan], backbones: dict[str, Backbone]
) -> dict[str, FreezePlan]:
    """The plans with what was edited in `plan.json`; what it does not name stays as planned.

    Raises:
        ConfigError: not a plan, or an edit that does not fit.
    """
    try:
        stored = read_json(path)["arms"]
        edits = {
            name: {k: v for k, v in stored.get(name, {}).items() if k not in _DERIVED}
            for name in plans
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a plan ({type(error).__name__}: {error}). Correct it, or remove it to "
            "have it planned anew."
        ) from error
    read = {}
    for name, plan in plans.items():
        planned = plan.to_dict()
        unknown = sorted(set(edits[name]) - set(planned))
        if unknown:
            raise ConfigError(f"{path}: arm {name}: unknown field {unknown[0]}.")
        changed = {key: value for key, value in edits[name].items() if value != planned[key]}
        try:
            read[name] = fix_plan(plan, backbones[name], **changed)
        except ConfigError as error:
            raise ConfigError(f"{path}: arm {name}: {error}") from error
    return read


def refuse_edited_steps(path: Path, plans: dict[str, FreezePlan]) -> None:
    """The budget is one for all arms, so that none is favoured unseen; it is set in the
    configuration.
    """
    stored = read_json(path)["arms"]
    for name, plan in plans.items():
        # A file from `plan` may name a strategy that was edited since; its steps follow.
        same = stored.get(name, {}).get("strategy") == plan.strategy
        steps = stored.get(name, {}).get("steps", plan.steps)
        level = stored.get(name, {}).get("level", plan.level)
        if same and level != plan.level:
            raise ConfigError(
                f"{path}: arm {name}: level is {level!r}, not {plan.level}. Set "
                f"arms.{name}.budget (level, or 1) instead."
            )
        if same and steps != plan.steps:
            raise ConfigError(
                f"{path}: arm {name}: steps is {steps!r}, not {plan.steps}; the budget is one for "
                "all arms. Set train.epochs, or "
                f"arms.{name}.budget, instead. Where an arm that was added asks for more steps "
                "than the others had, start another study."
            )


def write_plans(plans: dict[str, FreezePlan], path: Path) -> None:
    """Writes `plan.json`, which `read_plans` takes up again."""
    write_json(path, {"arms": {name: plan.to_dict() for name, plan in plans.items()}})
