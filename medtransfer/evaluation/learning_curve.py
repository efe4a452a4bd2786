"""How results grow with the number of patients: AUC by size, and a careful look beyond the largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import discrimination as dis
from medtransfer.evaluation.predictions import Scores, align_scores
from medtransfer.evaluation.resample import Metric, draw_values, estimates, percentile_interval

Float = NDArray[np.float64]
# Exponents of the power law that are tried: errors of estimates fall with 1/2, learning mostly slower.
_EXPONENTS = np.linspace(0.1, 1.5, 29)
_FEWEST_SIZES, _BEYOND = 3, (2, 4)


def learning_curve(table: pd.DataFrame, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """One entry per arm and size, then two per arm beyond its largest size.

    The AUC is the mean over folds and episodes of the AUC within a fold, as scores of different small models are not
    comparable. Intervals: bootstrap over patients and episodes. Beyond: a power law a - b n^-c with a of at most 1
    (Hestness et al. 2017, arXiv:1712.00409), fitted to the estimates and to every draw; its interval holds sampling,
    not that the law may be wrong.

    Args:
        table: predictions with `size` above 0.
        bootstrap, seed: number and seed of the draws.

    Returns:
        Entries `arm, size, episodes, extrapolated, auc`, and of sizes that were run `brier, log_loss`.
    """
    if table.empty:
        return []
    scores: list[Scores] = []
    sizes: list[int] = []
    for size in sorted(set(table["size"].tolist())):
        rows = table[table["size"] == size]
        aligned, _ = align_scores(rows.assign(seed=rows["episode"]))
        scores += aligned
        sizes += [size] * len(aligned)
    fold = scores[0].fold

    def fold_mean_auc(logit: Float, target: NDArray[Any], weights: Float) -> Float:
        parts = np.array([dis.weighted_auc(logit[fold == f], target[fold == f], weights[:, fold == f]) for f in np.unique(fold)])
        # A fold of a draw that lacks a class says nothing, and does not count.
        there = np.isfinite(parts)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(there, parts, 0.0).sum(0) / there.sum(0), np.float64)

    metrics: dict[str, Metric] = {"auc": fold_mean_auc, "brier": cal.weighted_brier, "log_loss": cal.weighted_log_loss}
    draws = draw_values(scores, metrics, bootstrap, seed)
    entries = []
    for arm in dict.fromkeys(s.arm for s in scores):
        mine = [i for i, s in enumerate(scores) if s.arm == arm]
        values = [estimates(scores[i], metrics) for i in mine]
        episodes = len(scores[mine[0]].seeds)
        for i, value in zip(mine, values, strict=True):
            found = {name: percentile_interval(value[name], draws[i][name]) for name in metrics}
            entries.append({"arm": arm, "size": sizes[i], "episodes": episodes, "extrapolated": False, **found})
        if len(mine) >= _FEWEST_SIZES:
            places = np.array([sizes[i] for i in mine], float)
            beyond = places[-1] * np.array(_BEYOND)
            estimate = extrapolate(places, np.array([[value["auc"] for value in values]]), beyond)[0]
            drawn = extrapolate(places, np.stack([draws[i]["auc"] for i in mine], 1), beyond)
            for place, value, column in zip(beyond, estimate, drawn.T, strict=True):
                auc = percentile_interval(float(value), column)
                entries.append({"arm": arm, "size": int(place), "episodes": episodes, "extrapolated": True, "auc": auc})
    return entries


def extrapolate(sizes: Float, values: Float, beyond: Float) -> Float:
    """Least squares of a - b n^-c with b not below 0 and a not above 1, read at other sizes.

    Args:
        sizes: (size,), ascending.
        values: (curve, size).
        beyond: (place,), where to read.

    Returns:
        (curve, place); NaN for a curve that holds NaN.
    """
    best = np.full(len(values), np.inf)
    result = np.full((len(values), len(beyond)), np.nan)
    for exponent in _EXPONENTS:
        x = -(sizes**-exponent)
        slope = np.maximum(0.0, ((values - values.mean(1, keepdims=True)) @ (x - x.mean())) / np.square(x - x.mean()).sum())
        level = values.mean(1) - slope * x.mean()
        # Where the ceiling is met, the best line that ends there.
        above = level > 1.0
        slope = np.where(above, np.maximum(0.0, ((values - 1.0) @ x) / np.square(x).sum()), slope)
        level = np.minimum(level, 1.0)
        error = np.square(values - (level[:, None] + slope[:, None] * x)).sum(1)
        better = error < best
        best[better] = error[better]
        result[better] = (level[:, None] + slope[:, None] * -(beyond**-exponent))[better]
    return result


def describe_curve(entries: list[dict[str, Any]]) -> list[str]:
    """Per arm one sentence: what more patients would bring."""
    sentences = []
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        mine = [entry for entry in entries if entry["arm"] == arm and entry["auc"]["low"] is not None]
        seen, beyond = ([entry for entry in mine if entry["extrapolated"] == kind] for kind in (False, True))
        if not seen:
            continue
        last = seen[-1]
        text = f"Learning curve of {arm}: AUC {last['auc']['estimate']:.3f} with {last['size']} patients per class"
        if beyond:
            auc = beyond[-1]["auc"]
            text += (
                f"; about {auc['estimate']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}) is to be expected with {beyond[-1]['size']}, if it "
                "goes on as it began"
            )
        sentences.append(text + ".")
    return sentences
