"""The manifest: a CSV read strictly, every fault reported at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.data.annotations.file_names import find_file, near_file
from medtransfer.data.images.reading import split_member
from medtransfer.errors import CohortError, list_unusable
from medtransfer.text.account import Account, make_account
from medtransfer.text.names import has_controls, show
from medtransfer.text.tables import (
    MISSING,
    NOBODY,
    describe_missing,
    describe_shape,
    read_table,
    row_of,
)

# Names of the tables that labels stand beside.
RESERVED = {"image", "patient", "path", "study", "site", "split", "group", "file_digest"}
OPTIONAL = ("study", "site", "split")
PARTS = ("train", "tune", "test")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "tune": "tune",
    "val": "tune",
    "valid": "tune",
    "validation": "tune",
    "test": "test",
}
_EMPTY = MISSING - {"."}
_WORDS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def read_manifest(
    manifest: Path,
    root: Path,
    labels: Sequence[str],
    positive: str | None,
    columns: Sequence[str] = (),
    outside: bool = False,
) -> tuple[pd.DataFrame, Account, list[str]]:
    """Reads and checks a manifest.

    Args:
        manifest: CSV with `image` and optionally `patient`, `study`, `site`, `split` and label
            columns.
        root: folder the images are relative to.
        labels: label columns, each 0/1 (or false/true), or two classes with `positive`. Empty: none
            is read.
        positive: the class that counts as 1.
        columns: others that are kept, as text, such as `sex`; whatever is not named stays behind,
            as it may be a name.
        outside: images may lie outside of the root, or behind links that lead out of it.

    Returns:
        `image`, `path` (absolute), the optional columns that are there, those of `columns`, and a
        float 0/1 column per label; the account of its rows; and what was decided in reading it, in
        sentences.

    Raises:
        CohortError: with every fault, each with its row (the header is row 1).
    """
    table = read_cells(manifest, (*labels, *columns))
    missing = [name for name in ("image", *labels, *columns) if name not in table.columns]
    if missing:
        raise CohortError(f"{manifest}: {describe_missing(missing, table)}")
    if table.empty:
        raise CohortError(f"{manifest}: no rows below the header. Add one row per image.")
    rows = [row_of(table, place) for place in range(len(table))]
    files = _locate(root, table["image"].tolist())
    if not any(files):
        first = root / table["image"].iloc[0]
        near = near_file(first)
        question = (
            f"Is it {show(near)}? Names need their endings." if near else "Is the root right?"
        )
        raise CohortError(
            f"{manifest}: none of its {len(table)} images is under {root}, such as "
            f"{show(str(first))}. {question}"
        )
    faults = _check_rows(table, rows, files, root, outside)
    values = {label: _parse_labels(table[label], rows, label, positive, faults) for label in labels}
    if "split" in table.columns:
        unknown = [(i, v) for i, v in enumerate(table["split"]) if v.lower() not in PART_NAMES]
        faults += [f"row {rows[i]}: split is {v!r}; use train, tune or test" for i, v in unknown]
    if faults:
        raise CohortError(
            list_unusable(
                manifest,
                faults,
                "Correct these rows and run again." if faults[0].startswith("row ") else "",
            )
        )
    images = table[[column for column in ("image", "patient") if column in table.columns]].copy()
    respelt = [
        name
        for name, file in zip(table["image"], files, strict=True)
        if file is not None and not file.exact
    ]
    notes = []
    if respelt:
        images["image"] = [
            name if file is None else file.id_of(name, root.resolve())
            for name, file in zip(table["image"], files, strict=True)
        ]
        notes.append(
            f"{len(respelt)} image(s) are spelt otherwise in the manifest than on the disk, such "
            f"as {show(respelt[0])}"
        )
    images["path"] = [str(file.path) for file in files if file is not None]
    for column in dict.fromkeys((*OPTIONAL, *columns)):
        if column in table.columns:
            images[column] = table[column]
    if "split" in images.columns:
        images["split"] = [PART_NAMES[v.lower()] for v in images["split"]]
    for label in labels:
        images[label] = values[label]
    shape = describe_shape(table)
    return (
        images,
        make_account("rows", manifest.name, len(images), [], [shape] if shape else []),
        notes,
    )


def read_cells(manifest: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The cells of a manifest as text; see `tables.read_table`.

    Raises:
        CohortError: no such file, or no table.
    """
    needed = "Give a table (CSV) with the columns image, patient and your label."
    return read_table(manifest, CohortError, needed, ("image", "patient", *OPTIONAL, *columns))


def guess_labels(manifest: Path) -> tuple[str, ...]:
    """Columns that hold nothing but 0 and 1, both of them."""
    table = read_cells(manifest)
    columns = [c for c in table.columns if c not in RESERVED]
    return tuple(c for c in columns if {_WORDS.get(v.lower()) for v in table[c]} == {0.0, 1.0})


def label_of(name: str) -> str:
    """The label of a class: its name, unless the study's own tables have a column of that name."""
    return f"class {name}" if name in RESERVED else name


def refuse_reserved(labels: Sequence[str]) -> None:
    """Labels may not have the name of a column of the study's own tables."""
    clash = [label for label in labels if label in RESERVED]
    if clash:
        raise CohortError(
            f"label {', '.join(clash)}: this name is taken by a column of the study's own tables. "
            "Rename the column."
        )


@dataclass(frozen=True)
class _File:
    """The file of a row.

    Attributes:
        path: absolute, links resolved: `a.png` and `./a.png` are one image.
        exact: the manifest spells its name as the disk does.
    """

    path: Path
    exact: bool

    def id_of(self, name: str, root: Path) -> str:
        """The name of the image as it is on the disk, where the manifest spells it otherwise."""
        if self.exact or not self.path.is_relative_to(root):
            return name
        return self.path.relative_to(root).as_posix()


def _locate(root: Path, names: Sequence[str]) -> list[_File | None]:
    """The file of each row; None where there is none."""
    folders: dict[Path, Path] = {}

    def resolve(path: Path) -> Path:
        # Links are looked for once per folder: of 100,000 images that alone would take a minute.
        if path.name in {"", ".."} or path.is_symlink():
            return path.resolve()
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        return folders[path.parent] / path.name

    def locate(name: str) -> _File | None:
        if not name:
            return None
        try:
            file, member = split_member(root / name)
            exact = file.exists()
            if not exact:
                spelt = (
                    find_file(root, str(file.relative_to(root)))
                    if file.is_relative_to(root)
                    else None
                )
                if spelt is None:
                    return None
                file = spelt
            path = resolve(file)
            return _File(Path(f"{path}#{member}") if member else path, exact)
        except (OSError, ValueError):  # too long, or a null byte
            return None

    return [locate(name) for name in names]


def _check_rows(
    table: pd.DataFrame,
    rows: Sequence[int],
    files: Sequence[_File | None],
    root: Path,
    outside: bool,
) -> list[str]:
    """Faults of ids and files, each with its row."""
    faults: list[str] = []
    first_row: dict[Path, int] = {}
    inside = f"{str(root.resolve()).rstrip(os.sep)}{os.sep}"
    patients = table["patient"] if "patient" in table.columns else [None] * len(table)
    for row, file, image, patient in zip(rows, files, table["image"], patients, strict=True):
        with_controls = [name for name in (image, patient) if name and has_controls(name)]
        if with_controls:
            faults.append(
                f"row {row}: {show(with_controls[0])} holds a control character, with which no "
                "table can be read again; remove it"
            )
        if not image:
            faults.append(f"row {row}: image is empty")
        elif file is None:
            near = near_file(root / image)
            faults.append(
                f"row {row}: no file {show(str(root / image))}"
                + (f"; is it {show(near)}?" if near else "")
            )
        elif file.path in first_row:
            faults.append(
                f"row {row}: image {show(image)!r} is already in row {first_row[file.path]}; every "
                "image needs one row"
            )
        else:
            first_row[file.path] = row
            if not outside and not f"{file.path}{os.sep}".startswith(inside):
                faults.append(
                    f"row {row}: {show(image)} lies outside of {root}; set cohort.outside=true "
                    "(--outside) if that is meant"
                )
        if patient is not None and patient.lower() in NOBODY:
            faults.append(
                f"row {row}: patient is {patient or 'empty'}; without it the same patient could "
                "be trained and tested on"
            )
    return faults


def _list(names: Sequence[str]) -> str:
    """The first of them, in a sentence."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(show(name) for name in names[:6]) or "nothing") + more


def _parse_labels(
    column: pd.Series, rows: Sequence[int], label: str, positive: str | None, faults: list[str]
) -> list[float]:
    parse: Callable[[str], float | None]
    names = sorted(name for name in set(column) if name.lower() not in _EMPTY)
    if positive is not None:
        if positive not in names or len(names) > 2:
            faults.append(
                f"column {label}: expected {positive!r} and one other class, found {_list(names)}"
            )
            return []
        parse = {name: float(name == positive) for name in names}.get
    else:
        parse = lambda text: _WORDS.get(text.lower())  # noqa: E731
        if names and not any(name.lower() in _WORDS for name in names):
            faults.append(
                f"column {label}: holds {_list(names)} in place of 0 and 1; name the class that "
                "counts as 1 (cohort.positive, --positive, or positive= in Python)"
            )
            return []
    values: list[float] = []
    for i, text in enumerate(column):
        value = None if text.lower() in _EMPTY else parse(text)
        if value is None:
            what = "is empty" if text.lower() in _EMPTY else f"is {text!r}"
            allowed = (
                "a class name"
                if positive is not None
                else "0 or 1 (or name the positive class: cohort.positive, or --positive)"
            )
            faults.append(f"row {rows[i]}: label {label} {what}; use {allowed}, or remove the row")
        values.append(np.nan if value is None else value)
    return values
