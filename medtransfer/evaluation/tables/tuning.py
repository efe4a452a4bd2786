"""What is fitted on tune rows: which rows a model may learn from, and parameters that its models
share.

A model (a seed and a fold) is calibrated on the tune rows of all models of its arm, but for those
of patients that it tests. Each row is scored by a model that was not trained on its patient. Models
resemble each other, so their parameters are drawn towards those they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores

# (row, parameter) -> the loss of all rows together, and its gradient (row, parameter).
Loss = Callable[[Float], tuple[float, Float]]
# Standard deviation of a model's parameters around the shared ones: scales of models of one arm
# differ by about a third.
_BETWEEN_MODELS = 0.3


@dataclass(frozen=True, eq=False)
class Cell:
    """What one model (a seed and a fold) tests, and the tune rows that may be used for it.

    Attributes:
        row: of the seed in `Scores.logit`.
        seed: that the model was trained with.
        fold: that it tests.
        inside: (image,), the images it tests.
        tune: tune rows of all models whose patients it does not test: `seed, fold, image, patient,
            target, logit`.
        model: (row,), number of the model that scored each tune row.
        number: of this model.
        weight: (row,), 1 / the number of tune rows of the same image, so that every image counts
            once.
    """

    row: int
    seed: int
    fold: int
    inside: NDArray[np.bool_]
    tune: pd.DataFrame
    model: Int
    number: int
    weight: Float

    @property
    def logit(self) -> Float:
        """(row,), of the tune rows."""
        return self.tune["logit"].to_numpy(np.float64)

    @property
    def target(self) -> Int:
        """(row,), of the tune rows."""
        return self.tune["target"].to_numpy(np.int64)

    @property
    def patient(self) -> Int:
        """(row,), number of the patient of each tune row."""
        return np.asarray(pd.factorize(self.tune["patient"])[0], np.int64)


def number_models(tune: pd.DataFrame) -> Int:
    """(row,), number of the model, a seed and a fold, that scored each."""
    return np.asarray(
        tune.groupby(["seed", "fold"], sort=True).ngroup().to_numpy(np.int64), np.int64
    )


def count_once(images: pd.Series) -> Float:
    """1 / the number of rows of the same image; (row,)."""
    return np.asarray(
        1 / images.groupby(images, sort=False).transform("size").to_numpy(np.float64), np.float64
    )


def pair_tune(scores: Scores, tune: pd.DataFrame) -> list[Cell] | None:
    """Every model of an arm with the tune rows that it may learn from; None unless these hold both
    classes for each.

    Args:
        scores: test scores.
        tune: tune rows of the arm: `seed, fold, image, patient, target, logit`.
    """
    numbers = number_models(tune)
    models = dict(zip(zip(tune["seed"], tune["fold"], strict=True), numbers.tolist(), strict=True))
    cells = []
    for row, fold, inside in scores.cells:
        allowed = ~tune["patient"].isin(set(scores.patients[inside])).to_numpy()
        rows = tune[allowed]
        if rows["target"].nunique() < 2:
            return None
        number = models.get((scores.seeds[row], fold), -1)
        cells.append(
            Cell(
                row,
                scores.seeds[row],
                fold,
                inside,
                rows,
                numbers[allowed],
                number,
                count_once(rows["image"]),
            )
        )
    return cells


def fit_shared(
    loss: Loss, model: Int, mean: Float, spread: Float
) -> tuple[Float, dict[int, Float]]:
    """Parameters that models share, and those of each: the joint maximum of likelihood and priors.

    Shared ones are Normal(mean, spread²), those of a model Normal(shared, 0.3²): a model with few
    tune rows keeps to the others.

    Args:
        loss: of the rows, given the parameters of each.
        model: (row,), number of the model of each.
        mean: (parameter,), of the prior.
        spread: (parameter,), standard deviation of the prior.

    Returns:
        Shared parameters, and by model those of its own.
    """
    models, code = np.unique(model, return_inverse=True)
    count, size = len(models), len(mean)
    several = count > 1

    def joint(values: Float) -> tuple[float, Float]:
        shared = values[:size]
        offsets = values[size:].reshape(count, size) if several else np.zeros((1, size))
        value, slopes = loss(shared + offsets[code])
        gradient = slopes.sum(0) + (shared - mean) / spread**2
        value += 0.5 * float(np.square((shared - mean) / spread).sum())
        if not several:
            return value, gradient
        value += 0.5 * float(np.square(offsets / _BETWEEN_MODELS).sum())
        of_models = (
            np.stack([np.bincount(code, column, count) for column in slopes.T], 1)
            + offsets / _BETWEEN_MODELS**2
        )
        return value, np.concatenate([gradient, of_models.ravel()])

    start = np.concatenate([mean, np.zeros(count * size if several else 0)])
    solution = minimize(
        joint,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-13, "gtol": 1e-8, "maxiter": 500},
    ).x
    shared = solution[:size]
    offsets = solution[size:].reshape(count, size) if several else np.zeros((1, size))
    return shared, {
        int(number): shared + step for number, step in zip(models, offsets, strict=True)
    }


def weighted_share(target: NDArray[Any], weight: Float) -> float:
    """Share of positives, kept away from 0 and 1 by half a row."""
    total = float(weight.sum())
    return float(np.clip(weight @ target / total, 0.5 / (total + 1), 1 - 0.5 / (total + 1)))
