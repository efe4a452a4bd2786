"""Candidates of a detector, and the lesions they are to find, as tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.errors import PredictionsError, list_unusable
from medtransfer.evaluation.tables.predictions import BUDGET
from medtransfer.evaluation.tables.probabilities import ROUNDING, SCORE, exact_logit, read_numbers
from medtransfer.text.tables import describe_missing, read_table, row_of, write_table

_PLANE, _VOLUME = ("x0", "y0", "x1", "y1"), ("x0", "y0", "x1", "y1", "z0", "z1")
_SCHEMA = ("arm", "seed", "fold", "part", "image", "patient")


def coordinates(table: pd.DataFrame) -> tuple[str, ...]:
    """Lower, then upper ends: the columns of a table of boxes in the order of `matching`."""
    return ("x0", "y0", "z0", "x1", "y1", "z1") if "z0" in table.columns else _PLANE


PARTS = ("train", "tune", "test")


def write_candidates(table: pd.DataFrame, path: Path) -> None:
    """Writes `arm, seed, fold, part, image, patient, x0, ..., probability, logit`, one row per
    candidate.
    """
    more = [c for c in (*_VOLUME, BUDGET) if c in table.columns]
    write_table(table[[*_SCHEMA, *more, "probability", "logit"]], path)


def read_candidates(path: str | Path) -> pd.DataFrame:
    """Reads candidates of any detector: `image`, a box and `probability` (or `logit`, or `score`,
    of any scale) are enough.

    Returns:
        `arm, seed, fold, part, image`, the box, `logit` (whose order is that of the column given);
        `patient`, `probability` and `budget` where they are there. `arm` is model, `seed` and
        `fold` are 0 and `part` is test where left out. `attrs["scored"]` says that the order is
        that of a score.

    Raises:
        PredictionsError: with every fault, each with its row (the header is row 1).
    """
    path = Path(path)
    table, rows, faults = _read_boxes(path, ("probability", "logit", SCORE, *_SCHEMA, BUDGET))
    given = [name for name in ("logit", "probability", SCORE) if name in table.columns]
    if not given:
        raise PredictionsError(
            f"{path}: no column probability (or {SCORE}, of any scale). Columns here: "
            f"{', '.join(table.columns)}."
        )
    for column, value in (("arm", "model"), ("part", "test"), ("seed", 0), ("fold", 0)):
        if column not in table.columns:
            table[column] = value
        if column in {"seed", "fold"}:
            table[column] = read_numbers(table[column].replace("", np.nan), rows, faults)
    for name in given:
        table[name] = read_numbers(table[name].replace("", np.nan), rows, faults)
    score = table[given[0]]
    if given[0] == "probability":
        outside = ~score.between(-ROUNDING, 1 + ROUNDING) & score.notna()
        faults += [
            f"row {rows[i]}: probability is {score[i]:g}, outside 0 to 1; a column {SCORE} may be "
            "of any scale"
            for i in np.flatnonzero(outside)
        ]
    faults += [
        f"row {rows[i]}: part is {table['part'].iloc[i]!r}; use {', '.join(PARTS)}"
        for i in np.flatnonzero(~table["part"].isin(PARTS))
    ]
    if faults:
        raise PredictionsError(list_unusable(path, faults))
    table["logit"] = (
        exact_logit(np.clip(score.to_numpy(float), 0.0, 1.0))
        if given[0] == "probability"
        else score
    )
    numbers = {column: table[column].astype(np.int64) for column in ("seed", "fold")}
    more = [column for column in ("patient", BUDGET, "probability") if column in table.columns]
    candidates = table.assign(**numbers)[
        ["arm", "seed", "fold", "part", "image", *coordinates(table), "logit", *more]
    ]
    candidates.attrs = {"scored": given[0] == SCORE}
    return candidates


def read_lesions(path: str | Path) -> pd.DataFrame:
    """Reads lesions: `image` and a box; twice the same box is one lesion, and `attrs["twice"]`
    holds the images of the others.

    Raises:
        PredictionsError: with every fault.
    """
    table, _, faults = _read_boxes(Path(path), ("image", "label"))
    if faults:
        raise PredictionsError(list_unusable(path, faults))
    lesions = table[["image", *coordinates(table)]]
    single = lesions.drop_duplicates(ignore_index=True)
    single.attrs = {"twice": lesions["image"][lesions.duplicated()].tolist()}
    return single


def _read_boxes(path: Path, known: tuple[str, ...]) -> tuple[pd.DataFrame, list[int], list[str]]:
    """A table of boxes: coordinates as finite numbers, upper ends above lower ones; with the row
    numbers of its file, and its faults.
    """
    needed = "Give a table with the columns image, x0, y0, x1, y1 (and z0, z1 of volumes)."
    table = read_table(path, PredictionsError, needed, ("image", *_VOLUME, *known))
    volumes = {"z0", "z1"} & set(table.columns)
    columns = list(_VOLUME if volumes else _PLANE)
    missing = [c for c in ("image", *columns) if c not in table.columns]
    if missing:
        raise PredictionsError(f"{path}: {describe_missing(missing, table)}")
    rows = [row_of(table, place) for place in range(len(table))]
    faults: list[str] = []
    for column in columns:
        table[column] = read_numbers(table[column].replace("", np.nan), rows, faults)
    for low, high in (("x0", "x1"), ("y0", "y1"), *([("z0", "z1")] if volumes else [])):
        faults += [
            f"row {rows[i]}: {high} is not above {low}"
            for i in np.flatnonzero(table[high] <= table[low])
        ]
    faults += [f"row {rows[i]}: image is empty" for i in np.flatnonzero(table["image"] == "")]
    return table, rows, faults
