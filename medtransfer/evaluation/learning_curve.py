"""How results grow with the number of patients: AUC by size, a careful look beyond the largest, and how many make two arms equal."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import discrimination as dis
from medtransfer.evaluation import influence
from medtransfer.evaluation.resample import Drawn, Draws, Metric, Question, draw_values, make_drawn
from medtransfer.evaluation.scores import Scores, align_scores
from medtransfer.evaluation.summary import WIDEST

Float = NDArray[np.float64]
# Exponents of the power law that are tried: errors of estimates fall with 1/2, learning mostly slower.
_EXPONENTS = np.linspace(0.1, 1.5, 29)
_FEWEST_SIZES, _BEYOND = 3, (2, 4)
_METRICS: dict[str, Metric] = {"auc": dis.weighted_auc, "brier": cal.weighted_brier, "log_loss": cal.weighted_log_loss}


@dataclass(frozen=True, eq=False)
class Curve:
    """AUCs of an arm by size: (size,), estimated (size,), and in the draws (draw, size)."""

    sizes: Float
    estimate: Float
    drawn: Float


def learning_curve(table: pd.DataFrame, bootstrap: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One entry per arm and size, then two per arm beyond its largest size; and what one arm needs to match another.

    AUC, Brier score and log-loss are means over folds and episodes of those within a fold, as scores of different small models are
    not comparable. Intervals: bootstrap over patients, plus the variance between episodes. Beyond: a power law a - b n^-c with a of at
    most 1 (Hestness et al. 2017, arXiv:1712.00409), fitted to the estimates and to every draw; its interval holds sampling,
    not that the law may be wrong.

    Args:
        table: predictions with `size` above 0.
        bootstrap, seed: number and seed of the draws.

    Returns:
        Entries `arm, size, episodes, extrapolated, auc`, and of sizes that were run `brier, log_loss, slope`; and, see `match_sizes`,
        entries `arm, to_match, size, needed, within`.
    """
    if table.empty:
        return [], []
    # Every seed of an episode is a draw of its own.
    pairs = {pair: number for number, pair in enumerate(sorted(set(zip(table["episode"], table["seed"], strict=True))))}
    table = table.assign(seed=[pairs[pair] for pair in zip(table["episode"], table["seed"], strict=True)])
    scores: list[Scores] = []
    sizes: list[int] = []
    for size in sorted(set(table["size"].tolist())):
        aligned, _ = align_scores(table[table["size"] == size])
        scores += aligned
        sizes += [size] * len(aligned)
    draws = Draws(np.unique(np.concatenate([s.patients for s in scores]).astype(str)).astype(object), bootstrap, seed)
    drawn = draw_values([Question(s, _METRICS, s.fold) for s in scores], draws)
    rng = np.random.default_rng([seed, 3])
    entries, curves = [], {}
    for arm in dict.fromkeys(s.arm for s in scores):
        mine = [i for i, s in enumerate(scores) if s.arm == arm]
        episodes = len(scores[mine[0]].seeds)
        for i in mine:
            found = {name: drawn[i][name].interval(least=0.0) for name in _METRICS}
            found["slope"] = _slope(scores[i], draws)
            entries.append({"arm": arm, "size": sizes[i], "episodes": episodes, "extrapolated": False, **found})
        places = np.array([sizes[i] for i in mine], float)
        estimate, columns = np.array([drawn[i]["auc"].value for i in mine]), [_with_episodes(drawn[i]["auc"], rng) for i in mine]
        curves[arm] = Curve(places, estimate, np.stack(columns, 1))
        if len(mine) >= _FEWEST_SIZES:
            beyond = places[-1] * np.array(_BEYOND)
            values, further = extrapolate(places, estimate[None], beyond)[0], extrapolate(places, curves[arm].drawn, beyond)
            for place, value, column in zip(beyond, values, further.T, strict=True):
                auc = make_drawn(np.array([value]), column).interval(least=0.0, greatest=1.0)
                entries.append({"arm": arm, "size": int(place), "episodes": episodes, "extrapolated": True, "auc": auc})
    return entries, match_sizes(curves)


def _with_episodes(auc: Drawn, rng: np.random.Generator) -> Float:
    """Draws over patients that vary as much again as episodes do."""
    moved = auc.draws
    for part in auc.between:
        moved = moved + np.sqrt(part.variance) * rng.standard_t(part.freedom, len(moved))
    return moved


def _slope(scores: Scores, draws: Draws) -> dict[str, Any]:
    codes = draws.codes(scores.patients)
    return influence.estimate(scores.logit, scores.target, scores.weight, codes, len(draws.patients), influence.slope).interval(
        widest=WIDEST
    )


def match_sizes(curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """How many patients per class an arm needs for the AUC that another reaches with fewer, by its fitted power law.

    Returns:
        Entries `arm, to_match, size, needed, within`: `needed` with its interval, whose parts are None where the law never gets
        there; `within` says whether the estimate lies within four times the largest size that was run. Only where the other arm is ahead.
    """
    found = []
    for arm, other in permutations(curves, 2):
        a, b = curves[arm], curves[other]
        if len(a.sizes) < _FEWEST_SIZES:
            continue
        level, rise, power = _fit(a.sizes, np.concatenate([a.estimate[None], a.drawn]))
        for column, size in enumerate(b.sizes):
            goals = np.concatenate([b.estimate[None], b.drawn])[:, column]
            mine = a.estimate[a.sizes == size]
            if len(mine) and mine[0] >= goals[0]:
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                needed = np.where(goals < level, (rise / (level - goals)) ** (1 / power), np.inf)
            needed = np.where(np.isfinite(goals) & np.isfinite(level), needed, np.nan)
            drawn = np.sort(needed[1:][~np.isnan(needed[1:])])
            if not len(drawn) or np.isnan(needed[0]):
                continue
            bounds = [drawn[int(q * (len(drawn) - 1))] for q in (0.025, 0.975)]
            parts = dict(zip(("estimate", "low", "high"), [needed[0], *bounds], strict=True))
            entry = {name: float(value) if np.isfinite(value) and value < 1e6 else None for name, value in parts.items()}
            within = bool(needed[0] <= _BEYOND[-1] * a.sizes[-1])
            found.append({"arm": arm, "to_match": other, "size": int(size), "needed": entry, "within": within})
    return found


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
    """(curve,) each: a, b, c."""
    best = np.full(len(values), np.inf)
    found = np.full((3, len(values)), np.nan)
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
        found[:, better] = np.stack([level[better], slope[better], np.full(int(better.sum()), exponent)])
    return found[0], found[1], found[2]


def describe_curve(entries: list[dict[str, Any]], matches: list[dict[str, Any]]) -> list[str]:
    """Per arm one sentence: what more patients would bring; then per pair, how many would make the arms equal."""
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
    largest: dict[tuple[str, str], dict[str, Any]] = {}
    for match in matches:
        largest[match["arm"], match["to_match"]] = match
    return sentences + [_describe_match(match) for match in largest.values()]


def _describe_match(match: dict[str, Any]) -> str:
    needed = match["needed"]
    goal = f"To match {match['to_match']} trained on {match['size']} patients per class, {match['arm']}"
    high = "no number that this cohort can tell" if needed["high"] is None else f"{needed['high']:.0f}"
    if not match["within"]:
        at_least = "" if needed["low"] is None else f" (at least {needed['low']:.0f}, by its interval)"
        return f"{goal} would need more patients than this cohort can tell{at_least}."
    return f"{goal} would need about {needed['estimate']:.0f} (95 % interval {needed['low']:.0f} to {high})."
