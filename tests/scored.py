"""Scores of one arm from plain arrays, for tests of the evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.estimate import Estimate, estimate
from medtransfer.evaluation.intervals.resample import Question, estimates
from medtransfer.evaluation.metrics.recalibration import make_comparable
from medtransfer.evaluation.metrics.utility import Aims, decide
from medtransfer.evaluation.tables.scores import Scores, align_scores


def make_scores(
    logits: Any,
    target: Any,
    patients: Any = None,
    fold: Any = None,
    arm: str = "a",
    weight: Any = None,
) -> Scores:
    """One arm: `logits` (image,) or (seed, image); one image per patient and one model per seed
    where nothing else is said.
    """
    logits, target = np.atleast_2d(np.asarray(logits, float)), np.asarray(target, np.int64)
    names = np.arange(len(target)) if patients is None else np.asarray(patients)
    folds = np.zeros(len(target), np.int64) if fold is None else np.asarray(fold, np.int64)
    return Scores(
        arm,
        tuple(range(len(logits))),
        np.arange(len(target)).astype(object),
        names.astype(object),
        target,
        np.broadcast_to(folds, logits.shape),
        logits,
        np.ones(len(target)) if weight is None else np.asarray(weight, float),
    )


def codes_of(scores: Scores) -> np.ndarray:
    """(image,), numbers of the patients."""
    return np.unique(scores.patients.astype(str), return_inverse=True)[1]


def estimate_of(scores: Scores, estimator: Any = influence.auc, mass: Any = "pairs") -> Estimate:
    """An estimate over the patients of the arm alone."""
    codes = codes_of(scores)
    return estimate(scores, codes, int(codes.max()) + 1, estimator, mass)


def align_arm(table: pd.DataFrame) -> tuple[Scores, pd.DataFrame]:
    """The test scores and the tune rows of a table with one arm and one label.

    Args:
        table: predictions with all their columns, as `check_predictions` completes them.
    """
    (scores,), _ = align_scores(table)
    return scores, table[table["part"] == "tune"]


def measure_question(question: Question) -> dict[str, np.ndarray]:
    """The values of a question on the sample itself, without any draw: means over the seeds."""
    return {name: values.mean(0) for name, values in estimates(question).items()}


def youden_sum(scores: Scores, tune: pd.DataFrame) -> float:
    """Sensitivity + specificity on the test rows, at the thresholds that Youden's rule locks."""
    aims = Aims(sensitivity=None, specificity=None)
    (decision,) = decide(scores, make_comparable(scores, tune), None, aims)
    sensitivity, specificity = measure_question(decision.question)["rates"][:2]
    return float(sensitivity + specificity)


def estimate_auc(scores, target, patients=None, fold=None):
    return estimate_of(make_scores(scores, target, patients, fold))


def delong_by_definition(score: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    x, y = score[target == 1], score[target == 0]
    psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    return float(psi.mean()), float(
        psi.mean(1).var(ddof=1) / len(x) + psi.mean(0).var(ddof=1) / len(y)
    )


def ones(logit: np.ndarray) -> np.ndarray:
    return np.ones((1, len(logit)))


ONE_MODEL = np.zeros(100_000, int)
