"""What a reader has to know before quoting a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medtransfer.evaluation.predictions import CLIP
from medtransfer.evaluation.recalibration import Recalibrated
from medtransfer.evaluation.scores import Scores
from medtransfer.evaluation.settings import Settings

# Below so many patients of the smaller class a test set is small.
_SMALL = 100


def list_caveats(
    table: pd.DataFrame, scores: Sequence[Scores], recalibrated: Sequence[Recalibrated | None], settings: Settings
) -> list[str]:
    """Sentences about the test set, the seeds, the folds, and what could not be done."""
    first = scores[0]
    caveats = []
    smallest = min(len(set(first.patients[first.target == c])) for c in (0, 1))
    if smallest == 0:
        caveats.append(
            f"Every test image has target {first.target[0]}: nothing that compares the classes can be estimated, and the rest says little."
        )
    elif smallest < _SMALL:
        caveats.append(
            f"Small test set: {smallest} patients in the smaller class; calibration in particular needs about 200 of each class."
        )
    caveats += _about_seeds(scores)
    if len(np.unique(first.fold)) > 1:
        caveats.append(
            "Cross-validation: scores of different folds come from different models and are pooled; "
            "intervals are over patients, and do not hold the variation between training sets, of which the mean over folds gives an idea."
        )
    if any(arm.folds is None for arm in scores):
        caveats.append("The folds differ between seeds: every score is recalibrated and judged by the tune rows of its own seed and fold.")
    caveats += [
        f"{arm.arm}: not recalibrated, as not every seed and fold has tune rows of both classes."
        for arm, after in zip(scores, recalibrated, strict=True)
        if after is None
    ]
    if first.clustered:
        caveats.append("Several images per patient: figures are per image, intervals keep the images of a patient together.")
    if (first.weight != 1).any():
        caveats.append(
            "Images count by their weights, but not where recalibration, thresholds and sets are fitted, nor in the smooth curve."
        )
    extreme = int(((table["probability"] <= 0) | (table["probability"] >= 1)).sum())
    if extreme:
        decisions = " Where most are, they are decisions, of which calibration says little." if 2 * extreme > len(table) else ""
        caveats.append(
            f"{extreme} probabilities are exactly 0 or 1; without a logit they are taken as {CLIP:g} and {1 - CLIP:g}.{decisions}"
        )
    if settings.target_prevalence is not None:
        caveats.append(
            f"Predictive values are given for a prevalence of {settings.target_prevalence:g}; the probabilities here are for this "
            "cohort's, and have to be adjusted before they are used there (mt.adjust_prevalence)."
        )
    return caveats


def _about_seeds(scores: Sequence[Scores]) -> list[str]:
    images, seeds = len(scores[0].images), {len(arm.seeds) for arm in scores}
    caveats = []
    if min(seeds) == 1:
        caveats.append("One seed: the intervals do not hold the randomness of training. Five seeds are advisable below 2,000 images.")
    elif min(seeds) < 5 and images < 2000:
        caveats.append(
            f"{min(seeds)} seeds: the randomness of training is known from few draws only. Five are advisable below 2,000 images."
        )
    caveats += [
        f"{arm.arm}: all seeds give the same predictions, so nothing in its training is random, and more seeds show no more."
        for arm in scores
        if len(arm.seeds) > 1 and (arm.logit == arm.logit[0]).all()
    ]
    if len(scores) > 1 and len({arm.seeds for arm in scores}) > 1:
        alike = len({len(arm.seeds) for arm in scores}) == 1
        caveats.append(
            f"The arms have different seeds; they are paired over patients{', and in the order of the seeds' if alike else ' only'}."
        )
    return caveats
