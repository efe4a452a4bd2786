"""How results grow with the number of patients: AUC by size, a careful look beyond the largest, and
how many make two arms equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.evaluation.analyses.one_arm import WIDEST
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.entries import no_interval
from medtransfer.evaluation.intervals.estimate import estimate
from medtransfer.evaluation.intervals.resample import (
    DrawnMetric,
    Metric,
    Question,
    WithinModels,
    draw_values,
)
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics import discrimination as dis
from medtransfer.evaluation.metrics.recalibration import adjust_prevalence
from medtransfer.evaluation.sentences.words import format_interval
from medtransfer.evaluation.tables.arrays import Float
from medtransfer.evaluation.tables.scores import Scores, align_scores

# Exponents of the power law that are tried: errors of estimates fall with 1/2, learning mostly
# slower.
_EXPONENTS = np.linspace(0.1, 1.5, 29)
_FEWEST_SIZES, _BEYOND = 3, (2, 4)
_METRICS: dict[str, Metric | WithinModels] = {
    "auc": WithinModels(dis.weighted_auc, "pairs"),
    "brier": WithinModels(cal.weighted_brier, "images"),
    "log_loss": WithinModels(cal.weighted_log_loss, "images"),
}
_ONE = "no interval: one draw of each size does not show how draws vary"


@dataclass(frozen=True, eq=False)
class Curve:
    """AUCs of an arm by size: (size,), estimated (size,), and in the draws (draw, size); `shown`:
    whether episodes show how they vary.
    """

    sizes: Float
    estimate: Float
    drawn: Float
    shown: bool = True


def learning_curve(
    table: pd.DataFrame, bootstrap: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One entry per arm and size, then two per arm beyond its largest size; and what one arm needs
    to match another.

    AUC, Brier score, log-loss and slope are those within models, as scores of different small
    models are not comparable. A draw holds as many patients of either class, so that its
    probabilities are for 50 %: Brier score, log-loss and slope are measured after they were
    adjusted to the prevalence of the test images. Intervals: over patients, plus the variance
    between episodes; none with a single one, which does not show it. Beyond: a power law a - b n^-c
    with a of at most 1 (Hestness et al. 2017, arXiv:1712.00409), fitted to the estimates and to
    every draw; its interval holds sampling, not that the law may be wrong.

    Args:
        table: predictions with `size` above 0.
        bootstrap: number of draws.
        seed: of the draws.

    Returns:
        Entries `arm, size, episodes, extrapolated, auc`, and of sizes that were run `brier,
        log_loss, slope`; and, see `match_sizes`, entries `arm, to_match, size, needed, within`.
    """
    if table.empty:
        return [], []
    scores, sizes = _align_by_size(table)
    draws = Draws(
        np.array([*dict.fromkeys(np.concatenate([s.patients for s in scores]).tolist())], object),
        bootstrap,
        seed,
    )
    drawn = draw_values([Question(s, _METRICS) for s in scores], draws)
    rng = np.random.default_rng([seed, 3])
    several = len(set(table["episode"])) > 1
    entries, curves = [], {}
    for arm in dict.fromkeys(s.arm for s in scores):
        places = [place for place, s in enumerate(scores) if s.arm == arm]
        # Several seeds of one draw do not show how draws vary.
        episodes = len(scores[places[0]].seeds) if several else 1
        for place in places:
            entry = {"arm": arm, "size": sizes[place], "episodes": episodes, "extrapolated": False}
            entries.append(entry | _describe_size(scores[place], drawn[place], draws, episodes))
        aucs = [drawn[place]["auc"] for place in places]
        curves[arm] = Curve(
            np.array([sizes[place] for place in places], float),
            np.array([auc.value for auc in aucs]),
            np.stack([_with_episodes(auc, rng) for auc in aucs], 1),
            episodes > 1,
        )
        entries += _describe_beyond(arm, curves[arm], episodes)
    return entries, match_sizes(curves)


def _align_by_size(table: pd.DataFrame) -> tuple[list[Scores], list[int]]:
    """The scores of every arm at every size, ascending, and the size of each."""
    # Every seed of an episode counts as a draw of its own.
    pairs = {
        pair: number
        for number, pair in enumerate(
            sorted(set(zip(table["episode"], table["seed"], strict=True)))
        )
    }
    table = table.assign(
        seed=[pairs[pair] for pair in zip(table["episode"], table["seed"], strict=True)]
    )
    scores: list[Scores] = []
    sizes: list[int] = []
    for size in sorted(set(table["size"].tolist())):
        aligned = [_at_prevalence(s) for s in align_scores(table[table["size"] == size])[0]]
        scores += aligned
        sizes += [size] * len(aligned)
    return scores, sizes


def _describe_size(
    scores: Scores, drawn: Mapping[str, DrawnMetric], draws: Draws, episodes: int
) -> dict[str, Any]:
    """The metrics of an arm at one size; without intervals where there is a single episode."""
    values = {
        name: drawn[name].interval("logit" if name == "auc" else "identity", least=0.0)
        for name in _METRICS
    }
    values["slope"] = _slope(scores, draws)
    if episodes > 1:
        return values
    return {name: _without_interval(value) for name, value in values.items()}


def _describe_beyond(arm: str, curve: Curve, episodes: int) -> list[dict[str, Any]]:
    """The entries beyond the largest size of an arm; none where too few sizes were run."""
    if len(curve.sizes) < _FEWEST_SIZES:
        return []
    beyond = curve.sizes[-1] * np.array(_BEYOND)
    values = extrapolate(curve.sizes, curve.estimate[None], beyond)[0]
    in_draws = extrapolate(curve.sizes, curve.drawn, beyond)
    entries = []
    for size, value, column in zip(beyond, values, in_draws.T, strict=True):
        auc = _quantiles(float(value), column) if curve.shown else no_interval(_ONE, float(value))
        entry = {"arm": arm, "size": int(size), "episodes": episodes, "extrapolated": True}
        entries.append({**entry, "auc": auc})
    return entries


def _quantiles(estimate: float, draws: Float) -> dict[str, Any]:
    """95 % of the draws; they are skewed where the law meets 1."""
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(estimate) or len(finite) < 0.9 * len(draws):
        return no_interval("not estimable: too few draws can be fitted")
    low, high = np.quantile(finite, [0.025, 0.975])
    return {"estimate": estimate, "low": float(max(0.0, low)), "high": float(min(1.0, high))}


def _at_prevalence(scores: Scores) -> Scores:
    """Probabilities of a balanced draw, adjusted to the prevalence of the test images."""
    share = scores.prevalence
    return (
        replace(scores, logit=adjust_prevalence(scores.logit, 0.5, share))
        if 0 < share < 1
        else scores
    )


def _without_interval(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "low": None, "high": None, "reason": value.get("reason", _ONE)}


def _with_episodes(auc: DrawnMetric, rng: np.random.Generator) -> Float:
    """Draws of the mean that vary as its interval says, over patients and between episodes."""
    draws = auc.mean
    shared, *between = auc.parts if len(auc.draws) > 1 else auc.models_alone
    spread = float(np.nanstd(draws))
    rescaled = auc.value + (draws - np.nanmean(draws)) * (
        np.sqrt(shared.variance) / spread if spread > 0 else 1.0
    )
    for part in between:
        rescaled = rescaled + np.sqrt(part.variance) * rng.standard_t(part.freedom, len(rescaled))
    return np.asarray(rescaled, np.float64)


def _slope(scores: Scores, draws: Draws) -> dict[str, Any]:
    return estimate(
        scores, draws.codes(scores.patients), len(draws.patients), influence.slope
    ).interval(widest=WIDEST)


def match_sizes(curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """How many patients per class an arm needs for the AUC that another reaches with fewer, by its
    fitted power law.

    Returns:
        Entries `arm, to_match, size, needed, within`: `needed` with its interval, whose parts are
        None where the law never gets there; `within` says whether the estimate lies within four
        times the largest size that was run. Only where the other arm is ahead.
    """
    matches = []
    for arm, other in permutations(curves, 2):
        a, b = curves[arm], curves[other]
        if len(a.sizes) < _FEWEST_SIZES:
            continue
        level, rise, power = _fit(a.sizes, np.concatenate([a.estimate[None], a.drawn]))
        for column, size in enumerate(b.sizes):
            goals = np.concatenate([b.estimate[None], b.drawn])[:, column]
            at_size = a.estimate[a.sizes == size]
            if len(at_size) and at_size[0] >= goals[0]:
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                needed = np.where(goals < level, (rise / (level - goals)) ** (1 / power), np.inf)
            needed = np.where(np.isfinite(goals) & np.isfinite(level), needed, np.nan)
            drawn = np.sort(needed[1:][~np.isnan(needed[1:])])
            if not len(drawn) or np.isnan(needed[0]):
                continue
            bounds = [drawn[int(q * (len(drawn) - 1))] for q in (0.025, 0.975)]
            parts = dict(zip(("estimate", "low", "high"), [needed[0], *bounds], strict=True))
            entry = {
                name: float(value) if np.isfinite(value) and value < 1e6 else None
                for name, value in parts.items()
            }
            if not (a.shown and b.shown):
                entry |= {"low": None, "high": None}
            within = bool(needed[0] <= _BEYOND[-1] * a.sizes[-1])
            matches.append(
                {
                    "arm": arm,
                    "to_match": other,
                    "size": int(size),
                    "needed": entry,
                    "within": within,
                    "shown": a.shown and b.shown,
                }
            )
    return matches


def extrapolate(sizes: Float, values: Float, beyond: Float) -> Float:
    """Least squares of a - b n^-c with b not below 0 and a not above 1, read at other sizes.

    Args:
        sizes: (size,), ascending.
        values: (curve, size).
        beyond: (place,), where to read.

    Returns:
        (curve, place); NaN for a curve that holds NaN.
    """
    level, rise, power = _fit(sizes, values)
    return np.asarray(level[:, None] - rise[:, None] * beyond ** -power[:, None], np.float64)


def _fit(sizes: Float, values: Float) -> tuple[Float, Float, Float]:
    """The parameters a, b and c of every curve, (curve,) each."""
    best = np.full(len(values), np.inf)
    parameters = np.full((3, len(values)), np.nan)
    for exponent in _EXPONENTS:
        x = -(sizes**-exponent)
        slope = np.maximum(
            0.0,
            ((values - values.mean(1, keepdims=True)) @ (x - x.mean()))
            / np.square(x - x.mean()).sum(),
        )
        level = values.mean(1) - slope * x.mean()
        # Where the ceiling is met, the best line that ends there.
        above = level > 1.0
        slope = np.where(above, np.maximum(0.0, ((values - 1.0) @ x) / np.square(x).sum()), slope)
        level = np.minimum(level, 1.0)
        error = np.square(values - (level[:, None] + slope[:, None] * x)).sum(1)
        better = error < best
        best[better] = error[better]
        parameters[:, better] = np.stack(
            [level[better], slope[better], np.full(int(better.sum()), exponent)]
        )
    return parameters[0], parameters[1], parameters[2]


def describe_curve(entries: list[dict[str, Any]], matches: list[dict[str, Any]]) -> list[str]:
    """One sentence per arm on what more patients would bring, then one per pair of arms on how many
    patients would make them equal.
    """
    sentences = []
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        of_arm = [
            entry
            for entry in entries
            if entry["arm"] == arm and entry["auc"]["estimate"] is not None
        ]
        measured, extrapolated = (
            [entry for entry in of_arm if entry["extrapolated"] == kind] for kind in (False, True)
        )
        if not measured:
            continue
        last = measured[-1]
        text = (
            f"Learning curve of {arm}: AUC {last['auc']['estimate']:.3f} with {last['size']} "
            "patients per class"
        )
        if extrapolated:
            auc = extrapolated[-1]["auc"]
            text += (
                f"; about {format_interval(auc)} is to be expected with "
                f"{extrapolated[-1]['size']}, if it goes on as it began"
            )
        sentences.append(text + ".")
    largest: dict[tuple[str, str], dict[str, Any]] = {}
    for match in matches:
        largest[match["arm"], match["to_match"]] = match
    return sentences + [_describe_match(match) for match in largest.values()]


def _describe_match(match: dict[str, Any]) -> str:
    needed = match["needed"]
    goal = (
        f"To match {match['to_match']} trained on {match['size']} patients per class, "
        f"{match['arm']}"
    )
    high = (
        "no number that this cohort can tell" if needed["high"] is None else f"{needed['high']:.0f}"
    )
    if not match["within"]:
        at_least = (
            "" if needed["low"] is None else f" (at least {needed['low']:.0f}, by its interval)"
        )
        return f"{goal} would need more patients than this cohort can tell{at_least}."
    if not match.get("shown", True):
        return (
            f"{goal} would need about {needed['estimate']:.0f}; one draw of each size gives no "
            "interval."
        )
    return (
        f"{goal} would need about {needed['estimate']:.0f} (95 % interval {needed['low']:.0f} to "
        f"{high})."
    )
