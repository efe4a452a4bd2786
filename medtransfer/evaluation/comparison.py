"""Arm against arm, over the same patients and seeds, and the verdict in words."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from medtransfer.evaluation.discrimination import delong_covariance
from medtransfer.evaluation.predictions import Scores
from medtransfer.evaluation.resample import percentile_interval, two_sided_p

Float = NDArray[np.float64]
# A slope interval that reaches beyond these leaves gross over- and under-confidence open.
_WIDEST = (0.5, 2.0)
_DELTAS = {"delta_auc": "auc", "delta_brier": "brier", "delta_slope": "slope"}


def compare_arms(scores: list[Scores], estimates: list[dict[str, float]], draws: list[dict[str, Float]]) -> list[dict[str, Any]]:
    """Every pair of arms, the earlier one as `a`: a minus b, with paired intervals and p-values.

    Args:
        scores: arms over the same images.
        estimates, draws: per arm and metric, from `resample`; the draws are paired.
    """
    comparisons = []
    for i, j in combinations(range(len(scores)), 2):
        entry: dict[str, Any] = {"a": scores[i].arm, "b": scores[j].arm}
        for key, metric in _DELTAS.items():
            values = draws[i][metric] - draws[j][metric]
            interval = percentile_interval(estimates[i][metric] - estimates[j][metric], values)
            entry[key] = {**interval, "p": two_sided_p(values) if interval["low"] is not None else None}
        entry["delta_auc"]["method"] = "paired bootstrap over patients and seeds"
        entry["delta_auc"]["p_delong"] = _paired_delong(scores[i], scores[j])
        entry["verdict"] = verdict(entry, estimates[i]["auc"], estimates[j]["auc"])
        comparisons.append(entry)
    return comparisons


def _paired_delong(a: Scores, b: Scores) -> float | None:
    """Two-sided p of the paired DeLong test; over patients only, the trained models taken as given."""
    aucs, covariance = delong_covariance([a.logit, b.logit], a.target, a.patients)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if not variance > 0:
        return None
    return float(2 * norm.sf(abs(aucs[0] - aucs[1]) / np.sqrt(variance)))


def verdict(entry: dict[str, Any], auc_a: float, auc_b: float) -> str:
    """One sentence that says no more than the interval of the AUC difference does."""
    a, b, delta = entry["a"], entry["b"], entry["delta_auc"]
    if delta["low"] is None:
        return f"Cannot tell whether {a} or {b} separates the classes better: the difference in AUC cannot be estimated on these patients."
    figures = (
        f"AUC {auc_a:.3f} against {auc_b:.3f}, difference {delta['estimate']:+.3f} "
        f"(95 % interval {delta['low']:+.3f} to {delta['high']:+.3f}, {_p(delta['p'])})"
    )
    if delta["low"] > 0:
        return f"{a} separates the classes better than {b}: {figures}."
    if delta["high"] < 0:
        return f"{a} separates the classes worse than {b}: {figures}."
    return f"Cannot tell whether {a} or {b} separates the classes better: {figures}; the interval includes 0."


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
