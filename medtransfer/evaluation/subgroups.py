"""The same numbers within sites, scanners, sexes, ages: groups of patients by any column."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.evaluation import influence
from medtransfer.evaluation.discrimination import auc_interval
from medtransfer.evaluation.influence import Estimate
from medtransfer.evaluation.resample import Draws
from medtransfer.evaluation.scores import Scores
from medtransfer.evaluation.summary import WIDEST

# A group with fewer patients of a class is counted, and nothing else is said of it.
FEWEST = 10
# A column of numbers with more different values is cut into bands.
_DISTINCT, _CODES, _BANDS = 8, 20, 3
_UNKNOWN = "not stated"


@dataclass(frozen=True, eq=False)
class _Arm:
    scores: Scores
    codes: NDArray[np.int64]
    count: int

    def estimate(self, estimator: influence.Estimator, inside: NDArray[np.bool_]) -> Estimate:
        s = self.scores
        return influence.estimate(s.logit[:, inside], s.target[inside], s.weight[inside], self.codes[inside], self.count, estimator)


def describe_subgroups(scores: Sequence[Scores], columns: pd.DataFrame, draws: Draws) -> list[dict[str, Any]]:
    """Per column and group: counts, AUC, slope, observed / expected, and how they differ from the other groups.

    Differences are between a group and the rest of the patients, with 95 % intervals: of each arm's AUC, and of the
    difference in AUC between the first two arms (the interaction: does transfer help here as it does elsewhere?). There are no
    p-values: with many groups some would be small by chance.

    Args:
        scores: arms over the same images.
        columns: one row per image of the scores, in their order; a column per characteristic.
        draws: names the patients.

    Returns:
        Entries `column, group, patients, positive_patients, images, suppressed, arms, interaction`.
    """
    arms = [_Arm(s, draws.codes(s.patients), len(draws.patients)) for s in scores]
    found = []
    for column in columns.columns:
        values = band(columns[column])
        for group in sorted(set(values), key=lambda name: (name == _UNKNOWN, _order(name))):
            found.append({"column": str(column), "group": group, **_describe(arms, (values == group).to_numpy())})
    return found


def band(column: pd.Series) -> pd.Series:
    """The groups of a column, as text: its values, or thirds where it holds many different numbers."""
    numbers = pd.to_numeric(column, errors="coerce")
    known = column.notna() & (column.astype(str).str.strip() != "")
    # Whole numbers of which there are few may be the codes of sites or scanners.
    most = _CODES if (numbers[known] % 1 == 0).all() else _DISTINCT
    if numbers[known].notna().all() and numbers[known].nunique() > most:
        edges = np.unique([float(f"{edge:.3g}") for edge in np.quantile(numbers[known], np.linspace(0, 1, _BANDS + 1)[1:-1])])
        names = [
            f"below {edges[0]:g}",
            *(f"{a:g} to below {b:g}" for a, b in itertools.pairwise(edges)),
            f"{edges[-1]:g} and above",
        ]
        return pd.Series([names[np.searchsorted(edges, n, side="right")] if k else _UNKNOWN for n, k in zip(numbers, known, strict=True)])
    return pd.Series([str(v).strip() if k else _UNKNOWN for v, k in zip(column, known, strict=True)])


def _order(name: str) -> tuple[int, float, str]:
    first = name.removeprefix("below ").split(" ")[0]
    try:
        return 0, float(first) - (0.5 if name.startswith("below") else 0.0), name
    except ValueError:
        return 1, 0.0, name


def _describe(arms: Sequence[_Arm], inside: NDArray[np.bool_]) -> dict[str, Any]:
    first = arms[0].scores
    truth = first.target == 1
    of = {name: len(set(first.patients[inside & rows])) for name, rows in (("positive", truth), ("negative", ~truth))}
    entry: dict[str, Any] = {
        "patients": len(set(first.patients[inside])),
        "positive_patients": of["positive"],
        "images": int(inside.sum()),
        "suppressed": min(of.values()) < FEWEST,
        "arms": {},
        "interaction": None,
    }
    if entry["suppressed"]:
        return entry
    rest = ~inside & ~np.isin(first.patients, first.patients[inside])
    compared = min(len(set(first.patients[rest & rows])) for rows in (truth, ~truth)) >= FEWEST
    aucs = []
    for arm in arms:
        own = arm.estimate(influence.auc, inside)
        numbers: dict[str, Any] = {
            "auc": auc_interval(own),
            "slope": arm.estimate(influence.slope, inside).interval(widest=WIDEST),
            "observed_expected": arm.estimate(influence.observed_expected, inside).interval("log"),
            "auc_difference": None,
        }
        if compared:
            other = arm.estimate(influence.auc, rest)
            aucs.append((own, other))
            numbers["auc_difference"] = _apart(own, other).interval()
        entry["arms"][arm.scores.arm] = numbers
    if compared and len(arms) > 1:
        (a, a_rest), (b, b_rest) = aucs[:2]
        entry["interaction"] = {"a": arms[0].scores.arm, "b": arms[1].scores.arm, **_apart(a - b, a_rest - b_rest).interval()}
    return entry


def _apart(own: Estimate, other: Estimate) -> Estimate:
    """The difference between groups that share no patient; the smaller one limits what is known."""
    members = tuple(min(pair) for pair in zip(own.members, other.members, strict=True))
    return replace(own - other, members=(members[0], members[1], members[2]))
