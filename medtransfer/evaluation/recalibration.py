"""Maps from logits to better calibrated logits, fitted on tune rows only.

Temperature has one parameter and keeps the order; Platt adds a shift, beta treats both ends apart; isotonic is free and ties
scores. All but the last are fitted with weak priors (a factor within about e of 1, a shift within about 2), as a tune part of a few
dozen images, which a model may separate, would send them to infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize, minimize_scalar

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.scores import Scores, pair_tune

Float = NDArray[np.float64]
Method = Literal["temperature", "platt", "beta", "isotonic"]
METHODS: tuple[Method, ...] = ("temperature", "platt", "beta", "isotonic")
# Below so many images an isotonic map fits noise.
FEWEST_ISOTONIC = 1000
_SPREAD_OF_SHIFT = 2.0
# Isotonic probabilities of exactly 0 or 1 have no logit.
_CLIP = 1e-6
_PARTS = 5


@dataclass(frozen=True, eq=False)
class Map:
    """A fitted recalibration.

    Attributes:
        method: which.
        parameters: temperature: T; platt: factor, shift; beta: a, b, shift; isotonic: none.
        steps: of isotonic: (knot,) logits and (knot,) probabilities.
    """

    method: Method
    parameters: dict[str, float]
    steps: tuple[Float, Float] | None = None

    def apply(self, logit: Float) -> Float:
        """Recalibrated logits, of any shape."""
        if self.steps is not None:
            probability = np.interp(logit, *self.steps)
            return np.asarray(np.log(probability / (1 - probability)), np.float64)
        if self.method == "temperature":
            return np.asarray(logit / self.parameters["temperature"], np.float64)
        return _linear(np.array(list(self.parameters.values())), logit)


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """An arm after recalibration.

    Attributes:
        scores: with the new logits.
        method: of all its maps.
        maps: by (seed, fold).
        chosen: why this method.
    """

    scores: Scores
    method: Method | Literal["vector"]
    maps: dict[tuple[int, int], Map]
    chosen: str


def log_losses(logits: Float, labels: NDArray[Any]) -> Float:
    """Log-loss of each image, in nats; logits (..., image)."""
    losses: Float = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    return losses


def fit_temperature(logit: Float, target: NDArray[Any]) -> float:
    """Temperature T > 0 that minimises the log-loss of logit / T (Guo et al. 2017, arXiv:1706.04599), with log T ~ Normal(0, 1)."""
    truth = np.asarray(target) == 1

    def loss(log_t: float) -> float:
        scaled = logit * np.exp(-log_t)
        return float(np.logaddexp(0.0, np.where(truth, -scaled, scaled)).sum() + 0.5 * log_t**2)

    return float(np.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-9}).x))


def fit_map(method: Method, logit: Float, target: NDArray[Any]) -> Map:
    """Fits one map by maximum likelihood, with the priors named above.

    Temperature: see `fit_temperature`. Platt: Platt 1999. Beta: Kull et al. 2017, AISTATS, the factors not negative.
    Isotonic: Zadrozny & Elkan 2002, doi:10.1145/775047.775151.
    """
    truth = np.asarray(target) == 1
    if method == "isotonic":
        order = np.argsort(logit, kind="stable")
        different, level = np.unique(logit[order], return_inverse=True)
        mass = np.bincount(level)
        fitted = isotonic_regression(np.bincount(level, truth[order]) / mass, weights=mass).x
        return Map(method, {}, (different, np.clip(fitted, _CLIP, 1 - _CLIP)))
    if method == "temperature":
        return Map(method, {"temperature": fit_temperature(logit, target)})
    names = {"platt": ("factor", "shift"), "beta": ("a", "b", "shift")}[method]

    def loss(values: Float) -> float:
        z = _linear(_plain(values), logit)
        prior = 0.5 * float(np.square(values[:-1]).sum()) + 0.5 * float(values[-1] / _SPREAD_OF_SHIFT) ** 2
        return float(np.logaddexp(0.0, np.where(truth, -z, z)).sum()) + prior

    found = _plain(minimize(loss, np.zeros(len(names)), method="BFGS", options={"gtol": 1e-8}).x)
    return Map(method, dict(zip(names, map(float, found), strict=True)))


def _plain(values: Float) -> Float:
    """Factors are searched by their logarithm, which keeps them positive."""
    return np.concatenate([np.exp(np.clip(values[:-1], -8, 8)), values[-1:]])


def _linear(values: Float, logit: Float) -> Float:
    if len(values) == 2:
        return np.asarray(values[0] * logit + values[1], np.float64)
    # a log p - b log(1 - p) + shift, from the logit so that nothing is rounded.
    return np.asarray(-values[0] * np.logaddexp(0.0, -logit) + values[1] * np.logaddexp(0.0, logit) + values[2], np.float64)


def adjust_prevalence(logit: Float, prevalence: float, target_prevalence: float) -> Float:
    """Logits for a population with another prevalence, if positives and negatives look as before.

    Saerens et al. 2002, doi:10.1162/089976602753284446.

    Args:
        logit: of any shape, right for `prevalence`.
        prevalence, target_prevalence: between 0 and 1.
    """
    shift = np.log(target_prevalence / (1 - target_prevalence)) - np.log(prevalence / (1 - prevalence))
    return np.asarray(logit + shift, np.float64)


def recalibrate(scores: Scores, tune: pd.DataFrame, method: Method | Literal["auto"] = "auto") -> Recalibrated | None:
    """Fits a map per seed and fold on its tune rows, and applies it to the test images of that fold.

    Args:
        scores: of one arm.
        tune: tune rows of the arm: `seed, fold, patient, target, logit`.
        method: `auto` takes temperature unless, in cross-validation by patient within the tune parts, another has a
            log-loss that is lower by more than one standard error of the difference.

    Returns:
        None unless every seed and fold has tune rows of both classes.

    Raises:
        PredictionsError: isotonic maps of fewer than 1,000 tune images.
    """
    cells = pair_tune(scores, tune)
    if cells is None:
        return None
    fewest = min(len(cell.tune) for cell in cells)
    if method == "isotonic" and fewest < FEWEST_ISOTONIC:
        raise PredictionsError(
            f"arm {scores.arm}: a tune part has {fewest} images, and isotonic recalibration is refused below {FEWEST_ISOTONIC}: it would "
            "fit noise. Choose temperature, platt or beta."
        )
    chosen = "set by hand"
    if method == "auto":
        method, chosen = _choose([cell.tune for cell in cells])
    maps = {(cell.seed, cell.fold): fit_map(method, cell.logit, cell.target) for cell in cells}
    logit = np.empty_like(scores.logit)
    for cell in cells:
        logit[cell.row, cell.inside] = maps[cell.seed, cell.fold].apply(scores.logit[cell.row, cell.inside])
    return Recalibrated(replace(scores, logit=logit), method, maps, chosen)


def _columns(rows: pd.DataFrame) -> tuple[Float, NDArray[np.int64]]:
    return rows["logit"].to_numpy(np.float64), rows["target"].to_numpy(np.int64)


def _choose(parts: Sequence[pd.DataFrame]) -> tuple[Method, str]:
    """One method for all seeds and folds of an arm, so that they stay comparable."""
    from sklearn.model_selection import GroupKFold  # here, as it takes long to import

    candidates = [m for m in METHODS if m != "isotonic" or min(map(len, parts)) >= FEWEST_ISOTONIC]
    losses: dict[str, list[pd.Series]] = {m: [] for m in candidates}
    for rows in parts:
        patients = rows["patient"].to_numpy()
        groups = pd.factorize(patients)[0]
        logit, target = _columns(rows)
        pieces = min(_PARTS, len(set(groups)))
        if pieces < 2:
            continue
        for train, held in GroupKFold(pieces).split(logit, groups=groups):
            if len(set(target[train])) < 2:
                continue
            for m in candidates:
                z = fit_map(m, logit[train], target[train]).apply(logit[held])
                losses[m].append(pd.Series(log_losses(z, target[held]), patients[held]))
    if not losses["temperature"]:
        return "temperature", "too few tune patients for a choice"
    # One value per patient, whatever the number of images, seeds and folds that it is a tune patient of.
    by_patient = {m: pd.concat(values).groupby(level=0).mean().to_numpy() for m, values in losses.items()}
    best: Method = min(candidates, key=lambda m: by_patient[m].mean())
    gain = by_patient["temperature"] - by_patient[best]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    if best == "temperature" or gain.mean() <= error:
        return "temperature", "no other method was better by more than a standard error in cross-validation within the tune parts"
    return best, f"log-loss per tune patient lower than with temperature by {gain.mean():.3f} (standard error {error:.3f})"
