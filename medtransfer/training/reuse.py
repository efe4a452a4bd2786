"""What training reused of the pretrained weights: how far each stage moved, and what it is
worth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head
from medtransfer.tasks.task import Batch, Task
from medtransfer.training.device import Engine
from medtransfer.training.predicting import Model, predict
from medtransfer.training.probe import features_by_stage

Float = NDArray[np.float64]


def linear_cka(a: Float, b: Float) -> float:
    """Linear centred kernel alignment of two representations of the same images, 0 to 1, debiased.

    Kornblith et al. 2019 (arXiv:1905.00414) with the unbiased estimate of Song et al. 2012 (JMLR
    13:1393), as a hundred images would make any two wide representations look alike.

    Args:
        a, b: (image, channel), at least four images.

    Returns:
        1 where one is a rotation and scaling of the other, about 0 where they have nothing in
        common (it may fall a little below); NaN where one does not vary or there are fewer than
        four images.
    """
    if len(a) < 4:
        return math.nan
    cross, own_a, own_b = _hsic(a, b), _hsic(a, a), _hsic(b, b)
    if own_a <= 0 or own_b <= 0:
        return math.nan
    return float(cross / math.sqrt(own_a * own_b))


def _hsic(a: Float, b: Float) -> float:
    """Unbiased Hilbert-Schmidt independence criterion with linear kernels, up to a factor of the
    number of images.
    """
    n = len(a)
    # Centred and scaled first: the estimate does not change, its rounding does.
    kernels = []
    for values in (a, b):
        centred = values - values.mean(0)
        kernel = centred @ centred.T / max(float(np.square(centred).sum()), 1e-300)
        np.fill_diagonal(kernel, 0.0)
        kernels.append(kernel)
    first, second = kernels
    ones = first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2.0 * float(
        first.sum(0) @ second.sum(0)
    ) / (n - 2)
    return float((first * second).sum() + ones)


def compare_stages(
    before: Backbone, after: Backbone, batches: Iterable[Batch], engine: Engine
) -> list[float]:
    """CKA of every stage of two networks of one architecture, on the same images."""
    images = list(batches)
    first, second = (
        features_by_stage(engine.place(net), images, engine)  # type: ignore[arg-type]  # ours
        for net in (before, after)
    )
    return [linear_cka(first[name].values, second[name].values) for name in after.names]


def distances(before: Backbone, after: Backbone) -> list[float]:
    """Per stage, how far its parameters moved, as a share of their length; 0 for a frozen stage."""
    moved = []
    for index in range(len(after.stages)):
        start, end = (
            [p.detach().double() for p in net.stage_parameters(index)] for net in (before, after)
        )
        length = math.sqrt(sum(float(p.square().sum()) for p in start))
        way = math.sqrt(
            sum(float((q.to(p) - p).square().sum()) for p, q in zip(start, end, strict=True))
        )
        moved.append(way / length if length else 0.0)
    return moved


def reset_robustness(
    before: Backbone,
    after: Backbone,
    head: Head,
    task: Task,
    batches: Iterable[Batch],
    engine: Engine,
) -> tuple[float, list[float]]:
    """AUC of a trained network, and with one stage at a time set back to its pretrained values
    (Zhang et al. 2022, arXiv:1902.01996).

    A stage that can be set back without loss was reused as it came; one that cannot has learnt.

    Returns:
        The AUC as trained, and one per stage; stages that never moved have the first.
    """
    images = list(batches)
    network = engine.place(copy.deepcopy(after))
    model = Model(network, head.to(engine.device), task, engine)  # type: ignore[arg-type]  # a copy of ours

    def auc() -> float:
        logits, targets = predict(model, images)
        return float(roc_auc_score(targets[:, 0], logits[:, 0]))

    trained = auc()
    aucs = []
    for index in range(len(after.stages)):
        old, new = _state(before, index), _state(after, index)
        if all(torch.equal(old[name], value.to(old[name])) for name, value in new.items()):
            aucs.append(trained)
            continue
        with torch.no_grad():
            _write(network, old)  # type: ignore[arg-type]  # a copy of ours
            aucs.append(auc())
            _write(network, new)  # type: ignore[arg-type]  # a copy of ours
    return trained, aucs


def _state(backbone: Backbone, index: int) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.stage_state(index).items()}


def _write(backbone: Backbone, values: Mapping[str, Tensor]) -> None:
    state: dict[str, Any] = backbone.network.state_dict()
    for name, value in values.items():
        state[name].copy_(value)
