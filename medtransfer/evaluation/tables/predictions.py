"""The predictions table: schema, reading, writing, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.errors import LeakageError, PredictionsError, list_faults, list_unusable
from medtransfer.evaluation.tables.columns import COLUMNS
from medtransfer.evaluation.tables.probabilities import SCORE, read_numbers, read_scores
from medtransfer.text.names import has_controls, look_alike_key, look_alikes, normalise, show
from medtransfer.text.tables import (
    MISSING,
    NOBODY,
    describe_missing,
    describe_shape,
    read_table,
    row_of,
    write_table,
)

NEEDED = "Give a table with the columns patient, target and probability (or score, of any scale)."
# Of runs on small draws from the training patients: patients per class, and the number of the draw;
# 0 for the whole.
CURVE = ("size", "episode")
# How long an arm was trained, where that was until level: its rows as they became (`level`), and as
# they were when it had been given the budget of the other arms (`same`). Other arms: nothing where
# they had that budget, and `other` where they had another, or none.
BUDGET, LEVEL, AT_BUDGET, OTHER = "budget", "level", "same", "other"
_DEFAULTS: dict[str, Any] = {
    "arm": "model",
    "seed": 0,
    "fold": 0,
    "part": "test",
    "label": "target",
}

# Columns in which a word such as NA stands for an empty cell.
_NUMBERS = {"target", "probability", "logit", SCORE, "seed", "fold", *CURVE}
_PARTS = {
    "train": "train",
    "training": "train",
    "tune": "tune",
    "val": "tune",
    "valid": "tune",
    "validation": "tune",
    "test": "test",
}
# How much an image counts; all alike where there is no such column.
WEIGHT = "weight"
# Targets of other values in so many of the rows are no slips, and so few values are classes.
_NO_SLIPS, _FEW_CLASSES = 0.1, 12
# Share of tune images that are at least as unlike the training images.
TYPICAL = "typical"


def read_predictions(
    path: str | Path, keep: Sequence[str] = (), weight: str | None = None, apart: bool = False
) -> pd.DataFrame:
    """Reads a table of predictions and checks it; see `tables.read_table` and `check_predictions`.

    Raises:
        PredictionsError: no such file, no table, or a faulty one.
    """
    # As text: pandas' own parser of numbers is not always exact to the last bit, Python's is.
    table = read_table(
        Path(path),
        PredictionsError,
        NEEDED,
        (*COLUMNS, SCORE, *CURVE, BUDGET, WEIGHT, TYPICAL, *keep),
    )
    return check_predictions(table.replace("", np.nan), str(path), keep, weight, apart)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Writes the table with every digit of every number, other columns behind those of the
    schema.
    """
    others = [column for column in table.columns if column not in COLUMNS]
    write_table(table[[*COLUMNS, *others]], path)


def _columns(table: pd.DataFrame, keep: Sequence[str]) -> list[str]:
    return [
        *COLUMNS,
        *(
            c
            for c in dict.fromkeys((*CURVE, BUDGET, WEIGHT, TYPICAL, *keep))
            if c in table.columns and c not in COLUMNS
        ),
    ]


def check_predictions(
    table: pd.DataFrame,
    source: str = "predictions",
    keep: Sequence[str] = (),
    weight: str | None = None,
    apart: bool = False,
) -> pd.DataFrame:
    """Fills in what may be left out and checks the rest.

    `patient`, `target` and `probability` (or `logit`, or `score`, see `probabilities.read_scores`)
    are required. Left out, `arm` is "model", `seed` and `fold` 0, `part` "test", `label` "target",
    and `image` the patient with a running number. `size` and `episode` tell rows of a learning
    curve; both are 0 for the others. `budget` is "same" in rows of an arm as it was when it had the
    budget of the others, "level" in those of what became of it, "other" in those of an arm with
    another budget or none, empty elsewhere. `typical` says (0 to 1) how many tune images are at
    least as unlike the training images. Rows whose target is empty, as of a label that nobody
    looked for, are left out; `table.attrs["unknown"]` is their number, `unknown_patients` their
    patients by label, `found` the number of all rows, `rounded` what was taken as rounding, `shape`
    how the file was found.

    Args:
        table: as above.
        source: names it in messages.
        keep: other columns that are to stay, such as of subgroups.
        weight: the column that says how much an image counts; it becomes `weight`.
        apart: patients whose names look alike, such as 7 and 007, are different people.

    Raises:
        PredictionsError: with every fault and its row (the header is row 1).
        LeakageError: a patient, or two whose names look alike, in two parts of a fold, or tested in
            two folds of one arm and seed.
    """
    _require_columns(table, source, (*keep, *([weight] if weight else [])))
    known_columns = {*COLUMNS, SCORE, *CURVE, BUDGET, WEIGHT, TYPICAL, *keep, weight}
    unused = [str(column) for column in table.columns if column not in known_columns]
    rows, shape = [row_of(table, place) for place in range(len(table))], describe_shape(table)
    table = table.copy().reset_index(drop=True)
    for column in _NUMBERS & set(table.columns):
        table[column] = table[column].map(
            lambda cell: (
                np.nan if isinstance(cell, str) and cell.strip().lower() in MISSING else cell
            )
        )
    table = _weigh(table, keep, weight)
    has_target = table["target"].notna() & (table["target"].astype(str).str.strip() != "")
    if not has_target.any():
        raise PredictionsError(f"{source}: column target is empty. Give the true class, 0 or 1.")
    faults: list[str] = []
    curve = [column for column in CURVE if column in table.columns]
    if len(curve) == 1:
        raise PredictionsError(
            f"{source}: column {curve[0]} stands alone; a learning curve has "
            f"{' and '.join(CURVE)}. Rename it if it is something else."
        )
    for column in {"seed", "fold", WEIGHT, *curve} & set(table.columns):
        table[column] = read_numbers(table[column], rows, faults)
    words = {"true": 1, "false": 0}
    target = table["target"].where(has_target, 0)
    _refuse_classes(target[has_target], words, source)
    table["target"] = read_numbers(
        target.map(lambda value: words.get(str(value).strip().lower(), value)), rows, faults
    ).round(6)
    table, budget = _read_budget(table, source)
    if TYPICAL in table.columns:  # of draws it is not known
        table[TYPICAL] = pd.to_numeric(table[TYPICAL], errors="coerce")
    table = table.assign(
        **{column: default for column, default in _DEFAULTS.items() if column not in table.columns}
    )
    table = _read_names(table, rows, faults)
    table, rounded = read_scores(table, rows, faults)
    if faults:
        raise PredictionsError(list_unusable(source, faults, "Correct these rows and run again."))
    if "image" not in table.columns:
        if (
            len(table[["arm", "seed"]].drop_duplicates()) == 1
        ):  # nothing to pair: what is numbered follows from what it says
            table = table.sort_values(["target", "logit"], kind="stable")
        number = (
            table.groupby(["arm", "seed", "fold", "part", "patient", "label", *curve, *budget])
            .cumcount()
            .astype(str)
        )
        table["image"] = table["patient"] + "#" + number
        table = table.sort_index()
    faults += _check_values(table, rows)
    if faults:
        raise PredictionsError(list_unusable(source, faults, "Correct these rows and run again."))
    for column in ("target", "seed", "fold", *curve):
        table[column] = table[column].astype(np.int64)
    hidden = table[~has_target]
    unknown = {str(label): frozenset(of["patient"]) for label, of in hidden.groupby("label")}
    table = table[has_target].reset_index(drop=True)
    for _, of in table.groupby([*curve, *budget], sort=False) if curve or budget else [((), table)]:
        _refuse_leaks(of, source)
        if not apart:
            _refuse_look_alikes(of, source)
    table = table[_columns(table, keep)]
    table.attrs = {
        "unknown": int((~has_target).sum()),
        "unknown_patients": unknown,
        "found": len(rows),
        "rounded": rounded,
        "shape": shape,
        "unused": unused,
    }
    return table


def _read_names(table: pd.DataFrame, rows: list[int], faults: list[str]) -> pd.DataFrame:
    """Names in one spelling; empty names, and those with control characters, are faults."""
    table = table.copy()
    for column in (
        "arm",
        "patient",
        "part",
        "label",
        *(["image"] if "image" in table.columns else []),
    ):
        names = table[column]
        if (
            pd.api.types.is_float_dtype(names) and (names.dropna() % 1 == 0).all()
        ):  # whole numbers beside an empty cell
            names = names.astype("Int64").astype(object)
        cleaned = {name: normalise(str(name)) for name in names.dropna().unique()}
        if column == "part":
            cleaned = {name: _PARTS.get(text.lower(), text) for name, text in cleaned.items()}
        names = names.map(cleaned)
        if column == "patient":
            nobody = names.notna() & names.astype(str).str.lower().isin(NOBODY - {""})
            faults += [
                f"row {rows[i]}: patient is {names.iloc[i]}, which names nobody"
                for i in np.flatnonzero(nobody)
            ]
        empty = names.isna() | (names == "")
        faults += [f"row {rows[i]}: {column} is empty" for i in np.flatnonzero(empty)]
        if column in {"arm", "label"}:
            names = names.map({name: show(name) for name in cleaned.values()})
        else:
            odd = {name for name in cleaned.values() if has_controls(name)}
            faults += [
                f"row {rows[i]}: {column} {show(str(names.iloc[i]))} holds a control character; "
                "remove it"
                for i in np.flatnonzero(names.isin(odd))
            ]
        table[column] = names.astype(object)
    return table


def _read_budget(table: pd.DataFrame, source: str) -> tuple[pd.DataFrame, list[str]]:
    """The table with its column `budget` in order, and the name of that column where there is
    one.
    """
    if BUDGET not in table.columns:
        return table, []
    table = table.assign(**{BUDGET: table[BUDGET].fillna("").astype(str)})
    if unknown_words := sorted(set(table[BUDGET]) - {"", LEVEL, AT_BUDGET, OTHER}):
        remedy = (
            f"it says {LEVEL}, {AT_BUDGET}, {OTHER} or nothing. Rename it if it is something else."
        )
        raise PredictionsError(f"{source}: column {BUDGET} holds {unknown_words[0]!r}; {remedy}")
    return table, [BUDGET]


def _refuse_classes(target: pd.Series, words: Mapping[str, int], source: str) -> None:
    """Refuses a target of names, or of more than two numbers, once for the whole column and not row
    by row.
    """
    text = target.astype(str).str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    values = sorted(text[~text.str.lower().isin(words)].unique())
    odd = float((~text.str.lower().isin(words) & ~numbers.isin([0, 1])).mean())
    if (
        odd < _NO_SLIPS
        or not 2 <= len(values) <= _FEW_CLASSES
        or numbers.notna().any() != numbers.notna().all()
    ):
        return
    if len(values) == 2:
        remedy = f"Write 0 and 1: which of {values[0]} and {values[1]} counts as 1 is not guessed."
    else:
        remedy = (
            "Of several classes give one row per class, its name in the column label, and target "
            "1 in the row of the true one."
        )
    raise PredictionsError(
        f"{source}: the column target holds {', '.join(values)}, not 0 and 1. {remedy}"
    )


def _weigh(table: pd.DataFrame, keep: Sequence[str], weight: str | None) -> pd.DataFrame:
    """Takes the column of weights that was asked for; another column named `weight` may be that of
    a body and does not count.
    """
    if weight is not None:
        return table.assign(**{WEIGHT: table[weight]})
    return table if WEIGHT in keep else table.drop(columns=WEIGHT, errors="ignore")


def _require_columns(table: pd.DataFrame, source: str, keep: Sequence[str]) -> None:
    missing = [c for c in ("patient", "target", *keep) if c not in table.columns]
    if not {"probability", "logit", SCORE} & set(table.columns):
        missing.append("probability")
    if missing:
        raise PredictionsError(f"{source}: {describe_missing(missing, table)}")
    if table.empty:
        raise PredictionsError(f"{source}: no rows below the header.")


def _check_values(table: pd.DataFrame, rows: list[int]) -> list[str]:
    """The faults of all values."""
    faults: list[str] = []
    faults += [
        f"row {rows[i]}: target is {table['target'][i]:g}; use 0 or 1"
        for i in np.flatnonzero(~table["target"].isin([0, 1]))
    ]
    if WEIGHT in table.columns:
        faults += [
            f"row {rows[i]}: weight is {table[WEIGHT][i]:g}; use 0 or more"
            for i in np.flatnonzero(table[WEIGHT] < 0)
        ]
        if not (table.loc[table["part"] == "test", WEIGHT] > 0).any():
            faults.append("every test row has weight 0")
    parts = {"train", "tune", "test"}
    faults += [
        f"row {rows[i]}: part is {table['part'][i]!r}; use train, tune or test"
        for i in np.flatnonzero(~table["part"].isin(parts))
    ]
    curve = [column for column in CURVE if column in table.columns]
    budget = [BUDGET] if BUDGET in table.columns else []
    for column in ("seed", "fold", *curve):
        wrong = (table[column] % 1 != 0) | (table[column].abs() > 2**53)
        faults += [
            f"row {rows[i]}: {column} is {table[column][i]:g}, not a whole number"
            for i in np.flatnonzero(wrong)
        ]
    # An image is tested once per arm and seed, in whatever fold; it may serve several folds for
    # tuning.
    key = ["arm", "seed", "part", "image", "label", *curve, *budget]
    twice = table.duplicated([*key, "fold"]) | (table.duplicated(key) & (table["part"] == "test"))
    faults += [
        f"row {rows[i]}: image {table['image'][i]} is there twice" for i in np.flatnonzero(twice)
    ]
    return faults


def _refuse_leaks(table: pd.DataFrame, source: str) -> None:
    parts = table.groupby(["arm", "seed", "fold", "patient"], sort=False)["part"].nunique()
    mixed = parts[parts > 1].reset_index()
    if len(mixed):
        names = [
            f"arm {a}, seed {s}, fold {f}, patient {p}"
            for a, s, f, p in mixed[["arm", "seed", "fold", "patient"]].itertuples(index=False)
        ]
        raise LeakageError(
            list_faults(
                f"{source}: {len(names)} patient(s) are in more than one part of a fold",
                names,
                "Test patients must be neither trained nor tuned on.",
            )
        )
    test = table[table["part"] == "test"]
    folds = test.groupby(["arm", "seed", "patient"], sort=False)["fold"].nunique()
    rows = folds[folds > 1].reset_index()
    shared = [
        f"arm {arm}, seed {seed}, patient {patient}"
        for arm, seed, patient in zip(rows["arm"], rows["seed"], rows["patient"], strict=True)
    ]
    if shared:
        raise LeakageError(
            list_faults(
                f"{source}: {len(shared)} patient(s) are tested in more than one fold, so other "
                "images of theirs were trained on",
                shared,
                "Split by patient, so that each is tested in one fold.",
            )
        )


def _refuse_look_alikes(table: pd.DataFrame, source: str) -> None:
    """Refuses patients whose names look alike on both sides of a split: they may be one patient."""
    groups = look_alikes(table["patient"].unique())
    if not groups:
        return
    alike = table[table["patient"].isin([name for group in groups for name in group])]
    alike = alike.assign(key=alike["patient"].map(look_alike_key))
    parts = alike.groupby(["arm", "seed", "fold", "key"], sort=False)["part"].nunique()
    folds = (
        alike[alike["part"] == "test"].groupby(["arm", "seed", "key"], sort=False)["fold"].nunique()
    )
    crossing = {keys[-1] for counts in (parts, folds) for keys in counts[counts > 1].index}
    if crossing:
        names = [
            " and ".join(map(show, group))
            for group in groups
            if look_alike_key(group[0]) in crossing
        ]
        raise LeakageError(
            list_faults(
                f"{source}: {len(names)} patient(s) may be written in two ways, and be on both "
                "sides of a split",
                names,
                "Write each patient in one way; or set look_alikes=different where they are "
                "different people.",
            )
        )
