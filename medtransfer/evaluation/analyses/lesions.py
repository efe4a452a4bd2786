"""How well lesions are found: FROC, average precision, sensitivity by size, and arm against arm.

Candidates are ranked within a model (a seed and a fold) and on the images that it tested; figures
are means over models, weighted by their lesions. Intervals are those of a bootstrap over patients,
the same draws for all arms; see `resample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
from medtransfer.evaluation.analyses.detections import (
    Criterion,
    count_lesions,
    gather_detections,
)
from medtransfer.evaluation.analyses.one_detector import describe_detections, measure_detector
from medtransfer.evaluation.intervals.draws import Draws, strata_of
from medtransfer.evaluation.intervals.resample import DrawnMetric
from medtransfer.evaluation.metrics.matching import Rule, by_image
from medtransfer.evaluation.sentences.verdict import verdict
from medtransfer.evaluation.sentences.words import AP_50
from medtransfer.evaluation.tables.candidates import coordinates, read_candidates, read_lesions
from medtransfer.evaluation.tables.correspondence import (
    account_of,
    owners,
    refuse_strangers,
    sort_owners,
)
from medtransfer.evaluation.tables.predictions import read_predictions

# Metrics that are compared between arms.
COMPARED = ("ap_50", "ap_10", "map", "sensitivity_1", "cpm")


@dataclass(frozen=True)
class _Choices:
    """How detectors are evaluated.

    Attributes:
        bootstrap: number of draws.
        seed: of the draws.
        criterion: when a candidate is a hit.
        arms: in this order; others follow by name.
        levelled: arms that were trained until level.
    """

    bootstrap: int
    seed: int
    criterion: Criterion
    arms: tuple[str, ...]
    levelled: tuple[str, ...]


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
        candidates: see `read_candidates`.
        lesions: see `read_lesions`.
        bootstrap: number of draws.
        seed: of the draws.
        hit: when a candidate is a hit in FROC, sensitivities and calibration; see `Criterion`.
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
        Path(table).name if isinstance(table, (str, Path)) else word
        for table, word in ((candidates, "candidates"), (lesions, "lesions"))
    ]
    levelled = levelled_arms(tested)
    refuse_later_candidates(levelled, detections)
    (main_rows, early_rows), (main_detections, early_detections) = (
        split_budgets(table, levelled) for table in (tested, detections)
    )
    choices = _Choices(bootstrap, seed, Criterion(hit, overlap), tuple(arms), tuple(levelled))
    report = _evaluate(main_rows, main_detections, boxes, choices)
    report |= {
        "accounts": [
            account.to_dict() for account in account_of(tested, detections, boxes, *names)
        ],
        "at_budget": None,
    }
    if detections.attrs.get("scored"):
        for entry in report["arms"].values():
            entry["calibration"] = entry["calibration"] and {
                **entry["calibration"],
                "brier_as_trained": None,
            }
    if levelled:
        early = _evaluate(early_rows, early_detections, boxes, choices, at_budget=True)
        report["at_budget"] = {name: early[name] for name in ("arms", "comparisons")}
    return report


def _evaluate(
    tested: pd.DataFrame,
    detections: pd.DataFrame,
    lesions: pd.DataFrame,
    choices: _Choices,
    at_budget: bool = False,
) -> dict[str, Any]:
    """The report without accounts.

    Args:
        tested: predictions, see `evaluate_boxes`.
        detections: candidates.
        lesions: boxes.
        choices: how they are evaluated.
        at_budget: arms are as they were at the end of the budget; see `compare_arms`.
    """
    test = tested[tested["part"] == "test"].drop_duplicates(["arm", "seed", "image"])
    names = sorted(test["arm"].unique())
    if not names:
        raise PredictionsError(
            "the predictions have no test rows. Leave the column part out, or call test rows test."
        )
    arms = list(dict.fromkeys((*(arm for arm in choices.arms if arm in names), *names)))
    detections = detections if "fold" in detections.columns else detections.assign(fold=0)
    if set(detections["arm"]) == {"model"} and len(arms) == 1:  # a table without the column
        detections = detections.assign(arm=arms[0])
    refuse_strangers(detections, tested, test, lesions)
    owner = sort_owners(owners(test, arms), detections, lesions)
    patients = np.array([*dict.fromkeys(owner.values())], object)
    strata = strata_of(test, patients) if "fold" in test.columns else None
    draws = Draws(patients, choices.bootstrap, choices.seed, strata)
    truth_of = by_image(list(owner), lesions, coordinates(lesions))
    truth = count_lesions(truth_of, owner, draws)
    if not truth.lesions.sum():
        raise PredictionsError("no test image has a lesion box, so nothing can be found.")
    models = {
        arm: gather_detections(
            detections[detections["arm"] == arm],
            tested[tested["arm"] == arm],
            lesions,
            truth_of,
            draws,
            choices.criterion,
        )
        for arm in arms
    }
    drawn = {arm: measure_detector(seeds, truth, draws) for arm, seeds in models.items()}
    entries = {arm: describe_detections(drawn[arm], models[arm], truth) for arm in arms}
    return {
        "images": len(owner),
        "patients": len(patients),
        "lesions": int(truth.lesions.sum()),
        "without": sum(not len(boxes) for boxes in truth_of.values()),
        "hit": choices.criterion.to_dict(),
        "arms": entries,
        "comparisons": _compare(drawn, entries, choices.levelled, at_budget),
    }


def _compare(
    drawn: Mapping[str, Mapping[str, DrawnMetric]],
    entries: Mapping[str, Any],
    levelled: Sequence[str],
    at_budget: bool,
) -> list[dict[str, Any]]:
    """Compares every pair of detectors; only the difference in AP50 is tested."""
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
