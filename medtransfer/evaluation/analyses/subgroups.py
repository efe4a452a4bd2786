"""The same numbers within sites, scanners, sexes, ages: groups of patients by any column."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from medtransfer.evaluation.analyses.one_arm import WIDEST
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.entries import NO_PROBABILITIES
from medtransfer.evaluation.intervals.estimate import Estimate, estimate
from medtransfer.evaluation.intervals.variance import COVERAGE
from medtransfer.evaluation.metrics.discrimination import auc_interval
from medtransfer.evaluation.tables.arrays import Int
from medtransfer.evaluation.tables.scores import Scores

# A group with fewer patients of a class is counted, and nothing else is said of it.
FEWEST = 10
# A column of numbers with more different values is cut into bands.
_DISTINCT, _CODES, _BANDS = 8, 20, 3
_UNKNOWN = "not stated"


@dataclass(frozen=True, eq=False)
class _Arm:
    scores: Scores
    codes: Int
    count: int

    def estimate(self, estimator: influence.Estimator, inside: NDArray[np.bool_]) -> Estimate:
        return estimate(self.scores, self.codes, self.count, estimator, None, inside)


def describe_subgroups(
    scores: Sequence[Scores], columns: pd.DataFrame, draws: Draws
) -> list[dict[str, Any]]:
    """For every column and group: counts, AUC, slope, observed / expected, and how they differ from
    the other groups.

    AUCs are of pairs within models and within the group. Differences are between a group and the
    rest of the patients, over the models that tested both: of each arm's AUC, and of the difference
    in AUC between the first two arms (the interaction: does transfer help here as it does
    elsewhere?). Their intervals hold for all groups of a column together (Bonferroni), and a test
    of all groups of a column says whether they differ at all.

    Args:
        scores: arms over the same images.
        columns: one row per image of the scores, in their order; a column per characteristic.
        draws: names the patients.

    Returns:
        Entries `column, group, patients, positive_patients, images, suppressed, arms, interaction`;
        `heterogeneity_p` is of the column.
    """
    arms = [_Arm(s, draws.codes(s.patients), len(draws.patients)) for s in scores]
    subgroups = []
    for column in columns.columns:
        values = band(columns[column])
        groups = sorted(set(values), key=lambda name: (name == _UNKNOWN, _order(name)))
        inside = {group: (values == group).to_numpy() for group in groups}
        large_enough = sum(_enough(scores[0], rows) for rows in inside.values())
        entries = [
            {"column": str(column), "group": group, **_describe(arms, rows, max(1, large_enough))}
            for group, rows in inside.items()
        ]
        for arm in arms:
            p = _heterogeneity(arm, [rows for rows in inside.values() if _enough(scores[0], rows)])
            for entry in entries:
                if arm.scores.arm in entry["arms"]:
                    entry["arms"][arm.scores.arm]["heterogeneity_p"] = p
        subgroups += entries
    return subgroups


def _enough(scores: Scores, inside: NDArray[np.bool_]) -> bool:
    return all(
        len(set(scores.patients[inside & (scores.target == value)])) >= FEWEST for value in (0, 1)
    )


def _heterogeneity(arm: _Arm, groups: Sequence[NDArray[np.bool_]]) -> float | None:
    """P-value of all groups having one AUC, on the logit scale, by Cochran's Q with as many degrees
    of freedom as the smallest group has.

    None for a single group, where an AUC is 0 or 1, where groups share patients, or where a model
    did not test pairs of every group, as the groups may then differ by their models.
    """
    s = arm.scores
    patients = [set(s.patients[rows]) for rows in groups]
    disjoint = sum(map(len, patients)) == len(set().union(*patients)) if patients else False
    tests_pairs = all(
        len(set(s.target[(fold == model) & rows])) == 2
        for fold in s.fold
        for model in np.unique(fold)
        for rows in groups
    )
    if not (disjoint and tests_pairs):
        return None
    aucs = [arm.estimate(influence.auc, rows) for rows in groups]
    usable = [g for g in aucs if 0 < g.value < 1 and g.variance > 0]
    if len(usable) < max(2, len(groups)):
        return None
    values = np.array([np.log(g.value / (1 - g.value)) for g in usable])
    weight = np.array([(g.value * (1 - g.value)) ** 2 / g.variance for g in usable])
    spread = float(weight @ np.square(values - weight @ values / weight.sum()))
    freedom = len(usable) - 1
    return float(
        f_distribution.sf(spread / freedom, freedom, min(min(g.members[:2]) for g in usable) - 1)
    )


def band(column: pd.Series) -> pd.Series:
    """The groups of a column, as text: its values, or thirds where it holds many different
    numbers.
    """
    numbers = pd.to_numeric(column, errors="coerce")
    stated = column.notna() & (column.astype(str).str.strip() != "")
    # A few whole numbers may be the codes of sites or scanners.
    most = _CODES if (numbers[stated] % 1 == 0).all() else _DISTINCT
    if numbers[stated].notna().all() and numbers[stated].nunique() > most:
        edges = np.unique(
            [
                float(f"{edge:.3g}")
                for edge in np.quantile(numbers[stated], np.linspace(0, 1, _BANDS + 1)[1:-1])
            ]
        )
        names = [
            f"below {edges[0]:g}",
            *(f"{a:g} to below {b:g}" for a, b in itertools.pairwise(edges)),
            f"{edges[-1]:g} and above",
        ]
        return pd.Series(
            [
                names[np.searchsorted(edges, n, side="right")] if k else _UNKNOWN
                for n, k in zip(numbers, stated, strict=True)
            ]
        )
    return pd.Series(
        [str(v).strip() if k else _UNKNOWN for v, k in zip(column, stated, strict=True)]
    )


def _order(name: str) -> tuple[int, float, str]:
    first = name.removeprefix("below ").split(" ")[0]
    try:
        return 0, float(first) - (0.5 if name.startswith("below") else 0.0), name
    except ValueError:
        return 1, 0.0, name


def _describe(arms: Sequence[_Arm], inside: NDArray[np.bool_], groups: int) -> dict[str, Any]:
    first = arms[0].scores
    entry: dict[str, Any] = {
        "patients": len(set(first.patients[inside])),
        "positive_patients": len(set(first.patients[inside & (first.target == 1)])),
        "images": int(inside.sum()),
        "suppressed": not _enough(first, inside),
        "arms": {},
        "interaction": None,
    }
    if entry["suppressed"]:
        return entry
    aucs = []
    for arm in arms:
        numbers: dict[str, Any] = {
            "auc": auc_interval(arm.estimate(influence.auc, inside)),
            "slope": dict(NO_PROBABILITIES),
            "observed_expected": dict(NO_PROBABILITIES),
            "auc_difference": None,
        }
        if not arm.scores.scored:
            numbers["slope"] = arm.estimate(influence.slope, inside).interval(widest=WIDEST)
            numbers["observed_expected"] = arm.estimate(
                influence.observed_expected, inside
            ).interval("log")
        of_group, of_others = _comparable(arm.scores, inside)
        if _enough(first, of_group) and _enough(first, of_others):
            inside_auc, outside_auc = (
                arm.estimate(influence.auc, of_group),
                arm.estimate(influence.auc, of_others),
            )
            aucs.append((inside_auc, outside_auc))
            numbers["auc_difference"] = _apart(inside_auc, outside_auc).interval(
                coverage=1 - (1 - COVERAGE) / groups
            )
        entry["arms"][arm.scores.arm] = numbers
    if len(aucs) == len(arms) > 1:
        (a, a_rest), (b, b_rest) = aucs[:2]
        between = _apart(a - b, a_rest - b_rest).interval(coverage=1 - (1 - COVERAGE) / groups)
        entry["interaction"] = {"a": arms[0].scores.arm, "b": arms[1].scores.arm, **between}
    return entry


def _comparable(
    scores: Scores, inside: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Images of the group, and of patients outside it, that were tested by models which tested
    pairs of both.

    Where sites were left out one by one, a site has a model of its own: there are none, as any
    difference may be one between models.
    """
    outside = ~inside & ~np.isin(scores.patients, scores.patients[inside])
    both = np.ones(len(inside), bool)
    for fold in scores.fold:
        for model in np.unique(fold):
            rows = fold == model
            pairs = [len(set(scores.target[rows & side])) == 2 for side in (inside, outside)]
            if not all(pairs):
                both &= ~rows
    return inside & both, outside & both


def _apart(group: Estimate, others: Estimate) -> Estimate:
    """The difference between groups that share no patient; the smaller group limits the degrees of
    freedom.
    """
    members = tuple(min(pair) for pair in zip(group.members, others.members, strict=True))
    return replace(group - others, members=(members[0], members[1], members[2]))
