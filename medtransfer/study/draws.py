"""The draws of a learning curve: small cohorts from the training patients of every fold.

Draws of one episode are nested: the smaller ones lie within the larger, and every patient has one
role in all of them, to train on or to tune on. Each has the plan that its own number of patients
gives, as a cohort of that size would.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.cohort.split import Fold
from medtransfer.errors import ConfigError
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.study.planning import plan_arm, share_steps
from medtransfer.study.settle import Settled
from medtransfer.study.views import task_of


def refuse_large_sizes(settled: Settled) -> None:
    """Every size must be there to be drawn from every fold.

    Raises:
        ConfigError: a fold has fewer patients of a class, or a plan set by hand does not fit a
            size.
    """
    sizes = settled.config.learning_curve.sizes
    if not sizes:
        return
    fewest = min(
        len(units)
        for index in range(len(settled.split))
        for units in _units_by_class(settled, index)
    )
    if sizes[-1] > fewest:
        raise ConfigError(
            f"learning_curve: {sizes[-1]} patients per class are asked for, but a training part "
            f"(with its tune part) has {fewest} of a "
            f"class. Give sizes up to {fewest}."
        )
    for size in sizes:
        plan_draw(settled, draw_fold(settled, 0, 1, size))


def draw_fold(settled: Settled, index: int, episode: int, size: int) -> Fold:
    """A fold whose train and tune parts hold `size` patients of each class; its test part is
    whole.
    """
    fold, units = settled.split.fold(index), settled.cohort.units.to_numpy()
    rng = np.random.default_rng([settled.config.protocol.split_seed, index, episode])
    parts: dict[str, list[object]] = {"tune": [], "train": []}
    for known in _units_by_class(settled, index):
        chosen = [known[i] for i in rng.permutation(len(known))[:size]]
        roles = _tune_roles(settled.config.protocol.tune, size)
        for part, role in (("tune", True), ("train", False)):
            parts[part] += [
                unit for unit, tunes in zip(chosen, roles, strict=True) if tunes == role
            ]
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    train, tune = (
        rows[pd.Series(units[rows]).isin(parts[name]).to_numpy()] for name in ("train", "tune")
    )
    return Fold(index, train, tune, fold.test)


def _tune_roles(share: float, size: int) -> list[bool]:
    """Who is tuned on, in the order in which they are drawn: the first, then one whenever the share
    falls due; the same for every size.
    """
    due = np.floor(share * np.arange(size + 1) + 1 - share + 1e-9)
    return [bool(step) for step in np.diff(due)]


def _units_by_class(settled: Settled, index: int) -> list[list[object]]:
    """Patients (or clusters) of the train and tune parts, negative and positive; one with both
    counts as positive.
    """
    fold = settled.split.fold(index)
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    positive = _positives(settled)[rows].astype(int)
    by_unit = pd.Series(positive).groupby(settled.cohort.units.to_numpy()[rows], sort=False).max()
    return [by_unit.index[by_unit == value].tolist() for value in (0, 1)]


def plan_draw(settled: Settled, fold: Fold) -> dict[str, FreezePlan]:
    """The plans of all arms for the training part of a draw, with one budget."""
    config, cohort = settled.config, settled.cohort
    task = task_of(settled, next(iter(config.arms)))
    positive = _positives(settled)[fold.train].astype(int)
    by_unit = pd.Series(positive).groupby(cohort.units.to_numpy()[fold.train]).max()
    counts = replace(
        settled.fingerprint,
        patients_per_class={str(value): int((by_unit == value).sum()) for value in (0, 1)},
        images_per_class={str(value): int((positive == value).sum()) for value in (0, 1)},
    )
    plans = {
        name: plan_arm(config, name, backbone, counts, task, len(cohort))
        for name, backbone in settled.backbones.items()
    }
    if steps := config.learning_curve.steps:
        plans = {
            name: plan if plan.strategy == "linear_probe" else replace(plan, steps=steps)
            for name, plan in plans.items()
        }
    step = config.train.batch_size or task.batch_size(counts.ndim)
    return share_steps(plans, config, max(1, len(fold.train) // step), draws=True)


def _positives(settled: Settled) -> NDArray[np.bool_]:
    """(image,): which images are positive."""
    task, cohort = task_of(settled, next(iter(settled.config.arms))), settled.cohort
    labels = cohort.images[list(cohort.labels)].to_numpy(np.float32)
    return task.positives(task.targets(labels, None, ()))
