"""The convex head: L2-penalised logistic regression on pooled features of the backbone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from medtransfer.models.backbone import Backbone
from medtransfer.models.heads import LinearHead
from medtransfer.tasks.task import Batch
from medtransfer.training.engine import Engine

# From almost the class frequencies alone to a nearly free fit, on standardised features.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def pooled_features(
    backbone: Backbone, head: LinearHead, batches: Iterable[Batch], engine: Engine
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the head pools from its activation, eval mode.

    Returns:
        features (image, channel) and targets (image, label), in the order of the batches.
    """
    features, targets = [], []
    backbone.eval()
    head.eval()
    for batch in batches:
        with torch.inference_mode():
            with engine.autocast():
                activation = backbone(engine.move(batch["features"]), [head.tap])[head.tap]
            features.append(head.pool(activation, batch["present"]).cpu().double().numpy())
        targets.append(batch["targets"].double().numpy())
    return np.concatenate(features), np.concatenate(targets)


def fit_head(
    head: LinearHead,
    train: tuple[NDArray[np.float64], NDArray[np.float64]],
    tune: tuple[NDArray[np.float64], NDArray[np.float64]],
    positive_weights: tuple[float, ...],
) -> dict[str, Any]:
    """Solves the head to convergence and writes it into `head`.

    Features are standardised by the training part, and the scaling is folded into the weights. The
    penalty is the one with the lowest weighted log-loss on the tune part.

    Args:
        head: with one output per label.
        train, tune: features (image, channel) and targets (image, label).
        positive_weights: weight of positives per label, as in the loss.

    Returns:
        The penalties chosen and the tune log-losses, per label.
    """
    mean, scale = train[0].mean(0), train[0].std(0)
    scale[scale < 1e-8] = 1.0  # a channel that never varies carries nothing; its coefficient stays 0
    inputs = [(part[0] - mean) / scale for part in (train, tune)]
    chosen: dict[str, Any] = {"penalty": [], "tune_loss": []}
    for index, weight in enumerate(positive_weights):
        labels = [part[1][:, index].astype(int) for part in (train, tune)]
        best: tuple[float, float, Any] | None = None
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=2000, class_weight={0: 1.0, 1: weight}).fit(inputs[0], labels[0])
            logits = model.decision_function(inputs[1])
            each = np.logaddexp(0.0, np.where(labels[1] == 1, -logits, logits))
            loss = float(np.average(each, weights=np.where(labels[1] == 1, weight, 1.0)))
            if best is None or loss < best[0]:
                best = (loss, penalty, model)
        assert best is not None  # PENALTIES is not empty
        loss, penalty, model = best
        coefficients = model.coef_[0] / scale
        _write(head.linear, index, coefficients, float(model.intercept_[0]) - float(mean @ coefficients))
        chosen["penalty"].append(penalty)
        chosen["tune_loss"].append(loss)
    return chosen


def _write(layer: nn.Linear, row: int, weight: NDArray[np.float64], bias: float) -> None:
    with torch.no_grad():
        layer.weight[row] = torch.from_numpy(weight).to(layer.weight)
        layer.bias[row] = bias
