"""Maps from logits to better calibrated logits, fitted on tune rows only.

Temperature has one parameter and keeps the mean; Platt adds a shift, beta treats both ends apart;
isotonic is free and ties scores. The first three turn logits about that of the prevalence, where a
model that knows nothing stands: cooled about 0 instead, an over-confident model would move towards
50 %. They are fitted with weak priors, as a tune part of a few dozen images, which a model may
separate, would send them to infinity. Networks fine-tuned on a few hundred images are mostly
over-confident, so that the prior of the temperature is about 1.8 (95 % between a third and ten; Guo
et al. 2017, arXiv:1706.04599, find 1 to 3 in networks for photographs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.probabilities import (
    log_losses as log_losses,  # noqa: PLC0414 - training imports it from here
)
from medtransfer.evaluation.tables.scores import Scores
from medtransfer.evaluation.tables.tuning import (
    Cell,
    count_once,
    fit_shared,
    number_models,
    pair_tune,
    weighted_share,
)

Method = Literal["temperature", "platt", "beta", "isotonic"]
_USUAL: Method = "platt"
METHODS: tuple[Method, ...] = ("temperature", "platt", "beta", "isotonic")
# Images below which an isotonic map fits noise.
FEWEST_ISOTONIC = 1000
# Priors: of the logarithm of a factor (the temperature is 1 / factor), mean and standard deviation;
# of a shift, about 0.
FACTOR, SPREAD_OF_FACTOR, SPREAD_OF_SHIFT = -float(np.log(1.8)), 0.85, 0.5
_LARGEST = 8.0  # logarithm of a factor
# Isotonic probabilities of exactly 0 or 1 have no logit.
_CLIP = 1e-6
# Pieces of the cross-validation that chooses a method, and standard errors by which another must be
# better.
_PARTS, _CLEAR = 5, 2.0


@dataclass(frozen=True)
class Map:
    """A fitted recalibration.

    Attributes:
        method: which.
        parameters: temperature: temperature, centre (the logit that stays); platt: factor, shift;
            beta: a, b, shift; isotonic: none.
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
        p = self.parameters
        if self.method == "temperature":
            return np.asarray((logit - p["centre"]) / p["temperature"] + p["centre"], np.float64)
        if self.method == "platt":
            return np.asarray(p["factor"] * logit + p["shift"], np.float64)
        # a log p - b log(1 - p) + shift, from the logit so that nothing is rounded.
        return np.asarray(
            -p["a"] * np.logaddexp(0.0, -logit) + p["b"] * np.logaddexp(0.0, logit) + p["shift"],
            np.float64,
        )

    def undo(self, logit: float) -> float:
        """The logit that a Platt map takes to this one."""
        return float((logit - self.parameters["shift"]) / self.parameters["factor"])


@dataclass(frozen=True, eq=False)
class RecalibratedArm:
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


@dataclass(frozen=True, eq=False)
class Comparable:
    """The tune and the test rows of one model on one scale, so that its thresholds can be taken
    from the tune rows of all models.

    Attributes:
        cell: the model.
        tune: (row,), logits of its tune rows.
        test: (image,), of the images it tests.
        undo: from that scale to the logits of the model.
    """

    cell: Cell
    tune: Float
    test: Float
    undo: Map


def fit_map(method: Method, logit: Float, target: NDArray[Any], weight: Float | None = None) -> Map:
    """Fits the map of one model by maximum likelihood, with the priors named above.

    Temperature: Guo et al. 2017, about the prevalence of the rows. Platt: Platt 1999. Beta: Kull et
    al. 2017, AISTATS, the factors not negative. Isotonic: Zadrozny & Elkan 2002,
    doi:10.1145/775047.775151.
    """
    mass = np.ones(len(logit)) if weight is None else weight
    if method == "isotonic":
        return _fit_isotonic(logit, target, mass)
    return fit_maps(method, logit, target, mass, np.zeros(len(logit), np.int64))[0]


def fit_maps(
    method: Method, logit: Float, target: NDArray[Any], weight: Float, model: Int
) -> dict[int, Map]:
    """Maps of several models with shared parameters, by model; -1 is the map of a model without
    tune rows.

    Args:
        method: temperature, platt or beta.
        logit, target, weight: (row,).
        model: (row,), number of the model that scored each.
    """
    truth = np.asarray(target, np.float64)
    share = weighted_share(truth, weight)
    centre = float(np.log(share / (1 - share)))
    parts = _parts(method, logit, centre)
    factors, shifted = parts.shape[1], method != "temperature"

    def loss(values: Float) -> tuple[float, Float]:
        size = np.exp(np.clip(values[:, :factors], -_LARGEST, _LARGEST))
        z = (size * parts).sum(1) + centre + (values[:, factors] if shifted else 0.0)
        residual = weight * (expit(z) - truth)
        slopes = residual[:, None] * size * parts
        value = float(weight @ log_losses(z, target))
        return value, np.column_stack([slopes, residual]) if shifted else slopes

    mean = np.r_[np.full(factors, FACTOR), np.zeros(int(shifted))]
    spread = np.r_[np.full(factors, SPREAD_OF_FACTOR), np.full(int(shifted), SPREAD_OF_SHIFT)]
    shared, of_models = fit_shared(loss, model, mean, spread)
    return {
        number: _name(method, values, centre)
        for number, values in {-1: shared, **of_models}.items()
    }


def _parts(method: Method, logit: Float, centre: float) -> Float:
    """(row, factor), what the factors multiply: 0 at the centre; with factors of 1 their sum is
    logit - centre.
    """
    if method != "beta":
        return (logit - centre)[:, None]
    ends = [
        np.logaddexp(0.0, -centre) - np.logaddexp(0.0, -logit),
        np.logaddexp(0.0, logit) - np.logaddexp(0.0, centre),
    ]
    return np.stack(ends, 1)


def _name(method: Method, values: Float, centre: float) -> Map:
    factors = np.exp(np.clip(values, -_LARGEST, _LARGEST))
    if method == "temperature":
        return Map(method, {"temperature": float(1 / factors[0]), "centre": centre})
    if method == "platt":
        return Map(
            method,
            {"factor": float(factors[0]), "shift": float(values[1] + centre * (1 - factors[0]))},
        )
    shift = (
        values[2]
        + centre
        + factors[0] * np.logaddexp(0.0, -centre)
        - factors[1] * np.logaddexp(0.0, centre)
    )
    return Map(method, {"a": float(factors[0]), "b": float(factors[1]), "shift": float(shift)})


def _fit_isotonic(logit: Float, target: NDArray[Any], weight: Float) -> Map:
    different, level = np.unique(logit, return_inverse=True)
    mass = np.bincount(level, weight)
    fitted = isotonic_regression(
        np.bincount(level, weight * np.asarray(target)) / mass, weights=mass
    ).x
    return Map("isotonic", {}, (different, np.clip(fitted, _CLIP, 1 - _CLIP)))


def adjust_prevalence(logit: Float, prevalence: float, target_prevalence: float) -> Float:
    """Logits for a population with another prevalence, if positives and negatives look as before.

    Saerens et al. 2002, doi:10.1162/089976602753284446.

    Args:
        logit: of any shape, right for `prevalence`.
        prevalence: that the logits are right for, between 0 and 1.
        target_prevalence: that they are adjusted to, between 0 and 1.
    """
    shift = np.log(target_prevalence / (1 - target_prevalence)) - np.log(
        prevalence / (1 - prevalence)
    )
    return np.asarray(logit + shift, np.float64)


def adjust_scores(scores: Scores, prevalence: float | None) -> Scores:
    """The scores adjusted to another prevalence; unchanged where it is None, or where the scores
    are of one class.
    """
    prevalence_of_cohort = scores.prevalence
    if prevalence is None or not 0 < prevalence_of_cohort < 1:
        return scores
    return replace(scores, logit=adjust_prevalence(scores.logit, prevalence_of_cohort, prevalence))


def make_comparable(scores: Scores, tune: pd.DataFrame) -> list[Comparable] | None:
    """Every model's test and tune rows on one scale, by Platt's maps; None unless its tune rows
    hold both classes.
    """
    cells = pair_tune(scores, tune)
    if cells is None:
        return None
    comparable = []
    for cell in cells:
        maps = fit_maps("platt", cell.logit, cell.target, cell.weight, cell.model)
        logit, comparable_logit = cell.logit, np.empty(len(cell.tune))
        for number in np.unique(cell.model):
            rows = cell.model == number
            comparable_logit[rows] = maps[int(number)].apply(logit[rows])
        recalibration = maps.get(cell.number, maps[-1])
        comparable.append(
            Comparable(
                cell,
                comparable_logit,
                recalibration.apply(scores.logit[cell.row, cell.inside]),
                recalibration,
            )
        )
    return comparable


def recalibrate(
    scores: Scores, tune: pd.DataFrame, method: Method | Literal["auto"] = "auto"
) -> RecalibratedArm | None:
    """Fits a map per seed and fold on the tune rows it may learn from, and applies it to the test
    images of that fold.

    Args:
        scores: of one arm.
        tune: tune rows of the arm: `seed, fold, image, patient, target, logit`.
        method: `auto` takes Platt's map (logistic recalibration; Van Calster et al. 2016) unless,
            in cross-validation by patient among the tune rows, beta's or the isotonic one has a
            log-loss that is lower by more than two standard errors of the difference.

    Returns:
        None unless the tune rows for every seed and fold hold both classes; see `tuning.pair_tune`.

    Raises:
        PredictionsError: isotonic maps of fewer than 1,000 tune images.
    """
    cells = pair_tune(scores, tune)
    if cells is None:
        return None
    fewest = min(int((cell.model == cell.number).sum()) for cell in cells)
    if method == "isotonic" and fewest < FEWEST_ISOTONIC:
        raise PredictionsError(
            f"arm {scores.arm}: a tune part has {fewest} images, and isotonic recalibration is "
            f"refused below {FEWEST_ISOTONIC}: it would "
            "fit noise. Choose temperature, platt or beta."
        )
    reason = "set by hand"
    if method == "auto":
        method, reason = _choose(tune, fewest)
    maps = {(cell.seed, cell.fold): _fit_cell(method, cell) for cell in cells}
    logit = np.empty_like(scores.logit)
    for cell in cells:
        logit[cell.row, cell.inside] = maps[cell.seed, cell.fold].apply(
            scores.logit[cell.row, cell.inside]
        )
    return RecalibratedArm(replace(scores, logit=logit), method, maps, reason)


def _fit_cell(method: Method, cell: Cell) -> Map:
    if method == "isotonic":  # too free for scores of other models
        inside = cell.model == cell.number
        return _fit_isotonic(cell.logit[inside], cell.target[inside], cell.weight[inside])
    maps = fit_maps(method, cell.logit, cell.target, cell.weight, cell.model)
    return maps.get(cell.number, maps[-1])


def _choose(tune: pd.DataFrame, fewest: int) -> tuple[Method, str]:
    """One method for all seeds and folds of an arm, so that they stay comparable."""
    from sklearn.model_selection import GroupKFold  # here, as it takes long to import

    candidates: list[Method] = [_USUAL, "beta"]  # temperature is a case of platt
    if fewest >= FEWEST_ISOTONIC:
        candidates.append("isotonic")
    model = number_models(tune)
    groups, patients = pd.factorize(tune["patient"])
    logit, target = tune["logit"].to_numpy(np.float64), tune["target"].to_numpy(np.int64)
    weight = count_once(tune["image"])
    losses = {m: np.full(len(tune), np.nan) for m in candidates}
    pieces = min(_PARTS, len(patients))
    for train, held in GroupKFold(pieces).split(logit, groups=groups) if pieces > 1 else ():
        if len(set(target[train])) < 2:
            continue
        for m in candidates:
            losses[m][held] = log_losses(
                _predict(m, logit, target, weight, model, train, held), target[held]
            )
    tested = np.isfinite(losses[_USUAL])
    if not tested.any():
        return _USUAL, "too few tune patients for a choice"
    # One value per patient, whatever the number of images, seeds and folds that it is a tune
    # patient of.
    by_patient = {m: _patient_means(values[tested], groups[tested]) for m, values in losses.items()}
    best: Method = min(candidates, key=lambda m: by_patient[m].mean())
    gain = by_patient[_USUAL] - by_patient[best]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    if best == _USUAL or gain.mean() <= _CLEAR * error:
        return (
            _USUAL,
            (
                "no other method was better by more than two standard errors in cross-validation "
                "among the tune patients"
            ),
        )
    return (
        best,
        (
            f"log-loss per tune patient lower than with platt by {gain.mean():.3f} (standard error "
            f"{error:.3f})"
        ),
    )


def _predict(
    method: Method, logit: Float, target: Int, weight: Float, model: Int, train: Any, held: Any
) -> Float:
    """Logits of held-out rows by the maps of their models."""
    if method == "isotonic":
        maps = {
            int(number): _fit_isotonic(
                *(values[train][model[train] == number] for values in (logit, target, weight))
            )
            for number in set(model[train])
        }
    else:
        maps = fit_maps(method, logit[train], target[train], weight[train], model[train])
    predicted = np.empty(len(held))
    for number in set(model[held].tolist()):
        rows = model[held] == number
        predicted[rows] = maps.get(number, next(iter(maps.values()))).apply(logit[held][rows])
    return predicted


def _patient_means(values: Float, groups: Sequence[int] | NDArray[Any]) -> Float:
    return np.asarray(pd.Series(values).groupby(np.asarray(groups)).mean().to_numpy(), np.float64)


def summarise_maps(maps: dict[tuple[int, int], Map]) -> list[dict[str, Any]]:
    """The parameters by seed and fold; of isotonic maps `steps`, their knots and probabilities."""
    return [
        {
            "seed": seed,
            "fold": fold,
            **fitted.parameters,
            **({} if fitted.steps is None else {"steps": [s.tolist() for s in fitted.steps]}),
        }
        for (seed, fold), fitted in maps.items()
    ]
