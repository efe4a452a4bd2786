"""What decisions from the probabilities are worth: operating points, decision curves.

Thresholds are locked on tune rows and met by test rows for the first time here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from medtransfer.evaluation.resample import Drawn, Metric, Question, bands
from medtransfer.evaluation.scores import Scores, pair_tune

Float = NDArray[np.float64]
_Z = float(norm.ppf(0.975))
# Threshold probabilities of the decision curve.
THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)


@dataclass(frozen=True)
class Aims:
    """What operating points are wanted.

    Attributes:
        sensitivity, specificity: least value on the tune rows, with the most of the other; None: not wanted.
        probability: a threshold of the (recalibrated) probability, as from a harm / benefit ratio p / (1 - p); None: not wanted.
        prevalences: at which predictive values are told, besides that of the cohort.
    """

    sensitivity: float | None = 0.9
    specificity: float | None = 0.9
    probability: float | None = None
    prevalences: tuple[float, ...] = ()


def lock_threshold(score: Float, target: NDArray[Any], rule: str, least: float = 0.0) -> float:
    """The score from which on an image is called positive.

    Args:
        score, target: (image,), of tune rows with both classes.
        rule: `sensitivity` or `specificity` of at least `least`, or `youden`, the largest sum of both (Youden 1950).

    Returns:
        Halfway between two scores, or infinite where all or none are called.
    """
    different = np.unique(score)
    cuts = np.r_[-np.inf, (different[:-1] + different[1:]) / 2, np.inf]
    truth = np.asarray(target) == 1
    sensitivity = 1 - np.searchsorted(np.sort(score[truth]), cuts) / truth.sum()
    specificity = np.searchsorted(np.sort(score[~truth]), cuts) / (~truth).sum()
    if rule == "sensitivity":
        return float(cuts[np.flatnonzero(sensitivity >= least - 1e-12)[-1]])
    if rule == "specificity":
        return float(cuts[np.flatnonzero(specificity >= least - 1e-12)[0]])
    # Rounded, so that of equal sums the lowest threshold is taken whatever the last bit.
    return float(cuts[np.argmax(np.round(sensitivity + specificity, 12))])


@dataclass(frozen=True, eq=False)
class Decision:
    """A rule with its thresholds, carried out on the test images.

    Attributes:
        rule, aim: `sensitivity` or `specificity` with the least value, `youden`, `probability`.
        thresholds: probability from which on an image is called positive, by seed and fold.
        question: the calls, 0 or 1 in place of logits, and their rates.
        prevalences: at which predictive values are told.
    """

    rule: str
    aim: float | None
    thresholds: tuple[dict[str, Any], ...]
    question: Question
    prevalences: tuple[float, ...]


def decide(scores: Scores, tune: pd.DataFrame, recalibrated: Scores | None, aims: Aims) -> list[Decision]:
    """Operating points with thresholds locked on the tune rows of each seed and fold.

    Args:
        scores: test scores of an arm.
        tune: its tune rows: `seed, fold, target, logit`; where a seed and fold lacks a class, nothing is locked.
        recalibrated: for `aims.probability`; the scores as they are where None.
        aims: which points.
    """
    rules = [("sensitivity", aims.sensitivity), ("specificity", aims.specificity), ("youden", 0.0)]
    cells = pair_tune(scores, tune)
    decisions = []

    def add(rule: str, aim: float | None, called: Float, locked: list[dict[str, Any]]) -> None:
        question = Question(replace(scores, logit=called), {"rates": _rates(aims.prevalences)})
        decisions.append(Decision(rule, aim, tuple(locked), question, aims.prevalences))

    for rule, aim in rules if cells is not None else ():
        if aim is None or cells is None:
            continue
        called, locked = np.zeros(scores.logit.shape), []
        for cell in cells:
            cut = lock_threshold(cell.logit, cell.target, rule, aim)
            called[cell.row, cell.inside] = scores.logit[cell.row, cell.inside] >= cut
            locked.append({"seed": cell.seed, "fold": cell.fold, "probability": float(expit(cut))})
        add(rule, aim or None, called, locked)
    if aims.probability is not None:
        add("probability", aims.probability, ((recalibrated or scores).logit >= logit(aims.probability)).astype(float), [])
    return decisions


def _rates(prevalences: tuple[float, ...]) -> Metric:
    def rates(decision: Float, target: NDArray[Any], weights: Float) -> Float:
        """(draw, 5 + 2 * prevalence): sensitivity, specificity, PPV, NPV, share called, and the predictive values elsewhere."""
        hit, alarm = weights @ (decision * target), weights @ (decision * (1 - target))
        positive, everyone = weights @ target, weights.sum(1)
        negative, silent = everyone - positive, everyone - hit - alarm
        with np.errstate(invalid="ignore", divide="ignore"):
            found, quiet = hit / positive, 1 - alarm / negative
            columns = [found, quiet, hit / (hit + alarm), (negative - alarm) / silent, (hit + alarm) / everyone]
            for p in prevalences:
                columns += [found * p / (found * p + (1 - quiet) * (1 - p)), quiet * (1 - p) / (quiet * (1 - p) + (1 - found) * p)]
        return np.stack(columns, 1)

    return rates


def describe_decision(decision: Decision, rates: Drawn) -> dict[str, Any]:
    """Sensitivity, specificity and predictive values of an operating point.

    Args:
        decision: see `decide`.
        rates: drawn. Where Wilson's intervals hold (one seed, one image per patient, all counting alike), or nothing varies, they
            are taken instead, the latter with the number of patients.

    Returns:
        `rule, aim, thresholds, sensitivity, specificity, ppv, npv, flagged, number_needed_to_read, at_prevalence`.
    """
    scores = decision.question.scores
    simple = len(scores.seeds) == 1 and not scores.clustered and bool((scores.weight == 1).all())
    truth, called = scores.target == 1, scores.logit[0]
    of = {"sensitivity": truth, "specificity": ~truth, "ppv": called == 1, "npv": called == 0, "flagged": np.ones_like(truth)}
    found: dict[str, Any] = {"rule": decision.rule, "aim": decision.aim, "thresholds": list(decision.thresholds)}
    for column, (name, rows) in enumerate(of.items()):
        found[name] = share_interval(rates[column], len(set(scores.patients[rows])), simple)
    found["number_needed_to_read"] = _inverse(found["ppv"])
    certain = any(found[name]["estimate"] in {0.0, 1.0} for name in ("sensitivity", "specificity"))
    found["at_prevalence"] = []
    for i, p in enumerate(decision.prevalences):
        values = {name: rates[5 + 2 * i + place].interval(least=0.0, greatest=1.0) for place, name in enumerate(("ppv", "npv"))}
        if certain:
            values = _values_at(found["sensitivity"], found["specificity"], p)
        found["at_prevalence"].append({"prevalence": p, **values})
    return found


def share_interval(share: Drawn, patients: int, simple: bool = False) -> dict[str, Any]:
    """A proportion with its interval: of the draws, or Wilson's where it is simple, or where the draws cannot vary."""
    interval = share.interval(least=0.0, greatest=1.0)
    certain = np.isfinite(share.value) and (share.value < 1e-12 or share.value > 1 - 1e-12)
    if simple or certain or interval["estimate"] is None or interval["low"] is None:
        return wilson(float(np.round(share.value, 12)), patients)
    return interval


def _values_at(sensitivity: Mapping[str, Any], specificity: Mapping[str, Any], p: float) -> dict[str, Any]:
    """Predictive values at a prevalence where sensitivity or specificity is 0 or 1, from the bounds of both."""

    def at(found: float | None, quiet: float | None) -> tuple[float | None, float | None]:
        if found is None or quiet is None:
            return None, None
        called, silent = found * p + (1 - quiet) * (1 - p), quiet * (1 - p) + (1 - found) * p
        return found * p / called if called else None, quiet * (1 - p) / silent if silent else None

    bounds = {key: at(sensitivity[key], specificity[key]) for key in ("estimate", "low", "high")}
    none = "not estimable: nothing is called"
    return {
        name: {key: values[place] for key, values in bounds.items()} | ({"reason": none} if bounds["estimate"][place] is None else {})
        for place, name in enumerate(("ppv", "npv"))
    }


def wilson(share: float, size: int) -> dict[str, Any]:
    """A proportion with its 95 % interval by Wilson's score (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if size == 0 or not np.isfinite(share):
        return {"estimate": None, "low": None, "high": None, "reason": "not estimable: no image of this kind"}
    center, scale = share + _Z**2 / (2 * size), 1 + _Z**2 / size
    half = _Z * np.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
    # At 0 and 1 the bound is the estimate itself, but for rounding.
    low, high = 0.0 if share == 0 else (center - half) / scale, 1.0 if share == 1 else (center + half) / scale
    return {"estimate": share, "low": float(low), "high": float(high), "method": "Wilson"}


def _inverse(value: Mapping[str, Any]) -> dict[str, Any]:
    """Images called positive for each one that is: 1 / PPV."""
    if not value["estimate"]:
        return {"estimate": None, "low": None, "high": None, "reason": "not estimable: no true positive"}
    high = 1 / value["low"] if value["low"] else None
    return {"estimate": 1 / value["estimate"], "low": 1 / value["high"] if value["high"] else None, "high": high}


def net_benefit(score: Float, target: NDArray[Any], weights: Float) -> Float:
    """True positives less false ones at the odds of the threshold, per image; (draw, threshold).

    Vickers & Elkin 2006, doi:10.1177/0272989X06295361.
    """
    called = (score[:, None] >= logit(THRESHOLDS)).astype(np.float64)
    odds = THRESHOLDS / (1 - THRESHOLDS)
    total = weights.sum(1, keepdims=True)
    return np.asarray(((weights * target) @ called - (weights * (1 - target)) @ called * odds) / total, np.float64)


def decision_curves(scores: Sequence[Scores], benefits: Sequence[Drawn]) -> dict[str, Any]:
    """Net benefit of every arm, of calling all, and of calling none (0), with 95 % bands over patients.

    Args:
        scores: arms over the same images, recalibrated where that could be done.
        benefits: of each arm, `net_benefit` drawn.
    """
    first = scores[0]
    prevalence = float(first.weight @ first.target / first.weight.sum())
    everyone = prevalence - (1 - prevalence) * THRESHOLDS / (1 - THRESHOLDS)
    arms = {}
    for arm, benefit in zip(scores, benefits, strict=True):
        low, high = bands(benefit.draws)
        arms[arm.arm] = {"estimate": benefit.value.tolist(), "low": low.tolist(), "high": high.tolist()}
    return {"threshold": THRESHOLDS.tolist(), "all": everyone.tolist(), "arms": arms}
