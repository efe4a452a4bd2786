"""From a predictions table to every number of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.budgets import evaluate_at_budget
from medtransfer.evaluation.analyses.comparison import Contestant, compare_arms, judged_by
from medtransfer.evaluation.analyses.conformal import conformal_sets, describe_sets
from medtransfer.evaluation.analyses.learning_curve import describe_curve, learning_curve
from medtransfer.evaluation.analyses.one_arm import (
    FEW_DRAWS,
    WIDEST,
    ArmMeasurements,
    LabelEvaluation,
    describe_recalibration,
    estimators_of,
    measure,
    summarise,
)
from medtransfer.evaluation.analyses.rows import sort_rows
from medtransfer.evaluation.analyses.sample_size import advise
from medtransfer.evaluation.analyses.several_labels import (
    exclude_each_other,
    recalibrate_classes,
    refuse_class_names,
    summarise_labels,
)
from medtransfer.evaluation.analyses.sites import put_over_sites
from medtransfer.evaluation.analyses.subgroups import describe_subgroups
from medtransfer.evaluation.analyses.typicality import describe_outliers
from medtransfer.evaluation.caveats import list_caveats
from medtransfer.evaluation.intervals.draws import Draws, patients_of, strata_of
from medtransfer.evaluation.intervals.entries import NO_PROBABILITIES, interval_of
from medtransfer.evaluation.intervals.estimate import Estimate, estimate_all
from medtransfer.evaluation.intervals.resample import (
    DrawnMetric,
    Metric,
    Question,
    WithinModels,
    draw_values,
)
from medtransfer.evaluation.metrics.discrimination import auc_interval
from medtransfer.evaluation.metrics.recalibration import (
    RecalibratedArm,
    adjust_scores,
    make_comparable,
    recalibrate,
)
from medtransfer.evaluation.metrics.utility import (
    THRESHOLDS,
    decide,
    decision_curves,
    describe_decision,
    net_benefit,
)
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.evaluation.settings import Settings, make_settings
from medtransfer.evaluation.tables.scores import (
    Scores,
    Unknown,
    align_scores,
    by_patient,
    choose_rule,
)


def evaluate(
    table: pd.DataFrame | str | Path, bootstrap: int = 2000, seed: int = 0, **choices: Any
) -> EvaluationReport:
    """Evaluates the test rows of a predictions table.

    Discrimination (AUC, average precision) is within models: scores of different models (folds,
    seeds) are never ranked together, and figures are means over models; the pooled figure is beside
    it. Other metrics are over all test rows of a seed. All are averaged over seeds. Intervals are
    95 %: of AUC, Brier score, log-loss, intercept, slope and observed / expected, and of
    differences in them, from influences over patients; of all else by bootstrap over patients,
    drawn within folds; the variance between seeds is added to both, and to the difference in AUC
    also that between folds, so that the verdict is about such trainings. What is fitted
    (recalibration, thresholds, prediction sets) is fitted for every model on tune rows of patients
    that it does not test.

    Several labels are evaluated one by one (`labels` of the report) and on average.

    Args:
        table: as `predictions.check_predictions` describes it, or the path of such a CSV.
        bootstrap: number of draws, at least 100.
        seed: of the draws.
        **choices: other fields of `Settings`, such as `margin=0.05` or `subgroups=["site"]`.

    Raises:
        PredictionsError, LeakageError: a table that cannot be evaluated, or settings that are
            wrong.
    """
    settings = make_settings(bootstrap=bootstrap, seed=seed, **choices)
    if not isinstance(table, (str, Path, pd.DataFrame)):
        raise PredictionsError(
            f"the predictions are a {type(table).__name__}; give a DataFrame, or the path of a CSV."
        )
    rows = sort_rows(table, settings)
    table, hidden, levelled = rows.main, rows.hidden, rows.levelled
    labels = list(dict.fromkeys(table["label"]))
    if len(labels) > 1:
        refuse_class_names(table)
    settings = _settle(table, settings)
    counted = _count(table, settings, hidden)
    test = counted[counted["part"] == "test"]
    patients = patients_of(test)
    draws = Draws(patients, bootstrap, seed, strata_of(test, patients))
    if len(labels) == 1:
        data = _evaluate_label(
            table, counted, settings, draws, hidden=hidden, levelled=levelled
        ).data
        tuned = _tune_images(counted)
        data["at_budget"] = evaluate_at_budget(
            _count(rows.early, settings, hidden), levelled, settings, draws, tuned
        )
    else:
        # A patient with images of several classes has no single class.
        exclusive = exclude_each_other(counted)
        recalibration = recalibrate_classes(counted) if exclusive else None
        parts = {}
        for label in labels:
            recalibrated = (
                None
                if recalibration is None
                else recalibration[0][recalibration[0]["label"] == label]
            )
            cases, images = (of[of["label"] == label] for of in (counted, table))
            parts[label] = _evaluate_label(
                images, cases, settings, draws, recalibrated, exclusive, hidden
            )
        data = summarise_labels(
            parts, exclusive, draws, None if recalibration is None else recalibration[1], settings
        )
        if exclusive and settings.recalibration != "auto":
            data["warnings"].append(
                f"recalibration={settings.recalibration} is for single labels; classes are "
                "recalibrated together, by vector scaling."
            )
    curve = _count(rows.curve[rows.curve["probability"].notna()], settings, hidden)
    growth, matches = learning_curve(curve, bootstrap, seed) if len(labels) == 1 else ([], [])
    data.setdefault("at_budget", None)
    curve_entries = {
        "learning_curve": growth,
        "matching_sizes": matches,
        "growth": describe_curve(growth, matches),
        "shift": None,
    }
    data |= {
        **curve_entries,
        "warnings": [*data["warnings"], *rows.warnings],
        "accounts": [rows.account.to_dict()],
    }
    return EvaluationReport(data)


def _settle(table: pd.DataFrame, settings: Settings) -> Settings:
    """The settings with the unit and the rule for joining images chosen from the table, where they
    are `auto`.
    """
    test = table[table["part"] == "test"]
    rule = choose_rule(test) if settings.aggregate == "auto" else settings.aggregate
    unit = settings.unit
    if unit == "auto":
        several = len(test) > 0 and test.groupby("patient", sort=False)["image"].nunique().max() > 1
        by_label = (
            test.groupby(["label", "patient"], sort=False)["target"]
            .max()
            .groupby("label")
            .nunique()
        )
        unit = "patient" if several and (by_label == 2).all() else "image"
    return settings.model_copy(update={"unit": unit, "aggregate": rule})


def _count(table: pd.DataFrame, settings: Settings, hidden: Unknown) -> pd.DataFrame:
    """The rows in the unit that is counted: images or patients."""
    if settings.unit == "image" or settings.aggregate == "auto" or table.empty:
        return table
    return by_patient(table, settings.aggregate, hidden)


def _evaluate_label(
    images: pd.DataFrame,
    table: pd.DataFrame,
    settings: Settings,
    draws: Draws,
    together: pd.DataFrame | None = None,
    exclusive: bool = False,
    hidden: Unknown | None = None,
    levelled: Sequence[str] = (),
) -> LabelEvaluation:
    """All numbers of one label.

    Args:
        images: its rows as they are.
        table: the rows that are counted: images or patients.
        settings: of the evaluation.
        draws: names the patients.
        together: the rows that are counted after a recalibration of all classes together.
        exclusive: the classes exclude each other, so that there is no other recalibration.
        hidden: by label, patients with images whose target is unknown.
        levelled: arms that were trained until level.
    """
    aligned, left_out = align_scores(table)
    scores = [replace(s, given=settings.models == "given") for s in aligned]
    tunes = [table[(table["arm"] == arm.arm) & (table["part"] == "tune")] for arm in scores]
    recalibrated = _recalibrated(scores, tunes, settings, together, exclusive)
    after = [r.scores for r in recalibrated if r is not None]
    measured = measure([*scores, *after], draws, by_sites=bool(settings.leave_out))
    raw, measured_after = measured[: len(scores)], iter(measured[len(scores) :])
    measured_recalibrated = [next(measured_after) if r is not None else None for r in recalibrated]
    decisions = _decide(scores, tunes, recalibrated, settings, draws)
    arms: dict[str, Any] = {}
    for one, two, r, entry in zip(raw, measured_recalibrated, recalibrated, decisions, strict=True):
        arms[one.scores.arm] = {
            **_describe_arm(one, two, r, draws),
            **entry,
            "outliers": _describe_outliers((two or one).scores, images, table, draws),
        }
    used = [(two or one).scores for one, two in zip(raw, measured_recalibrated, strict=True)]
    benefits, at_threshold = _net_benefit(used, settings, draws)
    reversed_arms = [entry["trust"] for entry in arms.values() if entry["trusted"] == "reversed"]
    comparisons = _compare(scores, raw, at_threshold, settings, _tune_images(table), levelled)
    covers = {entry["delta_auc"]["covers"] for entry in comparisons}
    data = {
        **_describe_table(table, scores[0], settings),
        "arms": arms,
        "comparisons": comparisons,
        "decision_curves": decision_curves(scores[0], used, benefits, settings.target_prevalence),
        "other_unit": _other_unit(images, scores, settings, draws, hidden, exclusive),
        "subgroups": _subgroups(table, scores, settings, draws),
        "external_validation": _advise(raw, used, settings),
        "warnings": [
            *left_out,
            *reversed_arms,
            *list_caveats(images, scores, recalibrated, settings, covers),
        ],
    }
    return LabelEvaluation(data, raw, measured_recalibrated)


def _decide(
    scores: Sequence[Scores],
    tunes: Sequence[pd.DataFrame],
    recalibrated: Sequence[RecalibratedArm | None],
    settings: Settings,
    draws: Draws,
) -> list[dict[str, Any]]:
    """`operating_points` and `prediction_sets` of every arm, in one round of draws."""
    comparable = [
        None if s.scored else make_comparable(s, tune)
        for s, tune in zip(scores, tunes, strict=True)
    ]
    calibrated = [r.scores if r else None for r in recalibrated]
    decisions = [
        [] if s.scored else decide(s, models, z, settings.aims)
        for s, models, z in zip(scores, comparable, calibrated, strict=True)
    ]
    sets = [
        conformal_sets(s, models, settings.coverage)
        for s, models in zip(scores, comparable, strict=True)
    ]
    questions = [decision.question for of_arm in decisions for decision in of_arm]
    questions += [question for question in sets if question is not None]
    answers = iter(draw_values(questions, draws))
    points = [
        [describe_decision(decision, next(answers)["rates"]) for decision in of_arm]
        for of_arm in decisions
    ]
    coverages = [
        None if q is None else describe_sets(q, next(answers)["sets"], settings.coverage)
        for q in sets
    ]
    return [
        {"operating_points": of_arm, "prediction_sets": coverage}
        for of_arm, coverage in zip(points, coverages, strict=True)
    ]


def _describe_arm(
    raw: ArmMeasurements,
    measured: ArmMeasurements | None,
    recalibrated: RecalibratedArm | None,
    draws: Draws,
) -> dict[str, Any]:
    """The entry of an arm as trained, with that after recalibration in it.

    Args:
        raw: as trained.
        measured: after recalibration; None where that could not be done.
        recalibrated: how that was done.
        draws: names the patients.
    """
    arm = raw.scores.arm
    entry = summarise(raw, draws, arm)
    entry["recalibrated"] = None
    if recalibrated is not None and measured is not None:
        name = f"{arm} after recalibration ({recalibrated.method})"
        after = {**summarise(measured, draws, name), **describe_recalibration(recalibrated)}
        entry["recalibrated"] = {**after, "auc": put_over_sites(after["auc"], measured.sites)}
    return {**entry, "auc": put_over_sites(entry["auc"], raw.sites)}


def _describe_outliers(
    scores: Scores, images: pd.DataFrame, table: pd.DataFrame, draws: Draws
) -> dict[str, Any] | None:
    """The images unlike the training images; None of scores that are no probabilities.

    Args:
        scores: of an arm, recalibrated where that could be done.
        images: all rows as they are.
        table: the rows that are counted.
        draws: names the patients.
    """
    if scores.scored:
        return None
    tune = images[(images["arm"] == scores.arm) & (images["part"] == "tune")]
    fewest = int(tune.groupby(["seed", "fold"]).size().min()) if len(tune) else 0
    rows = table[(table["arm"] == scores.arm) & (table["part"] == "test")]
    return describe_outliers(scores, rows, fewest, draws)


def _tune_images(table: pd.DataFrame) -> float:
    """Mean number of tune images per model of the first arm."""
    tune = table[(table["part"] == "tune") & (table["arm"] == table["arm"].iloc[0])]
    return len(tune) / max(1, len(tune[["seed", "fold"]].drop_duplicates()))


def _net_benefit(
    scores: Sequence[Scores], settings: Settings, draws: Draws
) -> tuple[list[DrawnMetric | None], list[DrawnMetric | None]]:
    """Net benefit of recalibrated probabilities, at the prevalence of the patients they are meant
    for: at all thresholds, and at the one asked for.
    """
    prevalence = settings.target_prevalence
    metrics: dict[str, Metric | WithinModels] = {"all": net_benefit(prevalence)}
    if settings.threshold is not None:
        place, curve = (
            int(np.argmin(np.abs(THRESHOLDS - settings.threshold))),
            net_benefit(prevalence),
        )
        metrics["one"] = WithinModels(lambda z, y, w: curve(z, y, w)[:, place], "images")
    drawn = iter(
        draw_values(
            [Question(adjust_scores(s, prevalence), metrics) for s in scores if not s.scored], draws
        )
    )
    answers = [{} if s.scored else next(drawn) for s in scores]
    return [answer.get("all") for answer in answers], [answer.get("one") for answer in answers]


def _recalibrated(
    scores: Sequence[Scores],
    tunes: Sequence[pd.DataFrame],
    settings: Settings,
    together: pd.DataFrame | None,
    exclusive: bool,
) -> list[RecalibratedArm | None]:
    if together is not None:
        by_arm = {s.arm: s for s in align_scores(together)[0]}
        rows_of_arm = [
            by_arm[s.arm].take(_rows_of(by_arm[s.arm], s)) if s.arm in by_arm else None
            for s in scores
        ]
        return [
            None
            if of is None
            else RecalibratedArm(of, "vector", {}, "the classes exclude each other")
            for of in rows_of_arm
        ]
    if exclusive:  # maps of single classes would not add up to 1
        return [None] * len(scores)
    return [
        None if s.scored else recalibrate(s, tune, settings.recalibration)
        for s, tune in zip(scores, tunes, strict=True)
    ]


def _rows_of(scores: Scores, like: Scores) -> Any:
    place = {image: row for row, image in enumerate(scores.images)}
    return np.array([place[image] for image in like.images])


def _describe_table(table: pd.DataFrame, first: Scores, settings: Settings) -> dict[str, Any]:
    return {
        "label": str(table["label"].iloc[0]),
        "unit": settings.unit,
        "aggregate": settings.aggregate,
        "images": len(first.images),
        "positive_images": int(first.target.sum()),
        "patients": len(set(first.patients)),
        "seeds": len(first.seeds),
        "models": len(first.cells),
        "prevalence": first.prevalence,
        "bootstrap": settings.bootstrap,
        "seed": settings.seed,
        "few_draws": min(settings.bootstrap, FEW_DRAWS),
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(settings).items()
        },
    }


def _advise(
    raw: Sequence[ArmMeasurements], used: Sequence[Scores], settings: Settings
) -> dict[str, Any] | None:
    """Sizes for an external validation of the first arm that gives probabilities, at the prevalence
    of the patients it is meant for.
    """
    place = next((place for place, s in enumerate(used) if not s.scored), None)
    if place is None:
        return None
    one, auc = used[place], raw[place].estimates["auc"].value
    prevalence, logit = (
        settings.target_prevalence or one.prevalence,
        adjust_scores(one, settings.target_prevalence).logit[0],
    )
    return {**advise(auc, prevalence, logit, one.target, settings.threshold), "unit": settings.unit}


def _compare(
    scores: Sequence[Scores],
    raw: Sequence[ArmMeasurements],
    benefits: Sequence[DrawnMetric | None],
    settings: Settings,
    tuned: float,
    levelled: Sequence[str],
) -> list[dict[str, Any]]:
    """The comparisons of the arms; the difference in net benefit is taken at the threshold asked
    for, on recalibrated probabilities.
    """
    contestants = []
    for s, one, benefit in zip(scores, raw, benefits, strict=True):
        drawn = one.drawn if benefit is None else {**one.drawn, "net_benefit": benefit}
        contestants.append(Contestant(s.arm, one.estimates, drawn, s, one.sites))
    comparisons = compare_arms(contestants, settings.margin, settings.leave_out, tuned, levelled)
    for entry in comparisons if settings.threshold is not None else ():
        entry.setdefault("delta_net_benefit", {**NO_PROBABILITIES, "p": None, "covers": "models"})
        entry["delta_net_benefit"]["threshold"] = float(
            THRESHOLDS[np.argmin(np.abs(THRESHOLDS - settings.threshold))]
        )
    return comparisons


def _other_unit(
    table: pd.DataFrame,
    counted: Sequence[Scores],
    settings: Settings,
    draws: Draws,
    hidden: Unknown | None,
    exclusive: bool,
) -> dict[str, Any] | None:
    """The main numbers counted by the other unit, patient or image; None where every patient has
    one image.

    They are recalibrated at that unit, but not those of classes that exclude each other, which are
    recalibrated together.
    """
    images, _ = align_scores(table)
    if not images[0].clustered or settings.aggregate == "auto":
        return None
    by_images = settings.unit == "patient"
    rows = table if by_images else by_patient(table, settings.aggregate, hidden)
    # The other unit may have too few rows for an isotonic map.
    method = "auto" if settings.recalibration == "isotonic" else settings.recalibration
    scores = [
        replace(s, given=counted[0].given) for s in (images if by_images else align_scores(rows)[0])
    ]
    names = dict.fromkeys(
        patient for s in scores for patient in s.patients if patient not in draws.place
    )
    draws = (
        Draws(np.array([*draws.patients, *names], object), draws.number, draws.seed)
        if names
        else draws
    )
    arms, aucs = {}, []
    for s in scores:
        tune = rows[(rows["arm"] == s.arm) & (rows["part"] == "tune")]
        recalibrated = None if exclusive or s.scored else recalibrate(s, tune, method)
        entry, auc = _main_numbers(s, draws)
        arms[s.arm] = {
            **entry,
            "recalibrated": None
            if recalibrated is None
            else _main_numbers(recalibrated.scores, draws)[0],
        }
        aucs.append(auc)
    comparisons = []
    for i, j in combinations(range(len(scores)), 2):
        difference = aucs[i] - aucs[j]
        parts = judged_by(difference)
        delta = {**difference.interval(parts=parts), "p": difference.p_value(parts)}
        comparisons.append({"a": scores[i].arm, "b": scores[j].arm, "delta_auc": delta})
    unit = (
        "image" if by_images else f"patient, {settings.aggregate.replace('_', '-')} of the images"
    )
    return {"unit": unit, "cases": len(scores[0].images), "arms": arms, "comparisons": comparisons}


def _main_numbers(scores: Scores, draws: Draws) -> tuple[dict[str, Any], Estimate]:
    estimates = estimate_all(
        scores, draws.codes(scores.patients), len(draws.patients), estimators_of(scores)
    )
    return {
        "auc": auc_interval(estimates["auc"]),
        "brier": interval_of(estimates, "brier", least=0.0),
        "slope": interval_of(estimates, "slope", widest=WIDEST),
        "intercept": interval_of(estimates, "intercept", widest=WIDEST),
        "observed_expected": interval_of(estimates, "observed_expected", "log"),
    }, estimates["auc"]


def _subgroups(
    table: pd.DataFrame, scores: Sequence[Scores], settings: Settings, draws: Draws
) -> list[dict[str, Any]]:
    if not settings.subgroups:
        return []
    rows = (
        table[table["part"] == "test"]
        .drop_duplicates("image")
        .set_index("image")
        .loc[scores[0].images.tolist()]
    )
    return describe_subgroups(scores, rows[list(settings.subgroups)].reset_index(drop=True), draws)
