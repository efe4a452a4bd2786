"""Every number of one arm on one label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation.analyses.sites import BySite, by_site, put_over_sites
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.entries import NO_PROBABILITIES, interval_of, no_interval
from medtransfer.evaluation.intervals.estimate import Estimate, Mass, estimate, estimate_all
from medtransfer.evaluation.intervals.influence import Estimator
from medtransfer.evaluation.intervals.resample import (
    DrawnMetric,
    Metric,
    Question,
    WithinModels,
    bands,
    draw_values,
    plain,
)
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics import discrimination as dis
from medtransfer.evaluation.metrics.calibration_curve import curve_errors, curve_grid, curve_metric
from medtransfer.evaluation.metrics.recalibration import RecalibratedArm, summarise_maps
from medtransfer.evaluation.metrics.smooth_ece import weighted_smooth_ece
from medtransfer.evaluation.sentences.trust import trust
from medtransfer.evaluation.sentences.words import isolate
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores

ESTIMATORS: dict[str, tuple[Estimator, Mass | None]] = {
    "auc": (influence.auc, "pairs"),
    "brier": (influence.brier, "images"),
    "brier_skill": (influence.brier_skill, None),
    "log_loss": (influence.log_loss, "images"),
    "intercept": (influence.intercept, None),
    "slope": (influence.slope, None),
    "observed_expected": (influence.observed_expected, None),
}
# The estimators that use ranks alone.
RANKING = ("auc",)
# Smooth curves and isotonic fits are slow; their intervals need fewer draws than a p-value does.
FEW_DRAWS = 200
_NULL_DRAWS, _BAND_DRAWS = 200, 1000
# The data say nothing about an intercept or a slope whose standard error is larger.
WIDEST = 20.0
# Variance of a label at a prevalence of 1/2; parts of a Brier score cannot be larger.
_HIGHEST_VARIANCE = 0.25
# Images that a model must test to show whether its probabilities differ.
_ENOUGH = 10
_BESIDE_CHANCE = "no interval: it cannot be negative, so it is read beside what chance alone gives"


@dataclass(frozen=True, eq=False)
class ArmMeasurements:
    """The estimates and draws of some scores, before they are put into words.

    Attributes:
        scores: of an arm, as trained or recalibrated.
        estimates: with their influences.
        drawn: metrics with their draws.
        sites: the AUC of every site, where a fold leaves one out.
    """

    scores: Scores
    estimates: dict[str, Estimate]
    drawn: dict[str, DrawnMetric]
    sites: BySite | None = None


@dataclass(frozen=True, eq=False)
class LabelEvaluation:
    """The evaluation of one label: its part of the report, and the numbers behind it of every arm,
    as trained and (where that was possible) recalibrated.
    """

    data: dict[str, Any]
    raw: list[ArmMeasurements]
    recalibrated: list[ArmMeasurements | None]


def ask(scores: Scores) -> tuple[Question, Question]:
    """The metrics that are drawn in all draws, and those that are drawn in a few."""
    many: dict[str, Metric | WithinModels] = {
        "auc": WithinModels(dis.weighted_auc, "pairs"),
        "partial_auc": WithinModels(dis.weighted_partial_auc, "pairs"),
        "average_precision": WithinModels(dis.weighted_average_precision, "positives"),
    }
    if scores.scored:
        return Question(scores, many), Question(scores, {})
    many["l2_ece"] = cal.binned_metric(cal.weighted_l2_ece)
    few = {"corp": cal.weighted_corp, "curve": curve_metric(scores.logit)}
    return Question(scores, many), Question(scores, few)


def measure(
    all_scores: list[Scores], draws: Draws, by_sites: bool = False
) -> list[ArmMeasurements]:
    """Measures arms over the same patients, in one round of draws.

    Args:
        all_scores: of the arms.
        draws: names the patients.
        by_sites: every fold leaves a site out, so that the AUC of each is measured too.
    """
    asked = [ask(scores) for scores in all_scores]
    many = draw_values([question for question, _ in asked], draws)
    few = draw_values(
        [question for _, question in asked], replace(draws, number=min(draws.number, FEW_DRAWS))
    )
    measured = []
    for scores, *drawn in zip(all_scores, many, few, strict=True):
        codes, count = draws.codes(scores.patients), len(draws.patients)
        estimates = estimate_all(scores, codes, count, estimators_of(scores))
        sites = by_site(scores, codes, count) if by_sites else None
        measured.append(ArmMeasurements(scores, estimates, {**drawn[0], **drawn[1]}, sites))
    return measured


def estimators_of(scores: Scores) -> dict[str, tuple[Estimator, Mass | None]]:
    """The estimators that apply to an arm: only the AUC where its scores are no probabilities."""
    return {name: ESTIMATORS[name] for name in (RANKING if scores.scored else ESTIMATORS)}


def summarise(measured: ArmMeasurements, draws: Draws, name: str) -> dict[str, Any]:
    """The entry of an arm in `report.json`, without decisions."""
    scores, drawn = measured.scores, measured.drawn
    ranks: dict[str, Any] = {
        "auc": _auc(measured),
        "partial_auc": {
            **drawn["partial_auc"].interval("logit", greatest=1.0),
            "specificity_from": dis.SPECIFICITY,
        },
        "average_precision": {
            **drawn["average_precision"].interval("logit", 0.0, 1.0),
            "chance": _chance(scores),
        },
    }
    curves = {"roc": dis.roc_curve(scores), "precision_recall": dis.precision_recall_curve(scores)}
    of_probabilities, more_curves = (
        _of_no_probabilities(name) if scores.scored else _of_probabilities(measured, draws)
    )
    entry = {
        **ranks,
        **of_probabilities,
        "pooled": _pooled(scores, draws.codes(scores.patients), len(draws.patients)),
    }
    if not scores.scored:
        verdict = trust(name, entry)
        entry |= {
            "trust": verdict["sentence"],
            "trusted": verdict["status"],
            "faults": verdict["faults"],
        }
    return {**entry, "scored": scores.scored, "curves": {**curves, **more_curves}}


def _of_no_probabilities(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of an arm's entry on probabilities, and its curves, where the arm gives scores:
    nothing was measured.
    """
    calibration = ("intercept", "slope", "observed_expected", "ici")
    entry: dict[str, Any] = {
        **{
            key: dict(NO_PROBABILITIES)
            for key in ("brier", "brier_skill", "log_loss", "ece", "l2_ece", "smooth_ece")
        },
        "brier_parts": {
            key: dict(NO_PROBABILITIES)
            for key in ("miscalibration", "discrimination", "uncertainty")
        },
        "calibration": {
            **{key: dict(NO_PROBABILITIES) for key in calibration},
            **dict.fromkeys(("joint_p", "between_models_p", "e50", "e90", "emax")),
            "by_model": [],
        },
        "trust": f"{isolate(name)} gives scores, not probabilities: it is ranked, and its "
        "calibration is not measured.",
        "trusted": "unknown",
        "faults": "it gives scores, not probabilities",
    }
    return entry, {"reliability": None, "smooth": None, "histogram": None}


def _of_probabilities(
    measured: ArmMeasurements, draws: Draws
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of an arm's entry on its probabilities, and their curves."""
    scores, estimates, drawn = measured.scores, measured.estimates, measured.drawn
    codes = draws.codes(scores.patients)
    rng = np.random.default_rng([draws.seed, 2])
    null = cal.null_errors(scores, codes, min(draws.number, _NULL_DRAWS), rng)
    errors = [curve_errors(logit, scores.target, scores.weight) for logit in scores.logit]
    curve = {key: np.array([e[key] for e in errors]) for key in errors[0]}
    one = scores.weight[None]
    ece = np.mean(
        [cal.binned_metric(cal.weighted_ece)(z, scores.target, one)[0] for z in scores.logit]
    )
    smooth = np.mean([weighted_smooth_ece(z, scores.target, one)[0] for z in scores.logit])
    parts = drawn["corp"]
    joint, between = cal.joint_p_value(scores, codes)
    entry: dict[str, Any] = {
        "brier": estimates["brier"].interval(least=0.0, greatest=1.0),
        "brier_skill": estimates["brier_skill"].interval(greatest=1.0),
        "brier_parts": {
            "miscalibration": _beside_chance(float(parts.value[0]), null["miscalibration"]),
            "discrimination": parts[1].interval(least=0.0, greatest=_HIGHEST_VARIANCE),
            "uncertainty": parts[2].interval(least=0.0, greatest=_HIGHEST_VARIANCE),
        },
        "log_loss": estimates["log_loss"].interval(least=0.0),
        "ece": {
            **_beside_chance(float(ece), null["ece"]),
            "bins": max(len(cal.bin_edges(logit)) for logit in scores.logit) + 1,
        },
        "l2_ece": drawn["l2_ece"].interval(least=0.0, greatest=1.0),
        "smooth_ece": _beside_chance(float(smooth), null["smooth_ece"]),
        "calibration": {
            "intercept": estimates["intercept"].interval(widest=WIDEST),
            "slope": estimates["slope"].interval(widest=WIDEST),
            "observed_expected": estimates["observed_expected"].interval("log"),
            "joint_p": joint,
            "between_models_p": between,
            "by_model": _by_model(scores),
            "ici": _beside_chance(float(curve["ici"].mean()), null["ici"]),
            **{key: float(curve[key].mean()) for key in ("e50", "e90", "emax")},
        },
        "spread": _spread_of_scores(scores),
    }
    low, high = bands(drawn["curve"].mean[:, 1:])
    return entry, {
        "reliability": cal.reliability(scores, codes, min(draws.number, _BAND_DRAWS), rng),
        "smooth": {
            "predicted": curve_grid(scores.logit).tolist(),
            "observed": plain(drawn["curve"].value[1:]),
            "low": plain(low),
            "high": plain(high),
        },
        "histogram": _histogram(scores.logit, scores.target),
    }


def _beside_chance(estimate: float, null: Float) -> dict[str, Any]:
    """The entry of an error that cannot be negative: beside it the mean of what chance alone gives,
    and what chance exceeds in one of twenty draws.
    """
    chance = {"null_mean": float(null.mean()), "null_high": float(np.quantile(null, 0.95))}
    return {"estimate": estimate, "low": None, "high": None, "reason": _BESIDE_CHANCE, **chance}


def _by_model(scores: Scores) -> list[dict[str, Any]]:
    """Calibration of every model on what it tests; errors of opposite sign cancel where models are
    pooled.
    """
    rows = []
    for row, fold, inside in scores.cells:
        of = (
            scores.logit[row, inside],
            scores.target[inside],
            scores.weight[inside],
            scores.fold[row, inside],
        )
        numbers = {
            name: ESTIMATORS[name][0](*of)[0]
            for name in ("intercept", "slope", "observed_expected")
        }
        finite = {
            name: float(value) if np.isfinite(value) else None for name, value in numbers.items()
        }
        rows.append({"seed": scores.seeds[row], "fold": fold, **finite})
    return rows


def _pooled(scores: Scores, codes: Int, count: int) -> dict[str, Any] | None:
    """Discrimination by one threshold for all models of a seed, whose scores are ranked together;
    None where one model tests all.
    """
    if len(np.unique(scores.fold)) == 1:
        return None
    together = replace(scores, fold=np.zeros_like(scores.fold))
    one = scores.weight[None]
    precision = [dis.weighted_average_precision(z, scores.target, one)[0] for z in scores.logit]
    mean_precision = float(np.mean(precision)) if np.isfinite(precision).all() else None
    auc = dis.auc_interval(estimate(together, codes, count, influence.auc, "pairs"))
    return {
        "auc": auc,
        "average_precision": no_interval("no interval: pooled over models", mean_precision),
    }


def _spread_of_scores(scores: Scores) -> float:
    """Median over models of the standard deviation of their probabilities: near 0, a model says the
    same of everybody.

    Of all images of a seed where a model tests few.
    """
    cells = [
        expit(scores.logit[row, inside])
        for row, _, inside in scores.cells
        if inside.sum() >= _ENOUGH
    ]
    return float(np.median([p.std() for p in cells or expit(scores.logit)]))


def describe_recalibration(recalibrated: RecalibratedArm) -> dict[str, Any]:
    """The method of recalibration, the reason for it, and its parameters by seed and fold."""
    return {
        "method": recalibrated.method,
        "chosen": recalibrated.chosen,
        "maps": summarise_maps(recalibrated.maps),
    }


def _chance(scores: Scores) -> float:
    """The average precision of chance: the prevalence that each model tests, weighted by its
    positives.
    """
    masses = [
        (scores.weight[inside].sum(), scores.weight[inside] @ scores.target[inside])
        for _, _, inside in scores.cells
    ]
    positives = sum(positive for _, positive in masses)
    return (
        float(sum(positive**2 / total for total, positive in masses if total > 0) / positives)
        if positives
        else 0.0
    )


def _auc(measured: ArmMeasurements) -> dict[str, Any]:
    scores, auc = measured.scores, measured.estimates["auc"]
    entry = dis.auc_interval(auc)
    bootstrap = measured.drawn["auc"].interval("logit", 0.0, 1.0)
    entry["bootstrap"] = {"low": bootstrap["low"], "high": bootstrap["high"]}
    by_model = {
        (scores.seeds[row], fold): dis.auc_within(
            scores.logit[row, c], scores.target[c], scores.fold[row, c]
        )
        for row, fold, c in scores.cells
    }
    entry["by_model"] = [
        {"seed": s, "fold": f, "auc": float(v) if np.isfinite(v) else None}
        for (s, f), v in by_model.items()
    ]
    folds = scores.folds or []
    means = {
        fold: float(np.mean([by_model[seed, fold] for seed in scores.seeds])) for fold in folds
    }
    entry["by_fold"] = [
        {"fold": fold, "auc": value if np.isfinite(value) else None}
        for fold, value in means.items()
    ]
    finite = [value for value in means.values() if np.isfinite(value)]
    entry["fold_mean"] = float(np.mean(finite)) if finite and len(finite) == len(folds) else None
    return entry


def describe_briefly(measured: ArmMeasurements) -> dict[str, Any]:
    """The main numbers of an arm with their intervals."""
    estimates, drawn = measured.estimates, measured.drawn
    return {
        "auc": put_over_sites(dis.auc_interval(estimates["auc"]), measured.sites),
        "average_precision": drawn["average_precision"].interval("logit", 0.0, 1.0),
        "brier": interval_of(estimates, "brier", least=0.0, greatest=1.0),
        "log_loss": interval_of(estimates, "log_loss", least=0.0),
        "slope": interval_of(estimates, "slope", widest=WIDEST),
    }


def _histogram(logits: Float, target: NDArray[Any], bins: int = 20) -> dict[str, list[float]]:
    """Images per bin of probability, by class, mean over seeds."""
    edges = np.linspace(0, 1, bins + 1)
    probability = expit(logits)
    counts = {
        name: (np.histogram(probability[:, target == value], edges)[0] / len(logits)).tolist()
        for name, value in (("negative", 0), ("positive", 1))
    }
    return {"edges": edges.tolist(), **counts}
