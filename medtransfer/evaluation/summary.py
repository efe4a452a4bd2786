"""Every number of one arm on one label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import discrimination as dis
from medtransfer.evaluation import influence
from medtransfer.evaluation.comparison import fold_auc, trust
from medtransfer.evaluation.influence import Estimate
from medtransfer.evaluation.recalibration import Recalibrated
from medtransfer.evaluation.resample import Drawn, Draws, Question, bands, draw_values, make_drawn
from medtransfer.evaluation.scores import Scores
from medtransfer.evaluation.utility import net_benefit

Float = NDArray[np.float64]
ESTIMATORS: dict[str, influence.Estimator] = {
    "auc": influence.auc,
    "brier": influence.brier,
    "brier_skill": influence.brier_skill,
    "log_loss": influence.log_loss,
    "intercept": influence.intercept,
    "slope": influence.slope,
    "observed_expected": influence.observed_expected,
}
# Smooth curves and isotonic fits are dear; their intervals need fewer draws than a p-value does.
FEW_DRAWS = 200
_NULL_DRAWS, _BAND_DRAWS = 500, 1000
# Of an intercept or a slope whose standard error is larger the data say nothing.
WIDEST = 20.0


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers of some scores, before they are put into words.

    Attributes:
        scores: of an arm, as trained or recalibrated.
        found: estimates with their influences.
        drawn: metrics with their draws.
    """

    scores: Scores
    found: dict[str, Estimate]
    drawn: dict[str, Drawn]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One label: its part of the report, and the numbers behind it, per arm as trained and (maybe) recalibrated."""

    data: dict[str, Any]
    raw: list[Measured]
    recalibrated: list[Measured | None]


def ask(scores: Scores) -> tuple[Question, Question]:
    """What is drawn of some scores: in all draws, and in few."""
    many = {
        "auc": dis.weighted_auc,
        "partial_auc": dis.weighted_partial_auc,
        "average_precision": dis.weighted_average_precision,
        "brier": cal.weighted_brier,
        "log_loss": cal.weighted_log_loss,
        "ece": cal.binned_metric(cal.weighted_ece),
        "l2_ece": cal.binned_metric(cal.weighted_l2_ece),
        "net_benefit": net_benefit,
    }
    few = {"smooth_ece": cal.weighted_smooth_ece, "corp": cal.weighted_corp, "curve": cal.curve_metric(scores.logit)}
    return Question(scores, many), Question(scores, few)


def measure(all_scores: list[Scores], draws: Draws) -> list[Measured]:
    """All that is measured of arms over the same patients, in one round of draws."""
    asked = [ask(scores) for scores in all_scores]
    many = draw_values([question for question, _ in asked], draws)
    few = draw_values([question for _, question in asked], Draws(draws.patients, min(draws.number, FEW_DRAWS), draws.seed))
    measured = []
    for scores, *drawn in zip(all_scores, many, few, strict=True):
        codes = draws.codes(scores.patients)
        found = influence.estimate_all(scores.logit, scores.target, scores.weight, codes, len(draws.patients), ESTIMATORS)
        measured.append(Measured(scores, found, {**drawn[0], **drawn[1]}))
    return measured


def summarise(measured: Measured, draws: Draws, name: str) -> dict[str, Any]:
    """The entry of an arm in `report.json`, without decisions."""
    scores, found, drawn = measured.scores, measured.found, measured.drawn
    codes = draws.codes(scores.patients)
    rng = np.random.default_rng([draws.seed, 2])
    null = cal.ece_null(scores.logit, scores.weight, codes, min(draws.number, _NULL_DRAWS), rng)
    errors = [cal.curve_errors(logit, scores.target, scores.weight) for logit in scores.logit]
    curve = {key: np.array([e[key] for e in errors]) for key in errors[0]}
    entry: dict[str, Any] = {
        "auc": _auc(measured),
        "partial_auc": {**drawn["partial_auc"].interval(greatest=1.0), "specificity_from": dis.SPECIFICITY},
        "average_precision": {**drawn["average_precision"].interval(least=0.0, greatest=1.0), "chance": _prevalence(scores)},
        "brier": found["brier"].interval(least=0.0, greatest=1.0),
        "brier_skill": found["brier_skill"].interval(greatest=1.0),
        "brier_parts": _parts(drawn["corp"]),
        "log_loss": found["log_loss"].interval(least=0.0),
        "ece": {
            **drawn["ece"].interval(recentre=True, greatest=1.0),
            "null_mean": float(null.mean()),
            "null_high": float(np.quantile(null, 0.95)),
            "bins": max(len(cal.bin_edges(logit)) for logit in scores.logit) + 1,
        },
        "l2_ece": drawn["l2_ece"].interval(recentre=True, greatest=1.0),
        "smooth_ece": drawn["smooth_ece"].interval(recentre=True, greatest=1.0),
        "calibration": {
            "intercept": found["intercept"].interval(widest=WIDEST),
            "slope": found["slope"].interval(widest=WIDEST),
            "observed_expected": found["observed_expected"].interval("log"),
            "ici": make_drawn(curve["ici"], drawn["curve"].draws[:, 0]).interval(recentre=True, greatest=1.0),
            **{key: float(curve[key].mean()) for key in ("e50", "e90", "emax")},
        },
    }
    entry["trust"] = trust(name, entry)
    low, high = bands(drawn["curve"].draws[:, 1:])
    entry["curves"] = {
        "roc": dis.roc_curve(scores.logit, scores.target, scores.weight),
        "precision_recall": dis.precision_recall_curve(scores.logit, scores.target, scores.weight),
        "reliability": cal.reliability(scores.logit, scores.target, scores.weight, codes, min(draws.number, _BAND_DRAWS), rng),
        "smooth": {
            "predicted": cal.curve_grid(scores.logit).tolist(),
            "observed": _plain(drawn["curve"].value[1:]),
            "low": _plain(low),
            "high": _plain(high),
        },
        "histogram": _histogram(scores.logit, scores.target),
    }
    return entry


def describe_recalibration(recalibrated: Recalibrated) -> dict[str, Any]:
    """Method, why, and the parameters by seed and fold."""
    maps = [{"seed": seed, "fold": fold, **fitted.parameters} for (seed, fold), fitted in recalibrated.maps.items()]
    return {"method": recalibrated.method, "chosen": recalibrated.chosen, "maps": maps}


def _plain(values: Float) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _prevalence(scores: Scores) -> float:
    return float(scores.weight @ scores.target / scores.weight.sum())


def _auc(measured: Measured) -> dict[str, Any]:
    scores = measured.scores
    entry = dis.auc_interval(measured.found["auc"])
    bootstrap = measured.drawn["auc"].interval(least=0.0, greatest=1.0)
    entry["bootstrap"] = {"low": bootstrap["low"], "high": bootstrap["high"]}
    folds = scores.folds or []
    by_fold = [fold_auc(scores, scores.fold[0] == fold) for fold in folds]
    known = [value for value in by_fold if value is not None]
    entry["by_fold"] = [{"fold": fold, "auc": value} for fold, value in zip(folds, by_fold, strict=True)]
    entry["fold_mean"] = float(np.mean(known)) if known and len(known) == len(folds) else None
    return entry


def _parts(corp: Drawn) -> dict[str, Any]:
    names = ("miscalibration", "discrimination", "uncertainty")
    return {name: corp[i].interval(recentre=name == "miscalibration", least=0.0) for i, name in enumerate(names)}


def _histogram(logits: Float, target: NDArray[Any], bins: int = 20) -> dict[str, list[float]]:
    """Images per bin of probability, by class, mean over seeds."""
    edges = np.linspace(0, 1, bins + 1)
    probability = expit(logits)
    counts = {
        name: (np.histogram(probability[:, target == value], edges)[0] / len(logits)).tolist()
        for name, value in (("negative", 0), ("positive", 1))
    }
    return {"edges": edges.tolist(), **counts}
