"""Arms that were trained beyond the budget, until level: what they reach is compared, and beside it
what they reached at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.comparison import Contestant, compare_arms
from medtransfer.evaluation.analyses.one_arm import describe_briefly, measure
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.settings import Settings
from medtransfer.evaluation.tables.predictions import AT_BUDGET, BUDGET, OTHER
from medtransfer.evaluation.tables.scores import align_scores


def split_budgets(
    table: pd.DataFrame, levelled: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Separates the rows at the end of the common budget from the others, in predictions or
    candidates. The second table holds all arms as they were at that end.

    Args:
        table: with or without a column `budget`.
        levelled: arms that were trained until level; none: the second table is empty.
    """
    if BUDGET not in table.columns:
        return table, table.iloc[:0]
    early = table[BUDGET] == AT_BUDGET
    main = table[~early]
    if not levelled:
        return main, table.iloc[:0]
    order = {arm: place for place, arm in enumerate(dict.fromkeys(table["arm"]))}
    replaced = pd.concat(
        [main[~main["arm"].isin(levelled) & (main[BUDGET] != OTHER)], table[early]]
    )
    return main, replaced.sort_values(
        "arm", key=lambda names: names.map(order), kind="stable"
    ).reset_index(drop=True)


def levelled_arms(table: pd.DataFrame) -> list[str]:
    """The arms of a table that were trained until level."""
    return (
        list(dict.fromkeys(table.loc[table[BUDGET] == AT_BUDGET, "arm"]))
        if BUDGET in table.columns
        else []
    )


def refuse_later_candidates(levelled: Sequence[str], candidates: pd.DataFrame) -> None:
    """Refuses candidates without rows at the end of the budget, as their detectors would seem to
    find nothing.

    Raises:
        PredictionsError: an arm that was trained until level has none.
    """
    if silent := [arm for arm in levelled if arm not in levelled_arms(candidates)]:
        raise PredictionsError(
            f"the predictions of {', '.join(silent)} have rows at the end of the budget (column "
            "budget: same), the candidates have none. "
            "Give them that column too, or leave these rows out."
        )


def evaluate_at_budget(
    table: pd.DataFrame, levelled: Sequence[str], settings: Settings, draws: Draws, tuned: float
) -> dict[str, Any] | None:
    """The main numbers and the comparisons of the arms at the end of the budget that all were
    given.

    Args:
        table: rows that are counted, of all arms.
        levelled: the arms whose rows are not those of the main evaluation; pairs without one of
            them are left out.
        settings: of the main evaluation.
        draws: of the main evaluation.
        tuned: see `compare_arms`.

    Returns:
        `arms`, of each AUC, average precision, Brier score, log-loss and slope, and `comparisons`;
        None where none was until level.
    """
    if table.empty:
        return None
    scores = [replace(s, given=settings.models == "given") for s in align_scores(table)[0]]
    measured = measure(scores, draws, by_sites=bool(settings.leave_out))
    contestants = [
        Contestant(m.scores.arm, m.estimates, m.drawn, m.scores, m.sites) for m in measured
    ]
    comparisons = compare_arms(
        contestants, settings.margin, settings.leave_out, tuned, levelled, at_budget=True
    )
    return {
        "arms": {m.scores.arm: describe_briefly(m) for m in measured},
        "comparisons": comparisons,
    }
