"""Candidates of a detector, and the lesions they are to find, as tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit as to_logit

from medtransfer.errors import PredictionsError, list_faults
from medtransfer.evaluation.predictions import BUDGET
from medtransfer.files import write_aside

CANDIDATES, LESIONS = "candidates.csv", "boxes.csv"
_PLANE, _VOLUME = ("x0", "y0", "x1", "y1"), ("x0", "y0", "x1", "y1", "z0", "z1")
_SCHEMA = ("arm", "seed", "fold", "part", "image", "patient")


def coordinates(table: pd.DataFrame) -> tuple[str, ...]:
    """Lower, then upper ends: the columns of a table of boxes in the order of `matching`."""
    return ("x0", "y0", "z0", "x1", "y1", "z1") if "z0" in table.columns else _PLANE


PARTS = ("train", "tune", "test")


def write_candidates(table: pd.DataFrame, path: Path) -> None:
    """Writes `arm, seed, fold, part, image, patient, x0, ..., probability, logit`, one row per candidate."""
    more = [c for c in (*_VOLUME, BUDGET) if c in table.columns]
    write_aside(path, table[[*_SCHEMA, *more, "probability", "logit"]].to_csv(index=False, lineterminator="\n"))


def read_candidates(path: str | Path) -> pd.DataFrame:
    """Reads candidates of any detector: `image`, a box and `probability` (or `logit`) are enough.

    Returns:
        `arm, seed, fold, part, image`, the box, `logit`; `arm` is model, `seed` and `fold` are 0 and `part` is test where left out.

    Raises:
        PredictionsError: with every fault, each with its row (the header is row 1).
    """
    path = Path(path)
    table = read_table(path)
    if not {"probability", "logit"} & set(table.columns):
        raise PredictionsError(f"{path}: no column probability. Columns here: {', '.join(table.columns)}.")
    for column, value in (("arm", "model"), ("part", "test"), ("seed", 0), ("fold", 0)):
        if column not in table.columns:
            table[column] = value
    score = pd.to_numeric(table["logit" if "logit" in table.columns else "probability"], errors="coerce")
    if "logit" not in table.columns:
        score = score.where(score.between(0, 1))
    faults = [f"row {i + 2}: the score is missing, or no probability from 0 to 1" for i in np.flatnonzero(score.isna())]
    faults += [
        f"row {i + 2}: part is {table['part'].iloc[i]!r}; use {', '.join(PARTS)}" for i in np.flatnonzero(~table["part"].isin(PARTS))
    ]
    if faults:
        raise PredictionsError(list_faults(f"{path}: {len(faults)} fault(s)", faults))
    # Certain ones stay apart from all others, and finite.
    table["logit"] = score if "logit" in table.columns else to_logit(score.clip(1e-15, 1 - 1e-15))
    budget = {BUDGET: table[BUDGET].fillna("").astype(str)} if BUDGET in table.columns else {}
    return table.assign(**budget)[["arm", "seed", "fold", "part", "image", *coordinates(table), "logit", *budget]]


def read_lesions(path: str | Path) -> pd.DataFrame:
    """Reads lesions: `image` and a box.

    Raises:
        PredictionsError: with every fault.
    """
    table = read_table(Path(path))
    return table[["image", *coordinates(table)]]


def read_table(path: Path) -> pd.DataFrame:
    """A table of boxes as it stands: names as text, coordinates as finite numbers, upper ends above lower ones.

    Raises:
        PredictionsError: with every fault.
    """
    try:
        table = pd.read_csv(path, dtype={"image": str, "arm": str, "patient": str, "part": str}, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise PredictionsError(f"{path}: cannot be read ({error}). A CSV with a header is needed.") from error
    volumes = {"z0", "z1"} & set(table.columns)
    missing = [c for c in ("image", *(_VOLUME if volumes else _PLANE)) if c not in table.columns]
    if missing:
        raise PredictionsError(f"{path}: no column {', '.join(missing)}. Columns here: {', '.join(table.columns)}.")
    columns = list(_VOLUME if volumes else _PLANE)
    table[columns] = table[columns].apply(pd.to_numeric, errors="coerce").astype(float)
    faults = [f"row {i + 2}: the box lacks numbers" for i in np.flatnonzero(~np.isfinite(table[columns]).all(axis=1))]
    for low, high in (("x0", "x1"), ("y0", "y1"), *([("z0", "z1")] if volumes else [])):
        faults += [f"row {i + 2}: {high} is not above {low}" for i in np.flatnonzero(table[high] <= table[low])]
    faults += [f"row {i + 2}: image is empty" for i in np.flatnonzero(table["image"].isna())]
    if faults:
        raise PredictionsError(list_faults(f"{path}: {len(faults)} fault(s)", faults))
    return table
