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
from dataclasses import dataclass, replace
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
from medtransfer.training.batches import Loader, Source
from medtransfer.training.choice import (
    Depth,
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
from medtransfer.training.predicting import Model, predict
from medtransfer.training.probe import (
    Features,
    Labelled,
    choose_penalty,
    features_by_stage,
    fit_head,
)
from medtransfer.training.trainer import Progress, Trainer

_FOLDS, _REPEATS, _INNER = 5, 3, 3
_VIEWS = 2
# The share of the operations of one full fine-tuning that the trials may take.
_SHARE = 0.8
_FEWEST_STEPS, _LONGEST = 20, 1 / 3


@dataclass(frozen=True, eq=False)
class Setting:
    """What all trainings of a search share.

    Attributes:
        task: with its class weights.
        engine: device and precision.
        keep: gives a source of activations behind a cut.
        rows: the training and tune images of a fold.
        groups: patient or cluster of every row of the cohort.
        batches: images at a step, and images that are predicted at once.
        seed: of folds and order.
    """

    task: Task
    engine: Engine
    keep: Keep
    rows: Int
    groups: Int
    batches: tuple[int, int]
    seed: int = 0

    def load(self, source: Source, rows: Int) -> Loader:
        """Batches in order, of as many images as are predicted at once."""
        return Loader(source, rows, self.batches[1], share=self.engine.share)


def search_depth(
    backbone: Backbone,
    setting: Setting,
    plan: FreezePlan,
    budget: Budget,
    costs: Sequence[StageCost],
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> DepthChoice:
    """Compares the planned depth with at most two that probes suggest.

    Args:
        backbone: pretrained; left as it is.
        setting: what all trainings share.
        plan: the prior.
        budget: of the training that follows.
        costs: of the stages, see `measure_stages`; the trials together take fewer operations than
            one full fine-tuning, if that is long enough to leave each its twenty steps.
        report: progress.
    """
    begun = time.perf_counter()
    engine, task = setting.engine, setting.task
    backbone = engine.place(copy.deepcopy(backbone))  # type: ignore[assignment]  # the same class comes back
    if plan.adapt_norm:
        images = setting.keep(backbone, "image", ())
        adapt_norms(backbone, Loader(images, setting.rows, setting.batches[1]), engine)
    features = _pool_stages(backbone, setting)
    names = backbone.names[: plan.kept_stages]
    first = features[backbone.names[0]]
    data = first.labelled(0, setting.groups[first.rows], task.positive_weights[0])
    folds = list(data.folds(_FOLDS, _REPEATS, setting.seed))
    if len(folds) < 2 * _REPEATS:
        reason = "Too few patients to search for a depth; the plan stays."
        return DepthChoice((), (), 0, 0.0, 0, reason, time.perf_counter() - begun)
    scores = {}
    for number, name in enumerate(names):
        stage = replace(data, values=features[name].values)
        scores[name] = _probe_stage(stage, folds, setting.seed)
        report("probes of every stage", number + 1, len(names))
    models = number_folds(folds, len(data.labels), _REPEATS)
    probes = tuple(_summarise(name, scores[name], data, models) for name in names)
    shallowest = _shallowest(probes)
    depths = _candidates(plan, shallowest, len(backbone.stages))
    first_draw = folds[: len(folds) // _REPEATS]
    images_and_batch = len(setting.rows), setting.batches[0]
    steps = _trial_steps(budget, depths, costs, len(first_draw), *images_and_batch)
    logits = []
    for number, depth in enumerate(depths):
        remaining = len(backbone.stages) - depth.dropped
        if depth.frozen < remaining:
            trial = replace(
                plan,
                frozen_stages=depth.frozen,
                dropped_stages=depth.dropped,
                strategy="lp_ft",
                steps=steps,
            )
            out_of_fold = _try(backbone, setting, trial, budget, first_draw, features)
        elif plan.read == "all":
            joined = np.concatenate(
                [features[name].values for name in backbone.names[:remaining]], 1
            )
            out_of_fold = _probe_stage(replace(data, values=joined), first_draw, setting.seed)[0]
        else:
            out_of_fold = scores[backbone.names[remaining - 1]][0]
        logits.append(out_of_fold)
        report("trials of depths", number + 1, len(depths))
    choice = choose_depth(
        probes, shallowest, depths, logits, data.labels, data.units, first_draw, steps
    )
    return replace(choice, seconds=time.perf_counter() - begun)


def _pool_stages(backbone: Backbone, setting: Setting) -> dict[str, Features]:
    """Pooled features of every stage, of all images."""
    # Attention starts as the mean.
    pooling: Literal["mean", "max"] = (
        "max" if getattr(setting.task.make_head(backbone), "pooling", "mean") == "max" else "mean"
    )
    pooled = setting.keep(backbone, backbone.names[-1], backbone.names, pooled=True)
    batches = setting.load(pooled, setting.rows)
    return features_by_stage(backbone, batches, setting.engine, pooling)


def _probe_stage(data: Labelled, folds: Folds, seed: int) -> Float:
    """Out-of-fold logits (repeat, image), at the cohort's own prevalence; the penalty from folds
    within each training part.
    """
    # Images held out once so far belong to the first repeat, and so on.
    logits = np.full((_REPEATS, len(data.labels)), np.nan)
    repeats = np.zeros(len(data.labels), np.int64)
    for train, held_out in folds:
        inside = data.take(train)
        penalty, _ = choose_penalty(inside, _INNER, seed, repeats=1)
        coefficients, intercepts = inside.fit((penalty,))
        logits[repeats[held_out], held_out] = (
            data.values[held_out] @ coefficients[0] + intercepts[0] - math.log(data.weight)
        )
        repeats[held_out] += 1
    return logits


def _summarise(name: str, logits: Float, data: Labelled, models: Int) -> StageProbe:
    labels = data.labels
    scored = [~np.isnan(row) for row in logits]
    aucs = [
        auc_within(row[k], labels[k], model[k])
        for row, model, k in zip(logits, models, scored, strict=True)
    ]
    per_unit = unit_means(np.nanmean(log_losses(logits, labels), axis=0), data.units)
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


def _candidates(plan: FreezePlan, shallowest: int, stages: int) -> list[Depth]:
    """At most three depths, the prior first."""
    depths = [Depth(plan.frozen_stages, plan.dropped_stages, "the plan")]
    cut = shallowest + 1
    others = [
        Depth(
            cut,
            plan.dropped_stages,
            "frozen up to the shallowest stage within one standard error of the best",
        )
    ]
    if cut <= stages // 2:
        # What tells the classes apart shows early; later stages may lose it again.
        why = "cut off behind that stage, its last two trained"
        others.append(Depth(max(0, cut - 2), stages - cut, why))
    else:
        deeper = min(cut + 1, plan.kept_stages)
        others.append(Depth(deeper, plan.dropped_stages, "frozen one stage deeper"))
    for depth in others:
        if (depth.frozen, depth.dropped) not in {(d.frozen, d.dropped) for d in depths}:
            depths.append(depth)
    return depths


def _trial_steps(
    budget: Budget,
    depths: Sequence[Depth],
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
    for depth in depths:
        remaining = len(costs) - depth.dropped
        if depth.frozen < remaining:
            suffixes += sum(cost.macs for cost in costs[depth.frozen : remaining]) / total
            prefix = sum(cost.macs for cost in costs[: depth.frozen]) / total
            fills += (_VIEWS + 1) * images * prefix
    # A step is one pass forward and about two backward; filling the cache is forward alone.
    rest = _SHARE * 3 * full * batch - fills - images
    steps = int(rest / (3 * folds * batch * suffixes)) if suffixes else 0
    return max(_FEWEST_STEPS, min(steps, int(_LONGEST * full)))


def _try(
    backbone: Backbone,
    setting: Setting,
    plan: FreezePlan,
    budget: Budget,
    folds: Folds,
    features: dict[str, Features],
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
    source = setting.keep(backbone, cut, setting.task.make_head(backbone).taps)
    labels = features[backbone.names[0]].targets[:, 0].astype(np.int64)
    before, after = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
    rows, seed, share = setting.rows, setting.seed, setting.engine.share
    for inside, held_out in folds:
        network = copy.deepcopy(backbone)
        network.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
        head = setting.task.make_head(network)
        assert isinstance(head, LinearHead)
        head.to(setting.engine.device).dropout.p = plan.dropout
        model = Model(network, head, setting.task, setting.engine)
        pooled = Features(
            np.concatenate([features[name].values for name in head.taps], 1)[inside],
            features[head.taps[0]].targets[inside],
            features[head.taps[0]].rows[inside],
        )
        weights = setting.task.positive_weights
        fit_head(head, pooled, setting.groups[pooled.rows], weights)
        outside = setting.load(source, rows[held_out])
        before[held_out] = predict(model, outside)[0][:, 0]
        loader = Loader(source, rows[inside], setting.batches[0], seed, _VIEWS, share)
        trainer = Trainer(model, plan, budget.weight_decay, [plan.steps])
        progress = Progress([{}], [], 0, math.inf, {})
        for _ in range(max(1, math.ceil(plan.steps / len(loader)))):
            trainer.run_epoch(loader, progress)
            progress.history.append({})
        averaged = trainer.candidates(setting.load(source, rows[inside]))[-1]
        after[held_out] = predict(averaged, outside)[0][:, 0]
        trainer.accelerator.free_memory()
    return min(
        before, after, key=lambda logits: float(np.nanmean(tempered_losses(logits, labels, folds)))
    )
