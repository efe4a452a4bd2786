"""Prediction sets with a stated coverage, from tune rows (split-conformal prediction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation.intervals.resample import DrawnMetric, Question
from medtransfer.evaluation.metrics.recalibration import Comparable
from medtransfer.evaluation.metrics.utility import share_interval
from medtransfer.evaluation.tables.arrays import Float
from medtransfer.evaluation.tables.scores import Scores


def conformal_threshold(
    logit: Float,
    target: NDArray[Any],
    coverage: float,
    weight: Float | None = None,
    patients: NDArray[Any] | None = None,
) -> float:
    """Largest distance 1 - p(class) that a class may have and still be in the set.

    The ⌈(n + 1) coverage⌉-th smallest distance of the true classes (Vovk et al. 2005; Papadopoulos
    et al. 2002, doi:10.1007/3-540-36755-1_29); infinite, and every set whole, where n is too small
    for the coverage. Of several images of a patient each counts as a share of the patient (Dunn,
    Wasserman & Ramdas 2023, doi:10.1080/01621459.2022.2060112); n counts patients.

    Args:
        logit, target: (row,), of rows that trained nothing; of each class apart, so that the
            coverage holds in both.
        coverage: between 0 and 1.
        weight: (row,), how much each counts; 1 where left out.
        patients: (row,); each row is one where left out.
    """
    distance = expit(np.where(np.asarray(target) == 1, -logit, logit))
    mass = np.ones(len(distance)) if weight is None else weight
    codes = np.unique(
        np.arange(len(distance)) if patients is None else patients, return_inverse=True
    )[1]
    count = codes.max() + 1 if len(codes) else 0
    share = mass / np.bincount(codes, mass)[codes] if count else mass
    order = np.argsort(distance, kind="stable")
    reached = np.flatnonzero(np.cumsum(share[order]) >= (count + 1) * coverage - 1e-9)
    return float(distance[order][reached[0]]) if len(reached) else np.inf


def conformal_sets(
    scores: Scores, comparable: Sequence[Comparable] | None, coverage: float
) -> Question | None:
    """Sets made on the tune rows of each seed and fold, on the test images.

    Label-conditional: a threshold for each class, so that neither pays for the other (Vovk 2012,
    arXiv:1209.2673). The guarantee is over images that could have been exchanged with the tune
    images.

    Args:
        scores: test scores.
        comparable: every model's tune and test rows on one scale.
        coverage: that is asked for.

    Returns:
        In place of logits, 3 * whether the set holds the true class + size of the set, and their
        shares; None where nothing is comparable.
    """
    if comparable is None:
        return None
    kinds = np.zeros((2, *scores.logit.shape), bool)
    for model in comparable:
        cell = model.cell
        for value, sign in ((1, -1), (0, 1)):
            of_class = cell.target == value
            cut = conformal_threshold(
                model.tune[of_class],
                cell.target[of_class],
                coverage,
                cell.weight[of_class],
                cell.patient[of_class],
            )
            kinds[value, cell.row, cell.inside] = expit(sign * model.test) <= cut
    right = np.where(scores.target == 1, kinds[1], kinds[0])
    return Question(
        replace(scores, logit=(3 * right + kinds.sum(0)).astype(np.float64)), {"sets": _shares}
    )


def _shares(kind: Float, target: NDArray[Any], weights: Float) -> Float:
    right, size = kind >= 3, kind % 3
    total, positive = weights.sum(1), weights @ target
    with np.errstate(invalid="ignore", divide="ignore"):
        covered = (
            weights @ right / total,
            weights @ (right * target) / positive,
            weights @ (right * (1 - target)) / (total - positive),
        )
        return np.stack([*covered, *(weights @ (size == count) / total for count in (1, 2, 0))], 1)


def describe_sets(question: Question, shares: DrawnMetric, coverage: float) -> dict[str, Any]:
    """The entry of the prediction sets: the coverage that was `asked` for, `coverage` over all and
    over either class, and the shares of sets that are `certain`, `uncertain` and `empty`.

    Args:
        question: see `conformal_sets`.
        shares: the metric `sets` with its draws.
        coverage: that was asked for.
    """
    scores = question.scores
    truth, everyone = scores.target == 1, np.ones(len(scores.target), bool)
    names = {"coverage": everyone, "coverage_positive": truth, "coverage_negative": ~truth}
    names |= dict.fromkeys(("certain", "uncertain", "empty"), everyone)
    shares_of = {
        name: share_interval(shares[i], len(set(scores.patients[rows])))
        for i, (name, rows) in enumerate(names.items())
    }
    return {"asked": coverage, **shares_of}
