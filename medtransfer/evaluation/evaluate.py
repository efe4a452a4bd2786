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
    Evaluated,
    Measured,
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
from medtransfer.evaluation.analyses.sites import by_site, put_over_sites
from medtransfer.evaluation.analyses.subgroups import describe_subgroups
from medtransfer.evaluation.analyses.typicality import describe_outliers
from medtransfer.evaluation.caveats import list_caveats
from medtransfer.evaluation.intervals.estimate import (
    NO_PROBABILITIES,
    Estimate,
    estimate_all,
    interval_of,
)
from medtransfer.evaluation.intervals.resample import (
    Drawn,
    Draws,
    Metric,
    Question,
    Within,
    draw_values,
    patients_of,
    strata_of,
)
from medtransfer.evaluation.metrics.discrimination import auc_interval
from medtransfer.evaluation.metrics.recalibration import (
    Recalibrated,
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
        # Of patients with images of several classes none is the one.
        exclusive = exclude_each_other(counted)
        again = recalibrate_classes(counted) if exclusive else None
        parts = {}
        for label in labels:
            recalibrated = None if again is None else again[0][again[0]["label"] == label]
            cases, images = (of[of["label"] == label] for of in (counted, table))
            parts[label] = _evaluate_label(
                images, cases, settings, draws, recalibrated, exclusive, hidden
            )
        data = summarise_labels(
            parts, exclusive, draws, None if again is None else again[1], settings
        )
        if exclusive and settings.recalibration != "auto":
            data["warnings"].append(
                f"recalibration={settings.recalibration} is for single labels; classes are "
                "recalibrated together, by vector scaling."
            )
    curve = _count(rows.curve[rows.curve["probability"].notna()], settings, hidden)
    growth, matches = learning_curve(curve, bootstrap, seed) if len(labels) == 1 else ([], [])
    data.setdefault("at_budget", None)
    more = {
        "learning_curve": growth,
        "matching_sizes": matches,
        "growth": describe_curve(growth, matches),
        "shift": None,
    }
    data |= {
        **more,
        "warnings": [*data["warnings"], *rows.warnings],
        "accounts": [rows.account.to_dict()],
    }
    return EvaluationReport(data)


def _settle(table: pd.DataFrame, settings: Settings) -> Settings:
    """What is counted, and how images become a patient, where that is left to the table."""
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
    """The rows that are counted: of images, or of patients."""
    if settings.unit == "image" or settings.aggregate == "auto" or table.empty:
        return table
    return by_patient(table, settings.aggregate, hidden)


def _evaluate_label(
    images: pd.DataFrame,
    table: pd.DataFrame,
    settings: Settings,
    draws: Draws,
    again: pd.DataFrame | None = None,
    exclusive: bool = False,
    hidden: Unknown | None = None,
    levelled: Sequence[str] = (),
) -> Evaluated:
    """All numbers of one label.

    `images`: its rows as they are; `table`: those that are counted. `again`: the latter after a
    recalibration of all classes together; `exclusive`: there is none but that. `levelled`: arms
    that were trained until level.
    """
    aligned, left_out = align_scores(table)
    scores = [replace(s, given=settings.models == "given") for s in aligned]
    tunes = [table[(table["arm"] == arm.arm) & (table["part"] == "tune")] for arm in scores]
    recalibrated = _recalibrated(scores, tunes, settings, again, exclusive)
    after = [r.scores for r in recalibrated if r is not None]
    measured = measure([*scores, *after], draws)
    if settings.leave_out:
        measured = [
            replace(m, sites=by_site(m.scores, draws.codes(m.scores.patients), len(draws.patients)))
            for m in measured
        ]
    raw = measured[: len(scores)]
    rest = iter(measured[len(scores) :])
    second = [next(rest) if r is not None else None for r in recalibrated]

    comparable = [
        None if s.scored else make_comparable(s, tune)
        for s, tune in zip(scores, tunes, strict=True)
    ]
    last = [r.scores if r else None for r in recalibrated]
    decisions = [
        [] if s.scored else decide(s, models, z, settings.aims)
        for s, models, z in zip(scores, comparable, last, strict=True)
    ]
    sets = [
        conformal_sets(s, models, settings.coverage)
        for s, models in zip(scores, comparable, strict=True)
    ]
    asked = [d.question for own in decisions for d in own] + [
        question for question in sets if question is not None
    ]
    answers = iter(draw_values(asked, draws))
    points = [[describe_decision(d, next(answers)["rates"]) for d in own] for own in decisions]
    covered = [
        None if q is None else describe_sets(q, next(answers)["sets"], settings.coverage)
        for q in sets
    ]

    arms: dict[str, Any] = {}
    for s, one, two, r, own_points, own_sets in zip(
        scores, raw, second, recalibrated, points, covered, strict=True
    ):
        entry = summarise(one, draws, s.arm)
        entry["recalibrated"] = None
        if r is not None and two is not None:
            entry["recalibrated"] = {
                **summarise(two, draws, f"{s.arm} after recalibration ({r.method})"),
                **describe_recalibration(r),
            }
            entry["recalibrated"]["auc"] = put_over_sites(entry["recalibrated"]["auc"], two.sites)
        entry["auc"] = put_over_sites(entry["auc"], one.sites)
        arms[s.arm] = {**entry, "operating_points": own_points, "prediction_sets": own_sets}
        rows = table[(table["arm"] == s.arm) & (table["part"] == "test")]
        looked_at = images[(images["arm"] == s.arm) & (images["part"] == "tune")]
        fewest = int(looked_at.groupby(["seed", "fold"]).size().min()) if len(looked_at) else 0
        arms[s.arm]["outliers"] = (
            None if s.scored else describe_outliers((two or one).scores, rows, fewest, draws)
        )
    used = [(two or one).scores for one, two in zip(raw, second, strict=True)]
    benefits, at_threshold = _net_benefit(used, settings, draws)
    first = scores[0]
    turned = [entry["trust"] for entry in arms.values() if entry["trusted"] == "reversed"]
    comparisons = _compare(scores, raw, at_threshold, settings, _tune_images(table), levelled)
    covers = {entry["delta_auc"]["covers"] for entry in comparisons}
    data = {
        **_describe_table(table, first, settings),
        "arms": arms,
        "comparisons": comparisons,
        "decision_curves": decision_curves(scores[0], used, benefits, settings.target_prevalence),
        "other_unit": _other_unit(images, scores, settings, draws, hidden, exclusive),
        "subgroups": _subgroups(table, scores, settings, draws),
        "external_validation": _advise(raw, used, settings),
        "warnings": [
            *left_out,
            *turned,
            *list_caveats(images, scores, recalibrated, settings, covers),
        ],
    }
    return Evaluated(data, raw, second)


def _tune_images(table: pd.DataFrame) -> float:
    """Tune images of a model of the first arm."""
    tune = table[(table["part"] == "tune") & (table["arm"] == table["arm"].iloc[0])]
    return len(tune) / max(1, len(tune[["seed", "fold"]].drop_duplicates()))


def _net_benefit(
    scores: Sequence[Scores], settings: Settings, draws: Draws
) -> tuple[list[Drawn | None], list[Drawn | None]]:
    """Of probabilities after recalibration, at the prevalence of the patients they are meant for:
    all thresholds, and the one asked for.
    """
    there = settings.target_prevalence
    metrics: dict[str, Metric | Within] = {"all": net_benefit(there)}
    if settings.threshold is not None:
        place, curve = int(np.argmin(np.abs(THRESHOLDS - settings.threshold))), net_benefit(there)
        metrics["one"] = Within(lambda z, y, w: curve(z, y, w)[:, place], "images")
    drawn = iter(
        draw_values(
            [Question(adjust_scores(s, there), metrics) for s in scores if not s.scored], draws
        )
    )
    answers = [{} if s.scored else next(drawn) for s in scores]
    return [answer.get("all") for answer in answers], [answer.get("one") for answer in answers]


def _recalibrated(
    scores: Sequence[Scores],
    tunes: Sequence[pd.DataFrame],
    settings: Settings,
    again: pd.DataFrame | None,
    exclusive: bool,
) -> list[Recalibrated | None]:
    if again is not None:
        by_arm = {s.arm: s for s in align_scores(again)[0]}
        taken = [
            by_arm[s.arm].take(_rows_of(by_arm[s.arm], s)) if s.arm in by_arm else None
            for s in scores
        ]
        return [
            None if of is None else Recalibrated(of, "vector", {}, "the classes exclude each other")
            for of in taken
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
    raw: Sequence[Measured], used: Sequence[Scores], settings: Settings
) -> dict[str, Any] | None:
    """Sizes for an external validation of the first arm that gives probabilities, at the prevalence
    of the patients it is meant for.
    """
    place = next((place for place, s in enumerate(used) if not s.scored), None)
    if place is None:
        return None
    one, auc = used[place], raw[place].found["auc"].value
    there, logit = (
        settings.target_prevalence or one.prevalence,
        adjust_scores(one, settings.target_prevalence).logit[0],
    )
    return {**advise(auc, there, logit, one.target, settings.threshold), "unit": settings.unit}


def _compare(
    scores: Sequence[Scores],
    raw: Sequence[Measured],
    benefits: Sequence[Drawn | None],
    settings: Settings,
    tuned: float,
    levelled: Sequence[str],
) -> list[dict[str, Any]]:
    """Differences; that in net benefit is at the threshold asked for, on probabilities after
    recalibration.
    """
    contestants = []
    for s, one, benefit in zip(scores, raw, benefits, strict=True):
        drawn = one.drawn if benefit is None else {**one.drawn, "net_benefit": benefit}
        contestants.append(Contestant(s.arm, one.found, drawn, s, one.sites))
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
    """The main numbers counted the other way, by patient or by image; None where every patient has
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
        again = None if exclusive or s.scored else recalibrate(s, tune, method)
        entry, auc = _main_numbers(s, draws)
        arms[s.arm] = {
            **entry,
            "recalibrated": None if again is None else _main_numbers(again.scores, draws)[0],
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
