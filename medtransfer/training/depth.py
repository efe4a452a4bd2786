"""The depth to transfer, asked of the data: probes of every stage, then a short trial of at most three depths.

The plan's depth is the prior; on ten data sets it beats choosing by validation. So the data override it only
where the gain per patient exceeds its standard error. Everything here happens within the training and tune
patients of one fold.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from medtransfer.models.backbone import Backbone
from medtransfer.models.costs import StageCost
from medtransfer.models.heads import LinearHead
from medtransfer.models.plan import FreezePlan
from medtransfer.tasks.task import Task
from medtransfer.training.averages import adapt_norms
from medtransfer.training.choice import DepthChoice, Float, Folds, Int, StageProbe, choose_depth, tempered_losses, unit_means
from medtransfer.training.engine import Engine
from medtransfer.training.features import cache_prefix, start_epoch
from medtransfer.training.loop import Budget, Trainer, predict
from medtransfer.training.probe import Features, choose_penalty, features_by_stage, fit_head, fit_path, inner_folds, log_losses

_FOLDS, _REPEATS, _INNER = 5, 3, 3
_VIEWS = 2
# Of one full fine-tuning, what the trials may cost by the count of operations.
_SHARE = 0.8
_FEWEST_STEPS, _LONGEST = 20, 1 / 3


def search_depth(
    backbone: Backbone,
    task: Task,
    train: DataLoader[Any],
    plain: DataLoader[Any],
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    groups: Int,
    costs: Sequence[StageCost],
    seed: int = 0,
    folder: Path | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> DepthChoice:
    """Compares the planned depth with at most two that probes suggest.

    Args:
        backbone: pretrained; left as it is.
        task: with its class weights.
        train: the training and tune images of a fold, randomly transformed. `plain`: the same, in order, as they are.
        plan: the prior.
        budget: of the training that follows.
        engine: device and precision.
        groups: patient or cluster of every row of the cohort.
        costs: of its stages, see `measure_stages`; the trials together take fewer operations than one full fine-tuning,
            if that is long enough to leave each its twenty steps.
        seed: of folds and order.
        folder: of the cached activations while the search lasts.
        report: progress.
    """
    begun = time.perf_counter()
    backbone = engine.place(copy.deepcopy(backbone))  # type: ignore[assignment]  # the same class comes back
    if plan.adapt_norm:
        adapt_norms(backbone, plain, engine)
    # Attention starts as the mean.
    pooling: Literal["mean", "max"] = "max" if getattr(task.make_head(backbone), "pooling", "mean") == "max" else "mean"
    features = features_by_stage(backbone, plain, engine, pooling)
    names = backbone.names[: plan.kept_stages]
    first = features[backbone.names[0]]
    labels, units = first.targets[:, 0].astype(np.int64), groups[first.rows]
    folds = list(inner_folds(labels, units, _FOLDS, _REPEATS, seed))
    if len(folds) < 2 * _REPEATS:
        return DepthChoice((), (), 0, 0.0, 0, "Too few patients to search for a depth; the plan stays.", time.perf_counter() - begun)
    weight = task.positive_weights[0]
    scores = {}
    for number, name in enumerate(names):
        scores[name] = _probe_stage(features[name].values, labels, units, weight, folds, seed)
        if report is not None:
            report("probes of every stage", number + 1, len(names))
    probes = tuple(_summarise(name, scores[name], labels, units) for name in names)
    shallowest = _shallowest(probes)
    depths = _candidates(plan, shallowest, len(backbone.stages))
    first_draw = folds[: len(folds) // _REPEATS]
    steps = _trial_steps(budget, depths, costs, len(first_draw), train)
    logits = []
    for number, (frozen, dropped, _) in enumerate(depths):
        kept = len(backbone.stages) - dropped
        if frozen == kept:
            logits.append(_probe_kept(backbone.names[:kept], features, scores, plan, labels, units, weight, first_draw, seed))
        else:
            tried = replace(plan, frozen_stages=frozen, dropped_stages=dropped, strategy="lp_ft", steps=steps)
            logits.append(_try(backbone, task, train, plain, tried, budget, engine, units, first_draw, features, groups, seed, folder))
        if report is not None:
            report("trials of depths", number + 1, len(depths))
    return choose_depth(probes, shallowest, depths, logits, labels, units, first_draw, steps, time.perf_counter() - begun)


def _probe_stage(values: Float, labels: Int, units: Int, weight: float, folds: Folds, seed: int) -> Float:
    """Out-of-fold logits (repeat, image), at the cohort's own prevalence; the penalty from folds within each training part."""
    # Images held out once so far belong to the first repeat, and so on.
    logits = np.full((_REPEATS, len(labels)), np.nan)
    repeats = np.zeros(len(labels), np.int64)
    for train, held in folds:
        penalty, _ = choose_penalty(values[train], labels[train], units[train], weight, _INNER, seed, repeats=1)
        coefficients, intercepts = fit_path(values[train], labels[train], weight, (penalty,))
        logits[repeats[held], held] = values[held] @ coefficients[0] + intercepts[0] - math.log(weight)
        repeats[held] += 1
    return logits


def _probe_kept(
    names: Sequence[str],
    features: dict[str, Features],
    scores: dict[str, Float],
    plan: FreezePlan,
    labels: Int,
    units: Int,
    weight: float,
    folds: Folds,
    seed: int,
) -> Float:
    """Out-of-fold logits (image,) of a linear probe on what its head would read of these stages."""
    if plan.read == "all":
        joined = np.concatenate([features[name].values for name in names], 1)
        found = _probe_stage(joined, labels, units, weight, folds, seed)
    else:
        found = scores[names[-1]]
    first: Float = found[0]
    return first


def _summarise(name: str, logits: Float, labels: Int, units: Int) -> StageProbe:
    aucs = [roc_auc_score(labels[~np.isnan(row)], row[~np.isnan(row)]) for row in logits]
    per_unit = unit_means(np.nanmean(log_losses(logits, labels), axis=0), units)
    return StageProbe(name, float(np.mean(aucs)), float(per_unit.mean()), float(per_unit.std(ddof=1) / math.sqrt(len(per_unit))))


def _shallowest(probes: Sequence[StageProbe]) -> int:
    """The first stage within one standard error of the best, by log-loss."""
    best = min(probes, key=lambda probe: probe.log_loss)
    return next(i for i, probe in enumerate(probes) if probe.log_loss <= best.log_loss + best.error)


def _candidates(plan: FreezePlan, shallowest: int, stages: int) -> list[tuple[int, int, str]]:
    """Depths (frozen, dropped, why), at most three, the prior first."""
    found = [(plan.frozen_stages, plan.dropped_stages, "the plan")]
    cut = shallowest + 1
    others = [(cut, plan.dropped_stages, "frozen up to the shallowest stage within one standard error of the best")]
    if cut <= stages // 2:
        # What tells the classes apart is there early; stages above may lose it again.
        others.append((max(0, cut - 2), stages - cut, "cut off behind that stage, its last two trained"))
    else:
        others.append((min(cut + 1, plan.kept_stages), plan.dropped_stages, "frozen one stage deeper"))
    for frozen, dropped, why in others:
        if (frozen, dropped) not in {depth[:2] for depth in found}:
            found.append((frozen, dropped, why))
    return found


def _trial_steps(
    budget: Budget,
    depths: Sequence[tuple[int, int, str]],
    costs: Sequence[StageCost],
    folds: int,
    train: DataLoader[Any],
) -> int:
    """Steps of each trial, so that all of them take a share of the operations of one full fine-tuning."""
    images, batch = len(train.dataset), train.batch_size or 1  # type: ignore[arg-type]  # our datasets have a length
    total = sum(cost.macs for cost in costs) or 1
    full = budget.steps
    suffixes, fills = 0.0, 0.0
    for frozen, dropped, _ in depths:
        kept = len(costs) - dropped
        if frozen < kept:
            suffixes += sum(cost.macs for cost in costs[frozen:kept]) / total
            fills += (_VIEWS + 1) * images * sum(cost.macs for cost in costs[:frozen]) / total
    # A step is one pass forward and about two backward; filling the cache is forward alone.
    left = _SHARE * 3 * full * batch - fills - images
    steps = int(left / (3 * folds * batch * suffixes)) if suffixes else 0
    return max(_FEWEST_STEPS, min(steps, int(_LONGEST * full)))


def _try(
    backbone: Backbone,
    task: Task,
    train: DataLoader[Any],
    plain: DataLoader[Any],
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    units: Int,
    folds: Folds,
    features: dict[str, Features],
    groups: Int,
    seed: int,
    folder: Path | None,
) -> Float:
    """Out-of-fold logits (image,) of short trainings at one depth, from cached activations.

    Those of the convex head alone or of the averaged weights at the end, whichever have the lower log-loss, as the tune
    part may keep the former too: augmentation takes fine texture away that a head on plain images reads.
    """
    backbone = copy.deepcopy(backbone)
    backbone.truncate(plan.dropped_stages)
    prefix = 0 if plan.tuned == "first" else plan.frozen_stages
    backbone.freeze(prefix)
    cut = backbone.names[prefix - 1] if prefix else "image"
    taps = task.make_head(backbone).taps
    views = cache_prefix(backbone, train, cut, taps, _VIEWS, engine, folder)
    as_they_are = cache_prefix(backbone, plain, cut, taps, 1, engine, folder)
    batch = train.batch_size or 1
    before, after = np.full(len(units), np.nan), np.full(len(units), np.nan)
    for inside, held in folds:
        network = copy.deepcopy(backbone)
        network.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
        head = task.make_head(network)
        assert isinstance(head, LinearHead)
        head.to(engine.device).dropout.p = plan.dropout
        read = Features(
            np.concatenate([features[name].values for name in head.taps], 1)[inside],
            features[head.taps[0]].targets[inside],
            features[head.taps[0]].rows[inside],
        )
        fit_head(head, read, groups[read.rows], task.positive_weights)
        outside = as_they_are.select(held.tolist(), batch, None)
        before[held] = predict(network, head, task, outside, engine)[0][:, 0]
        loader = views.select(inside.tolist(), batch, seed)
        epochs = max(1, math.ceil(plan.steps / len(loader)))
        trainer = Trainer(network, head, task, plan, budget, engine, plan.steps)
        for epoch in range(epochs):
            start_epoch(loader, epoch)
            trainer.run_epoch(loader, epoch * len(loader))
        scores, _ = predict(trainer.averages.backbone, trainer.averages.head, task, outside, engine)  # type: ignore[arg-type]  # copies of ours
        after[held] = scores[:, 0]
        trainer.accelerator.free_memory()
    labels = features[backbone.names[0]].targets[:, 0].astype(np.int64)
    return min(before, after, key=lambda logits: float(np.nanmean(tempered_losses(logits, labels, folds))))
