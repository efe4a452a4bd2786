"""The only training loop, and the only prediction loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from medtransfer.errors import StudyError
from medtransfer.models.backbone import Backbone
from medtransfer.models.freeze import FreezePlan, parameter_groups
from medtransfer.models.heads import LinearHead
from medtransfer.tasks.task import Batch, Task
from medtransfer.training.engine import Engine
from medtransfer.training.probe import fit_head, pooled_features

_WARM_UP = 0.1
_CLIP_NORM = 5.0


@dataclass(frozen=True)
class Budget:
    """How long to train, the same for every arm.

    Attributes:
        steps: optimiser steps at the most.
        patience: epochs without a better tune loss before training stops; None: half of all epochs,
            as networks trained from scratch often pause for a while before they improve.
        weight_decay: of AdamW, on matrices only.
    """

    steps: int
    patience: int | None
    weight_decay: float


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        history: per epoch `epoch, train_loss, tune_loss, tune_auc, lr, seconds`; epoch 0 is the convex head alone.
        best_epoch: the epoch whose weights were kept (lowest tune loss).
        stopped_early: True where patience ran out before the budget did.
        probe: penalties and losses of the convex head; empty for scratch.
        seconds, images_per_second: of the training epochs.
    """

    history: list[dict[str, float]]
    best_epoch: int
    stopped_early: bool
    probe: dict[str, Any]
    seconds: float
    images_per_second: float


def fit(
    backbone: Backbone,
    head: nn.Module,
    task: Task,
    train: DataLoader[Any],
    train_plain: DataLoader[Any],
    tune: DataLoader[Any],
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    on_epoch: Callable[[dict[str, float], int], None] | None = None,
) -> FitResult:
    """Trains head and backbone in place and leaves them with the best weights, in eval mode.

    First the convex head (not for scratch, whose features mean nothing yet), then all that the plan
    leaves trainable, with AdamW, linear warm-up and cosine decay; the epoch with the lowest tune loss
    is kept.

    Args:
        train: random transforms, shuffled. `train_plain`: the same images as they are. `tune`: for the choice of the epoch.
        plan, budget, engine: what trains, how long, and on what.
        on_epoch: called with each entry of the history and the number of epochs planned.

    Raises:
        StudyError: the loss is not finite.
    """
    backbone.to(engine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head.to(engine.device)
    backbone.freeze(plan.frozen_stages, plan.norm_policy)
    probe: dict[str, Any] = {}
    if plan.strategy != "scratch":
        tap = task.taps(backbone)[0]
        parts = [pooled_features(backbone, tap, batches, engine) for batches in (train_plain, tune)]
        probe = fit_head(cast(LinearHead, head), parts[0], parts[1], task.positive_weights)
    steps = 0 if plan.strategy == "linear_probe" else budget.steps
    epochs = math.ceil(steps / len(train))
    optimizer = torch.optim.AdamW(parameter_groups(backbone, head, plan, budget.weight_decay))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, epochs * len(train)))
    accelerated = engine.accelerator.prepare(optimizer)
    history = [_measure(backbone, head, task, tune, engine, epoch=0)]
    best, best_epoch, lowest = _snapshot(backbone, head), 0, history[0]["tune_loss"]
    if plan.strategy == "scratch":
        lowest = math.inf  # an untrained network is not a candidate, however poor the first epochs are
    patience = budget.patience or max(1, epochs // 2)
    begun = time.perf_counter()
    if on_epoch is not None:
        on_epoch(history[0], epochs)
    stopped_early = False
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        for part in (train.sampler, train.dataset):
            cast(Any, part).set_epoch(epoch)
        train_loss = _train_epoch(backbone, head, task, train, accelerated, schedule, engine)
        entry = _measure(backbone, head, task, tune, engine, epoch)
        entry |= {"train_loss": train_loss, "lr": float(schedule.get_last_lr()[-1]), "seconds": time.perf_counter() - started}
        history.append(entry)
        if on_epoch is not None:
            on_epoch(entry, epochs)
        if entry["tune_loss"] < lowest:
            best, best_epoch, lowest = _snapshot(backbone, head), epoch, entry["tune_loss"]
        elif epoch - best_epoch >= patience:
            stopped_early = epoch < epochs
            break
    _restore(backbone, head, best)
    seconds = time.perf_counter() - begun
    seen = (len(history) - 1) * len(train) * (train.batch_size or 1)
    return FitResult(history, best_epoch, stopped_early, probe, seconds, seen / seconds if seen else 0.0)


def predict(backbone: Backbone, head: nn.Module, task: Task, batches: Iterable[Batch], engine: Engine) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits in float32, corrected for class weights to float64, and targets; (image, label) each, in the order of the batches."""
    backbone.eval()
    head.eval()
    logits, targets = [], []
    for batch in batches:
        with torch.inference_mode():
            logits.append(_forward(backbone, head, task, batch, engine).float().cpu().numpy())
        targets.append(batch["targets"].numpy())
    return task.correct(np.concatenate(logits)), np.concatenate(targets)


def _forward(backbone: Backbone, head: nn.Module, task: Task, batch: Batch, engine: Engine) -> Tensor:
    features = {
        name: x.to(engine.device, non_blocking=True, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
        for name, x in batch["features"].items()
    }
    with engine.accelerator.autocast():
        taps = backbone(features, task.taps(backbone))
    result: Tensor = head(taps)
    return result


def _train_epoch(
    backbone: Backbone, head: nn.Module, task: Task, train: DataLoader[Any], optimizer: Any, schedule: Any, engine: Engine
) -> float:
    backbone.train()
    head.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses: list[float] = []
    for batch in train:
        optimizer.zero_grad()
        loss = task.loss(_forward(backbone, head, task, batch, engine), batch["targets"].to(engine.device))["loss"]
        if not torch.isfinite(loss):
            raise StudyError("the training loss is not finite. Lower plan.backbone_lr and plan.head_lr, or set train.precision=fp32.")
        engine.accelerator.backward(loss)
        engine.accelerator.clip_grad_norm_(parameters, _CLIP_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _measure(backbone: Backbone, head: nn.Module, task: Task, tune: DataLoader[Any], engine: Engine, epoch: int) -> dict[str, float]:
    """Unweighted log-loss on the tune part: the loss of the probabilities a reader would be shown."""
    logits, targets = predict(backbone, head, task, tune, engine)
    loss = float(np.logaddexp(0.0, np.where(targets == 1, -logits, logits)).mean())
    auc = float(binary_auroc(torch.from_numpy(logits[:, 0]), torch.from_numpy(targets[:, 0]).int()))
    return {"epoch": epoch, "tune_loss": loss, "tune_auc": auc}


def _rate(step: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up over the first tenth, then half a cosine to 0."""
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _snapshot(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [copy.deepcopy(module.state_dict()) for module in modules]


def _restore(backbone: nn.Module, head: nn.Module, states: list[dict[str, Tensor]]) -> None:
    for module, state in zip((backbone, head), states, strict=True):
        module.load_state_dict(state)
        module.eval()
