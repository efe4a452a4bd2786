"""The manifest: a CSV read strictly, every fault reported at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.data.reading import split_member
from medtransfer.errors import CohortError, list_faults

# Names of the tables that labels stand beside.
RESERVED = {"image", "patient", "path", "study", "site", "split", "group", "file_digest"}
OPTIONAL = ("study", "site", "split")
PARTS = ("train", "tune", "test")
PART_NAMES = {"train": "train", "training": "train", "tune": "tune", "val": "tune", "valid": "tune", "validation": "tune", "test": "test"}
_EMPTY = {"", "nan", "na", "n/a", "none", "null"}
_WORDS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def read_manifest(manifest: Path, root: Path, labels: Sequence[str], positive: str | None, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Reads and checks a manifest.

    Args:
        manifest: CSV with `image` and optionally `patient`, `study`, `site`, `split` and label columns.
        root: folder the images are relative to.
        labels: label columns, each 0/1 (or false/true), or two classes with `positive`. Empty: none is read.
        positive: the class that counts as 1.
        columns: others that are kept, as text, such as `sex`; whatever is not named stays behind, as it may be a name.

    Returns:
        `image`, `path` (absolute), the optional columns that are there, those of `columns`, and a float 0/1 column per label.

    Raises:
        CohortError: with every fault, each with its row (the header is row 1).
    """
    table = read_table(manifest)
    missing = [name for name in ("image", *labels, *columns) if name not in table.columns]
    if missing:
        raise CohortError(f"{manifest}: no column {', '.join(missing)}. Columns here: {', '.join(table.columns)}.")
    if table.empty:
        raise CohortError(f"{manifest}: no rows below the header. Add one row per image.")
    if not any(split_member(root / name)[0].exists() for name in table["image"] if name):
        first = root / table["image"].iloc[0]
        raise CohortError(f"{manifest}: none of its {len(table)} images is under {root}, such as {first}. Is the root right?")
    faults = _check_rows(table, root)
    values = {label: _parse_labels(table[label], label, positive, faults) for label in labels}
    if "split" in table.columns:
        unknown = [(i, v) for i, v in enumerate(table["split"]) if v.lower() not in PART_NAMES]
        faults += [f"row {i + 2}: split is {v!r}; use train, tune or test" for i, v in unknown]
    if faults:
        raise CohortError(list_faults(f"{manifest}: {len(faults)} fault(s)", faults, "Mend these rows and run again."))
    images = table[[column for column in ("image", "patient") if column in table.columns]].copy()
    images["path"] = [str(_resolve(root, name)) for name in table["image"]]
    for column in dict.fromkeys((*OPTIONAL, *columns)):
        if column in table.columns:
            images[column] = table[column]
    if "split" in images.columns:
        images["split"] = [PART_NAMES[v.lower()] for v in images["split"]]
    for label in labels:
        images[label] = values[label]
    return images


def read_table(manifest: Path) -> pd.DataFrame:
    """The cells of a CSV as text, stripped.

    Raises:
        CohortError: no such file, no CSV, or two columns of one name.
    """
    try:
        with warnings.catch_warnings():
            # Rows longer than the header, as of decimal commas between semicolons, would lose what is too much.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(manifest, dtype=str, index_col=False, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except pd.errors.ParserWarning as error:
        raise CohortError(
            f"{manifest}: rows have more fields than the header. Save it as comma-separated UTF-8 with a name for every column; quote "
            "cells that hold a comma."
        ) from error
    except FileNotFoundError as error:
        raise CohortError(f"{manifest}: no such file. Give a CSV with the columns image, patient and your label.") from error
    except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = _why_no_csv(manifest) or str(error).splitlines()[0]
        raise CohortError(f"{manifest}: not a readable CSV ({reason}). Save it as comma-separated UTF-8 with a header.") from error
    table.columns = [str(column).strip() for column in table.columns]
    other = next((mark for mark in (";", "\t", "|") if len(table.columns) == 1 and mark in table.columns[0]), None)
    if other:
        raise CohortError(f"{manifest}: its columns are separated by {other!r}. Save it as comma-separated UTF-8.")
    twice = sorted({c for c in table.columns if list(table.columns).count(c) > 1})
    if twice:
        raise CohortError(f"{manifest}: column {', '.join(twice)} appears twice. Rename or remove one.")
    for column in table.columns:
        table[column] = table[column].fillna("").str.strip()
        if table[column].str.contains("\0", regex=False).any():
            raise CohortError(f"{manifest}: not a readable CSV (column {column} holds null bytes). Save it as comma-separated UTF-8.")
    return table


def _why_no_csv(manifest: Path) -> str:
    """What a file is that is no UTF-8 text, where that can be told."""
    try:
        with manifest.open("rb") as stream:
            start = stream.read(4)
    except OSError:
        return ""
    if start[:2] == b"PK" or start == b"\xd0\xcf\x11\xe0":
        return "it is an Excel file"
    return "it is UTF-16, as Excel writes it" if start[:2] in {b"\xff\xfe", b"\xfe\xff"} else ""


def guess_labels(manifest: Path) -> tuple[str, ...]:
    """Columns that hold nothing but 0 and 1, both of them."""
    table = read_table(manifest)
    columns = [c for c in table.columns if c not in RESERVED]
    return tuple(c for c in columns if {_WORDS.get(v.lower()) for v in table[c]} == {0.0, 1.0})


def refuse_reserved(labels: Sequence[str]) -> None:
    """Labels may not have the name of a column of the study's own tables."""
    clash = [label for label in labels if label in RESERVED]
    if clash:
        raise CohortError(f"label {', '.join(clash)}: this name is taken by a column of the study's own tables. Rename the column.")


def _resolve(root: Path, name: str) -> Path:
    """The file, not its spelling: `a.png` and `./a.png` are one image."""
    file, member = split_member(root / name)
    return Path(f"{file.resolve()}#{member}") if member else file.resolve()


def _check_rows(table: pd.DataFrame, root: Path) -> list[str]:
    """Faults of ids and files, each with its row; the header is row 1."""
    faults: list[str] = []
    first_row: dict[Path, int] = {}
    patients = table["patient"] if "patient" in table.columns else [None] * len(table)
    for i, (image, patient) in enumerate(zip(table["image"], patients, strict=True)):
        row = i + 2
        if not image:
            faults.append(f"row {row}: image is empty")
            continue
        file = _resolve(root, image)
        if file in first_row:
            faults.append(f"row {row}: image {image!r} is already in row {first_row[file]}; every image needs one row")
        else:
            first_row[file] = row
            if not split_member(root / image)[0].exists():
                faults.append(f"row {row}: no file {root / image}")
        if patient == "":
            faults.append(f"row {row}: patient is empty; without it the same patient could be trained and tested on")
    return faults


def _parse_labels(column: pd.Series, label: str, positive: str | None, faults: list[str]) -> list[float]:
    parse: Callable[[str], float | None]
    if positive is not None:
        names = sorted(name for name in set(column) if name.lower() not in _EMPTY)
        if positive not in names or len(names) > 2:
            faults.append(f"column {label}: expected {positive!r} and one other class, found {', '.join(names[:6]) or 'nothing'}")
            return []
        parse = {name: float(name == positive) for name in names}.get
    else:
        parse = lambda text: _WORDS.get(text.lower())  # noqa: E731  a two-way choice of one function
    values: list[float] = []
    for i, text in enumerate(column):
        value = None if text.lower() in _EMPTY else parse(text)
        if value is None:
            what = "is empty" if text.lower() in _EMPTY else f"is {text!r}"
            allowed = "a class name" if positive is not None else "0 or 1 (or name the positive class: cohort.positive, or --positive)"
            faults.append(f"row {i + 2}: label {label} {what}; use {allowed}, or remove the row")
        values.append(np.nan if value is None else value)
    return values
