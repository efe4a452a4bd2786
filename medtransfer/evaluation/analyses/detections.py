"""The candidates of detectors by model, matched to the lesions of the images that it tested and
calibrated on tune candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.metrics.boxes import OVERLAPS, Detections, Truth, sort_candidates
from medtransfer.evaluation.metrics.matching import Rule, by_image, match
from medtransfer.evaluation.metrics.recalibration import Map, fit_maps
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.candidates import coordinates

# With fewer hits, or fewer false positives, candidates are not calibrated.
_FEWEST = 10


@dataclass(frozen=True)
class Criterion:
    """When a candidate is a hit.

    Attributes:
        rule: `overlap`, or `centre` (of the candidate within the box).
        overlap: least intersection over union of a hit, above 0, at most 1; without effect on the
            rule `centre`.
    """

    rule: Rule = "overlap"
    overlap: float = 0.5

    def match(self, candidates: Float, lesions: Float) -> Int:
        """The lesion that each candidate of an image finds, (candidate,), or -1.

        Args:
            candidates: (candidate, 2 x axes + 1), boxes and logits.
            lesions: (lesion, 2 x axes).
        """
        return match(candidates[:, :-1], candidates[:, -1], lesions, self.overlap, self.rule)

    def to_dict(self) -> dict[str, Any]:
        """As the report names it."""
        return {"rule": self.rule, "overlap": self.overlap if self.rule == "overlap" else None}


def count_lesions(truth_of: Mapping[str, Float], owner: Mapping[str, str], draws: Draws) -> Truth:
    """The test images and their lesions, by patient.

    Args:
        truth_of: by image, its lesions (lesion, 2 x axes).
        owner: by image, its patient.
        draws: names the patients.
    """
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


def gather_detections(
    detections: pd.DataFrame,
    rows: pd.DataFrame,
    lesions: pd.DataFrame,
    truth_of: Mapping[str, Float],
    draws: Draws,
    criterion: Criterion,
) -> list[list[Detections]]:
    """The candidates of every model of an arm, by seed, then by fold.

    Args:
        detections: candidates of the arm.
        rows: its predictions, which say what each model tested and tuned on.
        lesions: of all images.
        truth_of: by test image, its lesions (lesion, 2 x axes).
        draws: names the patients.
        criterion: when a candidate is a hit.
    """
    columns = [*coordinates(lesions), "logit"]
    rows = rows if "fold" in rows.columns else rows.assign(fold=0)
    test = rows[rows["part"] == "test"].drop_duplicates(["seed", "image"])
    counts = [len(boxes) for boxes in truth_of.values()]
    first_lesion = dict(zip(truth_of, np.cumsum([0, *counts])[:-1], strict=True))
    maps = _calibrate(detections, rows, lesions, columns, criterion)
    seeds = []
    for seed, of_seed in test.groupby("seed", sort=True):
        candidates = detections[(detections["seed"] == seed) & (detections["part"] == "test")]
        boxes_of = by_image(of_seed["image"].tolist(), candidates, columns)
        models = []
        for fold, tests in of_seed.groupby("fold", sort=True):
            calibrated = maps.get((seed, fold), _leave_uncalibrated)
            parts = []
            for image, patient in zip(tests["image"], tests["patient"].astype(str), strict=True):
                boxes, score = boxes_of[image][:, :-1], boxes_of[image][:, -1]
                hits = np.stack(
                    [match(boxes, score, truth_of[image], t) >= 0 for t in OVERLAPS], -1
                )
                lesion = criterion.match(boxes_of[image], truth_of[image])
                number = np.where(lesion >= 0, first_lesion[image] + lesion, -1)
                place = np.full(len(score), draws.place[patient])
                parts.append((score, place, hits, number, calibrated(score)))
            tested = np.zeros(len(draws.patients), bool)
            tested[draws.codes(tests["patient"].astype(str).to_numpy(object))] = True
            arrays = (np.concatenate(column) for column in zip(*parts, strict=True))
            models.append(sort_candidates(tested, *arrays))
        seeds.append(models)
    return seeds


def _calibrate(
    detections: pd.DataFrame,
    rows: pd.DataFrame,
    lesions: pd.DataFrame,
    columns: list[str],
    criterion: Criterion,
) -> dict[Any, Callable[[Float], Float]]:
    """For every model, Platt's map from logits to probabilities that a candidate is a lesion; see
    `tuning`.

    Fitted on the tune candidates of all models, but for those of patients that the model tests.
    """
    tune = detections[detections["part"] == "tune"]
    # Candidates of an image that a model did not tune on are of another model, as where a table
    # names no folds.
    tuned = rows.loc[rows["part"] == "tune", ["seed", "fold", "image"]].drop_duplicates()
    tune = tune.merge(tuned, on=["seed", "fold", "image"]) if len(tuned) else tune
    if tune.empty:
        return {}
    lesions_of = by_image(list(dict.fromkeys(tune["image"])), lesions, columns[:-1])
    owner = dict(zip(rows["image"], rows["patient"], strict=True))
    numbers, parts = {}, []
    for number, (key, of_model) in enumerate(tune.groupby(["seed", "fold"], sort=True)):
        numbers[key] = number
        for image, candidates in of_model.groupby("image", sort=False):
            values, count = candidates[columns].to_numpy(float), len(candidates)
            hit = criterion.match(values, lesions_of[str(image)]) >= 0
            patient = [owner.get(image, image)] * count
            parts.append((values[:, -1], hit, np.full(count, number), patient, [image] * count))
    score, hit, model, patients, images = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    models = (
        pd.DataFrame({"image": images, "model": model})
        .groupby("image")["model"]
        .transform("nunique")
        .to_numpy(float)
    )
    maps: dict[Any, Callable[[Float], Float]] = {}
    for key, of_model in rows[rows["part"] == "test"].groupby(["seed", "fold"]):
        allowed = ~np.isin(patients, of_model["patient"].unique())
        if min(hit[allowed].sum(), (~hit[allowed]).sum()) < _FEWEST:
            continue
        fitted = fit_maps(
            "platt", score[allowed], hit[allowed].astype(int), 1 / models[allowed], model[allowed]
        )
        recalibration = fitted.get(numbers.get(key, -1), fitted[-1])
        maps[key] = partial(_apply, recalibration)
    return maps


def _apply(recalibration: Map, logit: Float) -> Float:
    return np.asarray(expit(recalibration.apply(logit)), np.float64)


def _leave_uncalibrated(logit: Float) -> Float:
    return np.full(len(logit), np.nan)
