"""The only training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import StudyError
from medtransfer.models.backbone import Backbone
from medtransfer.models.freeze import FEWEST_TO_TUNE
from medtransfer.models.heads import Head, LinearHead
from medtransfer.models.plan import FreezePlan
from medtransfer.tasks.task import Task
from medtransfer.training.averages import adapt_norms, choose_mixture, copy_state, load_state
from medtransfer.training.batches import Loader
from medtransfer.training.checkpoint import Checkpoints
from medtransfer.training.engine import Engine
from medtransfer.training.interruption import EndAskedError, asked, finishing_steps
from medtransfer.training.predicting import measure
from medtransfer.training.probe import compare_heads, fit_head, pooled_features
from medtransfer.training.telemetry import EnergyMeter, peak_memory_gb
from medtransfer.training.trainer import DivergedError, Progress, Trainer

_TIMES = ("seconds", "waited", "filled")
# A tune loss is better only by more than rounding.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Budget:
    """How long to train.

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
class Parts:
    """The batches of a training: `train` with random transforms, shuffled; `plain` the same images as they are; `tune`."""

    train: Loader
    plain: Loader
    tune: Loader


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        history: per epoch `epoch, train_loss, tune_loss, tune_loss_raw, tune_auc, lr, seconds, images_per_second, waiting,
            filling, memory_gb`: the tune loss at the best temperature and as it is (of detection 1 - average precision, and
            `tune_average_precision`); the shares of the time spent waiting for
            data and filling the store of kept activations; the most memory held so far. Epoch 0 is the convex head alone.
        best_epoch: the epoch whose weights were kept (lowest tune loss).
        stopped_early: True where patience ran out before the budget did.
        diverged: True where the loss was not finite any more and the best weights until then were kept.
        probe: penalties and losses of the convex head, and of a small cohort `checks`, see `compare_heads`; empty for scratch.
        kept: log-loss (nats; of detection 1 - average precision) of the weights kept, on the `train` and the `tune` images: the gap between
            them is what was learnt by heart. `mixture`: share of the fine-tuned weights, 1 where they were not mixed.
        seconds, images_per_second, waiting, filling: of the training epochs.
        memory_gb: the most this process held. joules: of the machine meanwhile; None where it does not tell.
    """

    history: list[dict[str, float]]
    best_epoch: int
    stopped_early: bool
    diverged: bool
    probe: dict[str, Any]
    kept: dict[str, float]
    seconds: float
    images_per_second: float
    waiting: float
    filling: float
    memory_gb: float
    joules: float | None


def fit(
    backbone: Backbone,
    head: Head,
    task: Task,
    parts: Parts,
    plan: FreezePlan,
    budget: Budget,
    engine: Engine,
    groups: NDArray[np.int64],
    on_epoch: Callable[[dict[str, float], int], None] = lambda *_: None,
    checkpoints: Checkpoints | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> FitResult:
    """Trains head and backbone in place and leaves them with the best weights, in eval mode.

    First the convex head (not for scratch, whose features mean nothing yet), then all that the plan
    leaves trainable, with AdamW, linear warm-up and cosine decay. What is measured and kept is the
    exponential average of the weights, at the epoch with the lowest tune loss.

    Args:
        backbone, head: placed and frozen, see `settle`.
        parts: the images, or what is kept of them.
        plan, budget, engine: what trains, how long, and on what.
        groups: patient or cluster of every row of the cohort, for the inner folds of the convex head.
        on_epoch: called with each entry of the history and the number of epochs planned.
        checkpoints: where an unfinished training is kept and taken up again.
        say: tells the user something.

    Raises:
        StudyError: the loss is not finite and no earlier weights are good, or the memory does not hold one image.
        KeyboardInterrupt: an end was asked for, by Ctrl-C or SIGTERM; the state is kept.
    """
    meter = EnergyMeter(engine.device)
    probe = _fit_probe(backbone, cast(LinearHead, head), task, parts.plain, engine, groups) if plan.convex else {}
    start = copy_state(backbone, head)
    steps = 0 if plan.strategy == "linear_probe" else budget.steps
    epochs = math.ceil(steps / len(parts.train))
    trainer = Trainer(backbone, head, task, plan, budget.weight_decay, engine, epochs * len(parts.train), say)
    progress = trainer.resume(checkpoints)
    if progress is None:
        first = _entry(0, measure(backbone, head, task, parts.tune, engine))
        # An untrained head is not a candidate, however poor the first epochs are.
        lowest = first["tune_loss"] if plan.convex else math.inf
        progress = Progress([first], trainer.averages.state(), 0, lowest, probe)
    for entry in progress.history:
        on_epoch(entry, epochs)
    diverged = False
    try:
        _train(trainer, progress, parts, epochs, budget.patience or epochs, on_epoch, checkpoints)
    except DivergedError as error:
        if not plan.convex and not progress.best_epoch:
            raise StudyError(str(error)) from error
        diverged = True
        say(f"the loss is not finite from epoch {len(progress.history)} on; the weights of epoch {progress.best_epoch} are kept")
    load_state(progress.best, backbone, head)
    mixture = 1.0
    if plan.mix and progress.best_epoch:
        modules = (backbone, head)
        mixture = choose_mixture(start, progress.best, modules, lambda: measure(*modules, task, parts.tune, engine)["loss"])
    backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
    kept = {name: measure(backbone, head, task, part, engine)["raw"] for name, part in (("train", parts.plain), ("tune", parts.tune))}
    trainer.accelerator.free_memory()
    trained = len(progress.history) - 1
    seconds, waited, filled = (progress.total.get(name, 0.0) for name in _TIMES)
    return FitResult(
        progress.history,
        progress.best_epoch,
        0 < trained < epochs and not diverged,
        diverged,
        progress.probe,
        {**kept, "mixture": mixture},
        seconds,
        trained * len(parts.train) * parts.train.batch_size / seconds if trained else 0.0,
        waited / seconds if trained else 0.0,
        filled / seconds if trained else 0.0,
        peak_memory_gb(engine.device),
        meter.joules(),
    )


def settle(backbone: Backbone, head: Head, plan: FreezePlan, engine: Engine, images: Loader) -> None:
    """Places a network and its head on the device, in place, and freezes what the plan says.

    Args:
        images: of the training part as they are, for adapted norms.
    """
    engine.place(backbone)
    engine.place(head)
    backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
    head.dropout.p = plan.dropout
    if plan.adapt_norm and plan.strategy != "scratch":
        adapt_norms(backbone, images, engine)


def _train(
    trainer: Trainer,
    progress: Progress,
    parts: Parts,
    epochs: int,
    patience: int,
    on_epoch: Callable[[dict[str, float], int], None],
    checkpoints: Checkpoints | None,
) -> None:
    """Epochs until the budget or the patience is spent."""
    images = len(parts.train) * parts.train.batch_size
    batches = parts.train
    before = time.perf_counter(), batches.waited, batches.filled

    def note_time() -> None:
        nonlocal before
        now = time.perf_counter(), batches.waited, batches.filled
        for name, old, new in zip(_TIMES, before, now, strict=True):
            progress.now[name] = progress.now.get(name, 0.0) + new - old
        before = now

    def state() -> dict[str, Any]:
        trainer.look(progress)
        note_time()
        return trainer.state(progress)

    def keep() -> None:
        if checkpoints is not None and (problem := checkpoints.save(state())):
            trainer.say(problem)

    def after_step() -> None:
        # All processes do so at the same step, or none.
        if trainer.engine.any(asked()):
            raise EndAskedError
        if checkpoints is not None and trainer.engine.any(checkpoints.due):
            keep()

    def run_epoch() -> None:
        epoch = len(progress.history)
        loss = trainer.run_epoch(parts.train, progress, after_step)
        entry = _entry(epoch, measure(trainer.averages.backbone, trainer.averages.head, trainer.task, parts.tune, trainer.engine))
        note_time()
        seconds, waited, filled = (progress.now[name] for name in _TIMES)
        entry |= {"train_loss": loss, "lr": trainer.head_rate, "seconds": seconds, "images_per_second": images / seconds}
        entry |= {"waiting": waited / seconds, "filling": filled / seconds, "memory_gb": peak_memory_gb(trainer.engine.device)}
        progress.history.append(entry)
        progress.total = {name: progress.total.get(name, 0.0) + value for name, value in progress.now.items()}
        progress.now, progress.losses = {}, []
        if entry["tune_loss"] < progress.lowest - _LEAST_GAIN:
            progress.best, progress.best_epoch, progress.lowest = trainer.averages.state(), epoch, entry["tune_loss"]
        on_epoch(entry, epochs)

    with finishing_steps():
        try:
            while len(progress.history) <= epochs and len(progress.history) - 1 - progress.best_epoch < patience:
                run_epoch()
            if epochs:
                after_step()  # an end that was asked for while the last epoch was measured
        except EndAskedError:
            keep()
            raise


def _entry(epoch: int, scores: dict[str, float]) -> dict[str, float]:
    """An entry of the history, from what `measure` gives of the tune part."""
    names = {"loss": "tune_loss", "raw": "tune_loss_raw"}
    return {"epoch": epoch, **{names.get(name, f"tune_{name}"): value for name, value in scores.items()}}


def _fit_probe(
    backbone: Backbone, head: LinearHead, task: Task, plain: Loader, engine: Engine, groups: NDArray[np.int64]
) -> dict[str, Any]:
    features = pooled_features(backbone, head, plain, engine)
    units = groups[features.rows]
    fewest = min(len(np.unique(units[features.targets[:, 0] == value])) for value in (0, 1))
    checks = compare_heads(features, units, task.positive_weights[0]) if fewest < FEWEST_TO_TUNE else {}
    return {**fit_head(head, features, units, task.positive_weights), "checks": checks}
