"""The predictions table: schema, reading, writing, and what is wrong with one."""

from __future__ import annotations

import os
import unicodedata
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from medtransfer.errors import LeakageError, PredictionsError, list_faults

COLUMNS = ("arm", "seed", "fold", "part", "image", "patient", "label", "target", "probability", "logit")
# Probabilities of exactly 0 or 1 have no logit; beyond this no cohort of images can tell them apart.
CLIP = 1e-6
# Of runs on small draws from the training patients: patients per class, and the number of the draw; 0 for the whole.
CURVE = ("size", "episode")
# How long an arm was trained, where that was until level: its rows as they became (`level`), and as they were when it had been given the
# budget of the other arms (`same`). Other arms: nothing where they had that budget, and `other` where they had another, or none.
BUDGET, LEVEL, AT_BUDGET, OTHER = "budget", "level", "same", "other"
_DEFAULTS: dict[str, Any] = {"arm": "model", "seed": 0, "fold": 0, "part": "test", "label": "target"}

# How much an image counts; all alike where there is no such column.
WEIGHT = "weight"
# Targets of other values in so many of the rows are no slips, and so few values are classes.
_NO_SLIPS, _FEW_CLASSES = 0.1, 12
# Share of tune images that are at least as unlike the training images.
TYPICAL = "typical"


def read_predictions(path: str | Path, keep: Sequence[str] = (), weight: str | None = None) -> pd.DataFrame:
    """Reads a predictions CSV and checks it; see `check_predictions`.

    Raises:
        PredictionsError: no such file, no CSV, or a faulty table.
    """
    path = Path(path)
    help_ = "Give a comma-separated UTF-8 file with the columns patient, target and probability."
    try:
        # As text: pandas' own parser of numbers is not always exact to the last bit, Python's is.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype=str, index_col=False, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
            header = pd.read_csv(path, dtype=str, header=None, nrows=1, keep_default_na=False, encoding="utf-8-sig").iloc[0]
    except FileNotFoundError as error:
        raise PredictionsError(f"{path}: no such file. {help_}") from error
    except pd.errors.ParserWarning as error:
        raise PredictionsError(
            f"{path}: rows have more fields than the header. Quote names that hold a comma, or name every column."
        ) from error
    except (OSError, UnicodeDecodeError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise PredictionsError(f"{path}: not a readable CSV ({str(error).splitlines()[0]}). {help_}") from error
    twice = sorted({str(name) for name in header[header.duplicated()]})
    if twice:
        raise PredictionsError(f"{path}: column {', '.join(twice)} appears twice. Rename or remove one.")
    other = next((mark for mark in (";", "\t", "|") if len(table.columns) == 1 and mark in str(table.columns[0])), None)
    if other:
        raise PredictionsError(f"{path}: its columns are separated by {other!r}. {help_}")
    return check_predictions(table, str(path), keep, weight)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Writes the table with every digit of every number, other columns behind those of the schema."""
    others = [column for column in table.columns if column not in COLUMNS]
    write_aside(path, table[[*COLUMNS, *others]].to_csv(index=False, lineterminator="\n"))


def _columns(table: pd.DataFrame, keep: Sequence[str]) -> list[str]:
    return [
        *COLUMNS,
        *(c for c in dict.fromkeys((*CURVE, BUDGET, WEIGHT, TYPICAL, *keep)) if c in table.columns and c not in COLUMNS),
    ]


def write_aside(path: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames, so that no reader ever sees half of it, not even after a power cut."""
    # A name no other process or host takes.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_predictions(
    table: pd.DataFrame, source: str = "predictions", keep: Sequence[str] = (), weight: str | None = None
) -> pd.DataFrame:
    """Fills in what may be left out and checks the rest.

    `patient`, `target` and `probability` (or `logit`) are required. Left out, `arm` is "model", `seed`
    and `fold` 0, `part` "test", `label` "target", and `image` the patient with a running number. `size` and `episode`
    tell rows of a learning curve; both are 0 for the others. `budget` is "same" in rows of an arm as it was when it had the budget of the
    others, "level" in those of what became of it, "other" in those of an arm with another budget or none, empty elsewhere.
    `typical` says (0 to 1) how many tune
    images are at least as unlike the training images. Rows whose target is
    empty, as of a label that nobody looked for, are left out; `table.attrs["unknown"]` is their number, `unknown_patients` their
    patients by label.

    Args:
        table: as above.
        source: names it in messages.
        keep: other columns that are to stay, such as of subgroups.
        weight: the column that says how much an image counts; it becomes `weight`.

    Raises:
        PredictionsError: with every fault and its row (the header is row 1).
        LeakageError: a patient is tested in two folds of one arm and seed.
    """
    _require_columns(table, source, (*keep, *([weight] if weight else [])))
    table = table.copy().reset_index(drop=True)
    table = _weigh(table, keep, weight)
    known = table["target"].notna() & (table["target"].astype(str).str.strip() != "")
    if not known.any():
        raise PredictionsError(f"{source}: column target is empty. Give the true class, 0 or 1.")
    faults: list[str] = []
    curve = [column for column in CURVE if column in table.columns]
    if len(curve) == 1:
        raise PredictionsError(
            f"{source}: column {curve[0]} stands alone; a learning curve has {' and '.join(CURVE)}. Rename it if it is something else."
        )
    for column in {"probability", "logit", "seed", "fold", WEIGHT, *curve} & set(table.columns):
        table[column] = _numbers(table[column], column, faults)
    words = {"true": 1, "false": 0}
    target = table["target"].where(known, 0)
    _refuse_classes(target[known], words, source)
    table["target"] = _numbers(target.map(lambda value: words.get(str(value).strip().lower(), value)), "target", faults)
    table, budget = _read_budget(table, source)
    if TYPICAL in table.columns:  # of draws it is not known
        table[TYPICAL] = pd.to_numeric(table[TYPICAL], errors="coerce")
    table = table.assign(**{column: default for column, default in _DEFAULTS.items() if column not in table.columns})
    for column in ("arm", "patient", "part", "label"):
        faults += [f"row {i + 2}: {column} is empty" for i in np.flatnonzero(table[column].isna())]
    if faults:
        raise PredictionsError(list_faults(f"{source}: {len(faults)} fault(s)", faults, "Mend these rows and run again."))
    for column in ("arm", "patient", "part", "label"):
        table[column] = table[column].astype(str)
    if "image" not in table.columns:
        number = table.groupby(["arm", "seed", "fold", "part", "patient", "label", *curve, *budget]).cumcount().astype(str)
        table["image"] = table["patient"] + "#" + number
    faults += [f"row {i + 2}: image is empty" for i in np.flatnonzero(table["image"].isna())]
    table["image"] = table["image"].astype(str)
    for column in ("arm", "label"):
        table[column] = table[column].map({name: _show_controls(name) for name in table[column].unique()})
    faults += _check_values(table)
    if faults:
        raise PredictionsError(list_faults(f"{source}: {len(faults)} fault(s)", faults, "Mend these rows and run again."))
    for column in ("target", "seed", "fold", *curve):
        table[column] = table[column].astype(np.int64)
    hidden = table[~known]
    unknown = {str(label): frozenset(rows["patient"]) for label, rows in hidden.groupby("label")}
    table = table[known].reset_index(drop=True)
    for _, rows in table.groupby([*curve, *budget], sort=False) if curve or budget else [((), table)]:
        _refuse_leaks(rows, source)
    table = table[_columns(table, keep)]
    table.attrs["unknown"], table.attrs["unknown_patients"] = int((~known).sum()), unknown
    return table


def _read_budget(table: pd.DataFrame, source: str) -> tuple[pd.DataFrame, list[str]]:
    """The table with its column `budget` in order, and the name of that column where there is one."""
    if BUDGET not in table.columns:
        return table, []
    table = table.assign(**{BUDGET: table[BUDGET].fillna("").astype(str)})
    if strange := sorted(set(table[BUDGET]) - {"", LEVEL, AT_BUDGET, OTHER}):
        said = f"it says {LEVEL}, {AT_BUDGET}, {OTHER} or nothing. Rename it if it is something else."
        raise PredictionsError(f"{source}: column {BUDGET} holds {strange[0]!r}; {said}")
    return table, [BUDGET]


def _refuse_classes(target: pd.Series, words: Mapping[str, int], source: str) -> None:
    """A target of names, or of more numbers than two, is said once, and not row by row."""
    text = target.astype(str).str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    values = sorted(text[~text.str.lower().isin(words)].unique())
    odd = float((~text.str.lower().isin(words) & ~numbers.isin([0, 1])).mean())
    if odd < _NO_SLIPS or not 2 <= len(values) <= _FEW_CLASSES or numbers.notna().any() != numbers.notna().all():
        return
    if len(values) == 2:
        remedy = f"Write 0 and 1: which of {values[0]} and {values[1]} counts as 1 is not guessed."
    else:
        remedy = "Of several classes give one row per class, its name in the column label, and target 1 in the row of the true one."
    raise PredictionsError(f"{source}: the column target holds {', '.join(values)}, not 0 and 1. {remedy}")


def _weigh(table: pd.DataFrame, keep: Sequence[str], weight: str | None) -> pd.DataFrame:
    """A column of the name `weight` may be that of a body: only the one asked for counts."""
    if weight is not None:
        return table.assign(**{WEIGHT: table[weight]})
    return table if WEIGHT in keep else table.drop(columns=WEIGHT, errors="ignore")


def _show_controls(name: str) -> str:
    """Characters that turn text around or are not seen, as their code: in a sentence they would turn its numbers around."""
    return "".join(f"[U+{ord(c):04X}]" if unicodedata.category(c) in {"Cf", "Cc"} else c for c in name)


def _numbers(column: pd.Series, name: str, faults: list[str]) -> pd.Series:
    numbers = np.full(len(column), np.nan)
    for i, value in enumerate(column):
        with suppress(TypeError, ValueError):
            numbers[i] = float(value)
        if not np.isfinite(numbers[i]):
            faults.append(f"row {i + 2}: {name} is {'empty' if pd.isna(value) else repr(value)}, not a number")
    return pd.Series(numbers, index=column.index)


def _require_columns(table: pd.DataFrame, source: str, keep: Sequence[str]) -> None:
    missing = [c for c in ("patient", "target", *keep) if c not in table.columns]
    if "probability" not in table.columns and "logit" not in table.columns:
        missing.append("probability")
    if missing:
        raise PredictionsError(f"{source}: no column {', '.join(missing)}. Columns here: {', '.join(map(str, table.columns))}.")
    if table.empty:
        raise PredictionsError(f"{source}: no rows below the header.")


def _check_values(table: pd.DataFrame) -> list[str]:
    """Fills in probability or logit and lists the faults of all values."""
    faults: list[str] = []
    _fill_scores(table, faults)
    faults += [f"row {i + 2}: target is {table['target'][i]:g}; use 0 or 1" for i in np.flatnonzero(~table["target"].isin([0, 1]))]
    if WEIGHT in table.columns:
        faults += [f"row {i + 2}: weight is {table[WEIGHT][i]:g}; use 0 or more" for i in np.flatnonzero(table[WEIGHT] < 0)]
        if not (table.loc[table["part"] == "test", WEIGHT] > 0).any():
            faults.append("every test row has weight 0")
    parts = {"train", "tune", "test"}
    faults += [f"row {i + 2}: part is {table['part'][i]!r}; use train, tune or test" for i in np.flatnonzero(~table["part"].isin(parts))]
    curve = [column for column in CURVE if column in table.columns]
    budget = [BUDGET] if BUDGET in table.columns else []
    for column in ("seed", "fold", *curve):
        wrong = (table[column] % 1 != 0) | (table[column].abs() > 2**53)
        faults += [f"row {i + 2}: {column} is {table[column][i]:g}, not a whole number" for i in np.flatnonzero(wrong)]
    # An image is tested once per arm and seed, in whatever fold; it may serve several folds for tuning.
    key = ["arm", "seed", "part", "image", "label", *curve, *budget]
    twice = table.duplicated([*key, "fold"]) | (table.duplicated(key) & (table["part"] == "test"))
    faults += [f"row {i + 2}: image {table['image'][i]} is there twice" for i in np.flatnonzero(twice)]
    return faults


def _fill_scores(table: pd.DataFrame, faults: list[str]) -> None:
    if "probability" not in table.columns:
        table["probability"] = expit(table["logit"].to_numpy(float))
    probability = table["probability"].to_numpy(float)
    outside = np.flatnonzero((probability < 0) | (probability > 1))
    if 2 * len(outside) > len(table) and probability.min() >= 0 and 10 < probability.max() <= 100:
        faults.append(f"probabilities reach {probability.max():g}: are they per cent? Divide them by 100")
        return
    faults += [f"row {i + 2}: probability is {probability[i]:g}, outside 0 to 1" for i in outside]
    if "logit" not in table.columns:
        table["logit"] = logit(np.clip(probability, CLIP, 1 - CLIP))
        return
    differs = np.abs(expit(table["logit"].to_numpy(float)) - probability) > 1e-4
    faults += [
        f"row {i + 2}: probability {probability[i]:g} and logit {table['logit'][i]:g} disagree; remove column logit if it is another score"
        for i in np.flatnonzero(differs)
    ]


def _refuse_leaks(table: pd.DataFrame, source: str) -> None:
    parts = table.groupby(["arm", "seed", "fold", "patient"], sort=False)["part"].nunique()
    mixed = parts[parts > 1].reset_index()
    if len(mixed):
        names = [
            f"arm {a}, seed {s}, fold {f}, patient {p}" for a, s, f, p in mixed[["arm", "seed", "fold", "patient"]].itertuples(index=False)
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
        f"arm {arm}, seed {seed}, patient {patient}" for arm, seed, patient in zip(rows["arm"], rows["seed"], rows["patient"], strict=True)
    ]
    if shared:
        raise LeakageError(
            list_faults(
                f"{source}: {len(shared)} patient(s) are tested in more than one fold, so other images of theirs were trained on",
                shared,
                "Split by patient, so that each is tested in one fold.",
            )
        )
