"""Arm against arm, over the same patients and seeds, and the verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from medtransfer.evaluation import influence
from medtransfer.evaluation.influence import Estimate
from medtransfer.evaluation.resample import percentile_interval, two_sided_p
from medtransfer.evaluation.scores import Scores

Float = NDArray[np.float64]
# A slope interval that reaches beyond these leaves gross over- and under-confidence open.
_WIDEST = (0.5, 2.0)
_POWER = 0.8
# Differences whose intervals come from influences, and those that come from the draws.
_FROM_INFLUENCE = ("auc", "brier", "log_loss", "slope")
_FROM_DRAWS = ("average_precision", "partial_auc", "net_benefit")


def compare_arms(
    scores: Sequence[Scores],
    found: Sequence[dict[str, Estimate]],
    values: Sequence[dict[str, float]],
    draws: Sequence[dict[str, Float]],
    margin: float | None = None,
) -> list[dict[str, Any]]:
    """Every pair of arms, the earlier one as `a`: a minus b, with paired intervals and p-values.

    Args:
        scores: arms over the same images.
        found: per arm and metric, estimates with their influences.
        values, draws: per arm and metric, from `resample`; the draws are paired.
        margin: of non-inferiority in AUC, chosen before the results were seen; None: not tested.
    """
    comparisons = []
    for i, j in combinations(range(len(scores)), 2):
        entry: dict[str, Any] = {"a": scores[i].arm, "b": scores[j].arm}
        for metric in _FROM_INFLUENCE:
            difference = found[i][metric] - found[j][metric]
            entry[f"delta_{metric}"] = {**difference.interval(), "p": difference.p_value()}
        for metric in _FROM_DRAWS:
            if metric in values[i]:
                drawn = draws[i][metric] - draws[j][metric]
                interval = percentile_interval(values[i][metric] - values[j][metric], drawn)
                entry[f"delta_{metric}"] = {**interval, "p": two_sided_p(drawn) if interval["low"] is not None else None}
        _add_auc(entry, found[i]["auc"] - found[j]["auc"], draws[i]["auc"] - draws[j]["auc"], margin)
        entry["delta_auc"]["folds"] = _folds(scores[i], scores[j])
        comparisons.append(entry)
    for entry, p in zip(comparisons, holm([entry["delta_auc"]["p"] for entry in comparisons]), strict=True):
        entry["delta_auc"]["p_holm"] = p
    for entry, (i, j) in zip(comparisons, combinations(range(len(scores)), 2), strict=True):
        seeds = min(len(scores[i].seeds), len(scores[j].seeds))
        entry["verdict"] = verdict(entry, found[i]["auc"].value, found[j]["auc"].value, len(comparisons), seeds)
    return comparisons


def _add_auc(entry: dict[str, Any], difference: Estimate, drawn: Float, margin: float | None) -> None:
    """To the difference in AUC: method, the bootstrap beside it, DeLong's test, what could have been seen, non-inferiority."""
    delta = entry["delta_auc"]
    seeds = " and between seeds" if len(difference.by_seed) > 1 or difference.between else ""
    delta["method"] = f"paired DeLong over patients{', clustered' if difference.clustered else ''}{seeds}, Student's t"
    bootstrap = percentile_interval(difference.value, drawn)
    delta["bootstrap"] = {"low": bootstrap["low"], "high": bootstrap["high"], "p": two_sided_p(drawn)}
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
    return float((student.ppf(0.975, difference.freedom) + norm.ppf(_POWER)) * np.sqrt(variance))


def _folds(a: Scores, b: Scores) -> dict[str, Any] | None:
    """The mean difference within folds, with the corrected resampled t interval (Nadeau & Bengio 2003, doi:10.1023/A:1024068626366).

    It holds the variation between training sets that pooling leaves out, and knows it from few folds only.
    """
    folds = sorted(set(a.fold.tolist()))
    if len(folds) < 2:
        return None
    differences = []
    for fold in folds:
        inside = a.fold == fold
        aucs = [fold_auc(s, inside) for s in (a, b)]
        if aucs[0] is None or aucs[1] is None:
            return {"estimate": None, "low": None, "high": None, "reason": f"not estimable: fold {fold} lacks a class"}
        differences.append(aucs[0] - aucs[1])
    count = len(folds)
    mean, spread = float(np.mean(differences)), float(np.var(differences, ddof=1))
    half = float(student.ppf(0.975, count - 1)) * np.sqrt(spread * (1 / count + 1 / (count - 1)))
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


def verdict(entry: dict[str, Any], auc_a: float, auc_b: float, comparisons: int = 1, seeds: int = 2) -> str:
    """A sentence or two that say no more than the interval of the AUC difference does.

    `seeds`: of the arm with the fewest; a single one shows nothing of how trainings differ, so the sentence is about the models trained.
    """
    a, b, delta = entry["a"], entry["b"], entry["delta_auc"]
    if delta["low"] is None:
        return f"Cannot tell whether {a} or {b} separates the classes better: the difference in AUC cannot be estimated on these patients."
    figures = (
        f"AUC {auc_a:.3f} against {auc_b:.3f}, difference {delta['estimate']:+.3f} "
        f"(95 % interval {delta['low']:+.3f} to {delta['high']:+.3f}, {_p(delta['p'])}"
    )
    several = comparisons > 1 and delta.get("p_holm") is not None
    figures += f"; {_p(delta['p_holm'])} for {comparisons} comparisons)" if several else ")"
    different = delta["low"] > 0 or delta["high"] < 0
    direction = "better" if delta["estimate"] > 0 else "worse"
    margin = entry.get("non_inferiority")
    added = " (One seed: this is about the models trained here.)" if seeds == 1 else ""
    if margin is not None:
        word = "is" if margin["shown"] else "is not shown to be"
        added += f" With the margin of {margin['margin']:g}, {a} {word} non-inferior to {b}."
    if different and several and delta["p_holm"] >= 0.05:
        return (
            f"{a} seems to separate the classes {direction} than {b}, but among {comparisons} comparisons this may be chance: "
            f"{figures}.{added}"
        )
    if different:
        return f"{a} separates the classes {direction} than {b}: {figures}.{added}"
    unseen = (
        f" These patients would have shown a difference of {delta['detectable']:.3f} in four of five studies."
        if delta["detectable"]
        else ""
    )
    return f"Cannot tell whether {a} or {b} separates the classes better: {figures}; the interval includes 0.{unseen}{added}"


def trust(arm: str, entry: dict[str, Any]) -> str:
    """One sentence on the probabilities of an arm, from the intervals of slope, intercept and ECE."""
    slope, intercept, ece = entry["calibration"]["slope"], entry["calibration"]["intercept"], entry["ece"]
    if slope["low"] is None or intercept["low"] is None:
        return (
            f"Cannot tell whether the probabilities of {arm} can be trusted: the calibration slope cannot be estimated on these patients."
        )
    faults = []
    if slope["high"] < 1:
        faults.append("over-confident (too close to 0 and 1)")
    elif slope["low"] > 1:
        faults.append("under-confident (too close to the middle)")
    if intercept["high"] < 0:
        faults.append("too high on the whole")
    elif intercept["low"] > 0:
        faults.append("too low on the whole")
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


def _p(p: float | None) -> str:
    return "p not estimable" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
