"""Every number of one detector: average precision, FROC, sensitivity by size, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.resample import DrawnMetric, make_drawn_metric
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
)
from medtransfer.evaluation.tables.arrays import Int

# Names of the numbers, in the order of `measure_model`.
_AP = {overlap: f"ap_{round(100 * overlap)}" for overlap in OVERLAPS}
_RATE = {rate: f"rate_{rate}" for rate in RATES}
_BINS = 10


def measure_detector(
    seeds: list[list[Detections]], truth: Truth, draws: Draws
) -> dict[str, DrawnMetric]:
    """Every number by name with its draws, the mean over the models of a seed.

    Args:
        seeds: the models of every seed; see `gather_detections`.
        truth: the test images and their lesions.
        draws: of patients.
    """
    bins = size_bins(truth)
    names = [*_AP.values(), *_RATE.values()]
    names += [*(f"size_{i}" for i in range(bins.max() + 1)), "expected", "observed"]
    sample = np.ones((1, len(truth.images)))
    by_seed = np.stack([mean_of_models(models, truth, sample, bins)[0] for models in seeds])
    drawn = np.empty((len(seeds), draws.number, by_seed.shape[1]))
    widest = 4 * max(len(model.score) for models in seeds for model in models)
    for rows, counts in draws.chunks(widest):
        for seed, models in enumerate(seeds):
            drawn[seed, rows] = mean_of_models(models, truth, counts, bins)
    columns = {name: (by_seed[:, i], drawn[:, :, i]) for i, name in enumerate(names)}
    for name, parts in (("map", [_AP[t] for t in COCO]), ("cpm", [_RATE[rate] for rate in RATES])):
        places = [names.index(part) for part in parts]
        columns[name] = by_seed[:, places].mean(1), drawn[:, :, places].mean(2)
    columns["sensitivity_1"] = columns[_RATE[1.0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["observed_expected"] = (
            columns["observed"][0] / columns["expected"][0],
            columns["observed"][1] / columns["expected"][1],
        )
    freedom = float((truth.lesions > 0).sum() - 1)
    cells = _cells(seeds, truth, bins, names)
    return {
        name: make_drawn_metric(*pair, freedom, cells.get(name)) for name, pair in columns.items()
    }


def _cells(
    seeds: list[list[Detections]], truth: Truth, bins: Int, names: Sequence[str]
) -> dict[str, Cells]:
    """The figures of single models, where every seed has the same folds."""
    layouts = {b"".join(model.tested.tobytes() for model in models) for models in seeds}
    if len(layouts) > 1:
        return {}
    sample = np.ones((1, len(truth.images)))
    values = np.array(
        [[measure_model(model, truth, sample, bins)[0] for model in models] for models in seeds]
    )
    mass = np.array([truth.lesions[model.tested].sum() for model in seeds[0]])
    layout = hash(layouts.pop())
    of_rank = {
        name: Cells(values[:, :, i], mass, layout)
        for i, name in enumerate(names)
        if name.startswith(("ap_", "rate_"))
    }
    coco = np.mean([of_rank[_AP[overlap]].estimates for overlap in COCO], axis=0)
    rates = np.mean([of_rank[_RATE[rate]].estimates for rate in RATES], axis=0)
    return {
        **of_rank,
        "map": Cells(coco, mass, layout),
        "cpm": Cells(rates, mass, layout),
        "sensitivity_1": of_rank[_RATE[1.0]],
    }


def describe_detections(
    drawn: Mapping[str, DrawnMetric], seeds: list[list[Detections]], truth: Truth
) -> dict[str, Any]:
    """The entry of a detector in the report.

    Args:
        drawn: see `measure_detector`.
        seeds: the models of every seed; see `gather_detections`.
        truth: the test images and their lesions.
    """
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
        **{_AP[overlap]: _share(drawn[_AP[overlap]]) for overlap in ALONE},
        "map": _share(drawn["map"]),
        "cpm": _share(drawn["cpm"]),
        "sensitivity_1": _share(drawn["sensitivity_1"]),
        "froc": {
            "rates": list(RATES),
            "sensitivity": [_share(drawn[_RATE[rate]]) for rate in RATES],
            "curve": _curve(models, truth),
        },
        "by_size": sizes,
        "candidates": round(
            float(np.mean([sum(len(model.score) for model in of_seed) for of_seed in seeds])), 1
        ),
        "calibration": _describe_calibration(drawn, models),
        "pooled": _pooled(seeds, truth, bins) if len(models) > len(seeds) else None,
    }


def _share(drawn: DrawnMetric) -> dict[str, Any]:
    """A share with its interval."""
    interval = drawn.interval("logit", 0.0, 1.0)
    if str(interval.get("reason", "")).startswith("not estimable"):
        interval["reason"] = "not estimable: too few patients have such a lesion"
    return interval


def _pooled(seeds: list[list[Detections]], truth: Truth, bins: Int) -> dict[str, float]:
    """The metrics with one threshold for all models: their candidates are ranked together."""
    sample = np.ones((1, len(truth.images)))
    values = np.mean(
        [measure_model(pool_models(models), truth, sample, bins)[0] for models in seeds], axis=0
    )
    rates = slice(len(OVERLAPS), len(OVERLAPS) + len(RATES))
    return {_AP[overlap]: float(values[OVERLAPS.index(overlap)]) for overlap in ALONE} | {
        "cpm": float(values[rates].mean())
    }


def _curve(models: Sequence[Detections], truth: Truth, points: int = 200) -> dict[str, list[float]]:
    """The FROC curve: the mean sensitivity over models, weighted by their lesions, at rates of
    false positives that are evenly spaced on a logarithmic scale.
    """
    rates = np.concatenate([[0.0], np.geomspace(0.01, 10, points)])
    total, mass = np.zeros(len(rates)), 0.0
    for model in models:
        lesions = truth.lesions[model.tested].sum(keepdims=True)
        images = truth.images[model.tested].sum(keepdims=True)
        if lesions[0] > 0:
            weights = np.ones((1, len(model.score)))
            curve = froc(model.score, model.hit, weights, lesions, images, rates=tuple(rates))
            total += lesions[0] * curve[0]
            mass += float(lesions[0])
    return {
        "false_positives": [float(rate) for rate in rates],
        "sensitivity": [float(value) for value in total / mass],
    }


def _describe_calibration(
    drawn: Mapping[str, DrawnMetric], models: Sequence[Detections]
) -> dict[str, Any] | None:
    """Calibration of candidates after Platt's map; None where that could not be fitted on tune
    candidates.
    """
    chance = np.concatenate([model.chance for model in models])
    if not len(chance) or not np.isfinite(chance).all():
        return None
    raw = np.concatenate([expit(model.score) for model in models])
    hit = np.concatenate([model.hit for model in models]).astype(float)
    order = np.argsort(chance, kind="stable")
    groups = [group for group in np.array_split(order, _BINS) if len(group)]
    return {
        "method": "platt",
        "observed_expected": drawn["observed_expected"].interval("log"),
        "brier": float(np.mean((chance - hit) ** 2)),
        "brier_as_trained": float(np.mean((raw - hit) ** 2)),
        "curve": [
            {
                "expected": float(chance[group].mean()),
                "observed": float(hit[group].mean()),
                "candidates": len(group),
            }
            for group in groups
        ],
    }
