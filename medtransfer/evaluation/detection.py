"""How well lesions are found: FROC, average precision, sensitivity by size, and arm against arm.

Intervals are those of a bootstrap over patients, the same draws for all arms; see `resample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.errors import PredictionsError, list_faults
from medtransfer.evaluation.candidates import coordinates, read_candidates, read_lesions
from medtransfer.evaluation.comparison import holm, isolate, verdict
from medtransfer.evaluation.matching import Rule, by_image, interpolate, match
from medtransfer.evaluation.predictions import read_predictions
from medtransfer.evaluation.recalibration import fit_map
from medtransfer.evaluation.resample import Drawn, Draws, make_drawn

Float = NDArray[np.float64]
# False positives per image at which the sensitivity is read; their mean is the CPM (van Ginneken et al. 2010,
# doi:10.1016/j.media.2010.05.005).
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Overlaps of the average precision by itself, and those whose mean is COCO's mAP.
ALONE = (0.1, 0.3, 0.5)
_COCO = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2))
OVERLAPS = tuple(sorted({*ALONE, *_COCO}))
# Compared between arms.
COMPARED = ("ap_50", "ap_10", "map", "sensitivity_1", "cpm")
_FEW, _SIZES, _BINS = 10, 3, 10


@dataclass(frozen=True, eq=False)
class Found:
    """The candidates of one arm and seed on its test images, in descending order of their scores.

    Attributes:
        score: (candidate,), logit. patient: (candidate,), number of the patient.
        hits: (candidate, overlap), whether it finds a lesion at each of `OVERLAPS`.
        hit: (candidate,), by the rule of the evaluation. lesion: (candidate,), number of that lesion, or -1.
        chance: (candidate,), calibrated probability of being a lesion; NaN where nothing could be fitted.
    """

    score: Float
    patient: NDArray[np.int64]
    hits: NDArray[np.bool_]
    hit: NDArray[np.bool_]
    lesion: NDArray[np.int64]
    chance: Float


@dataclass(frozen=True, eq=False)
class Truth:
    """The test images and their lesions.

    Attributes:
        images: (patient,), number of images. lesions: (patient,), number of lesions.
        owner: (lesion,), number of its patient. size: (lesion,), side of a square (or cube) as large, in pixels.
    """

    images: Float
    lesions: Float
    owner: NDArray[np.int64]
    size: Float


def evaluate_boxes(
    predictions: pd.DataFrame | str | Path,
    candidates: pd.DataFrame | str | Path,
    lesions: pd.DataFrame | str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
    hit: Rule = "overlap",
    overlap: float = 0.5,
) -> dict[str, Any]:
    """Evaluates detectors against lesion boxes.

    Args:
        predictions: which images, of which patients, each arm was tested on: `arm, seed, image, patient`, rows of part `test`;
            see `read_predictions`. Images without a candidate count too.
        candidates: see `read_candidates`. lesions: see `read_lesions`.
        bootstrap, seed: draws and their seed.
        hit: of FROC, of sensitivities and of what a candidate is calibrated for: `overlap`, or `centre` (of the candidate within the box).
        overlap: least intersection over union of a hit, above 0, at most 1.

    Returns:
        `images, patients, lesions, hit`; `arms.<arm>.{ap_10, ap_30, ap_50, map, cpm, sensitivity_1, froc, by_size, calibration}` and
        `comparisons[].{a, b, delta_..., verdict}`.

    Raises:
        PredictionsError: arms that were tested on different images, lesions of no test image alone, or faults of the tables.
    """
    if not 0 < overlap <= 1:
        raise PredictionsError(f"overlap is {overlap}; a share above 0, at most 1, is meant.")
    tested = predictions if isinstance(predictions, pd.DataFrame) else read_predictions(predictions)
    found = candidates if isinstance(candidates, pd.DataFrame) else read_candidates(candidates)
    boxes = lesions if isinstance(lesions, pd.DataFrame) else read_lesions(lesions)
    test = tested[tested["part"] == "test"].drop_duplicates(["arm", "seed", "image"])
    arms = list(dict.fromkeys(test["arm"]))
    if not arms:
        raise PredictionsError("the predictions have no test rows. Leave the column part out, or call test rows test.")
    if set(found["arm"]) == {"model"} and len(arms) == 1:  # a table without the column
        found = found.assign(arm=arms[0])
    _refuse_strangers(found, tested, test, boxes)
    owner = _owners(test, arms)
    patients = np.array(sorted(set(owner.values())), object)
    draws = Draws(patients, bootstrap, seed)
    columns = coordinates(boxes)
    images = list(owner)
    truth_of = by_image(images, boxes, columns)
    truth = _count(truth_of, owner, draws)
    if not truth.lesions.sum():
        raise PredictionsError("no test image has a lesion box, so nothing can be found.")
    all_found = {arm: _gather(found[found["arm"] == arm], test[test["arm"] == arm], truth_of, boxes, draws, hit, overlap) for arm in arms}
    drawn = {arm: _draw(rows, truth, draws) for arm, rows in all_found.items()}
    entries = {arm: _describe(drawn[arm], all_found[arm], truth) for arm in arms}
    seeds = min(len(rows) for rows in all_found.values())
    return {
        "images": len(images),
        "patients": len(patients),
        "lesions": int(truth.lesions.sum()),
        "without": sum(not len(own) for own in truth_of.values()),
        "hit": {"rule": hit, "overlap": overlap if hit == "overlap" else None},
        "arms": entries,
        "comparisons": _compare(drawn, entries, seeds),
    }


def _refuse_strangers(found: pd.DataFrame, tested: pd.DataFrame, test: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Candidates that belong to nothing would be left out without a word, and an arm be called blind."""
    faults = []
    for name in ("arm", "image"):
        strange = sorted(set(found[name].astype(str)) - set(tested[name].astype(str)))
        if strange:
            faults.append(f"{len(strange)} {name}(s) of the candidates are not in the predictions, such as {strange[0]}")
    pairs = [set(zip(table["arm"], table["seed"].astype(int), strict=True)) for table in (test, found)]
    silent = sorted(pairs[0] - pairs[1]) if len(found) and not faults else []
    faults += [f"{arm}, seed {seed}, has no candidate at all" for arm, seed in silent]
    if ("z0" in found.columns) != ("z0" in boxes.columns) and len(found):
        faults.append("of candidates and lesions one has z0 and z1 and the other has not")
    if faults:
        raise PredictionsError(list_faults("candidates and predictions do not fit each other", faults))


def _owners(test: pd.DataFrame, arms: Sequence[str]) -> dict[str, str]:
    """Patient of each image; the same images for all arms and seeds."""
    sets = {key: frozenset(rows["image"]) for key, rows in test.groupby(["arm", "seed"], sort=False)}
    if len(set(sets.values())) > 1:
        sizes = ", ".join(f"{arm}, seed {seed}: {len(images)}" for (arm, seed), images in sets.items())
        raise PredictionsError(f"the arms were tested on different images ({sizes}). Compare them on the same ones.")
    own = test[test["arm"] == arms[0]].drop_duplicates("image")
    return dict(zip(own["image"], own["patient"].astype(str), strict=True))


def _count(truth_of: Mapping[str, Float], owner: Mapping[str, str], draws: Draws) -> Truth:
    codes = draws.codes(np.array(list(owner.values()), object))
    counts = np.array([len(truth_of[image]) for image in owner])
    boxes = np.concatenate([truth_of[image] for image in owner])
    axes = boxes.shape[1] // 2
    size = np.prod(boxes[:, axes:] - boxes[:, :axes], -1) ** (1 / axes)
    total = len(draws.patients)
    return Truth(
        np.bincount(codes, minlength=total).astype(float),
        np.bincount(codes, counts, total).astype(float),
        np.repeat(codes, counts).astype(np.int64),
        size,
    )


def _gather(
    found: pd.DataFrame, test: pd.DataFrame, truth_of: Mapping[str, Float], boxes: pd.DataFrame, draws: Draws, rule: Rule, least: float
) -> list[Found]:
    """By seed."""
    columns = [*coordinates(boxes), "logit"]
    first = dict(zip(truth_of, np.cumsum([0, *(len(own) for own in truth_of.values())])[:-1], strict=True))
    all_boxes = by_image(list(dict.fromkeys(found["image"])), boxes, columns[:-1])
    seeds = []
    for seed, rows in test.groupby("seed", sort=True):
        own = found[found["seed"] == seed]
        calibrated = _calibrate(own, all_boxes, columns, rule, least)
        folds = dict(zip(rows["image"], rows["fold"], strict=True)) if "fold" in rows.columns else {}
        of_image = by_image(rows["image"].tolist(), own[own["part"] == "test"], columns)
        parts = []
        for image, name in zip(rows["image"], rows["patient"].astype(str), strict=True):
            boxed, score = of_image[image][:, :-1], of_image[image][:, -1]
            hits = np.stack([match(boxed, score, truth_of[image], t) >= 0 for t in OVERLAPS], -1)
            lesion = match(boxed, score, truth_of[image], least, rule)
            number = np.where(lesion >= 0, first[image] + lesion, -1)
            chance = calibrated.get(folds.get(image, 0), lambda z: np.full(len(z), np.nan))(score)
            parts.append((score, np.full(len(score), draws.place[name]), hits, number, chance))
        score, patient, hits, number, chance = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(-score, kind="stable")
        seeds.append(Found(score[order], patient[order], hits[order], number[order] >= 0, number[order], chance[order]))
    return seeds


def _calibrate(own: pd.DataFrame, boxes: Mapping[str, Float], columns: list[str], rule: Rule, least: float) -> dict[Any, Any]:
    """By fold, the map of Platt from logits to probabilities that a candidate is a lesion, fitted on tune candidates."""
    maps = {}
    for fold, rows in own[own["part"] == "tune"].groupby("fold"):
        images = list(dict.fromkeys(rows["image"]))
        of_image = by_image(images, rows, columns)
        hit = np.concatenate([match(of_image[i][:, :-1], of_image[i][:, -1], boxes[i], least, rule) >= 0 for i in images])
        score = np.concatenate([of_image[i][:, -1] for i in images])
        if min(hit.sum(), (~hit).sum()) >= _FEW:
            fitted = fit_map("platt", score, hit.astype(int))
            maps[fold] = lambda z, fitted=fitted: expit(fitted.apply(z))
    return maps


def _draw(seeds: list[Found], truth: Truth, draws: Draws) -> dict[str, Drawn]:
    """Every number and its draws, mean over seeds."""
    bins = _size_bins(truth)
    names = [*(f"ap_{round(100 * t)}" for t in OVERLAPS), *(f"rate_{rate}" for rate in RATES)]
    names += [*(f"size_{i}" for i in range(bins.max() + 1)), "expected", "observed"]
    whole = np.ones((1, len(truth.images)))
    by_seed = np.stack([_measure(found, truth, whole, bins)[0] for found in seeds])
    drawn = np.empty((draws.number, by_seed.shape[1]))
    widest = 4 * max(len(found.score) for found in seeds)
    for rows, counts in draws.chunks(widest):
        drawn[rows] = sum(_measure(found, truth, counts, bins) for found in seeds) / len(seeds)
    columns = {name: (by_seed[:, i], drawn[:, i]) for i, name in enumerate(names)}
    coco = [names.index(f"ap_{round(100 * t)}") for t in _COCO]
    rates = [names.index(f"rate_{rate}") for rate in RATES]
    columns["map"] = by_seed[:, coco].mean(1), drawn[:, coco].mean(1)
    columns["cpm"] = by_seed[:, rates].mean(1), drawn[:, rates].mean(1)
    columns["sensitivity_1"] = columns["rate_1.0"]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["observed_expected"] = tuple(o / e for o, e in zip(columns["observed"], columns["expected"], strict=True))
    return {name: make_drawn(*pair) for name, pair in columns.items()}


def _size_bins(truth: Truth) -> NDArray[np.int64]:
    """Thirds of the lesions by size, (lesion,), numbered from 0; fewer where many are equal."""
    size = truth.size.round(6)
    edges = np.quantile(size, np.arange(1, _SIZES) / _SIZES)
    return np.asarray(np.unique(np.searchsorted(edges, size, side="left"), return_inverse=True)[1], np.int64)


def _measure(found: Found, truth: Truth, counts: Float, bins: NDArray[np.int64]) -> Float:
    """(draw, number): see `_draw`; `counts` (draw, patient)."""
    weights = counts[:, found.patient]
    lesions, images = counts @ truth.lesions, counts @ truth.images
    precision = [interpolate(found.hits[:, place], weights, lesions) for place in range(len(OVERLAPS))]
    sensitivity = froc(found.score, found.hit, weights, lesions, images)
    # Of sizes, at the score that lets one false positive through on each image of the sample.
    least = least_score(found.score, found.hit, truth.images.sum())
    caught = np.zeros(len(truth.owner), bool)
    caught[found.lesion[(found.score >= least) & found.hit]] = True
    by_size = []
    for place in range(bins.max() + 1):
        weight = counts[:, truth.owner] * (bins == place)
        with np.errstate(invalid="ignore"):
            by_size.append((weight * caught).sum(1) / weight.sum(1))
    known = np.isfinite(found.chance)
    expected, observed = (weights[:, known] @ v[known] for v in (found.chance, found.hit.astype(float)))
    return np.stack([*precision, *sensitivity.T, *by_size, expected, observed], 1)


def froc(score: Float, hit: NDArray[np.bool_], weights: Float, lesions: Float, images: Float, rates: Sequence[float] = RATES) -> Float:
    """Sensitivity at rates of false positives per image, linear between the points of the curve, as MONAI's `compute_froc_score`.

    Args:
        score: (candidate,), descending. hit: whether it finds a lesion.
        weights: (draw, candidate). lesions, images: (draw,), how many there are.

    Returns:
        (draw, rate); NaN without lesions.
    """
    x, y = froc_curve(score, hit, weights, lesions, images)
    return np.stack([np.interp(rates, a, b) if len(a) else np.zeros(len(rates)) for a, b in zip(x, y, strict=True)])


def froc_curve(score: Float, hit: NDArray[np.bool_], weights: Float, lesions: Float, images: Float) -> tuple[Float, Float]:
    """False positives per image and sensitivity, (draw, point) each, from no candidate at all to all; see `froc`."""
    last = _last_of_ties(score)
    with np.errstate(divide="ignore", invalid="ignore"):
        false = np.cumsum(weights * ~hit, 1)[:, last] / images[:, None]
        true = np.cumsum(weights * hit, 1)[:, last] / lesions[:, None]
    start = np.zeros((len(weights), 1))
    return np.concatenate([start, false], 1), np.concatenate([start + 0 * lesions[:, None], true], 1)


def least_score(score: Float, hit: NDArray[np.bool_], images: float) -> float:
    """The lowest score down to which candidates bring one false positive per image at most; infinite where the first bring more.

    Args:
        score: (candidate,), descending. hit: whether it finds a lesion. images: how many there are.
    """
    last = _last_of_ties(score)
    few = last[np.cumsum(~hit)[last] <= images]
    return float(score[few[-1]]) if len(few) else np.inf


def _last_of_ties(score: Float) -> NDArray[np.int64]:
    """Places of the last candidate of each score, as those of one score are let through together."""
    return np.append(np.flatnonzero(np.diff(score)), len(score) - 1).astype(np.int64) if len(score) else np.zeros(0, np.int64)


def _describe(drawn: Mapping[str, Drawn], seeds: list[Found], truth: Truth) -> dict[str, Any]:
    bins = _size_bins(truth)
    sizes = [
        {
            "from": float(truth.size[bins == i].min()),
            "to": float(truth.size[bins == i].max()),
            "lesions": int((bins == i).sum()),
            "sensitivity": _share(drawn[f"size_{i}"]),
        }
        for i in range(bins.max() + 1)
    ]
    return {
        **{f"ap_{round(100 * t)}": _share(drawn[f"ap_{round(100 * t)}"]) for t in ALONE},
        "map": _share(drawn["map"]),
        "cpm": _share(drawn["cpm"]),
        "sensitivity_1": _share(drawn["sensitivity_1"]),
        "froc": {
            "rates": list(RATES),
            "sensitivity": [_share(drawn[f"rate_{rate}"]) for rate in RATES],
            "curve": _curve(seeds, truth),
        },
        "by_size": sizes,
        "candidates": round(float(np.mean([len(found.score) for found in seeds])), 1),
        "calibration": _describe_calibration(drawn, seeds),
    }


def _share(drawn: Drawn) -> dict[str, Any]:
    """A share with its interval."""
    found = drawn.interval(least=0.0, greatest=1.0)
    if str(found.get("reason", "")).startswith("not estimable"):
        found["reason"] = "not estimable: too few patients have such a lesion"
    return found


def _curve(seeds: list[Found], truth: Truth, points: int = 200) -> dict[str, list[float]]:
    """Mean over seeds of the sensitivity, on a grid that is even in the logarithm."""
    grid = np.concatenate([[0.0], np.geomspace(0.01, 10, points)])
    whole = (truth.lesions.sum(keepdims=True), truth.images.sum(keepdims=True))
    rows = [froc(f.score, f.hit, np.ones((1, len(f.score))), *whole, rates=tuple(grid))[0] for f in seeds]
    return {"false_positives": [float(v) for v in grid], "sensitivity": [float(v) for v in np.mean(rows, 0)]}


def _describe_calibration(drawn: Mapping[str, Drawn], seeds: list[Found]) -> dict[str, Any] | None:
    """Of candidates, after Platt's map; None where it could not be fitted on the tune part."""
    known = [np.isfinite(found.chance) for found in seeds]
    if not all(k.any() for k in known):
        return None
    chance = np.concatenate([found.chance[k] for found, k in zip(seeds, known, strict=True)])
    raw = np.concatenate([expit(found.score[k]) for found, k in zip(seeds, known, strict=True)])
    hit = np.concatenate([found.hit[k] for found, k in zip(seeds, known, strict=True)]).astype(float)
    order = np.argsort(chance, kind="stable")
    groups = [group for group in np.array_split(order, _BINS) if len(group)]
    return {
        "method": "platt",
        "observed_expected": drawn["observed_expected"].interval(least=0.0),
        "brier": float(np.mean((chance - hit) ** 2)),
        "brier_as_trained": float(np.mean((raw - hit) ** 2)),
        "curve": [{"expected": float(chance[g].mean()), "observed": float(hit[g].mean()), "candidates": len(g)} for g in groups],
    }


def _compare(drawn: Mapping[str, Mapping[str, Drawn]], entries: Mapping[str, Any], seeds: int) -> list[dict[str, Any]]:
    found = []
    for a, b in combinations(drawn, 2):
        entry: dict[str, Any] = {"a": a, "b": b}
        for name in COMPARED:
            difference = drawn[a][name] - drawn[b][name]
            entry[f"delta_{name}"] = {**difference.interval(least=-1.0, greatest=1.0), "p": difference.p_value()}
        found.append(entry)
    for entry, p in zip(found, holm([entry["delta_ap_50"]["p"] for entry in found]), strict=True):
        entry["delta_ap_50"]["p_holm"] = p
        first, second = (entries[entry[side]]["ap_50"]["estimate"] for side in "ab")
        words = ("delta_ap_50", "average precision at an overlap of 0.5", "finds lesions")
        entry["verdict"] = verdict(entry, first, second, len(found), seeds, *words)
    return found


def describe_arm(arm: str, entry: Mapping[str, Any]) -> str:
    """One sentence on what an arm finds."""
    ap, at_one = entry["ap_50"], entry["sensitivity_1"]

    def told(value: Mapping[str, Any], factor: int, digits: int, unit: str) -> str:
        if value["estimate"] is None:
            return str(value.get("reason", "not estimable"))
        shown = f"{factor * value['estimate']:.{digits}f}{unit}"
        return shown if value["low"] is None else f"{shown} ({factor * value['low']:.{digits}f} to {factor * value['high']:.{digits}f})"

    found = f"{isolate(arm)} finds {told(at_one, 100, 0, ' %')} of the lesions at one false positive per image"
    return f"{found}; average precision at an overlap of 0.5: {told(ap, 1, 3, '')}."
