"""Prediction sets with a stated coverage, from tune rows (split-conformal prediction)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation.resample import Drawn, Question
from medtransfer.evaluation.scores import Scores, pair_tune
from medtransfer.evaluation.utility import share_interval

Float = NDArray[np.float64]


def conformal_threshold(logit: Float, target: NDArray[Any], coverage: float) -> float:
    """Largest distance 1 - p(class) that a class may have and still be in the set.

    The ⌈(n + 1) coverage⌉-th smallest distance of the true classes (Vovk et al. 2005; Papadopoulos et al. 2002,
    doi:10.1007/3-540-36755-1_29); infinite, and every set whole, where n is too small for the coverage.

    Args:
        logit, target: (image,), of rows that trained nothing; of each class apart, so that the coverage holds in both.
        coverage: between 0 and 1.
    """
    distance = np.sort(expit(np.where(np.asarray(target) == 1, -logit, logit)))
    rank = int(np.ceil((len(distance) + 1) * coverage))
    return float(distance[rank - 1]) if 0 < rank <= len(distance) else np.inf


def conformal_sets(scores: Scores, tune: pd.DataFrame, coverage: float) -> Question | None:
    """Sets made on the tune rows of each seed and fold, on the test images.

    Label-conditional: a threshold for each class, so that neither pays for the other (Vovk 2012, arXiv:1209.2673). The
    guarantee is over images that could have been exchanged with the tune images; images of one patient are alike, so
    one of each tune patient is taken (the first).

    Args:
        scores: test scores. tune: rows `seed, fold, patient, target, logit`. coverage: asked for.

    Returns:
        In place of logits, 3 * whether the set holds the true class + size of the set, and their shares; None unless every
        seed and fold has tune rows of both classes.
    """
    cells = pair_tune(scores, tune)
    if cells is None:
        return None
    kinds = np.zeros((2, *scores.logit.shape), bool)
    for cell in cells:
        for value, sign in ((1, -1), (0, 1)):
            own = cell.tune[cell.tune["target"] == value].drop_duplicates("patient")
            cut = conformal_threshold(own["logit"].to_numpy(float), own["target"].to_numpy(int), coverage)
            kinds[value, cell.row, cell.inside] = expit(sign * scores.logit[cell.row, cell.inside]) <= cut
    right = np.where(scores.target == 1, kinds[1], kinds[0])
    return Question(replace(scores, logit=(3 * right + kinds.sum(0)).astype(np.float64)), {"sets": _shares})


def _shares(kind: Float, target: NDArray[Any], weights: Float) -> Float:
    right, size = kind >= 3, kind % 3
    total, positive = weights.sum(1), weights @ target
    with np.errstate(invalid="ignore", divide="ignore"):
        covered = weights @ right / total, weights @ (right * target) / positive, weights @ (right * (1 - target)) / (total - positive)
        return np.stack([*covered, *(weights @ (size == count) / total for count in (1, 2, 0))], 1)


def describe_sets(question: Question, shares: Drawn, coverage: float) -> dict[str, Any]:
    """`asked`, and with intervals `coverage`, that of either class, and the shares of sets that are `certain`, `uncertain`, `empty`.

    Args:
        question: see `conformal_sets`. shares: drawn. coverage: asked for.
    """
    scores = question.scores
    truth, everyone = scores.target == 1, np.ones(len(scores.target), bool)
    names = {"coverage": everyone, "coverage_positive": truth, "coverage_negative": ~truth}
    names |= dict.fromkeys(("certain", "uncertain", "empty"), everyone)
    found = {name: share_interval(shares[i], len(set(scores.patients[rows]))) for i, (name, rows) in enumerate(names.items())}
    return {"asked": coverage, **found}
