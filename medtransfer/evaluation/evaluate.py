"""From a predictions table to every number of the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.errors import PredictionsError
from medtransfer.evaluation import influence
from medtransfer.evaluation.caveats import list_caveats
from medtransfer.evaluation.comparison import Contestant, compare_arms
from medtransfer.evaluation.conformal import conformal_sets, describe_sets
from medtransfer.evaluation.discrimination import auc_interval
from medtransfer.evaluation.learning_curve import describe_curve, learning_curve
from medtransfer.evaluation.multilabel import exclude_each_other, recalibrate_classes, refuse_class_names, summarise_labels
from medtransfer.evaluation.outliers import describe_outliers
from medtransfer.evaluation.predictions import check_predictions, read_predictions
from medtransfer.evaluation.recalibration import Recalibrated, adjust_prevalence, recalibrate
from medtransfer.evaluation.resample import Draws, draw_values
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.evaluation.sample_size import advise
from medtransfer.evaluation.scores import Scores, align_scores, by_patient
from medtransfer.evaluation.settings import Settings
from medtransfer.evaluation.subgroups import describe_subgroups
from medtransfer.evaluation.summary import FEW_DRAWS, WIDEST, Evaluated, Measured, describe_recalibration, measure, summarise
from medtransfer.evaluation.utility import THRESHOLDS, decide, decision_curves, describe_decision


def evaluate(table: pd.DataFrame | str | Path, bootstrap: int = 2000, seed: int = 0, **choices: Any) -> EvaluationReport:
    """Evaluates the test rows of a predictions table.

    AUCs and all other metrics are computed over all test images together (folds pooled), per seed, and averaged over seeds.
    Intervals are 95 %: of AUC, Brier score, log-loss, intercept, slope and observed / expected, and of differences in them, from
    influences over patients; of all else by bootstrap over patients; the variance between seeds is added to both. What is fitted
    (recalibration, thresholds, prediction sets) is fitted per arm, seed and fold on its tune rows.

    Several labels are evaluated one by one (`labels` of the report) and on average.

    Args:
        table: as `predictions.check_predictions` describes it, or the path of such a CSV.
        bootstrap: number of draws, at least 100.
        seed: of the draws.
        **choices: other fields of `Settings`, such as `margin=0.05` or `subgroups=["site"]`.

    Raises:
        PredictionsError, LeakageError: a table that cannot be evaluated, or settings that are wrong.
    """
    known = vars(Settings())
    if strange := sorted(set(choices) - set(known)):
        raise PredictionsError(f"{', '.join(strange)}: no setting of an evaluation. There are: {', '.join(known)}.")
    if not isinstance(table, (str, Path, pd.DataFrame)):
        raise PredictionsError(f"the predictions are a {type(table).__name__}; give a DataFrame, or the path of a CSV.")
    settings = Settings(bootstrap, seed, **choices)
    keep = settings.subgroups
    weight = settings.weight
    table = read_predictions(table, keep, weight) if isinstance(table, (str, Path)) else check_predictions(table, keep=keep, weight=weight)
    unknown = table.attrs["unknown"]
    curve = table[table["size"] > 0] if "size" in table.columns else table.iloc[:0]
    table = table[table["size"] == 0] if "size" in table.columns else table
    if table.empty:
        raise PredictionsError(
            "every row is of a learning curve (size above 0). Give the predictions of the whole cohort too, with size 0."
        )
    labels = list(dict.fromkeys(table["label"]))
    patients = np.unique(table.loc[table["part"] == "test", "patient"].astype(str)).astype(object)
    draws = Draws(patients, bootstrap, seed)
    if len(labels) == 1:
        data = _evaluate_label(table, settings, draws).data
    else:
        refuse_class_names(table)
        # Of patients with images of several classes none is the one.
        exclusive = exclude_each_other(table if settings.unit == "image" else by_patient(table, settings.aggregate))
        again = recalibrate_classes(table) if exclusive else None
        parts = {}
        for label in labels:
            own = None if again is None else again[0][again[0]["label"] == label]
            parts[label] = _evaluate_label(table[table["label"] == label], settings, draws, own, exclusive)
        data = summarise_labels(parts, exclusive, draws, None if again is None else again[1], settings.margin)
        if exclusive and settings.recalibration != "auto":
            data["warnings"].append(
                f"recalibration={settings.recalibration} is for single labels; classes are recalibrated together, by vector scaling."
            )
        if len(curve):
            data["warnings"].append("Rows of a learning curve are left out: it is drawn for one label at a time.")
    growth, matches = learning_curve(curve, bootstrap, seed) if len(labels) == 1 else ([], [])
    warnings = [*data["warnings"], *([f"{unknown} rows have no target and are left out."] if unknown else [])]
    more = {"learning_curve": growth, "matching_sizes": matches, "growth": describe_curve(growth, matches), "shift": None}
    data |= {**more, "warnings": warnings}
    return EvaluationReport(data)


def _evaluate_label(
    table: pd.DataFrame, settings: Settings, draws: Draws, again: pd.DataFrame | None = None, exclusive: bool = False
) -> Evaluated:
    """All numbers of one label.

    `again`: the same rows after a recalibration of all classes together; `exclusive`: there is none but that.
    """
    images = table
    if settings.unit == "patient":
        table = by_patient(table, settings.aggregate)
        again = None if again is None else by_patient(again, settings.aggregate)
    scores, left_out = align_scores(table)
    tunes = [table[(table["arm"] == arm.arm) & (table["part"] == "tune")] for arm in scores]
    recalibrated = _recalibrated(scores, tunes, settings, again, exclusive)
    after = [r.scores for r in recalibrated if r is not None]
    measured = measure([*scores, *after], draws)
    raw = measured[: len(scores)]
    rest = iter(measured[len(scores) :])
    second = [next(rest) if r is not None else None for r in recalibrated]

    decisions = [decide(s, tune, r.scores if r else None, settings.aims) for s, tune, r in zip(scores, tunes, recalibrated, strict=True)]
    sets = [conformal_sets(s, tune, settings.coverage) for s, tune in zip(scores, tunes, strict=True)]
    asked = [d.question for own in decisions for d in own] + [question for question in sets if question is not None]
    answers = iter(draw_values(asked, draws))
    points = [[describe_decision(d, next(answers)["rates"]) for d in own] for own in decisions]
    covered = [None if q is None else describe_sets(q, next(answers)["sets"], settings.coverage) for q in sets]

    arms: dict[str, Any] = {}
    for s, one, two, r, own_points, own_sets in zip(scores, raw, second, recalibrated, points, covered, strict=True):
        entry = summarise(one, draws, s.arm)
        entry["recalibrated"] = None
        if r is not None and two is not None:
            entry["recalibrated"] = {**summarise(two, draws, f"{s.arm} after recalibration ({r.method})"), **describe_recalibration(r)}
        arms[s.arm] = {**entry, "operating_points": own_points, "prediction_sets": own_sets}
        rows = table[(table["arm"] == s.arm) & (table["part"] == "test")]
        arms[s.arm]["outliers"] = describe_outliers((two or one).scores, rows, draws)
    used = [two or one for one, two in zip(raw, second, strict=True)]
    first = scores[0]
    data = {
        **_describe_table(table, first, settings),
        "arms": arms,
        "comparisons": _compare(scores, raw, used, settings),
        "decision_curves": decision_curves([m.scores for m in used], [m.drawn["net_benefit"] for m in used]),
        "other_unit": _other_unit(images, settings, draws),
        "subgroups": _subgroups(table, scores, settings, draws),
        "external_validation": _advise(first, raw[0], used[0].scores, settings),
        "warnings": [*left_out, *list_caveats(table, scores, recalibrated, settings)],
    }
    return Evaluated(data, raw, second)


def _recalibrated(
    scores: Sequence[Scores], tunes: Sequence[pd.DataFrame], settings: Settings, again: pd.DataFrame | None, exclusive: bool
) -> list[Recalibrated | None]:
    if again is not None:
        by_arm = {s.arm: s for s in align_scores(again)[0]}
        return [
            Recalibrated(by_arm[s.arm].take(_rows_of(by_arm[s.arm], s)), "vector", {}, "the classes exclude each other") for s in scores
        ]
    if exclusive:  # maps of single classes would not add up to 1
        return [None] * len(scores)
    return [recalibrate(s, tune, settings.recalibration) for s, tune in zip(scores, tunes, strict=True)]


def _rows_of(scores: Scores, like: Scores) -> Any:
    place = {image: row for row, image in enumerate(scores.images)}
    return np.array([place[image] for image in like.images])


def _describe_table(table: pd.DataFrame, first: Scores, settings: Settings) -> dict[str, Any]:
    return {
        "label": str(table["label"].iloc[0]),
        "unit": settings.unit,
        "images": len(first.images),
        "positive_images": int(first.target.sum()),
        "patients": len(set(first.patients)),
        "seeds": len(first.seeds),
        "prevalence": float(first.weight @ first.target / first.weight.sum()),
        "bootstrap": settings.bootstrap,
        "seed": settings.seed,
        "few_draws": min(settings.bootstrap, FEW_DRAWS),
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()},
    }


def _advise(first: Scores, raw: Measured, used: Scores, settings: Settings) -> dict[str, Any]:
    """Sizes for an external validation of the first arm, at the prevalence of the patients it is meant for."""
    here = float(first.weight @ first.target / first.weight.sum())
    there, logit = settings.target_prevalence or here, used.logit[0]
    if settings.target_prevalence is not None and 0 < here < 1:
        logit = adjust_prevalence(logit, here, there)
    return {**advise(raw.found["auc"].value, there, logit), "unit": settings.unit}


def _compare(scores: Sequence[Scores], raw: Sequence[Measured], used: Sequence[Measured], settings: Settings) -> list[dict[str, Any]]:
    """Differences; that in net benefit is at the threshold asked for, or at the prevalence, on probabilities after recalibration."""
    aimed = settings.threshold or float(scores[0].target.mean())
    column = int(np.argmin(np.abs(THRESHOLDS - aimed)))
    contestants = [
        Contestant(s.arm, len(s.seeds), one.found, {**one.drawn, "net_benefit": last.drawn["net_benefit"][column]}, s)
        for s, one, last in zip(scores, raw, used, strict=True)
    ]
    comparisons = compare_arms(contestants, settings.margin)
    for entry in comparisons:
        entry["delta_net_benefit"]["threshold"] = float(THRESHOLDS[column])
    return comparisons


def _other_unit(table: pd.DataFrame, settings: Settings, draws: Draws) -> dict[str, Any] | None:
    """AUC, Brier score and slope counted the other way, by patient or by image; None where every patient has one image."""
    images, _ = align_scores(table)
    if not images[0].clustered:
        return None
    by_images = settings.unit == "patient"
    scores = images if by_images else align_scores(by_patient(table, settings.aggregate))[0]
    found = []
    for s in scores:
        codes = draws.codes(s.patients)
        wanted: dict[str, influence.Estimator] = {"auc": influence.auc, "brier": influence.brier, "slope": influence.slope}
        found.append(influence.estimate_all(s.logit, s.target, s.weight, codes, len(draws.patients), wanted))
    arms = {
        s.arm: {"auc": auc_interval(own["auc"]), "brier": own["brier"].interval(least=0.0), "slope": own["slope"].interval(widest=WIDEST)}
        for s, own in zip(scores, found, strict=True)
    }
    comparisons = []
    for i, j in combinations(range(len(scores)), 2):
        difference = found[i]["auc"] - found[j]["auc"]
        comparisons.append({"a": scores[i].arm, "b": scores[j].arm, "delta_auc": {**difference.interval(), "p": difference.p_value()}})
    unit = "image" if by_images else f"patient, {settings.aggregate} of the images"
    return {"unit": unit, "cases": len(scores[0].images), "arms": arms, "comparisons": comparisons}


def _subgroups(table: pd.DataFrame, scores: Sequence[Scores], settings: Settings, draws: Draws) -> list[dict[str, Any]]:
    if not settings.subgroups:
        return []
    rows = table[table["part"] == "test"].drop_duplicates("image").set_index("image").loc[scores[0].images.tolist()]
    return describe_subgroups(scores, rows[list(settings.subgroups)].reset_index(drop=True), draws)
