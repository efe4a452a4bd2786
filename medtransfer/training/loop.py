"""The only training loop, and the only prediction loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
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
from medtransfer.models.freeze import FEWEST_TO_TUNE
from medtransfer.models.heads import Head, LinearHead
from medtransfer.models.plan import FreezePlan
from medtransfer.models.schedule import frozen_at, parameter_groups, rate_at
from medtransfer.tasks.task import Batch, Task
from medtransfer.training.averages import Anchor, Averages, State, adapt_norms, choose_mixture, copy_state, load_state
from medtransfer.training.checkpoint import Checkpoints
from medtransfer.training.engine import Engine
from medtransfer.training.features import Loader, cache_prefix, start_epoch
from medtransfer.training.probe import compare_heads, fit_head, log_losses, pooled_features

_CLIP_NORM = 5.0
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


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        history: per epoch `epoch, train_loss, tune_loss, tune_loss_raw, tune_auc, lr, seconds`, the tune loss at
            the best temperature and as it is; epoch 0 is the convex head alone.
        best_epoch: the epoch whose weights were kept (lowest tune loss).
        stopped_early: True where patience ran out before the budget did.
        probe: penalties and losses of the convex head, and of a small cohort `checks`, see `compare_heads`; empty for scratch.
        kept: log-loss (nats) of the weights kept, as they are, on the `train` and the `tune` images: the gap between
            them is what was learnt by heart. `mixture`: share of the fine-tuned weights, 1 where they were not mixed.
        seconds, images_per_second: of the training epochs.
    """

    history: list[dict[str, float]]
    best_epoch: int
    stopped_early: bool
    probe: dict[str, Any]
    kept: dict[str, float]
    seconds: float
    images_per_second: float


@dataclass
class _Progress:
    """What changes from epoch to epoch, besides the weights."""

    history: list[dict[str, float]]
    best: State
    best_epoch: int
    lowest: float
    probe: dict[str, Any]
    seconds: float = 0.0


def fit(
    backbone: Backbone,
    head: Head,
    task: Task,
    train: DataLoader[Any],
    train_plain: DataLoader[Any],
    tune: DataLoader[Any],
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    groups: NDArray[np.int64],
    on_epoch: Callable[[dict[str, float], int], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> FitResult:
    """Trains head and backbone in place and leaves them with the best weights, in eval mode.

    First the convex head (not for scratch, whose features mean nothing yet), then all that the plan
    leaves trainable, with AdamW, linear warm-up and cosine decay. What is measured and kept is the
    exponential average of the weights, at the epoch with the lowest tune loss.

    Args:
        train: random transforms, shuffled. `train_plain`: the same images as they are. `tune`: for the choice of the epoch.
        plan, budget, engine: what trains, how long, and on what.
        groups: patient or cluster of every row of the cohort, for the inner folds of the convex head.
        on_epoch: called with each entry of the history and the number of epochs planned.
        checkpoints: where an unfinished training is kept and taken up again.

    Raises:
        StudyError: the loss is not finite, or there is no room for cached activations.
    """
    engine.place(backbone)
    head.to(engine.device)
    backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
    head.dropout.p = plan.dropout
    if plan.adapt_norm and plan.strategy != "scratch":
        adapt_norms(backbone, train_plain, engine)
    probe = {} if plan.strategy == "scratch" else _fit_probe(backbone, cast(LinearHead, head), task, train_plain, engine, groups)
    start = copy_state(backbone, head)
    folder = checkpoints.path.parent if checkpoints is not None else None
    batches, held_out = _cached(backbone, head, train, tune, plan, engine, folder)
    steps = 0 if plan.strategy == "linear_probe" else budget.steps
    epochs = math.ceil(steps / len(batches))
    trainer = Trainer(backbone, head, task, plan, budget, engine, epochs * len(batches))
    progress = trainer.resume(checkpoints)
    if progress is None:
        first = measure(backbone, head, task, held_out, engine, epoch=0)
        # An untrained network is not a candidate, however poor the first epochs are.
        lowest = math.inf if plan.strategy == "scratch" else first["tune_loss"]
        progress = _Progress([first], trainer.averages.state(), 0, lowest, probe)
    patience = budget.patience or epochs
    if on_epoch is not None:
        for entry in progress.history:
            on_epoch(entry, epochs)
    for epoch in range(len(progress.history), epochs + 1):
        if len(progress.history) - 1 - progress.best_epoch >= patience:
            break
        started = time.perf_counter()
        start_epoch(batches, epoch)
        train_loss = trainer.run_epoch(batches, (epoch - 1) * len(batches))
        entry = measure(trainer.averages.backbone, trainer.averages.head, task, held_out, engine, epoch)
        entry |= {"train_loss": train_loss, "lr": trainer.head_rate, "seconds": time.perf_counter() - started}
        progress.history.append(entry)
        progress.seconds += entry["seconds"]
        if entry["tune_loss"] < progress.lowest - _LEAST_GAIN:
            progress.best, progress.best_epoch, progress.lowest = trainer.averages.state(), epoch, entry["tune_loss"]
        if checkpoints is not None:
            checkpoints.save(trainer.state(progress))
        if on_epoch is not None:
            on_epoch(entry, epochs)
    load_state(progress.best, backbone, head)
    mixture = 1.0
    if plan.mix and progress.best_epoch:
        modules = (backbone, head)
        mixture = choose_mixture(start, progress.best, modules, lambda: measure(*modules, task, tune, engine, 0)["tune_loss"])
    backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
    parts = {"train": train_plain, "tune": tune}
    kept = {name: float(log_losses(*predict(backbone, head, task, part, engine)).mean()) for name, part in parts.items()}
    trainer.accelerator.free_memory()
    trained = len(progress.history) - 1
    seen = trained * len(batches) * (batches.batch_size or 1)
    return FitResult(
        progress.history,
        progress.best_epoch,
        0 < trained < epochs,
        progress.probe,
        {**kept, "mixture": mixture},
        progress.seconds,
        seen / progress.seconds if seen else 0.0,
    )


def _fit_probe(
    backbone: Backbone, head: LinearHead, task: Task, train_plain: Iterable[Batch], engine: Engine, groups: NDArray[np.int64]
) -> dict[str, Any]:
    features = pooled_features(backbone, head, train_plain, engine)
    units = groups[features.rows]
    fewest = min(len(np.unique(units[features.targets[:, 0] == value])) for value in (0, 1))
    checks = compare_heads(features, units, task.positive_weights[0]) if fewest < FEWEST_TO_TUNE else {}
    return {**fit_head(head, features, units, task.positive_weights), "checks": checks}


def _cached(
    backbone: Backbone, head: Head, train: DataLoader[Any], tune: DataLoader[Any], plan: FreezePlan, engine: Engine, folder: Path | None
) -> tuple[Loader, Loader]:
    """The loaders, with the frozen prefix computed once where the plan says so."""
    if not plan.views:
        return train, tune
    views = ((train, plan.views), (tune, 1))
    cached = [cache_prefix(backbone, loader, plan.cache_cut, head.taps, count, engine, folder) for loader, count in views]
    return cached[0], cached[1]


class Trainer:
    """The moving parts of one training: weights, averages, optimiser."""

    def __init__(self, backbone: Backbone, head: Head, task: Task, plan: FreezePlan, budget: Budget, engine: Engine, steps: int) -> None:
        self.backbone, self.head, self.task, self.plan, self.engine, self.steps = backbone, head, task, plan, engine, steps
        self.optimizer = torch.optim.AdamW(parameter_groups(backbone, head, plan, budget.weight_decay))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.anchor = Anchor(backbone) if plan.l2_sp else None
        self.accelerator: Accelerator = engine.make_accelerator()
        self.accelerated = self.accelerator.prepare(self.optimizer)
        self.averages = Averages(backbone, head)
        self.head_rate = 0.0

    def run_epoch(self, batches: Loader, step: int) -> float:
        """One pass, or what is left of the steps, from the given step on; the mean loss."""
        self.backbone.train()
        self.head.train()
        frozen = None
        losses: list[float] = []
        for batch in batches:
            if step >= self.steps:
                break
            if (now := frozen_at(self.plan, step, self.steps)) != frozen:
                frozen = now
                self.backbone.freeze(frozen, self.plan.norm_policy, self.plan.tuned)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate_at(step, self.steps)
            self.head_rate = float(self.optimizer.param_groups[-1]["lr"])
            losses.append(self._step(batch))
            step += 1
        return float(np.mean(losses))

    def _step(self, batch: Batch) -> float:
        self.accelerated.zero_grad()
        logits = _forward(self.backbone, self.head, batch, self.engine)
        loss = self.task.loss(logits, batch["targets"].to(self.engine.device))["loss"]
        shown = float(loss.detach())
        if self.anchor is not None:
            loss = loss + 0.5 * self.plan.l2_sp * self.anchor.distance()
        if not torch.isfinite(loss):
            raise StudyError("the training loss is not finite. Lower plan.backbone_lr and plan.head_lr, or set train.precision=fp32.")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, _CLIP_NORM)
        self.accelerated.step()
        self.averages.update(self.backbone, self.head)
        return shown

    def state(self, progress: _Progress) -> dict[str, Any]:
        """All that a training needs to go on as if it had not stopped."""
        modules = (self.backbone, self.head, self.averages.backbone, self.averages.head)
        scaler = self.accelerator.scaler
        return {
            "modules": [module.state_dict() for module in modules],
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "progress": vars(progress),
        }

    def resume(self, checkpoints: Checkpoints | None) -> _Progress | None:
        """Takes up what was kept, if there is any."""
        state = checkpoints.load() if checkpoints is not None else None
        if state is None:
            return None
        load_state(state["modules"], self.backbone, self.head, self.averages.backbone, self.averages.head)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return _Progress(**state["progress"])


def predict(backbone: Backbone, head: Head, task: Task, batches: Iterable[Batch], engine: Engine) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits in float32, corrected for class weights to float64, and targets; (image, label) each, in the order of the batches."""
    backbone.eval()
    head.eval()
    logits, targets = [], []
    for batch in batches:
        with torch.inference_mode():
            logits.append(_forward(backbone, head, batch, engine).float().cpu().numpy())
        targets.append(batch["targets"].numpy())
    return task.correct(np.concatenate(logits)), np.concatenate(targets)


def _forward(backbone: Backbone, head: nn.Module, batch: Batch, engine: Engine) -> Tensor:
    with engine.autocast():
        taps = backbone(engine.move(batch["features"]), cast(Head, head).taps)
    result: Tensor = head(taps, batch["present"])
    return result


def measure(backbone: Backbone, head: nn.Module, task: Task, tune: Iterable[Batch], engine: Engine, epoch: int) -> dict[str, float]:
    """Unweighted log-loss on the tune part, as it is and at the best temperature, and the AUC.

    The second one chooses the epoch ("refine, then calibrate", Berta et al. 2025, arXiv:2501.19195):
    over-confidence grows while discrimination still improves, and a temperature takes it away.
    """
    logits, targets = predict(backbone, cast(Head, head), task, tune, engine)
    temperatures = [fit_temperature(logits[:, i], targets[:, i]) for i in range(logits.shape[1])]
    raw, refined = (float(log_losses(z, targets).mean()) for z in (logits, logits / temperatures))
    auc = float(binary_auroc(torch.from_numpy(logits[:, 0]), torch.from_numpy(targets[:, 0]).int()))
    return {"epoch": epoch, "tune_loss": refined, "tune_loss_raw": raw, "tune_auc": auc}
