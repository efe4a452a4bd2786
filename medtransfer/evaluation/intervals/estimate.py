"""An estimate with its variance over patients and trainings, and the intervals and p-values that
follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.evaluation.intervals.entries import no_interval
from medtransfer.evaluation.intervals.influence import Estimator
from medtransfer.evaluation.intervals.variance import (
    COVERAGE,
    Cells,
    OverTrainings,
    Part,
    Scale,
    differ_between_seeds,
    move,
    quantile,
    two_sided_p,
)
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores

Value = Callable[[Float, NDArray[Any], Float, Int], float]
# What a fold counts in a mean over folds; None: the estimate is no such mean.
Mass = Literal["pairs", "positives", "images"]
# A variance below this is rounding.
_NOTHING = 1e-18
# With so many patients of a class, one image each, the variance is known well enough for the normal
# distribution of the textbooks.
_MANY = 30


@dataclass(frozen=True, eq=False)
class Estimate(OverTrainings):
    """An estimate over patients and seeds.

    Attributes:
        value: mean over seeds.
        positive: (seed, patient), influence of the positive images, summed within the patient.
        negative: (seed, patient), the same of the negative images.
        members: number of patients with a positive, with a negative image, and of all.
        by_fold: (fold, 2), number of patients with a positive and with a negative image, of the
            first seed.
        clustered: whether a patient has several images.
        by_seed: (seed,), the estimate of each.
        cells: the estimate of every model, where it is a mean over them and all seeds have the same
            folds.
        given: whether it is about these models alone, whatever another training would give.
        apart: parts of the variance between trainings of a difference whose arms are not paired.
        interaction: of such a difference, the variance over patients that differs from seed to
            seed, which `apart` holds.
    """

    value: float
    positive: Float
    negative: Float
    members: tuple[int, int, int]
    by_fold: Int
    clustered: bool
    by_seed: Float
    cells: Cells | None = None
    given: bool = False
    apart: tuple[Part, ...] | None = None
    interaction: float = 0.0

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference over the same patients; seeds are paired where there are as many, folds
        where they are the same.
        """
        paired = len(self.by_seed) == len(other.by_seed)
        sides = [(self.positive, other.positive), (self.negative, other.negative)]
        if not paired:
            sides = [(a.mean(0, keepdims=True), b.mean(0, keepdims=True)) for a, b in sides]
        return replace(
            self,
            value=self.value - other.value,
            positive=sides[0][0] - sides[0][1],
            negative=sides[1][0] - sides[1][1],
            by_seed=self.by_seed - other.by_seed
            if paired
            else np.array([self.value - other.value]),
            cells=None if self.cells is None else self.cells.less(other.cells),
            apart=None if paired else differ_between_seeds(self.between, other.between),
            interaction=0.0 if paired else self._interaction + other._interaction,
        )

    @property
    def models_alone(self) -> tuple[Part, ...]:
        """Parts of the variance over patients, the trained models taken as given."""
        return self._over_patients(np.ones((len(self.positive),) * 2) / len(self.positive) ** 2)

    @property
    def of_patients(self) -> float:
        """The variance over patients, the trained models taken as given."""
        return sum(part.variance for part in self.models_alone)

    @property
    def variance(self) -> float:
        """The variance over patients and seeds."""
        return sum(part.variance for part in self.parts)

    @property
    def shared(self) -> tuple[Part, ...]:
        """Parts of the variance over patients that all seeds share: the mean covariance of two
        seeds.
        """
        seeds = len(self.positive)
        if self.apart is not None:
            return tuple(
                replace(part, variance=max(0.0, part.variance - self.interaction))
                for part in self.models_alone
            )
        if seeds == 1:
            return self.models_alone
        return self._over_patients((1 - np.eye(seeds)) / (seeds * (seeds - 1)))

    @property
    def _interaction(self) -> float:
        """The variance over patients of the mean over seeds that the seeds do not share."""
        shared = sum(part.variance for part in self.shared)
        return self.interaction if self.apart is not None else max(0.0, self.of_patients - shared)

    def _over_patients(self, share: Float) -> tuple[Part, ...]:
        """The variance from the covariances between seeds, each with its share (seed, seed); its
        degrees of freedom come from the patients of either class.

        (Satterthwaite 1946, doi:10.2307/3002019.)
        """
        positives, negatives, patients = self.members
        with np.errstate(
            over="ignore"
        ):  # a ratio to a sum of tiny probabilities may have no finite square
            of_positive = _corrected(
                float((share * (self.positive @ self.positive.T)).sum()), positives
            )
            of_negative = _corrected(
                float((share * (self.negative @ self.negative.T)).sum()), negatives
            )
            mixed = float((share * (self.positive @ self.negative.T)).sum())
        variance = of_positive + of_negative + (2 * _corrected(mixed, patients) if mixed else 0.0)
        variance = max(variance, 0.0) if np.isfinite(variance) else variance
        if min(positives, negatives) >= _MANY and not self.clustered:
            return (Part(variance, np.inf),)
        pair = [(of_positive, positives - 1), (of_negative, negatives - 1)]
        parts = [
            (component, freedom) for component, freedom in pair if component > 0 and freedom > 0
        ]
        # In shares of the largest, whose squares are numbers whatever the scale.
        largest = max((component for component, _ in parts), default=0.0)
        shares = (
            [(component / largest, freedom) for component, freedom in parts]
            if np.isfinite(largest)
            else []
        )
        freedom = (
            sum(share for share, _ in shares) ** 2
            / sum(share**2 / freedom for share, freedom in shares)
            if shares
            else 1.0
        )
        return (Part(variance, freedom),)

    def interval(
        self,
        scale: Scale = "identity",
        least: float = -np.inf,
        greatest: float = np.inf,
        widest: float = np.inf,
        parts: tuple[Part, ...] | None = None,
        coverage: float = COVERAGE,
    ) -> dict[str, Any]:
        """Estimate with its interval, by Student's t on a scale where the estimate is nearer to
        normal.

        Args:
            scale: of the interval.
            least: lower bound of the quantity.
            greatest: upper bound of the quantity.
            widest: standard errors beyond this mean that the data hold no information on it.
            parts: of the variance; left out, over patients and seeds.
            coverage: 0.95 where left out.
        """
        parts = self.parts if parts is None else parts
        variance = sum(part.variance for part in parts)
        if not np.isfinite(self.value):
            reason = "not estimable: a class is missing, or the score separates the classes"
            return no_interval(reason)
        why = ""
        if min(self.members[:2]) < 2:
            why = "fewer than two patients of a class"
        elif variance <= _NOTHING:
            why = "no two patients differ"
        elif not np.isfinite(variance) or np.sqrt(variance) > widest:
            why = "the data hold too little information"
        if why:
            return no_interval(f"no interval: {why}", self.value)
        half = quantile(parts, coverage) * np.sqrt(variance)
        low, high = move(self.value, -half, scale), move(self.value, half, scale)
        return {"estimate": self.value, "low": max(least, low), "high": min(greatest, high)}

    def p_value(self, parts: tuple[Part, ...] | None = None) -> float | None:
        """Two-sided p-value of the estimate being 0; None where its variance is not known."""
        parts = self.parts if parts is None else parts
        variance = sum(part.variance for part in parts)
        if not (
            np.isfinite(self.value)
            and np.isfinite(variance)
            and variance > _NOTHING
            and min(self.members[:2]) >= 2
        ):
            return None
        return two_sided_p(abs(self.value) / np.sqrt(variance), parts)


def _corrected(square: float, patients: int) -> float:
    return square * patients / (patients - 1) if patients > 1 else float("nan")


def estimate_all(
    scores: Scores,
    codes: Int,
    count: int,
    estimators: dict[str, tuple[Estimator, Mass | None]],
    inside: NDArray[np.bool_] | None = None,
) -> dict[str, Estimate]:
    """Several estimates by name; see `estimate`."""
    return {
        name: estimate(scores, codes, count, estimator, mass, inside)
        for name, (estimator, mass) in estimators.items()
    }


def estimate(
    scores: Scores,
    codes: Int,
    count: int,
    estimator: Estimator,
    mass: Mass | None = None,
    inside: NDArray[np.bool_] | None = None,
) -> Estimate:
    """An estimate over the seeds of one arm.

    Args:
        scores: of the arm.
        codes: (image,), number of the patient, below `count`.
        count: of patients, those of other images among them, which have no influence.
        estimator: one of this module.
        mass: what a fold counts, where the estimate is a mean over folds.
        inside: (image,), the images that are looked at; all where left out.
    """
    s = scores if inside is None else scores.take(np.flatnonzero(inside))
    patients = codes if inside is None else codes[inside]
    truth = s.target == 1
    values = np.empty(len(s.logit))
    sides = np.zeros((2, len(s.logit), count))
    for seed, (logit, fold) in enumerate(zip(s.logit, s.fold, strict=True)):
        values[seed], influence = estimator(logit, s.target, s.weight, fold)
        for side, rows in enumerate((truth, ~truth)):
            sides[side, seed] = np.bincount(patients[rows], influence[rows], count)
    members = (
        len(np.unique(patients[truth])),
        len(np.unique(patients[~truth])),
        len(np.unique(patients)),
    )
    cells = None if mass is None else by_model(s, lambda *rows: estimator(*rows)[0], mass)
    several = len(s.target) > members[2]
    return Estimate(
        float(values.mean()),
        sides[0],
        sides[1],
        members,
        _count_by_fold(s),
        several,
        values,
        cells,
        scores.given,
    )


def _count_by_fold(scores: Scores) -> Int:
    fold, patients, truth = scores.fold[0], scores.patients, scores.target == 1
    return np.array(
        [
            [len(set(patients[(fold == f) & rows])) for rows in (truth, ~truth)]
            for f in np.unique(fold)
        ],
        np.int64,
    ).reshape(-1, 2)


def by_model(scores: Scores, value: Value, mass: Mass) -> Cells | None:
    """The value of every model; None where the seeds have different folds.

    Args:
        scores: of an arm.
        value: from `logit, target, weight, model`.
        mass: what a fold counts.
    """
    folds = scores.folds
    if folds is None or len(scores.target) == 0:
        return None
    division = scores.fold[0]
    values, masses = np.full((len(scores.logit), len(folds)), np.nan), np.zeros(len(folds))
    for place, fold in enumerate(folds):
        rows = division == fold
        target, weight = scores.target[rows], scores.weight[rows]
        masses[place] = mass_of(mass, target, weight[None])[0]
        for seed, logit in enumerate(scores.logit):
            values[seed, place] = value(logit[rows], target, weight, division[rows])
    return Cells(values, masses, hash(division.tobytes()))


def mass_of(mass: Mass, target: NDArray[Any], weights: Float) -> Float:
    """The mass of the images in each draw, (draw, image) -> (draw,): the number of pairs of a
    positive and a negative, of positives, or of all.
    """
    positives = weights @ np.asarray(target, np.float64)
    if mass == "positives":
        return np.asarray(positives, np.float64)
    total = weights.sum(1)
    return np.asarray(positives * (total - positives) if mass == "pairs" else total, np.float64)
