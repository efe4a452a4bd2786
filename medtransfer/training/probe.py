"""The convex head: L2-penalised logistic regression on pooled features of the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from medtransfer.errors import StudyError
from medtransfer.evaluation.metrics.recalibration import log_losses
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import LinearHead
from medtransfer.tasks.task import Batch
from medtransfer.training.batches import collect
from medtransfer.training.device import Engine

Float = NDArray[np.float64]
Int = NDArray[np.int64]
# From almost the class frequencies alone to a nearly free fit, on standardised features.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Where there are too few units for inner folds.
_PENALTY = 1e-3
_FOLDS, _FEW_UNITS, _REPEATS = 5, 60, 3
_INNER = 3
# Multiplications for a Hessian up to which Newton's steps are quicker than those of L-BFGS; how
# many, and the gain at which they end.
_SMALL, _STEPS, _CLOSE = 8_000_000, 100, 1e-12


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


def fit_path(
    values: Float, labels: Int, weight: float, penalties: tuple[float, ...] = PENALTIES
) -> tuple[Float, Float]:
    """L2-logistic regressions on standardised features, one per penalty, each solved to
    convergence.

    With fewer images than channels the fit is done in the span of the images, which is the same
    fit.

    Args:
        values: (image, channel).
        labels: (image,), 0 and 1, both there.
        weight: of positives in the loss.
        penalties: inverse strengths, ascending.

    Returns:
        Coefficients (penalty, channel) and intercepts (penalty,), for the features as they are.

    Raises:
        StudyError: a feature is not finite.
    """
    if not np.isfinite(values).all():
        raise StudyError(
            "features of the backbone are not finite. Set train.precision=fp32, or take other "
            "weights."
        )
    mean, scale = values.mean(0), values.std(0)
    scale[scale < 1e-8] = (
        1.0  # a channel that never varies carries nothing; its coefficient stays 0
    )
    inputs = (values - mean) / scale
    directions = None
    if inputs.shape[0] < inputs.shape[1]:
        squares, left = np.linalg.eigh(inputs @ inputs.T)
        there = squares >= 1e-12 * squares[-1]
        sizes = np.sqrt(np.maximum(squares[there], 0.0))
        directions = (left[:, there] / np.where(sizes > 0, sizes, 1.0)).T @ inputs
        inputs = left[:, there] * sizes
    solve = _solve_small if inputs.size * inputs.shape[1] <= _SMALL else _solve_large
    found = solve(inputs, labels, weight, penalties)
    coefficients = (found[:, :-1] if directions is None else found[:, :-1] @ directions) / scale
    return coefficients, found[:, -1] - coefficients @ mean


def _solve_large(inputs: Float, labels: Int, weight: float, penalties: tuple[float, ...]) -> Float:
    """Coefficients, and behind them the intercept; (penalty, channel + 1)."""
    model = LogisticRegression(
        max_iter=5000, tol=1e-9, class_weight={0: 1.0, 1: weight}, warm_start=True
    )
    found = []
    for penalty in penalties:
        model.set_params(C=penalty).fit(inputs, labels)
        found.append(np.append(model.coef_[0], model.intercept_[0]))
    return np.array(found)


def _solve_small(inputs: Float, labels: Int, weight: float, penalties: tuple[float, ...]) -> Float:
    """As `_solve_large`, by Newton's method, for a few dozen images ten times as fast:
    scikit-learn's checks outweigh the arithmetic.

    Steps are halved until the loss falls by a share of what its slope promises (Armijo), so that
    they cannot overshoot.
    """
    design, truth = np.column_stack([inputs, np.ones(len(inputs))]), labels == 1
    mass = np.where(truth, weight, 1.0)
    values, found = np.zeros(design.shape[1]), []
    for penalty in penalties:
        ridge = np.append(np.full(inputs.shape[1], 1 / penalty), 0.0)

        def loss(at: Float, ridge: Float = ridge) -> float:
            scores = design @ at
            return float(mass @ log_losses(scores, labels) + 0.5 * ridge @ at**2)

        now = loss(values)
        for _ in range(_STEPS):
            probability = expit(design @ values)
            slope = design.T @ (mass * (probability - truth)) + ridge * values
            curvature = (design.T * (mass * probability * (1 - probability))) @ design + np.diag(
                ridge
            )
            step = np.linalg.solve(curvature, slope)
            promised = float(slope @ step)
            if promised <= _CLOSE * max(1.0, now):
                break
            length = 1.0
            while (
                new := loss(values - length * step)
            ) > now - 1e-4 * length * promised and length > 1e-9:
                length /= 2
            values, now = values - length * step, new
        found.append(values)
    return np.array(found)


def inner_folds(
    labels: Int, groups: Int, folds: int, repeats: int, seed: int = 0
) -> Iterator[tuple[Int, Int]]:
    """Repeated folds by group, stratified by label; those whose training part lacks a class are
    left out.

    Args:
        labels: (image,), 0 or 1.
        groups: (image,), images of one group (patient, or cluster) stay together.
        folds: at the most; no more than there are groups of the smaller class, none where there is
            one.
        repeats: draws of the folds.
        seed: of the draws.

    Yields:
        Indices of training and held-out images.
    """
    fewest = min(len(np.unique(groups[labels == value])) for value in (0, 1))
    if fewest < 2:
        return
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(
            min(folds, fewest), shuffle=True, random_state=(seed * repeats + repeat) % 2**32
        )
        for train, held in splitter.split(labels, labels, groups):
            if len(set(labels[train])) == 2 and len(held):
                yield train, held


def choose_penalty(
    values: Float,
    labels: Int,
    groups: Int,
    weight: float,
    folds: int = _FOLDS,
    seed: int = 0,
    repeats: int | None = None,
) -> tuple[float, float]:
    """The penalty with the lowest weighted log-loss on inner folds by group; left out, `repeats` is
    3 where units are few.

    Returns:
        The penalty, and that log-loss; where no folds can be made, a strong penalty and NaN.
    """
    repeats = repeats or (_REPEATS if len(np.unique(groups)) < _FEW_UNITS else 1)
    total, count = np.zeros(len(PENALTIES)), 0.0
    for train, held in inner_folds(labels, groups, folds, repeats, seed):
        coefficients, intercepts = fit_path(values[train], labels[train], weight)
        losses = log_losses(coefficients @ values[held].T + intercepts[:, None], labels[held])
        weights = np.where(labels[held] == 1, weight, 1.0)
        total, count = total + losses @ weights, count + weights.sum()
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
        The penalties chosen and their log-losses on the inner folds, per label.
    """
    chosen: dict[str, Any] = {"penalty": [], "inner_loss": []}
    for index, weight in enumerate(positive_weights):
        labels = features.targets[:, index].astype(np.int64)
        penalty, loss = choose_penalty(features.values, labels, groups, weight, seed=seed)
        coefficients, intercepts = fit_path(features.values, labels, weight, (penalty,))
        _write(head.linear, index, coefficients[0], float(intercepts[0]))
        chosen["penalty"].append(penalty)
        chosen["inner_loss"].append(loss if np.isfinite(loss) else None)
    return chosen


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
        head, features, positive_weights: see `fit_head`.
        left_out: row numbers of the cohort.
        penalties: per label.
    """
    inside = ~np.isin(features.rows, left_out)
    for index, (weight, penalty) in enumerate(zip(positive_weights, penalties, strict=True)):
        labels = features.targets[inside, index].astype(np.int64)
        coefficients, intercepts = fit_path(features.values[inside], labels, weight, (penalty,))
        _write(head.linear, index, coefficients[0], float(intercepts[0]))


def compare_heads(features: Features, groups: Int, weight: float) -> dict[str, float]:
    """AUC of three heads by repeated cross-validation by group: a check on a cohort too small to
    tune anything on.

    `logistic` is the convex head with its penalty from inner folds; `prototype` scores by the
    distances to the mean of each class (Snell et al. 2017, arXiv:1703.05175), `neighbours` by the
    five nearest images, both on standardised features. Where a simpler head does as well, the
    logistic one has not learnt more than that.

    Returns:
        Mean AUC over folds by head; empty where no folds can be made.
    """
    labels = features.targets[:, 0].astype(np.int64)
    found: dict[str, list[float]] = {"logistic": [], "prototype": [], "neighbours": []}
    for train, held in inner_folds(labels, groups, _FOLDS, _REPEATS):
        if len(set(labels[held])) < 2:
            continue
        penalty, _ = choose_penalty(
            features.values[train], labels[train], groups[train], weight, _INNER, repeats=1
        )
        coefficients, intercepts = fit_path(
            features.values[train], labels[train], weight, (penalty,)
        )
        scores = {"logistic": features.values[held] @ coefficients[0] + intercepts[0]}
        scale = StandardScaler().fit(features.values[train])
        inside, outside = (
            scale.transform(features.values[train]),
            scale.transform(features.values[held]),
        )
        negative, positive = (
            np.linalg.norm(outside - inside[labels[train] == value].mean(0), axis=1)
            for value in (0, 1)
        )
        scores["prototype"] = negative - positive
        neighbours = KNeighborsClassifier(min(5, len(train))).fit(inside, labels[train])
        scores["neighbours"] = neighbours.predict_proba(outside)[:, 1]
        for name, values in scores.items():
            found[name].append(float(roc_auc_score(labels[held], values)))
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _write(layer: nn.Linear, row: int, weight: Float, bias: float) -> None:
    with torch.no_grad():
        layer.weight[row] = torch.from_numpy(weight).to(layer.weight)
        layer.bias[row] = bias
