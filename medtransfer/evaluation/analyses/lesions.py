"""How well lesions are found: FROC, average precision, sensitivity by size, and arm against arm.

Candidates are ranked within a model (a seed and a fold) and on the images that it tested; figures
are means over models, weighted by their lesions. Intervals are those of a bootstrap over patients,
the same draws for all arms; see `resample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.budgets import (
    levelled_arms,
    refuse_later_candidates,
    split_budgets,
)
from medtransfer.evaluation.analyses.comparison import (
    describe_budgets,
    describe_test,
    holm,
    judged_by,
    pair_arms,
)
from medtransfer.evaluation.intervals.resample import Drawn, Draws, make_drawn, strata_of
from medtransfer.evaluation.intervals.variance import Cells
from medtransfer.evaluation.metrics.boxes import (
    ALONE,
    COCO,
    OVERLAPS,
    RATES,
    Detections,
    Truth,
    froc,
    mean_of_models,
    measure_model,
    pool_models,
    size_bins,
    sort_candidates,
)
from medtransfer.evaluation.metrics.matching import Rule, by_image, match
from medtransfer.evaluation.metrics.recalibration import fit_maps
from medtransfer.evaluation.sentences.verdict import verdict
from medtransfer.evaluation.sentences.words import AP_50
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.candidates import coordinates, read_candidates, read_lesions
from medtransfer.evaluation.tables.correspondence import (
    account_of,
    owners,
    refuse_strangers,
    sort_owners,
)
from medtransfer.evaluation.tables.predictions import read_predictions

# Compared between arms.
COMPARED = ("ap_50", "ap_10", "map", "sensitivity_1", "cpm")
_FEW, _BINS = 10, 10


def evaluate_boxes(
    predictions: pd.DataFrame | str | Path,
    candidates: pd.DataFrame | str | Path,
    lesions: pd.DataFrame | str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
    hit: Rule = "overlap",
    overlap: float = 0.5,
    arms: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates detectors against lesion boxes.

    Args:
        predictions: which images, of which patients, each arm was tested on: `arm, seed, image,
            patient`, rows of part `test`; see `read_predictions`. Images without a candidate count
            too.
        candidates: see `read_candidates`. lesions: see `read_lesions`.
        bootstrap, seed: draws and their seed.
        hit: of FROC, of sensitivities and of what a candidate is calibrated for: `overlap`, or
            `centre` (of the candidate within the box).
        overlap: least intersection over union of a hit, above 0, at most 1.
        arms: in this order; others follow by name.

    Returns:
        `images, patients, lesions, hit`; of every arm `ap_10, ap_30, ap_50, map, cpm,
        sensitivity_1, froc, by_size, calibration, pooled`, `comparisons[].{a, b, delta_...,
        verdict}`, and `at_budget`: arms and comparisons as they were at the end of the budget,
        where some were trained until level.

    Raises:
        PredictionsError: arms that were tested on different images, lesions of no test image alone,
            or faults of the tables.
    """
    if not 0 < overlap <= 1:
        raise PredictionsError(f"overlap is {overlap}; a share above 0, at most 1, is meant.")
    tested = predictions if isinstance(predictions, pd.DataFrame) else read_predictions(predictions)
    detections = candidates if isinstance(candidates, pd.DataFrame) else read_candidates(candidates)
    boxes = lesions if isinstance(lesions, pd.DataFrame) else read_lesions(lesions)
    names = [
        Path(of).name if isinstance(of, (str, Path)) else word
        for of, word in ((candidates, "candidates"), (lesions, "lesions"))
    ]
    levelled = levelled_arms(tested)
    refuse_later_candidates(levelled, detections)
    tables, early = zip(
        split_budgets(tested, levelled), split_budgets(detections, levelled), strict=True
    )
    found = _evaluate(*tables, boxes, bootstrap, seed, hit, overlap, levelled, arms)
    found |= {
        "accounts": [
            account.to_dict() for account in account_of(tested, detections, boxes, *names)
        ],
        "at_budget": None,
    }
    if detections.attrs.get("scored"):
        for entry in found["arms"].values():
            entry["calibration"] = entry["calibration"] and {
                **entry["calibration"],
                "brier_as_trained": None,
            }
    if not levelled:
        return found
    same = _evaluate(*early, boxes, bootstrap, seed, hit, overlap, levelled, arms, at_budget=True)
    return {**found, "at_budget": {name: same[name] for name in ("arms", "comparisons")}}


def _evaluate(
    tested: pd.DataFrame,
    detections: pd.DataFrame,
    boxes: pd.DataFrame,
    bootstrap: int,
    seed: int,
    hit: Rule,
    overlap: float,
    levelled: Sequence[str],
    order: Sequence[str],
    at_budget: bool = False,
) -> dict[str, Any]:
    """Of arms that were trained as long as they were; `at_budget`, and pairs without one of
    `levelled`: see `compare_arms`.
    """
    test = tested[tested["part"] == "test"].drop_duplicates(["arm", "seed", "image"])
    arms = [
        *dict.fromkeys(
            (*(name for name in order if name in set(test["arm"])), *sorted(test["arm"].unique()))
        )
    ]
    if not arms:
        raise PredictionsError(
            "the predictions have no test rows. Leave the column part out, or call test rows test."
        )
    detections = detections if "fold" in detections.columns else detections.assign(fold=0)
    if set(detections["arm"]) == {"model"} and len(arms) == 1:  # a table without the column
        detections = detections.assign(arm=arms[0])
    refuse_strangers(detections, tested, test, boxes)
    owner = sort_owners(owners(test, arms), detections, boxes)
    patients = np.array([*dict.fromkeys(owner.values())], object)
    draws = Draws(patients, bootstrap, seed, _strata(test, patients))
    columns = coordinates(boxes)
    images = list(owner)
    truth_of = by_image(images, boxes, columns)
    truth = _count(truth_of, owner, draws)
    if not truth.lesions.sum():
        raise PredictionsError("no test image has a lesion box, so nothing can be found.")
    about = [(detections[detections["arm"] == arm], tested[tested["arm"] == arm]) for arm in arms]
    models = {
        arm: _gather(*rows, truth_of, boxes, draws, hit, overlap)
        for arm, rows in zip(arms, about, strict=True)
    }
    drawn = {arm: _draw(rows, truth, draws) for arm, rows in models.items()}
    entries = {arm: _describe(drawn[arm], models[arm], truth) for arm in arms}
    return {
        "images": len(images),
        "patients": len(patients),
        "lesions": int(truth.lesions.sum()),
        "without": sum(not len(own) for own in truth_of.values()),
        "hit": {"rule": hit, "overlap": overlap if hit == "overlap" else None},
        "arms": entries,
        "comparisons": _compare(drawn, entries, levelled, at_budget),
    }


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
    detections: pd.DataFrame,
    rows: pd.DataFrame,
    truth_of: Mapping[str, Float],
    boxes: pd.DataFrame,
    draws: Draws,
    rule: Rule,
    least: float,
) -> list[list[Detections]]:
    """By seed, then by fold."""
    columns = [*coordinates(boxes), "logit"]
    rows = rows if "fold" in rows.columns else rows.assign(fold=0)
    test = rows[rows["part"] == "test"].drop_duplicates(["seed", "image"])
    first = dict(
        zip(
            truth_of,
            np.cumsum([0, *(len(of_image) for of_image in truth_of.values())])[:-1],
            strict=True,
        )
    )
    maps = _calibrate(
        detections,
        rows,
        by_image(list(dict.fromkeys(detections["image"])), boxes, columns[:-1]),
        columns,
        rule,
        least,
    )
    seeds = []
    for seed, of_seed in test.groupby("seed", sort=True):
        candidates = detections[(detections["seed"] == seed) & (detections["part"] == "test")]
        of_image = by_image(of_seed["image"].tolist(), candidates, columns)
        models = []
        for fold, tests in of_seed.groupby("fold", sort=True):
            calibrated = maps.get((seed, fold), lambda z: np.full(len(z), np.nan))
            parts = []
            for image, name in zip(tests["image"], tests["patient"].astype(str), strict=True):
                boxed, score = of_image[image][:, :-1], of_image[image][:, -1]
                hits = np.stack(
                    [match(boxed, score, truth_of[image], t) >= 0 for t in OVERLAPS], -1
                )
                lesion = match(boxed, score, truth_of[image], least, rule)
                number = np.where(lesion >= 0, first[image] + lesion, -1)
                parts.append(
                    (score, np.full(len(score), draws.place[name]), hits, number, calibrated(score))
                )
            tested = np.zeros(len(draws.patients), bool)
            tested[draws.codes(tests["patient"].astype(str).to_numpy(object))] = True
            models.append(
                sort_candidates(
                    tested, *(np.concatenate(column) for column in zip(*parts, strict=True))
                )
            )
        seeds.append(models)
    return seeds


def _calibrate(
    detections: pd.DataFrame,
    rows: pd.DataFrame,
    boxes: Mapping[str, Float],
    columns: list[str],
    rule: Rule,
    least: float,
) -> dict[Any, Any]:
    """By model, the map of Platt from logits to probabilities that a candidate is a lesion; see
    `tuning`.

    Fitted on the tune candidates of all models, but for those of patients that the model tests.
    """
    tune = detections[detections["part"] == "tune"]
    if tune.empty:
        return {}
    # Candidates of an image that a model did not tune on are of another model, as where a table
    # names no folds.
    tuned = rows.loc[rows["part"] == "tune", ["seed", "fold", "image"]].drop_duplicates()
    tune = tune.merge(tuned, on=["seed", "fold", "image"]) if len(tuned) else tune
    owner = dict(zip(rows["image"], rows["patient"], strict=True))
    numbers, parts = {}, []
    for number, (key, of_model) in enumerate(tune.groupby(["seed", "fold"], sort=True)):
        numbers[key] = number
        for image, of in of_model.groupby("image", sort=False):
            values = of[columns].to_numpy(float)
            hit = match(values[:, :-1], values[:, -1], boxes[str(image)], least, rule) >= 0
            parts.append(
                (
                    values[:, -1],
                    hit,
                    np.full(len(of), number),
                    [owner.get(image, image)] * len(of),
                    [image] * len(of),
                )
            )
    if not parts:
        return {}
    score, hit, model, patient, names = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    models = (
        pd.DataFrame({"image": names, "model": model})
        .groupby("image")["model"]
        .transform("nunique")
        .to_numpy(float)
    )
    maps = {}
    for key, of_model in rows[rows["part"] == "test"].groupby(["seed", "fold"]):
        allowed = ~np.isin(patient, of_model["patient"].unique())
        if min(hit[allowed].sum(), (~hit[allowed]).sum()) < _FEW:
            continue
        fitted = fit_maps(
            "platt", score[allowed], hit[allowed].astype(int), 1 / models[allowed], model[allowed]
        )
        own_map = fitted.get(numbers.get(key, -1), fitted[-1])
        maps[key] = lambda z, fitted=own_map: expit(fitted.apply(z))
    return maps


def _strata(test: pd.DataFrame, patients: NDArray[np.object_]) -> Int | None:
    """Fold of each patient; None where arms or seeds differ in it, or nothing is known of folds."""
    return strata_of(test, patients) if "fold" in test.columns else None


def _draw(seeds: list[list[Detections]], truth: Truth, draws: Draws) -> dict[str, Drawn]:
    """Every number and its draws, mean over the models of a seed."""
    bins = size_bins(truth)
    names = [*(f"ap_{round(100 * t)}" for t in OVERLAPS), *(f"rate_{rate}" for rate in RATES)]
    names += [*(f"size_{i}" for i in range(bins.max() + 1)), "expected", "observed"]
    whole = np.ones((1, len(truth.images)))
    by_seed = np.stack([mean_of_models(models, truth, whole, bins)[0] for models in seeds])
    drawn = np.empty((len(seeds), draws.number, by_seed.shape[1]))
    widest = 4 * max(len(model.score) for models in seeds for model in models)
    for rows, counts in draws.chunks(widest):
        for seed, models in enumerate(seeds):
            drawn[seed, rows] = mean_of_models(models, truth, counts, bins)
    columns = {name: (by_seed[:, i], drawn[:, :, i]) for i, name in enumerate(names)}
    coco = [names.index(f"ap_{round(100 * t)}") for t in COCO]
    rates = [names.index(f"rate_{rate}") for rate in RATES]
    columns["map"] = by_seed[:, coco].mean(1), drawn[:, :, coco].mean(2)
    columns["cpm"] = by_seed[:, rates].mean(1), drawn[:, :, rates].mean(2)
    columns["sensitivity_1"] = columns["rate_1.0"]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["observed_expected"] = tuple(
            o / e for o, e in zip(columns["observed"], columns["expected"], strict=True)
        )
    freedom = float((truth.lesions > 0).sum() - 1)
    cells = _cells(seeds, truth, bins, names)
    return {name: make_drawn(*pair, freedom, cells.get(name)) for name, pair in columns.items()}


def _cells(
    seeds: list[list[Detections]], truth: Truth, bins: Int, names: Sequence[str]
) -> dict[str, Cells]:
    """The figures of single models, where every seed has the same folds."""
    layouts = {b"".join(model.tested.tobytes() for model in models) for models in seeds}
    if len(layouts) > 1:
        return {}
    whole = np.ones((1, len(truth.images)))
    values = np.array(
        [[measure_model(model, truth, whole, bins)[0] for model in models] for models in seeds]
    )
    mass = np.array([truth.lesions[model.tested].sum() for model in seeds[0]])
    layout = hash(layouts.pop())
    of_rank = {
        name: Cells(values[:, :, i], mass, layout)
        for i, name in enumerate(names)
        if name.startswith(("ap_", "rate_"))
    }
    coco, rates = (
        [of_rank[name].estimates for name in wanted]
        for wanted in ([f"ap_{round(100 * t)}" for t in COCO], [f"rate_{r}" for r in RATES])
    )
    more = {
        "map": Cells(np.mean(coco, axis=0), mass, layout),
        "cpm": Cells(np.mean(rates, axis=0), mass, layout),
    }
    return {**of_rank, **more, "sensitivity_1": of_rank["rate_1.0"]}


def _describe(
    drawn: Mapping[str, Drawn], seeds: list[list[Detections]], truth: Truth
) -> dict[str, Any]:
    bins = size_bins(truth)
    sizes = [
        {
            "from": float(truth.size[bins == i].min()),
            "to": float(truth.size[bins == i].max()),
            "lesions": int((bins == i).sum()),
            "sensitivity": _share(drawn[f"size_{i}"]),
        }
        for i in range(bins.max() + 1)
    ]
    models = [model for of_seed in seeds for model in of_seed]
    return {
        **{f"ap_{round(100 * t)}": _share(drawn[f"ap_{round(100 * t)}"]) for t in ALONE},
        "map": _share(drawn["map"]),
        "cpm": _share(drawn["cpm"]),
        "sensitivity_1": _share(drawn["sensitivity_1"]),
        "froc": {
            "rates": list(RATES),
            "sensitivity": [_share(drawn[f"rate_{rate}"]) for rate in RATES],
            "curve": _curve(models, truth),
        },
        "by_size": sizes,
        "candidates": round(
            float(np.mean([sum(len(model.score) for model in of_seed) for of_seed in seeds])), 1
        ),
        "calibration": _describe_calibration(drawn, models),
        "pooled": _pooled(seeds, truth, bins) if len(models) > len(seeds) else None,
    }


def _share(drawn: Drawn) -> dict[str, Any]:
    """A share with its interval."""
    interval = drawn.interval("logit", 0.0, 1.0)
    if str(interval.get("reason", "")).startswith("not estimable"):
        interval["reason"] = "not estimable: too few patients have such a lesion"
    return interval


def _pooled(seeds: list[list[Detections]], truth: Truth, bins: Int) -> dict[str, float]:
    """With one threshold for all models: the candidates of all of them ranked together."""
    whole = np.ones((1, len(truth.images)))
    values = np.mean(
        [measure_model(pool_models(models), truth, whole, bins)[0] for models in seeds], axis=0
    )
    rates = slice(len(OVERLAPS), len(OVERLAPS) + len(RATES))
    return {f"ap_{round(100 * t)}": float(values[OVERLAPS.index(t)]) for t in ALONE} | {
        "cpm": float(values[rates].mean())
    }


def _curve(models: Sequence[Detections], truth: Truth, points: int = 200) -> dict[str, list[float]]:
    """Mean over models, weighted by their lesions, of the sensitivity, on a grid that is even in
    the logarithm.
    """
    grid = np.concatenate([[0.0], np.geomspace(0.01, 10, points)])
    total, mass = np.zeros(len(grid)), 0.0
    for f in models:
        lesions, images = (of[f.tested].sum(keepdims=True) for of in (truth.lesions, truth.images))
        if lesions[0] > 0:
            total += (
                lesions[0]
                * froc(
                    f.score, f.hit, np.ones((1, len(f.score))), lesions, images, rates=tuple(grid)
                )[0]
            )
            mass += float(lesions[0])
    return {
        "false_positives": [float(v) for v in grid],
        "sensitivity": [float(v) for v in total / mass],
    }


def _describe_calibration(
    drawn: Mapping[str, Drawn], models: Sequence[Detections]
) -> dict[str, Any] | None:
    """Of candidates, after Platt's map; None where it could not be fitted on tune candidates."""
    known = [np.isfinite(model.chance) for model in models]
    if not all(k.all() for k in known) or not sum(map(len, known)):
        return None
    chance = np.concatenate([model.chance[k] for model, k in zip(models, known, strict=True)])
    raw = np.concatenate([expit(model.score[k]) for model, k in zip(models, known, strict=True)])
    hit = np.concatenate([model.hit[k] for model, k in zip(models, known, strict=True)]).astype(
        float
    )
    order = np.argsort(chance, kind="stable")
    groups = [group for group in np.array_split(order, _BINS) if len(group)]
    return {
        "method": "platt",
        "observed_expected": drawn["observed_expected"].interval("log"),
        "brier": float(np.mean((chance - hit) ** 2)),
        "brier_as_trained": float(np.mean((raw - hit) ** 2)),
        "curve": [
            {
                "expected": float(chance[g].mean()),
                "observed": float(hit[g].mean()),
                "candidates": len(g),
            }
            for g in groups
        ],
    }


def _compare(
    drawn: Mapping[str, Mapping[str, Drawn]],
    entries: Mapping[str, Any],
    levelled: Sequence[str],
    at_budget: bool,
) -> list[dict[str, Any]]:
    """The difference in AP50 is the one that is tested."""
    comparisons = []
    for a, b in pair_arms(list(drawn), levelled, at_budget):
        entry: dict[str, Any] = {"a": a, "b": b, **describe_budgets((a, b), levelled, at_budget)}
        for name in COMPARED:
            difference = drawn[a][name] - drawn[b][name]
            entry[f"delta_{name}"] = {
                **difference.interval(least=-1.0, greatest=1.0, parts=judged_by(difference)),
                "p": None,
            }
        entry["delta_ap_50"] |= describe_test(drawn[a]["ap_50"] - drawn[b]["ap_50"])
        comparisons.append(entry)
    for entry, p in zip(
        comparisons, holm([entry["delta_ap_50"]["p"] for entry in comparisons]), strict=True
    ):
        entry["delta_ap_50"]["p_holm"] = p
        first, second = (entries[entry[side]]["ap_50"]["estimate"] for side in "ab")
        entry["verdict"] = verdict(entry, (first, second), len(comparisons), AP_50)
    return comparisons
