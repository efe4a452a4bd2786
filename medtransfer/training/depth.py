"""The depth to transfer, asked of the data: probes of every stage, then a short trial of at most
three depths.

The plan's depth is the prior; on ten data sets it beats choosing by validation. So the data
override it only where the gain per patient exceeds its standard error. Everything here happens
within the training and tune patients of one fold.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from medtransfer.evaluation.metrics.discrimination import auc_within
from medtransfer.evaluation.metrics.recalibration import log_losses
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.costs import StageCost
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.tasks.task import Task
from medtransfer.training.averages import adapt_norms
from medtransfer.training.batches import Loader
from medtransfer.training.choice import (
    DepthChoice,
    Float,
    Folds,
    Int,
    StageProbe,
    choose_depth,
    number_folds,
    tempered_losses,
    unit_means,
)
from medtransfer.training.device import Engine
from medtransfer.training.features import Keep
from medtransfer.training.loop import Budget
from medtransfer.training.predicting import predict
from medtransfer.training.probe import (
    Features,
    choose_penalty,
    features_by_stage,
    fit_head,
    fit_path,
    inner_folds,
)
from medtransfer.training.trainer import Progress, Trainer

_FOLDS, _REPEATS, _INNER = 5, 3, 3
_VIEWS = 2
# Of one full fine-tuning, what the trials may cost by the count of operations.
_SHARE = 0.8
_FEWEST_STEPS, _LONGEST = 20, 1 / 3


def search_depth(
    backbone: Backbone,
    task: Task,
    keep: Keep,
    rows: Int,
    batches: tuple[int, int],
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    groups: Int,
    costs: Sequence[StageCost],
    seed: int = 0,
    report: Callable[[str, int, int], None] | None = None,
) -> DepthChoice:
    """Compares the planned depth with at most two that probes suggest.

    Args:
        backbone: pretrained; left as it is.
        task: with its class weights.
        keep: gives a source of activations behind a cut.
        rows: the training and tune images of a fold.
        batches: images at a step, and images that are predicted at once.
        plan: the prior.
        budget: of the training that follows.
        engine: device and precision.
        groups: patient or cluster of every row of the cohort.
        costs: of its stages, see `measure_stages`; the trials together take fewer operations than
            one full fine-tuning, if that is long enough to leave each its twenty steps.
        seed: of folds and order.
        report: progress.
    """
    begun = time.perf_counter()
    backbone = engine.place(copy.deepcopy(backbone))  # type: ignore[assignment]  # the same class comes back
    if plan.adapt_norm:
        adapt_norms(backbone, Loader(keep(backbone, "image", ()), rows, batches[1]), engine)
    # Attention starts as the mean.
    pooling: Literal["mean", "max"] = (
        "max" if getattr(task.make_head(backbone), "pooling", "mean") == "max" else "mean"
    )
    pooled = keep(backbone, backbone.names[-1], backbone.names, pooled=True)
    features = features_by_stage(
        backbone, Loader(pooled, rows, batches[1], share=engine.share), engine, pooling
    )
    names = backbone.names[: plan.kept_stages]
    first = features[backbone.names[0]]
    labels, units = first.targets[:, 0].astype(np.int64), groups[first.rows]
    folds = list(inner_folds(labels, units, _FOLDS, _REPEATS, seed))
    if len(folds) < 2 * _REPEATS:
        return DepthChoice(
            (),
            (),
            0,
            0.0,
            0,
            "Too few patients to search for a depth; the plan stays.",
            time.perf_counter() - begun,
        )
    weight = task.positive_weights[0]
    scores = {}
    for number, name in enumerate(names):
        scores[name] = _probe_stage(features[name].values, labels, units, weight, folds, seed)
        if report is not None:
            report("probes of every stage", number + 1, len(names))
    models = number_folds(folds, len(labels), _REPEATS)
    probes = tuple(_summarise(name, scores[name], labels, units, models) for name in names)
    shallowest = _shallowest(probes)
    depths = _candidates(plan, shallowest, len(backbone.stages))
    first_draw = folds[: len(folds) // _REPEATS]
    steps = _trial_steps(budget, depths, costs, len(first_draw), len(rows), batches[0])
    logits = []
    for number, (frozen, dropped, _) in enumerate(depths):
        kept = len(backbone.stages) - dropped
        if frozen == kept:
            logits.append(
                _probe_kept(
                    backbone.names[:kept],
                    features,
                    scores,
                    plan,
                    labels,
                    units,
                    weight,
                    first_draw,
                    seed,
                )
            )
        else:
            tried = replace(
                plan, frozen_stages=frozen, dropped_stages=dropped, strategy="lp_ft", steps=steps
            )
            logits.append(
                _try(
                    backbone,
                    task,
                    keep,
                    rows,
                    batches,
                    tried,
                    budget,
                    engine,
                    units,
                    first_draw,
                    features,
                    groups,
                    seed,
                )
            )
        if report is not None:
            report("trials of depths", number + 1, len(depths))
    return choose_depth(
        probes,
        shallowest,
        depths,
        logits,
        labels,
        units,
        first_draw,
        steps,
        time.perf_counter() - begun,
    )


def _probe_stage(
    values: Float, labels: Int, units: Int, weight: float, folds: Folds, seed: int
) -> Float:
    """Out-of-fold logits (repeat, image), at the cohort's own prevalence; the penalty from folds
    within each training part.
    """
    # Images held out once so far belong to the first repeat, and so on.
    logits = np.full((_REPEATS, len(labels)), np.nan)
    repeats = np.zeros(len(labels), np.int64)
    for train, held in folds:
        penalty, _ = choose_penalty(
            values[train], labels[train], units[train], weight, _INNER, seed, repeats=1
        )
        coefficients, intercepts = fit_path(values[train], labels[train], weight, (penalty,))
        logits[repeats[held], held] = (
            values[held] @ coefficients[0] + intercepts[0] - math.log(weight)
        )
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


def _summarise(name: str, logits: Float, labels: Int, units: Int, models: Int) -> StageProbe:
    known = [~np.isnan(row) for row in logits]
    aucs = [
        auc_within(row[k], labels[k], model[k])
        for row, model, k in zip(logits, models, known, strict=True)
    ]
    per_unit = unit_means(np.nanmean(log_losses(logits, labels), axis=0), units)
    return StageProbe(
        name,
        float(np.mean(aucs)),
        float(per_unit.mean()),
        float(per_unit.std(ddof=1) / math.sqrt(len(per_unit))),
    )


def _shallowest(probes: Sequence[StageProbe]) -> int:
    """The first stage within one standard error of the best, by log-loss."""
    best = min(probes, key=lambda probe: probe.log_loss)
    return next(i for i, probe in enumerate(probes) if probe.log_loss <= best.log_loss + best.error)


def _candidates(plan: FreezePlan, shallowest: int, stages: int) -> list[tuple[int, int, str]]:
    """Depths (frozen, dropped, why), at most three, the prior first."""
    found = [(plan.frozen_stages, plan.dropped_stages, "the plan")]
    cut = shallowest + 1
    others = [
        (
            cut,
            plan.dropped_stages,
            "frozen up to the shallowest stage within one standard error of the best",
        )
    ]
    if cut <= stages // 2:
        # What tells the classes apart is there early; stages above may lose it again.
        others.append(
            (max(0, cut - 2), stages - cut, "cut off behind that stage, its last two trained")
        )
    else:
        others.append(
            (min(cut + 1, plan.kept_stages), plan.dropped_stages, "frozen one stage deeper")
        )
    for frozen, dropped, why in others:
        if (frozen, dropped) not in {depth[:2] for depth in found}:
            found.append((frozen, dropped, why))
    return found


def _trial_steps(
    budget: Budget,
    depths: Sequence[tuple[int, int, str]],
    costs: Sequence[StageCost],
    folds: int,
    images: int,
    batch: int,
) -> int:
    """Steps of each trial, so that all of them take a share of the operations of one full
    fine-tuning.
    """
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
    keep: Keep,
    rows: Int,
    batches: tuple[int, int],
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    units: Int,
    folds: Folds,
    features: dict[str, Features],
    groups: Int,
    seed: int,
) -> Float:
    """Out-of-fold logits (image,) of short trainings at one depth, from cached activations.

    Those of the convex head alone or of the averaged weights at the end, whichever have the lower
    log-loss, as the tune part may keep the former too: augmentation takes fine texture away that a
    head on plain images reads.
    """
    backbone = copy.deepcopy(backbone)
    backbone.truncate(plan.dropped_stages)
    prefix = 0 if plan.tuned == "first" else plan.frozen_stages
    backbone.freeze(prefix)
    cut = backbone.names[prefix - 1] if prefix else "image"
    kept = keep(backbone, cut, task.make_head(backbone).taps)
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
        outside = Loader(kept, rows[held], batches[1], share=engine.share)
        before[held] = predict(network, head, task, outside, engine)[0][:, 0]
        loader = Loader(kept, rows[inside], batches[0], seed, _VIEWS, engine.share)
        epochs = max(1, math.ceil(plan.steps / len(loader)))
        trainer = Trainer(network, head, task, plan, budget.weight_decay, engine, [plan.steps])
        progress = Progress([{}], [], 0, math.inf, {})
        for _ in range(epochs):
            trainer.run_epoch(loader, progress)
            progress.history.append({})
        averaged = trainer.candidates(Loader(kept, rows[inside], batches[1], share=engine.share))[
            -1
        ]
        after[held] = predict(*averaged, task, outside, engine)[0][:, 0]
        trainer.accelerator.free_memory()
    labels = features[backbone.names[0]].targets[:, 0].astype(np.int64)
    return min(
        before, after, key=lambda logits: float(np.nanmean(tempered_losses(logits, labels, folds)))
    )
