"""What decisions from the probabilities are worth: operating points, decision curves.

Thresholds are locked on tune rows and met by test rows for the first time here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medtransfer.evaluation.intervals.entries import no_interval
from medtransfer.evaluation.intervals.resample import DrawnMetric, Metric, Question, bands, plain
from medtransfer.evaluation.intervals.variance import NORMAL_95, quantile
from medtransfer.evaluation.metrics.aims import Aims
from medtransfer.evaluation.metrics.recalibration import Comparable, adjust_scores
from medtransfer.evaluation.tables.arrays import Float
from medtransfer.evaluation.tables.scores import Scores

# Threshold probabilities of the decision curve.
THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)


def lock_threshold(
    score: Float,
    target: NDArray[Any],
    rule: str,
    least: float = 0.0,
    weight: Float | None = None,
    patients: NDArray[Any] | None = None,
) -> float:
    """The score from which on an image is called positive.

    A new positive lies below the r-th lowest of m with a chance of r / (m + 1), so that r = (m + 1)
    (1 - least) at the most is taken: the sensitivity is reached on average, also with few tune rows
    (as in split-conformal prediction; Papadopoulos et al. 2002, doi:10.1007/3-540-36755-1_29). m
    counts patients.

    Args:
        score, target: (row,), of tune rows with both classes.
        rule: `sensitivity` or `specificity` of at least `least`, or `youden`, the largest sum of
            both (Youden 1950).
        least: 0 to 1.
        weight: (row,), how much each counts; 1 where left out.
        patients: (row,); each row is one where left out.

    Returns:
        A threshold; infinite where all or none are called, as m is too small.
    """
    truth = np.asarray(target) == 1
    mass = np.ones(len(score)) if weight is None else weight
    if rule != "youden":
        rows = truth if rule == "sensitivity" else ~truth
        fewer = np.arange(rows.sum()) if patients is None else patients[rows]
        count = len(np.unique(fewer))
        order = np.argsort(score[rows] if rule == "sensitivity" else -score[rows], kind="stable")
        share = mass[rows][order] / mass[rows].sum() * count
        # Rows strictly beyond a cut at this row.
        beyond = np.cumsum(share) - share
        allowed = np.flatnonzero(beyond + 1 <= (count + 1) * (1 - least) + 1e-9)
        if not len(allowed):
            return -np.inf if rule == "sensitivity" else np.inf
        cut = float(score[rows][order][allowed[-1]])
        return cut if rule == "sensitivity" else float(np.nextafter(cut, np.inf))
    different = np.unique(score)
    cuts = np.r_[-np.inf, (different[:-1] + different[1:]) / 2, np.inf]
    sensitivity, specificity = (
        _share_above(score[rows], mass[rows], cuts) for rows in (truth, ~truth)
    )
    # Rounded, so that of equal sums the lowest threshold is taken whatever the last bit.
    return float(cuts[np.argmax(np.round(sensitivity - specificity, 12))])


def _share_above(score: Float, mass: Float, cuts: Float) -> Float:
    order = np.argsort(score, kind="stable")
    total = np.r_[0.0, np.cumsum(mass[order])]
    return np.asarray(1 - total[np.searchsorted(score[order], cuts)] / total[-1], np.float64)


@dataclass(frozen=True, eq=False)
class Decision:
    """An operating point with its thresholds, applied to the test images.

    Attributes:
        rule: `sensitivity`, `specificity`, `youden` or `probability`.
        aim: the least sensitivity or specificity, or the probability; None with `youden`.
        thresholds: probability from which on an image is called positive, by seed and fold.
        question: the calls, 0 or 1 in place of logits, and their rates.
        prevalences: at which predictive values are told.
    """

    rule: str
    aim: float | None
    thresholds: tuple[dict[str, Any], ...]
    question: Question
    prevalences: tuple[float, ...]


def decide(
    scores: Scores, comparable: Sequence[Comparable] | None, recalibrated: Scores | None, aims: Aims
) -> list[Decision]:
    """Operating points with thresholds locked on the tune rows of each seed and fold.

    Args:
        scores: test scores of an arm.
        comparable: every model's tune and test rows on one scale; None: nothing is locked.
        recalibrated: for `aims.probability`; the scores as they are where None.
        aims: which points.
    """
    rules = [("sensitivity", aims.sensitivity), ("specificity", aims.specificity), ("youden", 0.0)]
    decisions = []

    def add(rule: str, aim: float | None, called: Float, locked: list[dict[str, Any]]) -> None:
        question = Question(replace(scores, logit=called), {"rates": _rates(aims.prevalences)})
        decisions.append(Decision(rule, aim, tuple(locked), question, aims.prevalences))

    for rule, aim in rules if comparable is not None else ():
        if aim is None or comparable is None:
            continue
        called, locked = np.zeros(scores.logit.shape), []
        for model in comparable:
            cell = model.cell
            cut = lock_threshold(model.tune, cell.target, rule, aim, cell.weight, cell.patient)
            called[cell.row, cell.inside] = model.test >= cut
            tuned = {
                name: len(set(cell.patient[cell.target == value]))
                for name, value in (("positives", 1), ("negatives", 0))
            }
            locked.append(
                {
                    "seed": cell.seed,
                    "fold": cell.fold,
                    "probability": float(expit(model.undo.undo(cut))),
                    **tuned,
                }
            )
        add(rule, aim or None, called, locked)
    if aims.probability is not None:
        z = adjust_scores(recalibrated or scores, aims.prevalence).logit
        add("probability", aims.probability, (z >= logit(aims.probability)).astype(float), [])
    return decisions


def _rates(prevalences: tuple[float, ...]) -> Metric:
    def rates(decision: Float, target: NDArray[Any], weights: Float) -> Float:
        """(draw, 5 + 2 * prevalence): sensitivity, specificity, PPV, NPV, share called, and the
        predictive values elsewhere.
        """
        hit, alarm = weights @ (decision * target), weights @ (decision * (1 - target))
        positive, everyone = weights @ target, weights.sum(1)
        negative, silent = everyone - positive, everyone - hit - alarm
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity, specificity = hit / positive, 1 - alarm / negative
            columns = [
                sensitivity,
                specificity,
                hit / (hit + alarm),
                (negative - alarm) / silent,
                (hit + alarm) / everyone,
            ]
            for p in prevalences:
                columns += [
                    sensitivity * p / (sensitivity * p + (1 - specificity) * (1 - p)),
                    specificity * (1 - p) / (specificity * (1 - p) + (1 - sensitivity) * p),
                ]
        return np.stack(columns, 1)

    return rates


def describe_decision(decision: Decision, rates: DrawnMetric) -> dict[str, Any]:
    """Sensitivity, specificity and predictive values of an operating point.

    Args:
        decision: see `decide`.
        rates: drawn. Where Wilson's intervals hold (one seed, one image per patient, all counting
            alike), or nothing varies, they are taken instead, the latter with the number of
            patients.

    Returns:
        `rule, aim, thresholds, sensitivity, specificity, ppv, npv, flagged, number_needed_to_read,
        at_prevalence`.
    """
    scores = decision.question.scores
    simple = len(scores.seeds) == 1 and not scores.clustered and bool((scores.weight == 1).all())
    truth, called = scores.target == 1, scores.logit[0]
    of = {
        "sensitivity": truth,
        "specificity": ~truth,
        "ppv": called == 1,
        "npv": called == 0,
        "flagged": np.ones_like(truth),
    }
    entry: dict[str, Any] = {
        "rule": decision.rule,
        "aim": decision.aim,
        "thresholds": list(decision.thresholds),
    }
    for column, (name, rows) in enumerate(of.items()):
        entry[name] = share_interval(rates[column], len(set(scores.patients[rows])), simple)
    entry["number_needed_to_read"] = _inverse(entry["ppv"])
    certain = any(entry[name]["estimate"] in {0.0, 1.0} for name in ("sensitivity", "specificity"))
    entry["at_prevalence"] = []
    for i, p in enumerate(decision.prevalences):
        values = {
            name: rates[5 + 2 * i + place].interval("logit", 0.0, 1.0)
            for place, name in enumerate(("ppv", "npv"))
        }
        if certain:
            values = _values_at(entry["sensitivity"], entry["specificity"], p)
        entry["at_prevalence"].append({"prevalence": p, **values})
    return entry


def share_interval(share: DrawnMetric, patients: int, simple: bool = False) -> dict[str, Any]:
    """A proportion with Wilson's interval, for the number of patients that the draws say it is
    worth; for all patients where the draws cannot vary.

    With several seeds, their variance is among it.

    Args:
        share: the proportion with its draws.
        patients: of how many it is the share.
        simple: whether each is one independent image.
    """
    value = float(np.round(share.value, 12)) if np.isfinite(share.value) else float("nan")
    variance = sum(part.variance for part in share.parts) if np.isfinite(value) else float("nan")
    if simple or not 0 < value < 1 or not (np.isfinite(variance) and variance > 0):
        return wilson(value, patients)
    worth = min(value * (1 - value) / variance, 10.0 * patients)
    return wilson(
        value,
        worth,
        quantile(
            [replace(part, freedom=min(part.freedom, max(1, patients - 1))) for part in share.parts]
        ),
    )


def _values_at(
    sensitivity: Mapping[str, Any], specificity: Mapping[str, Any], p: float
) -> dict[str, Any]:
    """Predictive values at a prevalence where sensitivity or specificity is 0 or 1, from the bounds
    of both.
    """

    def at(sens: float | None, spec: float | None) -> tuple[float | None, float | None]:
        if sens is None or spec is None:
            return None, None
        called, silent = sens * p + (1 - spec) * (1 - p), spec * (1 - p) + (1 - sens) * p
        return sens * p / called if called else None, spec * (1 - p) / silent if silent else None

    bounds = {key: at(sensitivity[key], specificity[key]) for key in ("estimate", "low", "high")}
    none = "not estimable: nothing is called"
    return {
        name: {key: values[place] for key, values in bounds.items()}
        | ({"reason": none} if bounds["estimate"][place] is None else {})
        for place, name in enumerate(("ppv", "npv"))
    }


def wilson(share: float, size: float, z: float = NORMAL_95) -> dict[str, Any]:
    """A proportion with its interval by Wilson's score (Wilson 1927,
    doi:10.1080/01621459.1927.10502953).

    Written out, as statsmodels' `proportion_confint` takes counts and a level, and not the quantile
    of Student's t that a variance known from few patients asks for.

    Args:
        share: 0 to 1.
        size: how many it is of, maybe an effective number (Kish 1965).
        z: standard errors on either side; those of 95 % where left out.
    """
    if size == 0 or not np.isfinite(share):
        return no_interval("not estimable: some model tested no such image")
    center, scale = share + z**2 / (2 * size), 1 + z**2 / size
    half = z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    # At 0 and 1 the bound is the estimate itself, but for rounding.
    low, high = (
        0.0 if share == 0 else (center - half) / scale,
        1.0 if share == 1 else (center + half) / scale,
    )
    return {"estimate": share, "low": float(low), "high": float(high), "method": "Wilson"}


def _inverse(value: Mapping[str, Any]) -> dict[str, Any]:
    """1 / PPV: the images called positive for each one that is."""
    if not value["estimate"]:
        return no_interval("not estimable: no true positive")
    high = 1 / value["low"] if value["low"] else None
    return {
        "estimate": 1 / value["estimate"],
        "low": 1 / value["high"] if value["high"] else None,
        "high": high,
    }


def net_benefit(prevalence: float | None = None) -> Metric:
    """Net benefit per image, as a metric (draw, threshold): true positives less false positives at
    the odds of the threshold.

    Vickers & Elkin 2006, doi:10.1177/0272989X06295361. `prevalence`: of the patients the model is
    meant for, where it is not that of the sample: sensitivity and specificity are then weighted by
    it, at the thresholds of probabilities that are adjusted to it.
    """
    odds = THRESHOLDS / (1 - THRESHOLDS)

    def benefit(score: Float, target: NDArray[Any], weights: Float) -> Float:
        called = (score[:, None] >= logit(THRESHOLDS)).astype(np.float64)
        positives, total = weights @ target, weights.sum(1)
        hits, alarms = (weights * target) @ called, (weights * (1 - target)) @ called
        if prevalence is None:
            return np.asarray((hits - alarms * odds) / total[:, None], np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity, false = hits / positives[:, None], alarms / (total - positives)[:, None]
        return np.asarray(sensitivity * prevalence - false * (1 - prevalence) * odds, np.float64)

    return benefit


def decision_curves(
    first: Scores,
    scores: Sequence[Scores],
    benefits: Sequence[DrawnMetric | None],
    prevalence: float | None = None,
) -> dict[str, Any]:
    """Net benefit of every arm that gives probabilities, of calling all, and of calling none (0),
    with 95 % bands over patients.

    Args:
        first: an arm, for the prevalence.
        scores: arms over the same images, recalibrated where that could be done.
        benefits: of each arm, `net_benefit` drawn; None of one that gives scores.
        prevalence: as of `net_benefit`.
    """
    share = first.prevalence if prevalence is None else prevalence
    everyone = share - (1 - share) * THRESHOLDS / (1 - THRESHOLDS)
    arms = {}
    for arm, benefit in zip(scores, benefits, strict=True):
        if benefit is None:
            continue
        low, high = bands(benefit.mean)
        arms[arm.arm] = {"estimate": plain(benefit.value), "low": plain(low), "high": plain(high)}
    return {
        "threshold": THRESHOLDS.tolist(),
        "all": everyone.tolist(),
        "arms": arms,
        "prevalence": share,
    }
