"""The rows of a predictions table by what is done with them, and the account of those that are left
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.budgets import levelled_arms, split_budgets
from medtransfer.evaluation.settings import Settings
from medtransfer.evaluation.tables.order import order_of, sort_by_content
from medtransfer.evaluation.tables.predictions import check_predictions, read_predictions
from medtransfer.evaluation.tables.scores import Unknown, drop_repeated_seeds
from medtransfer.text.account import Account, make_account
from medtransfer.text.names import look_alikes, show


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a table, in the order of their content (see `order`), by what is done with them.

    Attributes:
        main: evaluated as they are.
        curve: of a learning curve.
        early: at the end of the budget, of all arms that had it; see `budgets`.
        hidden: by label, patients with images whose target is unknown.
        levelled: arms that were trained until level.
        account: of all rows of the table.
        warnings: what a reader has to know of them, in sentences.
    """

    main: pd.DataFrame
    curve: pd.DataFrame
    early: pd.DataFrame
    hidden: Unknown
    levelled: list[str]
    account: Account
    warnings: list[str]


def sort_rows(given: pd.DataFrame | str | Path, settings: Settings) -> Rows:
    """Reads a table, or checks it, and sorts its rows.

    Raises:
        PredictionsError, LeakageError: see `check_predictions`; or no row is left to evaluate.
    """
    keep, weight, apart = settings.subgroups, settings.weight, settings.look_alikes == "different"
    if isinstance(given, pd.DataFrame):
        table, source = check_predictions(given, "predictions", keep, weight, apart), "predictions"
    else:
        table, source = read_predictions(given, keep, weight, apart), Path(given).name
    if unknown_arms := sorted(set(settings.arms) - set(table["arm"])):
        raise PredictionsError(
            f"arms: no row is of {', '.join(unknown_arms)}. Arms here: "
            f"{', '.join(sorted(table['arm'].unique()))}."
        )
    attrs = table.attrs
    left_out = [("", "no target", False)] * attrs["unknown"]
    warnings = [f"{attrs['unknown']} rows have no target and are left out."] if left_out else []

    def leave_out(rows: pd.DataFrame, reason: str) -> None:
        left_out.extend((name, reason, False) for name in rows["image"])

    in_training = table["part"] == "train"
    leave_out(table[in_training], "part train, which is not evaluated")
    table = table[~in_training]
    drawn = table["size"] > 0 if "size" in table.columns else pd.Series(False, index=table.index)
    curve, table = table[drawn], table[~drawn]
    levelled = levelled_arms(table)
    different, repeated = drop_repeated_seeds(table)
    leave_out(table.drop(different.index), "a seed that repeats another one")
    if repeated:
        named = ", ".join(map(str, repeated))
        warnings.append(
            f"Seed {named}: every arm predicts as it does with an earlier seed; nothing varies, "
            "and it does not count as another."
        )
    main, early = split_budgets(different, levelled)
    if main.empty:
        raise PredictionsError(
            f"{source}: no row is of the tune or test part of the whole cohort; every one has a "
            "size above 0 (a learning curve), or part "
            "train. Give the others too."
        )
    if len(set(main["label"])) > 1:
        for rows, what in (
            (different.drop(main.index), "at the end of the budget"),
            (curve, "of a learning curve"),
        ):
            if len(rows):
                leave_out(rows, f"{what}, which is for one label at a time")
                warnings.append(
                    f"{len(rows)} rows {what} are left out: they are evaluated for one label at a "
                    "time."
                )
        different, curve, early = main, curve.iloc[:0], early.iloc[:0]
    test = main[main["part"] == "test"]
    shared = test.groupby(["label", "image"], sort=False)["arm"].transform("nunique")
    unshared = test[shared < test.groupby("label", sort=False)["arm"].transform("nunique")]
    leave_out(unshared, "a test image that not every arm has")
    warnings += [f"{count} probabilities are {how}." for how, count in attrs["rounded"].items()]
    if not apart and (alike := look_alikes(main["patient"].unique())):
        example = " and ".join(map(show, alike[0]))
        warnings.append(
            f"{len(alike)} patient(s) may be written in two ways, such as {example}; they count "
            "as different people."
        )
    used = len(different) + len(curve) - len(unshared)
    order = order_of(main)
    main, curve, early = (sort_by_content(of, order, settings.arms) for of in (main, curve, early))
    notes = [attrs["shape"]] if attrs["shape"] else []
    notes += (
        [f"columns not used: {', '.join(map(show, attrs['unused']))}"] if attrs["unused"] else []
    )
    account = make_account("rows", source, used, left_out, notes)
    return Rows(main, curve, early, attrs["unknown_patients"], levelled, account, warnings)
