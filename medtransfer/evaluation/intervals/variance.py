"""Variances in parts, each known with its own degrees of freedom: over patients, and between
trainings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm
from scipy.stats import t as student

from medtransfer.evaluation.tables.arrays import Float

Scale = Literal["identity", "logit", "log"]
COVERAGE = 0.95
# Standard errors on either side of such an interval, where the variance is known.
NORMAL_95 = float(norm.ppf((1 + COVERAGE) / 2))
# Ratios below it are 0; logarithm of the least p, down to which scipy has quantiles of t: at 1e-261
# and 3.7 degrees of freedom it gives -inf.
_ZERO, _LEAST = 1e-9, -230.0


@dataclass(frozen=True)
class Part:
    """A variance and its degrees of freedom; infinite where the variance is known."""

    variance: float
    freedom: float


@dataclass(frozen=True, eq=False)
class Cells:
    """The estimate of every model.

    Attributes:
        estimates: (seed, fold).
        mass: (fold,), what each fold counts, such as its pairs of a positive and a negative
            patient.
        layout: tells divisions into folds apart; models of two arms are paired where it is the
            same.
    """

    estimates: Float
    mass: Float
    layout: int

    def less(self, other: Cells | None) -> Cells | None:
        """The difference model by model, of means over seeds where their number differs; None where
        the folds differ.
        """
        if (
            other is None
            or self.layout != other.layout
            or self.estimates.shape[1] != other.estimates.shape[1]
        ):
            return None
        sides = (self.estimates, other.estimates)
        if len(self.estimates) != len(other.estimates):
            sides = (self.estimates.mean(0, keepdims=True), other.estimates.mean(0, keepdims=True))
        return Cells(sides[0] - sides[1], self.mass, self.layout)

    def known(self) -> tuple[Float, Float]:
        """Values (seed, fold) and shares (fold,) of the folds in which every model has a value."""
        complete = np.isfinite(self.estimates).all(0) & (self.mass > 0)
        return self.estimates[:, complete], self.mass[complete] / max(
            self.mass[complete].sum(), 1e-300
        )


class OverTrainings(ABC):
    """What an estimate and a metric with its draws have in common: a variance over patients, and
    what trainings add to it.

    Attributes:
        by_seed: (seed,), the estimate of each seed.
        cells: the estimates of single models.
        given: see `estimate.Estimate`.
        apart: see `estimate.Estimate`.
    """

    by_seed: Float
    cells: Cells | None
    given: bool
    apart: tuple[Part, ...] | None

    @property
    @abstractmethod
    def models_alone(self) -> tuple[Part, ...]:
        """Parts of the variance over patients, the trained models taken as given."""

    @property
    @abstractmethod
    def shared(self) -> tuple[Part, ...]:
        """Parts of the variance over patients that all seeds share: the mean covariance of two
        seeds.
        """

    @property
    def between(self) -> tuple[Part, ...]:
        """Parts of the variance between seeds; empty where the models are given, or where nothing
        shows it.
        """
        if self.given:
            return ()
        return between_seeds(self.by_seed, self.cells) if self.apart is None else self.apart

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of the variance over patients and seeds; what differs between patients from seed to
        seed is within the variance between seeds.

        (Obuchowski & Rockette 1995, doi:10.1080/03610919508813243; Hillis 2007,
        doi:10.1002/sim.2532.)
        """
        return (*(self.shared if self.between else self.models_alone), *self.between)

    @property
    def trained_again(self) -> tuple[Part, ...]:
        """Parts of the variance that another training would show; see the function `trained_again`.
        Empty where nothing shows it.
        """
        return (
            ()
            if self.given
            else trained_again(self.models_alone, self.shared, self.between, self.cells)
        )


def between_seeds(by_seed: Float, cells: Cells | None = None) -> tuple[Part, ...]:
    """Variance of the mean over seeds that comes from the seeds; empty for a single seed, which
    does not show it.

    With the same folds in every seed it is that between the seeds of a fold, summed over folds:
    each fold shows it anew.
    """
    count = len(by_seed)
    if count < 2:
        return ()
    if cells is not None:
        values, share = cells.known()
        if len(share):
            freedom = (count - 1) * np.square(share).sum() ** 2 / (share**4).sum()
            return (Part(float(share**2 @ np.var(values, axis=0, ddof=1)) / count, float(freedom)),)
    return (Part(float(np.var(by_seed, ddof=1)) / count, count - 1),)


def between_folds(cells: Cells | None) -> Part | None:
    """Variance of the mean over folds as the folds show it: over patients, training sets and
    trainings together; None for a single fold.
    """
    if cells is None:
        return None
    values, share = cells.known()
    if len(share) < 2:
        return None
    square = float(np.square(share).sum())
    means = values.mean(0)
    spread = float(share @ np.square(means - share @ means))
    return Part(spread * square / (1 - square), 1 / square - 1)


def differ_between_seeds(*arms: tuple[Part, ...]) -> tuple[Part, ...]:
    """Variance between the seeds of arms that are not paired; empty where an arm has a single seed,
    which does not show it.
    """
    return tuple(part for parts in arms for part in parts) if all(arms) else ()


def trained_again(
    alone: tuple[Part, ...], shared: Sequence[Part], seeds: tuple[Part, ...], cells: Cells | None
) -> tuple[Part, ...]:
    """Parts of the variance that another training of every model would show; empty where nothing
    shows it.

    Two estimates, weighted by their degrees of freedom: that over patients which all seeds share,
    with the variance between the seeds of a fold; and that between folds. Few of either may show
    less than the patients do by themselves, which then count.

    Args:
        alone: over patients, the trained models taken as given.
        shared: of it, without the part that differs from seed to seed.
        seeds: between seeds.
        cells: the estimates of single models.
    """
    folds = between_folds(cells)
    if folds is None or not seeds:
        parts = (*shared, *seeds) if seeds else () if folds is None else (folds,)
    else:
        freedom = _pooled_freedom(seeds)
        total = freedom + folds.freedom
        mixed = Part(
            (freedom * sum(part.variance for part in seeds) + folds.freedom * folds.variance)
            / total,
            total,
        )
        parts = (*(Part(part.variance * freedom / total, part.freedom) for part in shared), mixed)
    return max(parts, alone, key=_half_width) if parts else ()


def _pooled_freedom(parts: Sequence[Part]) -> float:
    """Degrees of freedom of a sum of variances (Satterthwaite 1946, doi:10.2307/3002019)."""
    below = sum(part.variance**2 / part.freedom for part in parts)
    return (
        sum(part.variance for part in parts) ** 2 / below
        if below > 0
        else min(part.freedom for part in parts)
    )


def _half_width(parts: Sequence[Part]) -> float:
    half = quantile(parts) * float(np.sqrt(sum(part.variance for part in parts)))
    return half if np.isfinite(half) else -1.0


def quantile(parts: Sequence[Part], coverage: float = COVERAGE) -> float:
    """Standard errors on either side of an interval: the mean of the parts' t quantiles, weighted
    by their variances.

    Cochran & Cox 1950; Cochran 1964, doi:10.2307/2283131. Satterthwaite's pooled degrees of freedom
    trust a variance between two or three seeds that is small by luck, and then find differences
    that are not there in up to 11 % of studies instead of 5 %.
    """
    return _quantile_at(parts, 1 - coverage)


def _quantile_at(parts: Sequence[Part], outside: float) -> float:
    total = sum(part.variance for part in parts)
    if not total > 0:
        return float("nan")
    return float(
        sum(part.variance * student.isf(outside / 2, part.freedom) for part in parts) / total
    )


def two_sided_p(ratio: float, parts: Sequence[Part]) -> float:
    """The p-value that belongs to such intervals: 1 - coverage of the interval that just includes
    0.

    Args:
        ratio: |estimate| / standard error.
        parts: of its variance.
    """
    if not np.isfinite(ratio):
        return 0.0 if ratio > 0 else float("nan")
    positive = [part for part in parts if part.variance > 0]
    if len({part.freedom for part in positive}) == 1:
        return float(2 * student.sf(ratio, positive[0].freedom))
    if ratio < _ZERO:
        return 1.0

    def excess(log_p: float) -> float:
        return _quantile_at(positive, float(np.exp(log_p))) - ratio

    # Between a p that cannot be told from 0, and 1.
    return (
        float(np.exp(brentq(excess, _LEAST, 0.0))) if excess(_LEAST) > 0 else float(np.exp(_LEAST))
    )


def move(value: float, half: float, scale: Scale) -> float:
    """A bound at a distance of `half` from an estimate, on the scale (logit, log or identity) where
    the estimate is closest to normal.
    """
    if scale == "logit" and 0 < value < 1:
        return float(expit(np.log(value / (1 - value)) + half / (value * (1 - value))))
    if scale == "log" and value > 0:
        return float(value * np.exp(half / value))
    return float(value + half)
