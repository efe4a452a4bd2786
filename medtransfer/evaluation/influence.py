"""Estimates with their influence functions, and the intervals that follow from them.

The influence of an image is what it adds to the error of an estimate: estimate - truth is about their sum. Summed within
patients and squared, they give the variance over patients whatever the number of images of each (Obuchowski 1997,
doi:10.2307/2533958, for the AUC; Huber's sandwich for the others), and differences between arms come from differences of influences.

Every function takes `logit`, `target` (0 or 1) and `weight` (not negative; 1 each where all count alike), all (image,), and
returns the estimate and (image,) influences. An estimate is NaN where it does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation.spread import Part, between, quantile, two_sided_p

Float = NDArray[np.float64]
Estimator = Callable[[Float, NDArray[Any], Float], tuple[float, Float]]
Scale = Literal["identity", "logit", "log"]
# A variance below this is rounding.
_NOTHING = 1e-18
# With so many patients of a class, one image each, the variance is known well enough for the normal distribution of the textbooks.
_MANY = 30


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate over patients and seeds.

    Attributes:
        value: mean over seeds.
        positive, negative: (patient,), influence of the images of either class, summed within the patient and averaged over seeds.
        members: number of patients with a positive, with a negative image, and of all.
        clustered: whether a patient has several images.
        by_seed: (seed,), the estimate of each.
        between: parts of the variance that come from seeds; none for a single seed, which does not show them.
    """

    value: float
    positive: Float
    negative: Float
    members: tuple[int, int, int]
    clustered: bool
    by_seed: Float
    between: tuple[Part, ...]

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference over the same patients; seeds are paired where there are as many."""
        paired = len(self.by_seed) == len(other.by_seed)
        by_seed = self.by_seed - other.by_seed if paired else np.array([self.value - other.value])
        return Estimate(
            self.value - other.value,
            self.positive - other.positive,
            self.negative - other.negative,
            self.members,
            self.clustered,
            by_seed,
            between(by_seed) if paired else self.between + other.between,
        )

    @property
    def of_patients(self) -> float:
        """The part of the variance that comes from patients, the trained models taken as given."""
        return sum(self._parts())

    @property
    def variance(self) -> float:
        """Over patients and seeds."""
        return self.of_patients + sum(part.variance for part in self.between)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the variance: over patients, known from those of either class (Satterthwaite 1946, doi:10.2307/3002019), and between seeds."""
        of_positive, of_negative, _ = self._parts()
        positives, negatives, _ = self.members
        if min(positives, negatives) >= _MANY and not self.clustered and not self.between:
            return (Part(self.of_patients, np.inf),)
        pair = [(of_positive, positives - 1), (of_negative, negatives - 1)]
        known = [(part, freedom) for part, freedom in pair if part > 0 and freedom > 0]
        freedom = sum(part for part, _ in known) ** 2 / sum(part**2 / freedom for part, freedom in known) if known else 1.0
        return (Part(self.of_patients, freedom), *self.between)

    def interval(
        self, scale: Scale = "identity", least: float = -np.inf, greatest: float = np.inf, widest: float = np.inf
    ) -> dict[str, Any]:
        """Estimate with its 95 % interval, by Student's t on a scale where the estimate is nearer to normal.

        Args:
            scale: of the interval.
            least, greatest: bounds of the quantity.
            widest: standard errors beyond this mean that the data hold no information on it.
        """
        variance = self.variance
        if not np.isfinite(self.value):
            reason = "not estimable: a class is missing, or the score separates the classes"
            return {"estimate": None, "low": None, "high": None, "reason": reason}
        why = ""
        if min(self.members[:2]) < 2:
            why = "fewer than two patients of a class"
        elif not (np.isfinite(variance) and variance > _NOTHING):
            why = "no two patients differ"
        elif np.sqrt(variance) > widest:
            why = "the data hold too little information"
        if why:
            return {"estimate": self.value, "low": None, "high": None, "reason": f"no interval: {why}"}
        half = quantile(self.parts) * np.sqrt(variance)
        low, high = _move(self.value, -half, scale), _move(self.value, half, scale)
        return {"estimate": self.value, "low": max(least, low), "high": min(greatest, high)}

    def p_value(self) -> float | None:
        """Two-sided, of the estimate being 0; None where its variance is not known."""
        variance = self.variance
        if not (np.isfinite(self.value) and np.isfinite(variance) and variance > _NOTHING and min(self.members[:2]) >= 2):
            return None
        return two_sided_p(abs(self.value) / np.sqrt(variance), self.parts)

    def _parts(self) -> tuple[float, float, float]:
        positives, negatives, patients = self.members
        mixed = float(self.positive @ self.negative)
        return (
            _corrected(float(self.positive @ self.positive), positives),
            _corrected(float(self.negative @ self.negative), negatives),
            2 * _corrected(mixed, patients) if mixed else 0.0,
        )


def _corrected(square: float, patients: int) -> float:
    return square * patients / (patients - 1) if patients > 1 else float("nan")


def _move(value: float, half: float, scale: Scale) -> float:
    if scale == "logit" and 0 < value < 1:
        return float(expit(np.log(value / (1 - value)) + half / (value * (1 - value))))
    if scale == "log" and value > 0:
        return float(value * np.exp(half / value))
    return float(value + half)


def estimate_all(
    logits: Float, target: NDArray[Any], weight: Float, patients: NDArray[np.int64], count: int, estimators: dict[str, Estimator]
) -> dict[str, Estimate]:
    """Several estimates by name; see `estimate`."""
    return {name: estimate(logits, target, weight, patients, count, estimator) for name, estimator in estimators.items()}


def estimate(logits: Float, target: NDArray[Any], weight: Float, patients: NDArray[np.int64], count: int, estimator: Estimator) -> Estimate:
    """An estimate over the seeds of one arm.

    Args:
        logits: (seed, image).
        target, weight: (image,).
        patients: (image,), number of the patient, below `count`.
        count: of patients, those of other images among them, which have no influence.
        estimator: one of this module.
    """
    truth = np.asarray(target) == 1
    values = np.empty(len(logits))
    influence = np.zeros(len(target))
    for seed, logit in enumerate(logits):
        values[seed], own = estimator(logit, target, weight)
        influence += own / len(logits)
    members = len(np.unique(patients[truth])), len(np.unique(patients[~truth])), len(np.unique(patients))
    return Estimate(
        float(values.mean()),
        np.bincount(patients[truth], influence[truth], count).astype(np.float64),
        np.bincount(patients[~truth], influence[~truth], count).astype(np.float64),
        members,
        len(target) > members[2],
        values,
        between(values),
    )


def auc(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """Area under the ROC curve, ties counted half (Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747).

    Influences are DeLong's structural components (DeLong et al. 1988, doi:10.2307/2531595; by sorting: Sun & Xu 2014,
    doi:10.1109/LSP.2014.2337313) less the AUC, divided by the number of their class.
    """
    _, level = np.unique(logit, return_inverse=True)
    truth = np.asarray(target) == 1
    positive, negative = np.bincount(level, weight * truth), np.bincount(level, weight * ~truth)
    if not (positive.sum() > 0 and negative.sum() > 0):
        return float("nan"), np.zeros(len(logit))
    below = (np.cumsum(negative) - negative / 2) / negative.sum()
    above = 1 - (np.cumsum(positive) - positive / 2) / positive.sum()
    value = min(1.0, float(positive @ below / positive.sum()))
    share = weight / np.where(truth, positive.sum(), negative.sum())
    return value, share * (np.where(truth, below[level], above[level]) - value)


def brier(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """Mean squared error of the probability (Brier 1950); 0 is best."""
    return mean((expit(logit) - target) ** 2, weight)


def log_loss(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """Mean negative log-likelihood in nats, from the logits, so that no probability is rounded to 0 or 1."""
    return mean(np.logaddexp(0.0, np.where(np.asarray(target) == 1, -logit, logit)), weight)


def mean(values: Float, weight: Float) -> tuple[float, Float]:
    """A weighted mean."""
    total = weight.sum()
    value = float(weight @ values / total)
    return value, weight * (values - value) / total


def brier_skill(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """1 - Brier / Brier of the prevalence: 1 is perfect, 0 no better than the prevalence, below 0 worse."""
    prevalence, of_prevalence = mean(np.asarray(target, float), weight)
    reference = prevalence * (1 - prevalence)
    if reference == 0:
        return float("nan"), np.zeros(len(logit))
    value, of_brier = brier(logit, target, weight)
    return 1 - value / reference, -of_brier / reference + value / reference**2 * (1 - 2 * prevalence) * of_prevalence


def observed_expected(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """Observed positives / sum of probabilities; 1 is best."""
    expected = float(weight @ expit(logit))
    if expected == 0:
        return float("nan"), np.zeros(len(logit))
    value = float(weight @ target) / expected
    return value, weight * (target - value * expit(logit)) / expected


def intercept(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """Calibration-in-the-large: a in logit P(y) = a + logit p, slope 1. 0 is best.

    Above 0 the probabilities are too low on the whole (Van Calster et al. 2016, doi:10.1016/j.jclinepi.2015.12.005).
    """
    value, p = _fit_intercept(logit, np.asarray(target, float), weight)
    information = float(weight @ (p * (1 - p)))
    if not np.isfinite(value) or information <= 0:
        return float("nan"), np.zeros(len(logit))
    return value, weight * (target - p) / information


def slope(logit: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:
    """Calibration slope: b in logit P(y) = a + b logit p. 1 is best, below 1 over-confident.

    NaN where it cannot be estimated: one class only, one single probability, or classes separated by the score.
    """
    nothing = float("nan"), np.zeros(len(logit))
    spread = float(np.ptp(logit))
    if not spread > 1e-12 or not _both(target, weight):
        return nothing
    # Centred and scaled for a well-conditioned Newton step; scaled back at the end.
    x = (logit - logit.mean()) / spread
    a, b = 0.0, 0.0
    for _ in range(100):
        p = expit(a + b * x)
        residual, curvature = weight * (target - p), weight * p * (1 - p)
        g0, g1 = float(residual.sum()), float(residual @ x)
        h00, h01, h11 = float(curvature.sum()), float(curvature @ x), float(curvature @ (x * x))
        determinant = h00 * h11 - h01**2
        if curvature.sum() < 1e-6 * weight.sum() or determinant <= 1e-14 * h00 * h11:
            return nothing  # separated: the likelihood has no maximum
        da, db = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # Full Newton steps can overshoot from a flat start.
        shrink = min(1.0, 8.0 / max(np.hypot(da, db), 1e-300))
        a, b = a + shrink * da, b + shrink * db
        if np.hypot(da, db) < 1e-10:
            return b / spread, residual * (h00 * x - h01) / determinant / spread
    return nothing


def _both(target: NDArray[Any], weight: Float) -> bool:
    return float(weight @ target) > 0 and float(weight @ (1 - np.asarray(target))) > 0


def _fit_intercept(logit: Float, target: Float, weight: Float) -> tuple[float, Float]:
    if not _both(target, weight):
        return float("nan"), expit(logit)
    a = 0.0
    for _ in range(200):
        p = expit(a + logit)
        step = float(np.clip(weight @ (target - p) / max(float(weight @ (p * (1 - p))), 1e-300), -2.0, 2.0))
        a += step
        if abs(step) < 1e-12:
            break
    return a, expit(a + logit)
