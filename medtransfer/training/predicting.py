"""The only prediction loop, and what is measured with it while a network trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from medtransfer.evaluation.recalibration import fit_temperature
from medtransfer.models.backbone import Backbone
from medtransfer.models.heads import Head
from medtransfer.tasks.task import Batch, Task
from medtransfer.training.batches import collect
from medtransfer.training.engine import Engine
from medtransfer.training.probe import log_losses


class Network(nn.Module):
    """Backbone and head as one module: activations to logits, the backbone in the engine's precision, the head in float32."""

    def __init__(self, backbone: Backbone, head: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.backbone, self.head, self.engine = backbone, head, engine

    def forward(self, features: dict[str, Tensor], present: Tensor) -> Tensor:
        """Activations by name, and the slices that count -> logits (batch, label)."""
        with self.engine.autocast():
            taps = self.backbone(self.engine.move(features), cast(Head, self.head).taps)
        result: Tensor = self.head(taps, present)
        return result


def predict(backbone: Backbone, head: nn.Module, task: Task, batches: Iterable[Batch], engine: Engine) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits in float32, corrected for class weights to float64, and targets; (image, label) each, in the order of the batches."""
    network = Network(backbone, head, engine).eval()
    logits, targets, _ = collect(batches, engine, lambda batch: network(batch["features"], batch["present"]).float())
    return task.correct(logits), targets


def measure(backbone: Backbone, head: nn.Module, task: Task, tune: Iterable[Batch], engine: Engine, epoch: int) -> dict[str, float]:
    """Unweighted log-loss on the tune part, as it is and at the best temperature, and the AUC.

    The second one chooses the epoch ("refine, then calibrate", Berta et al. 2025, arXiv:2501.19195):
    over-confidence grows while discrimination still improves, and a temperature takes it away.
    """
    logits, targets = predict(backbone, head, task, tune, engine)
    temperatures = [fit_temperature(logits[:, i], targets[:, i]) for i in range(logits.shape[1])]
    raw, refined = (float(log_losses(z, targets).mean()) for z in (logits, logits / temperatures))
    auc = float(binary_auroc(torch.from_numpy(logits[:, 0]), torch.from_numpy(targets[:, 0]).int()))
    return {"epoch": epoch, "tune_loss": refined, "tune_loss_raw": raw, "tune_auc": auc}


def mean_log_loss(backbone: Backbone, head: nn.Module, task: Task, batches: Iterable[Batch], engine: Engine) -> float:
    """Log-loss of a part in nats, as it is."""
    return float(np.mean(log_losses(*predict(backbone, head, task, batches, engine))))
