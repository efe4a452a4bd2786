"""What a reader has to know before quoting a number."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from medtransfer.evaluation.metrics.recalibration import RecalibratedArm
from medtransfer.evaluation.sentences.words import isolate
from medtransfer.evaluation.settings import Settings
from medtransfer.evaluation.tables.probabilities import exact_logit
from medtransfer.evaluation.tables.scores import Scores

# Below so many patients of the smaller class a test set is small.
_SMALL = 100
# So many patients with one positive row each are hardly so by chance.
_ROWS_ALIKE = 10


def list_caveats(
    table: pd.DataFrame,
    scores: Sequence[Scores],
    recalibrated: Sequence[RecalibratedArm | None],
    settings: Settings,
    covers: Collection[str],
) -> list[str]:
    """Sentences about the test set, the seeds, the folds, and what could not be done; `covers`:
    what the tested differences cover.
    """
    first = scores[0]
    caveats = []
    smallest = min(len(set(first.patients[first.target == c])) for c in (0, 1))
    if smallest == 0:
        caveats.append(
            f"Every test {settings.unit} has target {first.target[0]}: nothing that compares the "
            "classes can be estimated, and the rest "
            "says little."
        )
    elif smallest < _SMALL:
        caveats.append(
            f"Small test set: {smallest} patients in the smaller class; calibration in particular "
            "needs about 200 of each class."
        )
    caveats += _about_rows(table)
    if settings.unit == "patient" and settings.aggregate == "noisy_or":
        caveats.append(
            "Some patients have images of either target, so that labels are taken as those of "
            "images: a patient is positive where an image "
            "is, and the probability is that at least one image is (noisy-or). The order of "
            "patients then depends on how confident a model "
            "is. aggregate=mean takes labels as those of patients."
        )
    caveats += _about_seeds(scores, settings, covers)
    caveats += _about_models(scores, settings)
    if any(arm.folds is None for arm in scores):
        caveats.append(
            "The folds differ between seeds, so that the variation between trainings is known "
            "from the seeds alone."
        )
    caveats += [
        f"{arm.arm}: not recalibrated; that needs tune rows (part: tune) of both classes, of "
        "patients whom the model does not test."
        for arm, after in zip(scores, recalibrated, strict=True)
        if after is None and not arm.scored
    ]
    if named := [isolate(arm.arm) for arm in scores if arm.scored]:
        caveats.append(
            f"Scores, not probabilities: {', '.join(named)}. They are ranked; calibration, errors "
            "of probabilities, decision curves and "
            "recalibration are left out."
        )
    if first.clustered:
        caveats.append(
            "Several images per patient: figures are per image, intervals keep the images of a "
            "patient together."
        )
    if (first.weight != 1).any():
        caveats.append(
            "Images count by their weights, but not where recalibration, thresholds and sets are "
            "fitted, nor in the smooth curve."
        )
    limit = float(exact_logit(np.ones(1))[0])
    extreme = int(((table["logit"].abs() >= limit) & table["probability"].notna()).sum())
    if extreme:
        decisions = (
            " Where most are, they are decisions, of which calibration says little."
            if 2 * extreme > len(table)
            else ""
        )
        caveats.append(
            f"{extreme} probabilities are exactly 0 or 1, which have no logarithm: in the "
            "log-loss and in calibration each counts as a "
            f"logit of {limit:.0f} on its side, so that one that is wrong decides both.{decisions}"
        )
    if settings.target_prevalence is not None:
        caveats.append(
            "Decision curves, the threshold and the sizes for a validation are for a prevalence "
            f"of {settings.target_prevalence:g}; all "
            "other probabilities are for this cohort's, and have to be adjusted before they are "
            "used there (mt.adjust_prevalence)."
        )
    return caveats


def _about_rows(table: pd.DataFrame) -> list[str]:
    """Warnings about rows that look like copies, and about a target that looks like a column of
    classes.
    """
    test = table[table["part"] == "test"]
    caveats = []
    # Only images that were numbered for want of a name: two named images may look the same to a
    # model.
    numbered = [
        str(image).startswith(f"{patient}#")
        for image, patient in zip(test["image"], test["patient"], strict=True)
    ]
    copies = int(
        test[numbered]
        .duplicated(["arm", "seed", "fold", "patient", "label", "target", "logit"])
        .sum()
    )
    if copies:
        caveats.append(
            f"{copies} test rows say the same as another row of their patient. Are they copies? "
            "Each counts as an image."
        )
    rows = test.groupby(["arm", "seed", "label", "patient"], sort=False)["target"].agg(
        ["size", "sum"]
    )
    counts = set(rows["size"])
    if len(rows) >= _ROWS_ALIKE and len(counts) == 1 and counts != {1} and set(rows["sum"]) == {1}:
        caveats.append(
            f"Exactly one row in {counts.pop()} of every patient has target 1. If they are the "
            "classes of one image, name them in a column "
            "label."
        )
    return caveats


def _about_models(scores: Sequence[Scores], settings: Settings) -> list[str]:
    """Warnings that hold where several models tested the patients, and which of the models could
    not rank them.
    """
    first = scores[0]
    if len(np.unique(first.fold)) < 2:
        return []
    caveats = []
    if not settings.leave_out:
        caveats.append(
            "Cross-validation: scores of different models are never ranked against each other. "
            "The AUC is that of pairs within a model, "
            "averaged by the number of pairs; slopes have an intercept for each model; mean "
            "errors and curves of calibration are over all "
            "models, whose errors may cancel there."
        )
    without = sorted(
        {fold for _, fold, inside in first.cells if len(set(first.target[inside])) < 2}
    )
    if without:
        caveats.append(
            f"Fold {', '.join(map(str, without))}: only one class was tested, so it has no part "
            "in any AUC."
        )
    return caveats


def _about_seeds(
    scores: Sequence[Scores], settings: Settings, covers: Collection[str]
) -> list[str]:
    images, seeds = len(scores[0].images), {len(arm.seeds) for arm in scores}
    caveats = []
    folds = len(np.unique(scores[0].fold))
    if settings.models == "given":
        pass
    elif min(seeds) == 1:
        evidence = "nothing here shows it"
        if covers and "models" not in covers:
            parts = f"{settings.leave_out}s" if "sites" in covers else "folds"
            evidence = f"the difference between arms is judged by how the {folds} {parts} vary"
        caveats.append(
            "One seed: intervals of single arms are about these models, and do not hold the "
            f"randomness of training; {evidence}. Five seeds "
            "are advisable below 2,000 images."
        )
    elif min(seeds) < 5 and images < 2000:
        caveats.append(
            f"{min(seeds)} seeds: the randomness of training is known from few draws only. Five "
            "are advisable below 2,000 images."
        )
    caveats += [
        f"{arm.arm}: all seeds give the same predictions, so nothing in its training is random, "
        "and more seeds show no more."
        for arm in scores
        if len(arm.seeds) > 1 and (arm.logit == arm.logit[0]).all()
    ]
    if len(scores) > 1 and len({arm.seeds for arm in scores}) > 1:
        alike = len({len(arm.seeds) for arm in scores}) == 1
        caveats.append(
            "The arms have different seeds; they are paired over "
            f"patients{', and in the order of the seeds' if alike else ' only'}."
        )
    return caveats
