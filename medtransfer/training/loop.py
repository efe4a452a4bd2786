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
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from medtransfer.errors import StudyError
from medtransfer.evaluation.calibration import fit_temperature
from medtransfer.models.backbone import Backbone
from medtransfer.models.freeze import FreezePlan, parameter_groups
from medtransfer.models.heads import LinearHead
from medtransfer.tasks.task import Batch, Task
from medtransfer.training.engine import Engine
from medtransfer.training.probe import fit_head, pooled_features

_WARM_UP = 0.1
_CLIP_NORM = 5.0
# Of the averaged weights, per step: a memory of about twenty steps.
_AVERAGE = 0.95
# A tune loss is better only by more than rounding.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Budget:
    """How long to train, the same for every arm.

    Attributes:
        steps: optimiser steps at the most.
        patience: epochs without a better tune loss before training stops; None: all epochs are run, as
            the best ones often come at the end, where the learning rate is low.
        weight_decay: of AdamW, on matrices only.
    """

    steps: int
    patience: int | None
    weight_decay: float


class _Averages:
    """Exponential moving averages of weights and batch statistics (Polyak & Juditsky 1992, doi:10.1137/0330046).

    On a few hundred images single steps swing the tune loss by more than epochs improve it; the
    average does not, so that the choice of the epoch is not one of noise.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        self.backbone, self.head = copy.deepcopy(backbone), copy.deepcopy(head)

    @torch.no_grad()
    def update(self, backbone: Backbone, head: nn.Module) -> None:
        """One step towards the current weights; what is frozen stays exactly as it is."""
        for average, current in ((self.backbone, backbone), (self.head, head)):
            now = current.state_dict()
            for key, value in average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(now[key], 1 - _AVERAGE)
                else:
                    value.copy_(now[key])

    def state(self) -> list[dict[str, Tensor]]:
        """A copy of the averaged states of backbone and head."""
        return [copy.deepcopy(module.state_dict()) for module in (self.backbone, self.head)]


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        history: per epoch `epoch, train_loss, tune_loss, tune_loss_raw, tune_auc, lr, seconds`, the tune loss at
            the best temperature and as it is; epoch 0 is the convex head alone.
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
    leaves trainable, with AdamW, linear warm-up and cosine decay. What is measured and kept is the
    exponential average of the weights, at the epoch with the lowest tune loss.

    Args:
        train: random transforms, shuffled. `train_plain`: the same images as they are. `tune`: for the choice of the epoch.
        plan, budget, engine: what trains, how long, and on what.
        on_epoch: called with each entry of the history and the number of epochs planned.

    Raises:
        StudyError: the loss is not finite.
    """
    engine.place(backbone)
    head.to(engine.device)
    backbone.freeze(plan.frozen_stages, plan.norm_policy)
    probe: dict[str, Any] = {}
    if plan.strategy != "scratch":
        linear = cast(LinearHead, head)
        parts = [pooled_features(backbone, linear, batches, engine) for batches in (train_plain, tune)]
        probe = fit_head(linear, parts[0], parts[1], task.positive_weights)
    steps = 0 if plan.strategy == "linear_probe" else budget.steps
    epochs = math.ceil(steps / len(train))
    optimizer = torch.optim.AdamW(parameter_groups(backbone, head, plan, budget.weight_decay))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, epochs * len(train)))
    accelerator = engine.make_accelerator()
    accelerated = accelerator.prepare(optimizer)
    averages = _Averages(backbone, head)
    history = [_measure(backbone, head, task, tune, engine, epoch=0)]
    best, best_epoch, lowest = averages.state(), 0, history[0]["tune_loss"]
    if plan.strategy == "scratch":
        lowest = math.inf  # an untrained network is not a candidate, however poor the first epochs are
    patience = budget.patience or epochs
    begun = time.perf_counter()
    if on_epoch is not None:
        on_epoch(history[0], epochs)
    stopped_early = False
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        for part in (train.sampler, train.dataset):
            cast(Any, part).set_epoch(epoch)
        train_loss = _train_epoch(backbone, head, task, train, accelerated, schedule, averages, engine, accelerator)
        entry = _measure(averages.backbone, averages.head, task, tune, engine, epoch)
        entry |= {"train_loss": train_loss, "lr": float(schedule.get_last_lr()[-1]), "seconds": time.perf_counter() - started}
        history.append(entry)
        if on_epoch is not None:
            on_epoch(entry, epochs)
        if entry["tune_loss"] < lowest - _LEAST_GAIN:
            best, best_epoch, lowest = averages.state(), epoch, entry["tune_loss"]
        elif epoch - best_epoch >= patience:
            stopped_early = epoch < epochs
            break
    for module, state in zip((backbone, head), best, strict=True):
        module.load_state_dict(state)
        module.eval()
    accelerator.free_memory()
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
    with engine.autocast():
        taps = backbone(engine.move(batch["features"]), task.taps(backbone))
    result: Tensor = head(taps, batch["present"])
    return result


def _train_epoch(
    backbone: Backbone,
    head: nn.Module,
    task: Task,
    train: DataLoader[Any],
    optimizer: Any,
    schedule: Any,
    averages: _Averages,
    engine: Engine,
    accelerator: Accelerator,
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
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, _CLIP_NORM)
        optimizer.step()
        schedule.step()
        averages.update(backbone, head)
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _measure(backbone: Backbone, head: nn.Module, task: Task, tune: DataLoader[Any], engine: Engine, epoch: int) -> dict[str, float]:
    """Unweighted log-loss on the tune part, as it is and at the best temperature, and the AUC.

    The second one chooses the epoch ("refine, then calibrate", Berta et al. 2025, arXiv:2501.19195):
    over-confidence grows while discrimination still improves, and a temperature takes it away.
    """
    logits, targets = predict(backbone, head, task, tune, engine)
    temperatures = [fit_temperature(logits[:, i], targets[:, i]) for i in range(logits.shape[1])]
    raw, refined = (float(np.logaddexp(0.0, np.where(targets == 1, -z, z)).mean()) for z in (logits, logits / temperatures))
    auc = float(binary_auroc(torch.from_numpy(logits[:, 0]), torch.from_numpy(targets[:, 0]).int()))
    return {"epoch": epoch, "tune_loss": refined, "tune_loss_raw": raw, "tune_auc": auc}


def _rate(step: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up over the first tenth, then half a cosine to 0."""
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
