"""The convex head: L2-penalised logistic regression on pooled features of the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from medtransfer.evaluation.metrics.recalibration import log_losses
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import LinearHead
from medtransfer.tasks.task import Batch
from medtransfer.training.batches import collect
from medtransfer.training.device import Engine
from medtransfer.training.solvers import PENALTIES, Float, Int, fit_path

# Where there are too few units for inner folds.
_PENALTY = 1e-3
_FOLDS, _FEW_UNITS, _REPEATS = 5, 60, 3
_INNER = 3


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features of images.

    Attributes:
        values: (image, channel), float64.
        targets: (image, label), 0 or 1.
        rows: (image,), row numbers of the cohort.
    """

    values: Float
    targets: Float
    rows: Int

    def labelled(self, label: int, units: Int, weight: float = 1.0) -> Labelled:
        """These features with one of their labels.

        Args:
            label: its number.
            units: (image,), patient or cluster of each.
            weight: of positives in the loss.
        """
        return Labelled(self.values, self.targets[:, label].astype(np.int64), units, weight)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features of images, and what is fitted to them.

    Attributes:
        values: (image, channel), float64.
        labels: (image,), 0 or 1.
        units: (image,), number of the patient or cluster; images of one unit stay together.
        weight: of positives in the loss.
    """

    values: Float
    labels: Int
    units: Int
    weight: float = 1.0

    @property
    def units_of_smaller_class(self) -> int:
        """The number of units of the class that has fewer."""
        return min(len(np.unique(self.units[self.labels == value])) for value in (0, 1))

    def take(self, indices: Int) -> Labelled:
        """Some of the images."""
        values, labels, units = self.values, self.labels, self.units
        return Labelled(values[indices], labels[indices], units[indices], self.weight)

    def folds(self, folds: int, repeats: int, seed: int = 0) -> Iterator[tuple[Int, Int]]:
        """See `inner_folds`."""
        return inner_folds(self.labels, self.units, folds, repeats, seed)

    def fit(self, penalties: tuple[float, ...] = PENALTIES) -> tuple[Float, Float]:
        """Coefficients and intercepts, see `fit_path`."""
        return fit_path(self.values, self.labels, self.weight, penalties)


def pooled_features(
    backbone: Backbone, head: LinearHead, batches: Iterable[Batch], engine: Engine
) -> Features:
    """What the head pools from its activations, eval mode, in the order of the batches."""
    head.eval()

    def pool(taps: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        return head.pool(taps, batch["present"])

    return _collect(backbone, head.taps, pool, batches, engine)


def features_by_stage(
    backbone: Backbone,
    batches: Iterable[Batch],
    engine: Engine,
    pooling: Literal["mean", "max"] = "mean",
) -> dict[str, Features]:
    """Pooled features of every stage, eval mode, in one pass; `pooling` of the slices of a
    volume.
    """
    pools = {stage.name: LinearHead(stage, 1, pooling) for stage in backbone.stages}

    def pool(taps: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        return torch.cat([pools[name].pool(taps, batch["present"]) for name in backbone.names], 1)

    joined = _collect(backbone, backbone.names, pool, batches, engine)
    ends = np.cumsum([stage.channels for stage in backbone.stages])
    pieces = np.split(joined.values, ends[:-1], axis=1)
    return {
        name: Features(piece, joined.targets, joined.rows)
        for name, piece in zip(backbone.names, pieces, strict=True)
    }


def _collect(
    backbone: Backbone, taps: list[str], pool: Any, batches: Iterable[Batch], engine: Engine
) -> Features:
    backbone.eval()

    def work(batch: Batch) -> torch.Tensor:
        with engine.autocast():
            activations = backbone(engine.move(batch["features"]), taps)
        pooled: torch.Tensor = pool(activations, batch)
        return pooled

    values, targets, rows = collect(batches, engine, work)
    return Features(values.astype(np.float64), targets.astype(np.float64), rows)


def inner_folds(
    labels: Int, groups: Int, folds: int, repeats: int, seed: int = 0
) -> Iterator[tuple[Int, Int]]:
    """Repeated folds by group, stratified by label, without those whose training part lacks a
    class.

    Args:
        labels: (image,), 0 or 1.
        groups: (image,), images of one group (patient, or cluster) stay together.
        folds: at most so many, and no more than the smaller class has groups; none where it has
            one.
        repeats: draws of the folds.
        seed: of the draws.

    Yields:
        Indices of training and held-out images.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(groups[labels == value])) for value in (0, 1))
    if fewest < 2:
        return
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(
            min(folds, fewest), shuffle=True, random_state=(seed * repeats + repeat) % 2**32
        )
        for train, held_out in splitter.split(labels, labels, groups):
            if len(set(labels[train])) == 2 and len(held_out):
                yield train, held_out


def choose_penalty(
    data: Labelled, folds: int = _FOLDS, seed: int = 0, repeats: int | None = None
) -> tuple[float, float]:
    """The penalty with the lowest weighted log-loss on inner folds by group.

    Args:
        data: the images.
        folds: at most so many.
        seed: of the folds.
        repeats: draws of the folds; None: 3 of fewer than 60 units, else 1.

    Returns:
        The penalty, and that log-loss; where no folds can be made, a strong penalty and NaN.
    """
    repeats = repeats or (_REPEATS if len(np.unique(data.units)) < _FEW_UNITS else 1)
    total, count = np.zeros(len(PENALTIES)), 0.0
    for train, held_out in data.folds(folds, repeats, seed):
        coefficients, intercepts = data.take(train).fit()
        outside = data.take(held_out)
        scores = coefficients @ outside.values.T + intercepts[:, None]
        weights = np.where(outside.labels == 1, data.weight, 1.0)
        total = total + log_losses(scores, outside.labels) @ weights
        count += weights.sum()
    if not count:
        return _PENALTY, float("nan")
    best = int(np.argmin(total))
    return PENALTIES[best], float(total[best] / count)


def fit_head(
    head: LinearHead,
    features: Features,
    groups: Int,
    positive_weights: tuple[float, ...],
    seed: int = 0,
) -> dict[str, Any]:
    """Solves the head to convergence and writes it into `head`; the penalty is chosen on inner
    folds.

    Args:
        head: with one output per label.
        features: of the training part.
        groups: (image,), patient or cluster of each.
        positive_weights: weight of positives per label, as in the loss.
        seed: of the inner folds.

    Returns:
        `penalty` and `inner_loss`, per label: the penalties chosen and their log-losses on the
        inner folds.
    """
    penalties: list[float] = []
    losses: list[float | None] = []
    for index, weight in enumerate(positive_weights):
        data = features.labelled(index, groups, weight)
        penalty, loss = choose_penalty(data, seed=seed)
        coefficients, intercepts = data.fit((penalty,))
        _write(head.linear, index, coefficients[0], float(intercepts[0]))
        penalties.append(penalty)
        losses.append(loss if np.isfinite(loss) else None)
    return {"penalty": penalties, "inner_loss": losses}


def solve_without(
    head: LinearHead,
    features: Features,
    left_out: Int,
    positive_weights: tuple[float, ...],
    penalties: Sequence[float],
) -> None:
    """Solves the head on all images but some, with penalties that were chosen before, and writes it
    into `head`.

    Args:
        head: see `fit_head`.
        features: see `fit_head`.
        left_out: row numbers of the cohort.
        positive_weights: see `fit_head`.
        penalties: per label.
    """
    inside = ~np.isin(features.rows, left_out)
    for index, (weight, penalty) in enumerate(zip(positive_weights, penalties, strict=True)):
        labels = features.targets[inside, index].astype(np.int64)
        coefficients, intercepts = fit_path(features.values[inside], labels, weight, (penalty,))
        _write(head.linear, index, coefficients[0], float(intercepts[0]))


def compare_heads(data: Labelled) -> dict[str, float]:
    """AUC of three heads by repeated cross-validation by group: a check on a cohort too small to
    tune anything on.

    `logistic` is the convex head with its penalty from inner folds; `prototype` scores by the
    distances to the mean of each class (Snell et al. 2017, arXiv:1703.05175), `neighbours` by the
    five nearest images, both on standardised features. Where a simpler head does as well, the
    logistic one has not learnt more than that.

    Returns:
        Mean AUC over folds by head; empty where no folds can be made.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    aucs: dict[str, list[float]] = {"logistic": [], "prototype": [], "neighbours": []}
    for train, held_out in data.folds(_FOLDS, _REPEATS):
        inside, outside = data.take(train), data.take(held_out)
        if len(set(outside.labels)) < 2:
            continue
        penalty, _ = choose_penalty(inside, _INNER, repeats=1)
        coefficients, intercepts = inside.fit((penalty,))
        scores = {"logistic": outside.values @ coefficients[0] + intercepts[0]}
        scale = StandardScaler().fit(inside.values)
        near, far = scale.transform(inside.values), scale.transform(outside.values)
        negative, positive = (
            np.linalg.norm(far - near[inside.labels == value].mean(0), axis=1) for value in (0, 1)
        )
        scores["prototype"] = negative - positive
        neighbours = KNeighborsClassifier(min(5, len(train))).fit(near, inside.labels)
        scores["neighbours"] = neighbours.predict_proba(far)[:, 1]
        for name, values in scores.items():
            aucs[name].append(float(roc_auc_score(outside.labels, values)))
    return {name: float(np.mean(values)) for name, values in aucs.items() if values}


def _write(layer: nn.Linear, row: int, weight: Float, bias: float) -> None:
    with torch.no_grad():
        layer.weight[row] = torch.from_numpy(weight).to(layer.weight)
        layer.bias[row] = bias
