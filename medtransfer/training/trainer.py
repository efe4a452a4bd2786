"""The moving parts of one training, step by step: weights, averages, optimiser, and what an
interruption must not lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from medtransfer.errors import DivergedError, StudyError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.models.plan.schedule import frozen_at, parameter_groups, rate_at
from medtransfer.tasks.task import Batch
from medtransfer.training.averages import Anchor, Averages, State, load_state
from medtransfer.training.batches import Loader
from medtransfer.training.checkpoint import Checkpoints
from medtransfer.training.predicting import Model, Network

_CLIP_NORM = 5.0
# Steps after which losses are read, and after which several processes compare them: each time the
# accelerator has to be waited for.
_LOOK = 16


@dataclass
class Progress:
    """What changes while a network trains, besides the weights.

    Attributes:
        history: entries of finished epochs, the first before training.
        best, best_epoch: the weights that are kept so far, and their epoch. lowest, lowest_epoch:
            the lowest tune loss, and its epoch.
        probe: of the convex head.
        ends: the lowest tune loss at the end of every cycle that is done. at_budget, budget_epoch:
            what was kept at the end of the first.
        step: optimiser steps done.
        losses: of the steps of this epoch.
        now, total: of this epoch so far, and of all finished ones: `seconds`, and of them `waited`
            for data and `filled` the store of kept activations.
    """

    history: list[dict[str, float]]
    best: State
    best_epoch: int
    lowest: float
    probe: dict[str, Any]
    lowest_epoch: int = 0
    ends: list[float] = field(default_factory=list)
    at_budget: State = field(default_factory=list)
    budget_epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    now: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a model in place.

    Args:
        model: its backbone frozen as at the end of the schedule; its head trains whole.
        plan: which stages train when, and how fast.
        weight_decay: of AdamW, on matrices only.
        ends: optimiser steps at which the cycles of the schedule end, ascending.
        say: shows the user a message.
    """

    def __init__(
        self,
        model: Model,
        plan: FreezePlan,
        weight_decay: float,
        ends: Sequence[int],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.plan, self.ends, self.say = model, plan, ends, say
        backbone, head = model.modules
        self.backbone, self.head, self.engine = backbone, head, model.engine
        self.optimizer = torch.optim.AdamW(
            parameter_groups(backbone, head, plan, weight_decay), fused=True
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.anchor = Anchor(backbone) if plan.l2_sp else None
        self.accelerator: Accelerator = self.engine.make_accelerator()
        self.accelerated = self.accelerator.prepare(self.optimizer)
        self.averages = Averages(backbone, head)
        self.head_rate = 0.0
        self.pieces = 1
        self._network: torch.nn.Module = Network(backbone, head, self.engine)
        self._unseen: list[Tensor] = []

    def run_epoch(
        self, batches: Loader, progress: Progress, after_step: Callable[[], None] = lambda: None
    ) -> float:
        """Trains to the end of the epoch or of the steps, from where the progress stands.

        Returns:
            The mean loss of the epoch.

        Raises:
            DivergedError: a loss was not finite.
        """
        epoch = len(progress.history)
        batches.start_epoch(epoch, progress.step - (epoch - 1) * len(batches))
        self.backbone.train()
        self.head.train()
        frozen = None
        for batch in batches:
            if progress.step >= self.ends[-1]:
                break
            if (now := frozen_at(self.plan, progress.step, self.ends[0])) != frozen:
                frozen = now
                self.backbone.freeze(frozen, self.plan.norm_policy, self.plan.tuned)
                network = Network(self.backbone, self.head, self.engine)
                self._network = self.engine.compile(self.engine.distribute(network, network.unread))
            rate = rate_at(progress.step, self.ends)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            self._unseen.append(self._step(batch))
            progress.step += 1
            self.averages.update(progress.step)
            if len(self._unseen) >= _LOOK:
                self.look(progress)
            if self.engine.share[1] == 1 or progress.step % _LOOK == 0:
                after_step()
        self.head_rate = float(self.optimizer.param_groups[-1]["lr"])
        self.look(progress)
        self._share_statistics(self.backbone)
        return float(sum(progress.losses) / max(1, len(progress.losses)))

    def look(self, progress: Progress) -> None:
        """Notes the losses of the last steps.

        Raises:
            DivergedError: one is not finite; with a gradient scaler, which leaves such steps out,
                all of them.
        """
        # All processes see the same mean, so that none goes on alone.
        losses = self.engine.mean(torch.stack(self._unseen)).tolist() if self._unseen else []
        self._unseen = []
        finite = [loss for loss in losses if math.isfinite(loss)]
        if losses and (
            not finite or (len(finite) < len(losses) and self.accelerator.scaler is None)
        ):
            raise DivergedError(
                "the training loss is not finite. Lower plan.backbone_lr and plan.head_lr, or set "
                "train.precision=fp32."
            )
        progress.losses += finite

    def _step(self, batch: Batch) -> Tensor:
        """One optimiser step; the loss of the batch, on the device."""
        while True:
            self.accelerated.zero_grad()
            try:
                loss = self._backward(batch)
                break
            except RuntimeError as error:
                # One of several processes cannot take more steps than the others.
                if not _is_out_of_memory(error) or self.engine.share[1] > 1:
                    raise
                self._halve(len(batch["targets"]), error)
        self.accelerator.clip_grad_norm_(self.parameters, _CLIP_NORM)
        self.accelerated.step()
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of one batch, in as many pieces as the memory asks for; the loss, without the
        penalty of L2-SP.
        """
        size = len(batch["targets"])
        length = math.ceil(size / self.pieces)
        shown = torch.zeros((), device=self.engine.device)
        for at in range(0, size, length):
            part = slice(at, at + length)
            targets = batch["targets"][part].to(self.engine.device, non_blocking=True)
            outputs = self._network(
                {name: x[part] for name, x in batch["features"].items()}, batch["present"][part]
            )
            loss = self.model.task.loss(outputs, targets)["loss"] * (len(targets) / size)
            shown += loss.detach()
            self.accelerator.backward(loss)
        if self.anchor is not None:
            scaler = self.accelerator.scaler
            self.anchor.pull(self.plan.l2_sp * (1.0 if scaler is None else scaler.get_scale()))
        return shown

    def _halve(self, size: int, error: RuntimeError) -> None:
        if self.pieces >= size:
            raise StudyError(
                f"out of memory with a single image at a time ({str(error).splitlines()[0]}). "
                "Lower image.size, freeze more stages, or "
                "take a smaller backbone."
            ) from error
        self.pieces *= 2
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(
            f"out of memory with {size} images at once: from here on "
            f"{math.ceil(size / self.pieces)} at a time, {self.pieces} times for "
            "each step, so that the batch stays as it is"
        )

    def candidates(self, batches: Loader) -> list[Model]:
        """The weights that an epoch may leave: as they are, and averaged, whose batch norms take
        their statistics anew from `batches`.
        """
        self.averages.refresh(batches, self.engine)
        self._share_statistics(self.averages.backbone)
        averaged = replace(self.model, backbone=self.averages.backbone, head=self.averages.head)
        return [self.model, averaged]

    def _share_statistics(self, backbone: Backbone) -> None:
        """The mean of the batch statistics of all processes."""
        if self.engine.share[1] > 1:
            for buffer in backbone.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.engine.mean(buffer))

    def state(self, progress: Progress) -> dict[str, Any]:
        """All that a training needs to go on as if it had not stopped."""
        modules = (self.backbone, self.head, self.averages.backbone, self.averages.head)
        scaler = self.accelerator.scaler
        return {
            "modules": [module.state_dict() for module in modules],
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "progress": vars(progress),
        }

    def resume(self, checkpoints: Checkpoints | None) -> Progress | None:
        """Takes up what was kept, if there is any."""
        state = checkpoints.load(self.say) if checkpoints is not None else None
        if state is None:
            return None
        load_state(
            state["modules"], self.backbone, self.head, self.averages.backbone, self.averages.head
        )
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return Progress(**state["progress"])


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On a CPU torch has no class of its own for this error.
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )
