"""The only training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import DivergedError, StudyError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head, LinearHead
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.models.plan.rules import FEWEST_TO_TUNE
from medtransfer.models.plan.schedule import cycles_of
from medtransfer.training.averages import State, adapt_norms, choose_mixture, copy_state, load_state
from medtransfer.training.batches import Loader
from medtransfer.training.checkpoint import Checkpoints
from medtransfer.training.costs import EnergyMeter, peak_memory_gb
from medtransfer.training.device import Engine
from medtransfer.training.interruption import EndAskedError, asked, finishing_steps
from medtransfer.training.predicting import Model, measure
from medtransfer.training.probe import compare_heads, fit_head, pooled_features
from medtransfer.training.trainer import Progress, Trainer

_TIMES = ("seconds", "waited", "filled")
# A tune loss is better only by more than rounding.
_ROUNDING = 1e-6
# By less than this share of it a tune loss of a few dozen patients is not better: the end of a
# cycle, where the learning rate is 0, is kept unless an earlier epoch was better by more, and a
# training has levelled off where twice the steps gain no more. Of 128 training and 78 tune images
# (BreastMNIST, five seeds), from scratch: AUC 0.713 and 0.789 after 64 and 192 steps, 0.687 and
# 0.776 with the lowest.
GAIN = 0.02
# Of the budget, at whose end it is asked whether a training was still gaining.
_LAST = 0.25


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        steps: optimiser steps, of one cycle where training goes on until level.
        patience: epochs without a better tune loss before training stops; None: all epochs are run,
            as the best ones often come at the end, where the learning rate is low. Not where
            training goes on until level.
        weight_decay: of AdamW, on matrices only.
    """

    steps: int
    patience: int | None
    weight_decay: float


@dataclass(frozen=True)
class Parts:
    """The batches of a training.

    Attributes:
        train: with random transforms, shuffled. plain: the same images as they are. tune: those
            that choose.
        norms: training images as they are, from which averaged weights take the statistics of batch
            norms.
    """

    train: Loader
    plain: Loader
    tune: Loader
    norms: Loader


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        history: per epoch `epoch, train_loss, tune_loss, tune_loss_raw, tune_auc, averaged, lr,
            seconds, images_per_second, waiting, filling, memory_gb`: of the weights as they are or
            averaged, whichever have the lower tune loss; it at the best temperature and as it is
            (of detection 1 - average precision, and `tune_average_precision`); the shares of the
            time spent waiting for data and filling the store of kept activations; the most memory
            held so far. Epoch 0 is the convex head alone.
        best_epoch: the epoch whose weights were kept: the end of the last cycle, or one whose tune
            loss was lower by more than 2 %.
        budget_epochs: of the budget; `epochs` at the most where training goes on until level.
        budget_epoch: the epoch whose weights were kept at the end of the budget. at_budget: these
            weights, where training went on.
        levelled: whether twice the steps gained no more than 2 % of the tune loss; None where
            training was not to go on.
        improving: whether the last quarter of a budget that ended training lowered the tune loss by
            more than 2 %.
        stopped_early: True where patience ran out before the budget did.
        diverged: True where the loss was not finite any more and the best weights until then were
            kept.
        probe: penalties and losses of the convex head, and of a small cohort `checks`, see
            `compare_heads`; empty for scratch.
        kept: log-loss (nats; of detection 1 - average precision) of the weights kept, on the
            `train` and the `tune` images: the gap between them is what was learnt by heart.
            `mixture`: share of the fine-tuned weights, 1 where they were not mixed.
        seconds, images_per_second, waiting, filling: of the training epochs.
        memory_gb: the most this process held. joules: of the machine meanwhile; None where it does
            not tell.
    """

    history: list[dict[str, float]]
    best_epoch: int
    budget_epochs: int
    budget_epoch: int
    at_budget: State | None
    levelled: bool | None
    improving: bool
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
    model: Model,
    parts: Parts,
    plan: FreezePlan,
    budget: Budget,
    groups: NDArray[np.int64],
    on_epoch: Callable[[dict[str, float], int], None] = lambda *_: None,
    checkpoints: Checkpoints | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> FitResult:
    """Trains a model in place and leaves it with the best weights, in eval mode.

    First the convex head (not for scratch, whose features mean nothing yet), then all that the plan
    leaves trainable, with AdamW, linear warm-up and cosine decay. What is measured and kept are the
    weights or their exponential average, at the end or at the epoch whose tune loss is lower by
    more than 2 %. Until level, warm restarts follow, each cycle as long as all before it, until one
    gains no more than 2 % of the tune loss, at most four times the budget.

    Args:
        model: placed and frozen, see `settle`.
        parts: the images, or what is kept of them.
        plan: what trains, and how fast.
        budget: how long.
        groups: (row,), the patient or cluster of every row of the cohort, for the inner folds of
            the convex head.
        on_epoch: called with each entry of the history and the number of epochs planned.
        checkpoints: where an unfinished training is kept and taken up again.
        say: shows the user a message.

    Raises:
        StudyError: the loss is not finite and no earlier weights are good, or the memory does not
            hold one image.
        KeyboardInterrupt: an end was asked for, by Ctrl-C or SIGTERM; the state is kept.
    """
    backbone, device = model.backbone, model.engine.device
    meter = EnergyMeter(device)
    probe = _fit_probe(model, parts, groups) if plan.convex else {}
    start = copy_state(*model.modules)
    steps = 0 if plan.strategy == "linear_probe" else budget.steps
    epochs = math.ceil(steps / len(parts.train))
    ends = [cycle * epochs for cycle in cycles_of(plan)]
    last_steps = [end * len(parts.train) for end in ends]
    trainer = Trainer(model, plan, budget.weight_decay, last_steps, say)
    progress = trainer.resume(checkpoints)
    if progress is None:
        first = _entry(0, measure(model, parts.tune))
        # An untrained head is not a candidate, however poor the first epochs are.
        lowest = first["tune_loss"] if plan.convex else math.inf
        progress = Progress([first], start, 0, lowest, probe)
    for entry in progress.history:
        on_epoch(entry, _end_of(entry, ends))
    diverged = stopped = False
    try:
        stopped = _train(
            trainer, progress, parts, ends, budget.patience or math.inf, on_epoch, checkpoints
        )
    except DivergedError as error:
        if not plan.convex and not progress.best_epoch:
            raise StudyError(str(error)) from error
        diverged = True
        say(
            f"the loss is not finite from epoch {len(progress.history)} on; the weights of epoch "
            f"{progress.best_epoch} are kept"
        )
    # A training that ended before its budget has no other weights at the budget.
    states = [progress.best, *([progress.at_budget or progress.best] if plan.level else [])]
    mixture = 1.0
    if plan.mix and progress.best_epoch:
        mixture, states = _mix(
            start,
            states,
            model.modules,
            lambda: measure(model, parts.tune)["loss"],
        )
    load_state(states[0], *model.modules)
    backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
    kept = {
        name: measure(model, part)["raw"]
        for name, part in (("train", parts.plain), ("tune", parts.tune))
    }
    trainer.accelerator.free_memory()
    trained = len(progress.history) - 1
    seconds, waited, filled = (progress.total.get(name, 0.0) for name in _TIMES)
    return FitResult(
        history=progress.history,
        best_epoch=progress.best_epoch,
        budget_epochs=epochs,
        budget_epoch=progress.budget_epoch if progress.ends else progress.best_epoch,
        at_budget=states[-1] if len(states) > 1 else None,
        levelled=has_levelled(progress.ends) if plan.level and epochs else None,
        improving=not (stopped or diverged or plan.level) and _improving(progress.history, epochs),
        stopped_early=stopped,
        diverged=diverged,
        probe=progress.probe,
        kept={**kept, "mixture": mixture},
        seconds=seconds,
        images_per_second=trained * len(parts.train) * parts.train.batch_size / seconds
        if trained
        else 0.0,
        waiting=waited / seconds if trained else 0.0,
        filling=filled / seconds if trained else 0.0,
        memory_gb=peak_memory_gb(device),
        joules=meter.joules(),
    )


def has_levelled(ends: Sequence[float]) -> bool:
    """Whether the last cycle, as long as all before it, lowered the lowest tune loss by no more
    than 2 %; `ends`: those losses.
    """
    return len(ends) > 1 and ends[-1] >= (1 - GAIN) * ends[-2]


def _improving(history: Sequence[dict[str, float]], epochs: int) -> bool:
    """Whether the last quarter of the epochs lowered the tune loss by more than 2 %."""
    losses = [entry["tune_loss"] for entry in history]
    before = len(losses) - max(1, round(_LAST * epochs))
    return before > 1 and min(losses[before:]) < (1 - GAIN) * min(losses[:before])


def _end_of(entry: dict[str, float], ends: Sequence[int]) -> int:
    """The last epoch of the cycle to which an entry belongs."""
    return next((end for end in ends if entry["epoch"] <= end), ends[-1])


def _mix(
    start: State, states: Sequence[State], modules: tuple[Backbone, Head], loss: Callable[[], float]
) -> tuple[float, list[State]]:
    """Each state mixed with the pretrained one; and the share that the first of them has."""
    shares, mixed = [], []
    for state in states:
        shares.append(choose_mixture(start, state, modules, loss))
        mixed.append(copy_state(*modules))
    return shares[0], mixed


def settle(
    backbone: Backbone, head: Head, plan: FreezePlan, engine: Engine, images: Loader
) -> None:
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
    ends: Sequence[int],
    patience: float,
    on_epoch: Callable[[dict[str, float], int], None],
    checkpoints: Checkpoints | None,
) -> bool:
    """Cycles of epochs until the budget is spent, or the tune loss has levelled off; True where
    patience ran out before.

    Patience is for one cycle: after a warm restart the learning rate is high, and nothing can be
    better until it falls again.
    """
    patience = patience if len(ends) == 1 else math.inf
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
        # Either all processes stop at this step, or none does.
        if trainer.engine.any(asked()):
            raise EndAskedError
        if checkpoints is not None and trainer.engine.any(checkpoints.due):
            keep()

    def run_epoch() -> None:
        epoch = len(progress.history)
        loss = trainer.run_epoch(parts.train, progress, after_step)
        candidates = trainer.candidates(parts.norms)
        scores = [measure(candidate, parts.tune) for candidate in candidates]
        best = min(range(len(scores)), key=lambda number: scores[number]["loss"])
        entry = _entry(epoch, scores[best]) | {"averaged": best}
        note_time()
        seconds, waited, filled = (progress.now[name] for name in _TIMES)
        entry |= {
            "train_loss": loss,
            "lr": trainer.head_rate,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        entry |= {
            "waiting": waited / seconds,
            "filling": filled / seconds,
            "memory_gb": peak_memory_gb(trainer.engine.device),
        }
        progress.history.append(entry)
        progress.total = {
            name: progress.total.get(name, 0.0) + value for name, value in progress.now.items()
        }
        progress.now, progress.losses = {}, []
        _choose(progress, entry["tune_loss"], candidates[best].modules, ends)
        on_epoch(entry, _end_of(entry, ends))

    with finishing_steps():
        try:
            while len(progress.history) <= ends[-1] and not has_levelled(progress.ends):
                if len(progress.history) - 1 - progress.lowest_epoch >= patience:
                    return True
                run_epoch()
            if ends[-1]:
                after_step()  # the user may have asked to end while the last epoch was measured
        except EndAskedError:
            keep()
            raise
    return False


def _choose(
    progress: Progress, loss: float, modules: tuple[Backbone, Head], ends: Sequence[int]
) -> None:
    """Keeps the weights of the last epoch if its tune loss is the lowest, or as good as that at the
    end of a cycle.
    """
    epoch = len(progress.history) - 1
    lower = loss < progress.lowest - _ROUNDING
    if lower or (epoch in ends and (1 - GAIN) * loss <= progress.lowest):
        progress.best, progress.best_epoch = copy_state(*modules), epoch
    if lower:
        progress.lowest, progress.lowest_epoch = loss, epoch
    if epoch in ends:
        progress.ends.append(progress.lowest)
    if epoch == ends[0]:
        progress.at_budget, progress.budget_epoch = progress.best, progress.best_epoch


def _entry(epoch: int, scores: dict[str, float]) -> dict[str, float]:
    """An entry of the history, from what `measure` gives of the tune part."""
    names = {"loss": "tune_loss", "raw": "tune_loss_raw"}
    return {
        "epoch": epoch,
        **{names.get(name, f"tune_{name}"): value for name, value in scores.items()},
    }


def _fit_probe(model: Model, parts: Parts, groups: NDArray[np.int64]) -> dict[str, Any]:
    head, weights = cast(LinearHead, model.head), model.task.positive_weights
    features = pooled_features(model.backbone, head, parts.plain, model.engine)
    units = groups[features.rows]
    data = features.labelled(0, units, weights[0])
    checks = compare_heads(data) if data.units_of_smaller_class < FEWEST_TO_TUNE else {}
    return {**fit_head(head, features, units, weights, parts.train.seed or 0), "checks": checks}
