"""Sites that were left out one by one: the mean over sites such as these, and what a new one may
show.

Each site was tested by a model that never saw it. Sites differ by more than their patients do, so
that intervals over patients do not tell of new sites (Debray et al. 2017, doi:10.1136/bmj.i6460).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import t as student

from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.estimate import Estimate, estimate
from medtransfer.evaluation.intervals.variance import NORMAL_95
from medtransfer.evaluation.metrics.discrimination import auc_interval
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores

_FEWEST = 2
# Pairs of the number of a site and its AUC.
BySite = Sequence[tuple[int, Estimate]]


def pool_sites(effects: Float, variances: Float) -> dict[str, float]:
    """Random-effects mean over sites with a Hartung-Knapp interval, and the interval for a new
    site.

    Variance between sites by Paule & Mandel 1982 (doi:10.6028/jres.087.022), the interval by
    Hartung & Knapp 2001 (doi:10.1002/sim.791), the prediction interval with the same degrees of
    freedom; as R's metafor `rma(method = "PM", test = "knha")`.

    Args:
        effects: (site,), at least two.
        variances: (site,), each above 0.

    Returns:
        `mean, error, freedom, between` (variance), `low, high`, `new_low, new_high`, `p` of the
        mean being 0.
    """
    freedom = len(effects) - 1

    def excess(between: float) -> float:
        return _weigh_sites(effects, variances + between)[1] - freedom

    # The sample variance is the largest it can be. statsmodels' iteration ends at 0 where rounding
    # carries it past the root.
    between = float(brentq(excess, 0.0, np.var(effects, ddof=1))) if excess(0.0) > 0 else 0.0
    mean, squares, weight = _weigh_sites(effects, variances + between)
    error = float(np.sqrt(squares / freedom / weight))
    t = float(student.ppf(0.975, freedom))
    wide = t * float(np.sqrt(between + error**2))
    return {
        "mean": mean,
        "error": error,
        "freedom": freedom,
        "between": between,
        "low": mean - t * error,
        "high": mean + t * error,
        "new_low": mean - wide,
        "new_high": mean + wide,
        "p": float(2 * student.sf(abs(mean) / error, freedom)) if error > 0 else float("nan"),
    }


def _weigh_sites(effects: Float, variances: Float) -> tuple[float, float, float]:
    """Mean weighted by 1 / variance, weighted sum of squares about it, sum of weights."""
    weight = 1 / variances
    mean = weight @ effects / weight.sum()
    return float(mean), float(weight @ (effects - mean) ** 2), float(weight.sum())


def meta_auc(sites: BySite) -> dict[str, Any] | None:
    """The AUC of an arm over sites, pooled on the logit scale, with the interval for a new site;
    None below two sites with both classes.
    """
    rows = [(fold, auc_interval(of)) for fold, of in sites if min(of.members[:2]) > 0]
    if len(rows) < _FEWEST:
        return None
    # An AUC of 0 or 1 has no logit: half a pair counts the other way. Its bounds are Newcombe's, of
    # which that towards 0.5 tells.
    pairs = np.array([of.members[0] * of.members[1] for _, of in sites if min(of.members[:2]) > 0])
    value, low, high = np.array(
        [[row[key] for key in ("estimate", "low", "high")] for _, row in rows]
    ).T
    effects = logit((value * pairs + 0.5) / (pairs + 1))
    with np.errstate(divide="ignore"):
        errors = np.where(value > 0.5, effects - logit(low), logit(high) - effects) / NORMAL_95
    pooled = pool_sites(effects, np.maximum(errors, 1e-6) ** 2)
    return {
        "estimate": float(expit(pooled["mean"])),
        "low": float(expit(pooled["low"])),
        "high": float(expit(pooled["high"])),
        "method": "random effects over sites, logit scale",
        "new_site": {
            "low": float(expit(pooled["new_low"])),
            "high": float(expit(pooled["new_high"])),
        },
        "between_sites": pooled["between"],
        "sites": [
            {"fold": fold, **{key: row[key] for key in ("estimate", "low", "high")}}
            for fold, row in rows
        ],
    }


def put_over_sites(entry: dict[str, Any], sites: BySite | None) -> dict[str, Any]:
    """The entry of an AUC, replaced by the one over sites where there are several sites; the figure
    over patients is kept beside it.
    """
    pooled = meta_auc(sites) if sites else None
    if pooled is None:
        return entry
    return {
        **entry,
        **pooled,
        "over_patients": {key: entry[key] for key in ("estimate", "low", "high", "method")},
    }


def meta_difference(a: BySite, b: BySite) -> dict[str, Any] | None:
    """The difference in AUC of two arms over the same sites, with its p-value and the interval for
    a new site.

    None below two sites in which the arms differ. `of_arms`: the AUCs with the weights of the
    difference, which is theirs.
    """
    pairs = [(x, y, x - y) for (_, x), (_, y) in zip(a, b, strict=True) if min(x.members[:2]) > 1]
    figures = [
        (x.value, y.value, d.value, d.variance)
        for x, y, d in pairs
        if np.isfinite(d.value) and d.variance > 0
    ]
    if len(figures) < _FEWEST:
        return None
    first, second, difference, variance = np.array(figures).T
    pooled = pool_sites(difference, variance)
    arms = [_weigh_sites(values, variance + pooled["between"])[0] for values in (first, second)]
    t = [float(student.ppf(q, pooled["freedom"])) for q in (0.975, 0.8)]
    return {
        "estimate": pooled["mean"],
        "low": max(-1.0, pooled["low"]),
        "high": min(1.0, pooled["high"]),
        "p": pooled["p"],
        "error": pooled["error"],
        "freedom": pooled["freedom"],
        "left_out": len(pairs) - len(figures),
        "new_site": {"low": max(-1.0, pooled["new_low"]), "high": min(1.0, pooled["new_high"])},
        "detectable": sum(t) * pooled["error"],
        "of_arms": arms,
    }


def by_site(scores: Scores, codes: Int, count: int) -> BySite:
    """The AUC of every site; none where seeds have different divisions. `codes, count`: see
    `estimate`.
    """
    return [
        (fold, estimate(scores, codes, count, influence.auc, "pairs", scores.fold[0] == fold))
        for fold in scores.folds or []
    ]
