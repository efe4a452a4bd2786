"""Arm against arm, over the same patients, folds and seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from medtransfer.evaluation.analyses.sites import BySite, meta_difference
from medtransfer.evaluation.intervals.entries import NO_PROBABILITIES, no_interval
from medtransfer.evaluation.intervals.estimate import Estimate
from medtransfer.evaluation.intervals.resample import DrawnMetric
from medtransfer.evaluation.intervals.variance import COVERAGE, Part, quantile
from medtransfer.evaluation.sentences.verdict import verdict
from medtransfer.evaluation.tables.scores import Scores

# Coverage of the interval whose half-width is what a study of 80 % power needs beyond the level.
_POWER = 0.6
# The data say nothing about a difference in slopes whose standard error is larger.
_LARGEST = 20.0
# Differences whose intervals come from influences, and those that come from the draws.
_FROM_INFLUENCE = ("auc", "brier", "log_loss", "slope")
_FROM_DRAWS = ("average_precision", "partial_auc", "net_benefit")


@dataclass(frozen=True, eq=False)
class Contestant:
    """What the comparison needs of an arm.

    Attributes:
        name: of the arm.
        estimates: with their influences; `auc`, and of probabilities `brier`, `log_loss`,
            `slope`.
        drawn: metrics with their draws; `auc`, and those of `_FROM_DRAWS` that are there.
        scores: for the differences within folds; None where several labels were averaged.
        sites: the AUC of every site, where a fold leaves one out.
    """

    name: str
    estimates: dict[str, Estimate]
    drawn: dict[str, DrawnMetric]
    scores: Scores | None = None
    sites: BySite | None = None


def compare_arms(
    arms: Sequence[Contestant],
    margin: float | None = None,
    sites: str | None = None,
    tuned: float = 0.0,
    levelled: Collection[str] = (),
    at_budget: bool = False,
) -> list[dict[str, Any]]:
    """Compares every pair of arms over the same patients: the earlier arm `a` minus the later arm
    `b`, with paired intervals.

    The difference in AUC is the one that is tested: its interval and its p-value hold the variation
    between trainings where folds or seeds show it. The other differences have intervals, and no
    p-values, as some of them would be small by chance.

    Args:
        arms: in their order.
        margin: of non-inferiority in AUC, chosen before the results were seen; None: not tested.
        sites: what a fold leaves out, where that is a site; the difference in AUC is then a mean
            over sites.
        tuned: tune images of a model, for the correction of overlapping training sets.
        levelled: arms that were trained beyond the budget, until level.
        at_budget: these are compared as they were at its end, and pairs without one of them left
            out.
    """
    by_name = {arm.name: arm for arm in arms}
    pairs = [(by_name[a], by_name[b]) for a, b in pair_arms(list(by_name), levelled, at_budget)]
    comparisons = []
    values: list[tuple[float, float]] = []
    for a, b in pairs:
        entry: dict[str, Any] = {
            "a": a.name,
            "b": b.name,
            **describe_budgets((a.name, b.name), levelled, at_budget),
        }
        for metric in _FROM_INFLUENCE:
            if metric in a.estimates and metric in b.estimates:
                entry[f"delta_{metric}"] = _describe(
                    a.estimates[metric] - b.estimates[metric], widest=_LARGEST
                )
            else:
                entry[f"delta_{metric}"] = {**NO_PROBABILITIES, "p": None, "covers": "models"}
        for metric in _FROM_DRAWS:
            if metric in a.drawn and metric in b.drawn:
                entry[f"delta_{metric}"] = _describe(a.drawn[metric] - b.drawn[metric])
        difference = a.estimates["auc"] - b.estimates["auc"]
        _add_auc(entry, difference, a.drawn["auc"] - b.drawn["auc"])
        value = (a.estimates["auc"].value, b.estimates["auc"].value)
        over_sites = (
            meta_difference(a.sites, b.sites)
            if a.sites and b.sites and difference.cells is not None
            else None
        )
        if over_sites:
            value = (over_sites["of_arms"][0], over_sites["of_arms"][1])
            entry["delta_auc"] |= {
                **over_sites,
                "method": f"random effects over {sites}s of the difference within each",
                "covers": "sites",
            }
        entry["delta_auc"]["folds"] = _folds(difference, a.scores, b.scores, tuned)
        if margin is not None:
            entry["non_inferiority"] = _non_inferiority(difference, margin, len(pairs), over_sites)
        comparisons.append(entry)
        values.append(value)
    for entry, p in zip(
        comparisons, holm([entry["delta_auc"]["p"] for entry in comparisons]), strict=True
    ):
        entry["delta_auc"]["p_holm"] = p
    for entry, value in zip(comparisons, values, strict=True):
        entry["verdict"] = verdict(entry, value, len(pairs))
    return comparisons


def pair_arms(
    arms: Sequence[str], levelled: Collection[str], at_budget: bool
) -> list[tuple[str, str]]:
    """The pairs that are compared, the earlier arm first; `at_budget`: those with an arm that was
    trained until level.
    """
    return [pair for pair in combinations(arms, 2) if not at_budget or set(pair) & set(levelled)]


def describe_budgets(
    arms: Sequence[str], levelled: Collection[str], at_budget: bool
) -> dict[str, Any]:
    """What a comparison says about budgets: `levelled`, its arms that were trained until level, or
    `at_budget`.
    """
    levelled_of_pair = [arm for arm in arms if arm in levelled]
    return (
        {"at_budget": True}
        if at_budget
        else {"levelled": levelled_of_pair}
        if levelled_of_pair
        else {}
    )


def _describe(difference: Estimate | DrawnMetric, **bounds: float) -> dict[str, Any]:
    """The entry of a difference that is not tested: its interval, and what the interval covers."""
    interval = difference.interval(parts=judged_by(difference), **bounds)  # type: ignore[arg-type]
    return {**interval, "p": None, "covers": _covers(difference)}


def judged_by(difference: Estimate | DrawnMetric) -> tuple[Part, ...]:
    """Parts of the variance by which a difference is judged: with the variation between trainings,
    or over patients where none is shown.
    """
    return difference.trained_again or difference.models_alone


def _covers(difference: Estimate | DrawnMetric) -> str:
    return "training" if difference.trained_again else "models"


def describe_test(difference: Estimate | DrawnMetric) -> dict[str, Any]:
    """What the interval of a difference covers, its p-value, the interval for these models alone,
    and the difference that the study could have detected.
    """
    parts, models = judged_by(difference), difference.models_alone
    alone = difference.interval(parts=models)
    variance = sum(part.variance for part in parts)
    measurable = np.isfinite(variance) and variance > 0
    return {
        "p": difference.p_value(parts),
        "covers": _covers(difference),
        "models": {"low": alone["low"], "high": alone["high"], "p": difference.p_value(models)},
        "detectable": float((quantile(parts) + quantile(parts, _POWER)) * np.sqrt(variance))
        if measurable
        else None,
    }


def _add_auc(entry: dict[str, Any], difference: Estimate, drawn: DrawnMetric) -> None:
    """Completes the entry of the difference in AUC: the method, the test, and for these models
    alone DeLong's p-value and the bootstrap.
    """
    delta = entry["delta_auc"]
    delta |= describe_test(difference)
    between_trainings = ", and between trainings" if delta["covers"] == "training" else ""
    delta["method"] = (
        "within models, paired DeLong over "
        f"patients{', clustered' if difference.clustered else ''}{between_trainings}"
    )
    bootstrap = drawn.interval(parts=drawn.models_alone)
    delta["bootstrap"] = {
        "low": bootstrap["low"],
        "high": bootstrap["high"],
        "p": drawn.p_value(drawn.models_alone),
    }
    patients = difference.of_patients
    measurable = np.isfinite(difference.value) and np.isfinite(patients) and patients > 0
    delta["p_delong"] = (
        float(2 * norm.sf(abs(difference.value) / np.sqrt(patients))) if measurable else None
    )


def _non_inferiority(
    difference: Estimate, margin: float, pairs: int, over_sites: dict[str, Any] | None
) -> dict[str, Any]:
    """Tests non-inferiority in both directions, by an interval that holds for all pairs together
    (Bonferroni); with sites, by the interval over sites.
    """
    coverage = 1 - (1 - COVERAGE) / pairs
    if over_sites:
        half = float(student.ppf((1 + coverage) / 2, over_sites["freedom"])) * over_sites["error"]
        low, high = over_sites["estimate"] - half, over_sites["estimate"] + half
    else:
        interval = difference.interval(parts=judged_by(difference), coverage=coverage)
        low, high = interval["low"], interval["high"]
    return {
        "margin": margin,
        "shown": bool(low is not None and low > -margin),
        "shown_reverse": bool(high is not None and high < margin),
        "low": low,
        "high": high,
        "coverage": coverage,
    }


def _folds(
    difference: Estimate, a: Scores | None, b: Scores | None, tuned: float
) -> dict[str, Any] | None:
    """The mean difference within folds, with the corrected resampled t interval (Nadeau & Bengio
    2003, doi:10.1023/A:1024068626366).

    It allows for training sets that overlap, and is wider than needed where trainings vary for
    other reasons.

    Args:
        difference: in AUC.
        a: the first arm.
        b: the second arm.
        tuned: tune images of a model, which are not among those that trained it.
    """
    if a is None or b is None or a.folds is None or len(a.folds) < 2:
        return None
    if difference.cells is None:
        return no_interval("not estimable: the arms have different folds")
    differences = difference.cells.estimates.mean(0)
    if not np.isfinite(differences).all():
        fold = a.folds[int(np.flatnonzero(~np.isfinite(differences))[0])]
        return no_interval(f"not estimable: fold {fold} lacks a class")
    tested = np.array([(a.fold[0] == fold).sum() for fold in a.folds])
    ratios = tested / np.maximum(1.0, tested.sum() - tested - tuned)
    count = len(a.folds)
    mean, spread = float(np.mean(differences)), float(np.var(differences, ddof=1))
    half = float(student.ppf(0.975, count - 1)) * np.sqrt(
        spread * (1 / count + float(np.mean(ratios)))
    )
    if abs(mean) + half > 1:  # as with two folds, of one degree of freedom
        return no_interval(f"no interval: {count} folds tell too little", mean)
    return {
        "estimate": mean,
        "low": mean - half,
        "high": mean + half,
        "method": "corrected resampled t over folds",
    }


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for multiple comparisons (Holm 1979); a missing value stays None and
    counts as a comparison.
    """
    from statsmodels.stats.multitest import multipletests  # here, as its import costs 30 ms

    if not values:
        return []
    corrected = multipletests([1.0 if p is None else p for p in values], method="holm")[1]
    return [None if p is None else float(q) for p, q in zip(values, corrected, strict=True)]
