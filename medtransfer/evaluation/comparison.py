"""Arm against arm, over the same patients and seeds, and the verdict in words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from medtransfer.evaluation import influence
from medtransfer.evaluation.influence import Estimate
from medtransfer.evaluation.resample import Drawn
from medtransfer.evaluation.scores import Scores
from medtransfer.evaluation.spread import quantile

# A slope interval that reaches beyond these leaves gross over- and under-confidence open.
_WIDEST = (0.5, 2.0)
_POWER = 0.8
# Of a difference in slopes whose standard error is larger the data say nothing.
_LARGEST = 20.0
# Differences whose intervals come from influences, and those that come from the draws.
_FROM_INFLUENCE = ("auc", "brier", "log_loss", "slope")
_FROM_DRAWS = ("average_precision", "partial_auc", "net_benefit")


@dataclass(frozen=True, eq=False)
class Contestant:
    """What is compared of an arm.

    Attributes:
        name, seeds: of the arm; how many seeds.
        found: estimates with their influences; `auc`, `brier`, `log_loss`, `slope`.
        drawn: metrics with their draws; `auc`, and those of `_FROM_DRAWS` that are there.
        scores: for the differences within folds; None where several labels were averaged.
    """

    name: str
    seeds: int
    found: dict[str, Estimate]
    drawn: dict[str, Drawn]
    scores: Scores | None = None


def compare_arms(arms: Sequence[Contestant], margin: float | None = None) -> list[dict[str, Any]]:
    """Every pair of arms, the earlier one as `a`: a minus b over the same patients, with paired intervals and p-values.

    `margin`: of non-inferiority in AUC, chosen before the results were seen; None: not tested.
    """
    pairs = list(combinations(arms, 2))
    comparisons = []
    for a, b in pairs:
        entry: dict[str, Any] = {"a": a.name, "b": b.name}
        for metric in _FROM_INFLUENCE:
            difference = a.found[metric] - b.found[metric]
            entry[f"delta_{metric}"] = {**difference.interval(widest=_LARGEST), "p": difference.p_value()}
        for metric in _FROM_DRAWS:
            if metric in a.drawn:
                drawn = a.drawn[metric] - b.drawn[metric]
                entry[f"delta_{metric}"] = {**drawn.interval(), "p": drawn.p_value()}
        _add_auc(entry, a.found["auc"] - b.found["auc"], a.drawn["auc"] - b.drawn["auc"], margin)
        entry["delta_auc"]["folds"] = _folds(a.scores, b.scores)
        comparisons.append(entry)
    for entry, p in zip(comparisons, holm([entry["delta_auc"]["p"] for entry in comparisons]), strict=True):
        entry["delta_auc"]["p_holm"] = p
    for entry, (a, b) in zip(comparisons, pairs, strict=True):
        entry["verdict"] = verdict(entry, a.found["auc"].value, b.found["auc"].value, len(pairs), min(a.seeds, b.seeds))
    return comparisons


def _add_auc(entry: dict[str, Any], difference: Estimate, drawn: Drawn, margin: float | None) -> None:
    """To the difference in AUC: method, the bootstrap beside it, DeLong's test, what could have been seen, non-inferiority."""
    delta = entry["delta_auc"]
    seeds = " and between seeds" if difference.between else ""
    delta["method"] = f"paired DeLong over patients{', clustered' if difference.clustered else ''}{seeds}"
    bootstrap = drawn.interval()
    delta["bootstrap"] = {"low": bootstrap["low"], "high": bootstrap["high"], "p": drawn.p_value()}
    patients = difference.of_patients
    known = np.isfinite(difference.value) and np.isfinite(patients) and patients > 0
    delta["p_delong"] = float(2 * norm.sf(abs(difference.value) / np.sqrt(patients))) if known else None
    delta["detectable"] = _detectable(difference)
    if margin is not None:
        shown = delta["low"] is not None and delta["low"] > -margin
        entry["non_inferiority"] = {"margin": margin, "shown": bool(shown)}


def _detectable(difference: Estimate) -> float | None:
    """The true difference that these patients and seeds would have shown with 80 % power at the two-sided 5 % level."""
    variance = difference.variance
    if not (np.isfinite(variance) and variance > 0):
        return None
    return float((quantile(difference.parts) + norm.ppf(_POWER)) * np.sqrt(variance))


def _folds(a: Scores | None, b: Scores | None) -> dict[str, Any] | None:
    """The mean difference within folds, with the corrected resampled t interval (Nadeau & Bengio 2003, doi:10.1023/A:1024068626366).

    It holds the variation between training sets that pooling leaves out, and knows it from few folds only.
    """
    if a is None or b is None or a.folds is None or len(a.folds) < 2:
        return None
    if b.folds is None or not (a.fold[0] == b.fold[0]).all():
        return {"estimate": None, "low": None, "high": None, "reason": "not estimable: the arms have different folds"}
    folds, differences = a.folds, []
    for fold in folds:
        inside = a.fold[0] == fold
        aucs = [fold_auc(s, inside) for s in (a, b)]
        if aucs[0] is None or aucs[1] is None:
            return {"estimate": None, "low": None, "high": None, "reason": f"not estimable: fold {fold} lacks a class"}
        differences.append(aucs[0] - aucs[1])
    count = len(folds)
    mean, spread = float(np.mean(differences)), float(np.var(differences, ddof=1))
    half = float(student.ppf(0.975, count - 1)) * np.sqrt(spread * (1 / count + 1 / (count - 1)))
    if abs(mean) + half > 1:  # as with two folds, of one degree of freedom
        return {"estimate": mean, "low": None, "high": None, "reason": f"no interval: {count} folds tell too little"}
    return {"estimate": mean, "low": mean - half, "high": mean + half, "method": "corrected resampled t over folds"}


def fold_auc(scores: Scores, inside: NDArray[np.bool_]) -> float | None:
    """Mean over seeds of the AUC of some images; None where they lack a class."""
    values = [influence.auc(logit[inside], scores.target[inside], scores.weight[inside])[0] for logit in scores.logit]
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number (Holm 1979); None stays, and counts."""
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i] or 0.0)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * (values[i] or 0.0)))
        corrected[i] = highest
    return corrected


def verdict(
    entry: dict[str, Any],
    value_a: float,
    value_b: float,
    comparisons: int = 1,
    seeds: int = 2,
    key: str = "delta_auc",
    metric: str = "AUC",
    does: str = "separates the classes",
) -> str:
    """A sentence or two that say no more than the interval of a difference does, that of the AUC where nothing else is said.

    `seeds`: of the arm with the fewest; a single one shows nothing of how trainings differ, so the sentence is about the models trained.
    """
    a, b, delta = isolate(entry["a"]), isolate(entry["b"]), entry[key]
    if delta["low"] is None:
        return f"Cannot tell whether {a} or {b} {does} better: the difference in {metric} cannot be estimated on these patients."
    figures = (
        f"{metric} {value_a:.3f} against {value_b:.3f}, difference {delta['estimate']:+.3f} "
        f"(95 % interval {delta['low']:+.3f} to {delta['high']:+.3f}, {_p(delta['p'])}"
    )
    several = comparisons > 1 and delta.get("p_holm") is not None
    figures += f"; {_p(delta['p_holm'])} for {comparisons} comparisons)" if several else ")"
    different = delta["low"] > 0 or delta["high"] < 0
    direction = "better" if delta["estimate"] > 0 else "worse"
    margin = entry.get("non_inferiority")
    added = " (One seed: this is about these models, not about how such trainings differ.)" if seeds == 1 else ""
    if margin is not None:
        word = "is" if margin["shown"] else "is not shown to be"
        added += f" With the margin of {margin['margin']:g}, {a} {word} non-inferior to {b}."
    if different and several and delta["p_holm"] >= 0.05:
        return f"It seems that {a} {does} {direction} than {b}, but among {comparisons} comparisons this may be chance: {figures}.{added}"
    if different:
        return f"{a} {does} {direction} than {b}: {figures}.{added}"
    unseen = (
        f" These patients would have shown a difference of {delta['detectable']:.3f} in four of five studies."
        if delta.get("detectable")
        else ""
    )
    return f"Cannot tell whether {a} or {b} {does} better: {figures}; the interval includes 0.{unseen}{added}"


def trust(arm: str, entry: dict[str, Any]) -> str:
    """One sentence on the probabilities of an arm, from the intervals of AUC, slope, intercept, observed / expected and ECE."""
    arm, auc = isolate(arm), entry["auc"]
    slope, intercept, ece = entry["calibration"]["slope"], entry["calibration"]["intercept"], entry["ece"]
    if auc["high"] is not None and auc["high"] < 0.5:
        return (
            f"The scores of {arm} are lower where the label is there: AUC {auc['estimate']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}). "
            "Do they refer to the other class?"
        )
    if slope["low"] is None or intercept["low"] is None:
        return (
            f"Cannot tell whether the probabilities of {arm} can be trusted: calibration slope and intercept have no intervals on these "
            "patients."
        )
    faults = []
    if slope["low"] <= 0 and slope["high"] < 1 and (auc["low"] is None or auc["low"] <= 0.5):
        faults.append("over-confident and perhaps without any meaning (slope 0 and AUC 0.5 are within the intervals)")
    elif slope["high"] < 1:
        faults.append("over-confident (too close to 0 and 1)")
    elif slope["low"] > 1:
        faults.append("under-confident (too close to the middle)")
    faults += _on_the_whole(intercept, entry["calibration"]["observed_expected"])
    if not faults and ece["estimate"] > ece["null_high"]:
        faults.append("off by more than chance explains")
    figures = (
        f"slope {slope['estimate']:.2f} ({slope['low']:.2f} to {slope['high']:.2f}), "
        f"intercept {intercept['estimate']:+.2f} ({intercept['low']:+.2f} to {intercept['high']:+.2f}), "
        f"ECE {ece['estimate']:.3f} where chance alone gives up to {ece['null_high']:.3f}"
    )
    if not faults and (slope["low"] < _WIDEST[0] or slope["high"] > _WIDEST[1]):
        return f"Cannot tell whether the probabilities of {arm} can be trusted, the intervals are too wide: {figures}."
    if faults:
        return f"The probabilities of {arm} are {' and '.join(faults)}: {figures}."
    return f"No miscalibration of {arm} can be seen on these patients: {figures}."


def _on_the_whole(intercept: dict[str, Any], ratio: dict[str, Any]) -> list[str]:
    """What intercept and observed / expected say of the mean; "perhaps" where only one of them does."""
    known = ratio["low"] is not None
    high = [intercept["high"] < 0, known and ratio["high"] < 1]
    low = [intercept["low"] > 0, known and ratio["low"] > 1]
    for said, word in ((high, "too high"), (low, "too low")):
        if all(said) or (said[0] and not known):
            return [f"{word} on the whole"]
        if any(said):
            told = f" (observed / expected {ratio['estimate']:.2f}, {ratio['low']:.2f} to {ratio['high']:.2f})" if known else ""
            return [f"perhaps {word} on the whole{told}"]
    return []


def isolate(name: str) -> str:
    """A name as it stands in a sentence: one in a script from right to left must not turn the numbers beside it around."""
    turns = any(unicodedata.bidirectional(character) in {"R", "AL", "AN"} for character in name)
    return f"\u2068{name}\u2069" if turns else name


def _p(p: float | None) -> str:
    return "p not estimable" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
