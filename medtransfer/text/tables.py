"""Tables as people have them: the one reader of manifests, predictions, candidates and boxes.

Cells are read as text. What a file may differ in without doubt is read and told in one line
(`describe_shape`): separators, a line `sep=;`, decimal commas, encodings, byte order marks, blank
lines and columns, lines above the header, spreadsheets. The rest is refused with the row.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medtransfer.errors import MedTransferError
from medtransfer.files import decode_text, write_aside
from medtransfer.text.names import has_controls, normalise, show

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}
# First bytes of files that are no text, and what they are.
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_OTHERS = {
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x1f\x8b": "a gzip file",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"{\\rtf": "a word processor's file",
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull`",
}
_SAVE = "Save it as comma-separated UTF-8 with one line of column names."
# Rows above the header that are looked at, and rows that tell the separator.
_ABOVE, _TELLING = 10, 50
# What programs write for a cell without a value (R, pandas, SAS, Excel).
MISSING = frozenset({"", "na", "n/a", "nan", "#n/a", "#nv", "null", "none", "."})
# What stands for a patient whom nobody named: taken for an id, it would make one person of many.
NOBODY = MISSING | {"unknown", "unbekannt", "anonymous", "anonymized", "anonymised", "?", "-"}
_DECIMAL = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
# What others call our columns, in letters and digits alone.
_SYNONYMS = {
    "image": (
        "imageid",
        "imagename",
        "filename",
        "file",
        "path",
        "filepath",
        "imagepath",
        "imagefile",
        "bild",
        "datei",
    ),
    "patient": (
        "patientid",
        "patientenid",
        "pid",
        "subject",
        "subjectid",
        "case",
        "caseid",
        "mrn",
        "id",
    ),
    "target": ("truth", "groundtruth", "gt", "ytrue", "label", "outcome", "malignant", "y"),
    "probability": (
        "prob",
        "probabilities",
        "pred",
        "prediction",
        "predictedprobability",
        "yprob",
        "yscore",
        "confidence",
        "risk",
    ),
    "x0": ("xmin", "left", "x1"),
    "y0": ("ymin", "top", "y1"),
    "x1": ("xmax", "right", "x2"),
    "y1": ("ymax", "bottom", "y2"),
    "z0": ("zmin",),
    "z1": ("zmax",),
}
_NAMES = {"image", "patient", "arm", "label", "part", "split", "site", "study"}
# What spreadsheets take for a formula (OWASP, CSV injection); a quotation mark in front makes it
# text.
_FORMULA = re.compile(r"'*[=+\-@]")


def read_table(
    path: Path, error: type[MedTransferError], needed: str, expected: Collection[str] = ()
) -> pd.DataFrame:
    """The cells of a table as text, names and cells normalised (see `names.normalise`).

    Args:
        path: text with separators, or a spreadsheet (.xlsx, .ods, .xls; with the extra `tables`).
        error: the exception to raise.
        needed: the sentence that says which columns are needed.
        expected: names of columns that tell the header from lines above it, and are recognised
            whatever their case.

    Returns:
        One row per row of the file that is not blank; `attrs["origin"]` holds its number in the
        file (the first line is 1), see `row_of`, and how the file was found, see `describe_shape`.

    Raises:
        MedTransferError: no such file, no table, a header without names or with one twice, or rows
            longer than the header; with the row.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as fault:
        raise error(f"{path}: no such file. {needed}") from fault
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}). {needed}") from fault
    shape: list[str] = []
    try:
        read = _read_sheet if content.startswith(_SPREADSHEETS) else _read_text
        table = _make_table(read(content, shape, expected), shape, expected)
    except _NoTableError as fault:
        raise error(f"{path}: {fault}") from fault
    table.attrs["origin"] = Origin(table.attrs["origin"].rows, tuple(shape))
    return table


@dataclass(frozen=True)
class Origin:
    """The number of each row in its file, and how the file was found. Pandas copies attributes
    deeply with every step; these stay.
    """

    rows: tuple[int, ...]
    shape: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, object]) -> Origin:
        return self


def row_of(table: pd.DataFrame, place: int) -> int:
    """The number in its file of a row, which is what a spreadsheet shows beside it; of a table from
    no file the header is row 1.
    """
    origin = table.attrs.get("origin")
    return int(origin.rows[place]) if origin is not None else int(place) + 2


def describe_shape(table: pd.DataFrame) -> str:
    """How the file of a table was found, where that is not plain comma-separated UTF-8: one line,
    or "".
    """
    origin = table.attrs.get("origin")
    return ", ".join(origin.shape) if origin is not None else ""


def describe_missing(missing: Sequence[str], table: pd.DataFrame) -> str:
    """Which columns are not there, which are, and which of these may be meant."""
    columns = [str(column) for column in table.columns]
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in columns}
    near = [
        (plain[word], name)
        for name in missing
        if (word := next((w for w in _SYNONYMS.get(name, ()) if w in plain), ""))
    ]
    text = f"no column {', '.join(missing)}. Columns here: {', '.join(columns)}."
    if {"x0", "x1"} & set(missing) and {"x", "y", "width", "height"} <= set(plain):
        return (
            f"{text} Give x0 = x, y0 = y, x1 = x + width, y1 = y + height: here width and height "
            "are those of the image."
        )
    if near:
        return f"{text} Rename {' and '.join(f'{old} to {new}' for old, new in near)}?"
    if columns and all(
        _NUMBER.fullmatch(column) or re.search(r"\.[a-z]{3,4}$", column.lower())
        for column in columns
    ):
        return f"{text} The first line seems to be data: write the names of the columns above it."
    return text


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Writes a CSV with every digit; text that a spreadsheet would take for a formula gets a
    quotation mark, which the reader takes off.
    """
    write_aside(path, to_csv(table))


def to_csv(table: pd.DataFrame) -> str:
    """The text of `write_table`."""
    safe = table.copy()
    for place, column in enumerate(table.columns):
        if not pd.api.types.is_numeric_dtype(table.iloc[:, place]):
            safe.isetitem(place, [_neutralise(cell) for cell in table.iloc[:, place]])
        safe = safe.rename(columns={column: _neutralise(column)})
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _neutralise(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


class _NoTableError(Exception):
    """Why a file is no table."""


Rows = list[tuple[int, list[str]]]


def _read_sheet(content: bytes, shape: list[str], expected: Collection[str]) -> Rows:
    try:
        sheets = pd.read_excel(
            io.BytesIO(content),
            sheet_name=None,
            header=None,
            dtype=object,
            keep_default_na=False,
            engine="calamine",
        )
    except ImportError as fault:
        raise _NoTableError(
            "is a spreadsheet: pip install 'medtransfer[tables]' reads it. Or save it as CSV."
        ) from fault
    except Exception as fault:  # its reader fails in its own ways
        raise _NoTableError(
            f"begins as a spreadsheet or an archive, and is none that can be read. {_SAVE}"
        ) from fault
    filled = {name: sheet for name, sheet in sheets.items() if sheet.size}
    if not filled:
        raise _NoTableError(f"is a spreadsheet without a filled cell. {_SAVE}")
    texts = {
        name: [[_as_text(cell) for cell in row] for row in sheet.to_numpy(object).tolist()]
        for name, sheet in filled.items()
    }
    meant = (
        [
            name
            for name, rows in texts.items()
            if any(_expected_in(row, expected) for row in rows[:_ABOVE])
        ]
        if len(texts) > 1
        else [*texts]
    )
    if len(meant) != 1:
        raise _NoTableError(
            f"holds {len(texts)} filled sheets ({', '.join(texts)}). Keep the one that is meant, "
            "or save it as CSV."
        )
    others = [name for name in texts if name not in meant]
    shape.append(
        "read from a sheet of a spreadsheet"
        + (f", without {len(others)} other(s)" if others else "")
    )
    return list(enumerate(texts[meant[0]], 1))


def _as_text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return (
        str(int(cell))
        if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53
        else str(cell)
    )


def _read_text(content: bytes, shape: list[str], expected: Collection[str]) -> Rows:
    text = _decode(content, shape)
    if not text.strip():
        raise _NoTableError(f"is empty. {_SAVE}")
    lines = text.splitlines()
    skipped, separator = 0, ""
    stated = re.fullmatch(r'\s*"?sep=(.)"?[\s;,]*', lines[0]) if lines else None
    if stated:
        separator, skipped = stated.group(1), 1
        shape.append(f"a line sep={separator}")
        text = text.split("\n", 1)[1] if "\n" in text else ""
    separator = separator or _find_separator(text, expected)
    if separator != ",":
        shape.append(f"separated by {_SEPARATORS.get(separator, repr(separator))}")
    return _parse(text, separator, skipped)


def _decode(content: bytes, shape: list[str]) -> str:
    start = content[:512].lstrip()
    for mark, what in _OTHERS.items():
        if start[: len(mark)].lower() == mark.lower():
            raise _NoTableError(f"is {what}, not a table. {_SAVE}")
    try:
        text, encoding = decode_text(content)
    except UnicodeDecodeError as fault:
        raise _NoTableError(f"begins as {fault.encoding.upper()} and is not. {_SAVE}") from None
    if "\0" in text:
        raise _NoTableError(f"holds null bytes: it is no text, or damaged. {_SAVE}")
    if encoding:
        shape.append(f"read as {encoding}")
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")


def _find_separator(text: str, expected: Collection[str]) -> str:
    """The mark that divides the first rows into as many cells each, most of all into known names; a
    comma where none does.
    """
    lines = [line for line in text.split("\n") if line.strip()][:_TELLING]

    def grade(mark: str) -> tuple[int, float, int]:
        rows = list(csv.reader(lines, delimiter=mark, skipinitialspace=True))
        widths = [len(row) for row in rows]
        header = max(rows[:_ABOVE], key=lambda row: len(_expected_in(row, expected)), default=[])
        wide = len(header)
        return (
            len(_expected_in(header, expected)),
            sum(width == wide for width in widths) / max(1, len(widths)) if wide > 1 else 0.0,
            wide,
        )

    try:
        grades = {mark: grade(mark) for mark in _SEPARATORS if any(mark in line for line in lines)}
    except csv.Error:
        return ","
    best = max(grades, key=lambda mark: grades[mark], default=",")
    return best if grades.get(best, (0, 0.0, 0))[2] > 1 else ","


def _expected_in(row: Sequence[str], expected: Collection[str]) -> set[str]:
    return {normalise(cell).lower() for cell in row} & {name.lower() for name in expected}


def _parse(text: str, separator: str, skipped: int) -> Rows:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    rows: Rows = []
    first, width = 1 + skipped, 0
    try:
        for row in reader:
            width = width or len(row)
            for cell in row:
                # A line below that has as many separators as a row is one.
                if any(line.count(separator) >= max(1, width - 1) for line in cell.split("\n")[1:]):
                    raise _NoTableError(
                        f"row {first}: a quotation mark is opened and closed "
                        f"{cell.count(chr(10))} line(s) below, so that these "
                        "lines would be one cell. Remove it, or double it."
                    )
            rows.append((first, row))
            first = reader.line_num + 1 + skipped
    except csv.Error as fault:
        if "field larger" in str(fault):
            raise _NoTableError(
                f"row {first}: a cell has more than {csv.field_size_limit():,} characters. {_SAVE}"
            ) from None
        raise _NoTableError(
            f"row {first}: a quotation mark is opened and not closed ({fault}). Remove it, or "
            "double it."
        ) from None
    return rows


def _make_table(rows: Rows, shape: list[str], expected: Collection[str]) -> pd.DataFrame:
    rows = [(number, [normalise(cell) for cell in row]) for number, row in rows]
    filled = [(number, row) for number, row in rows if any(row)]
    if not filled:
        raise _NoTableError(f"is empty. {_SAVE}")
    top = _find_header(filled, expected)
    if top:
        shape.append(f"{top} line(s) above the header left out")
    (at, header), body = filled[top], filled[top + 1 :]
    blank = (
        len(rows)
        - len(filled)
        - sum(not any(row) for _, row in rows[len(rows) - _trailing(rows) :])
    )
    if blank:
        shape.append(f"{blank} blank line(s) left out")
    header = _shift_header([_restore(name) for name in header], body)
    width = max(len(header), *(len(row) for _, row in body)) if body else len(header)
    names = _check_header([*header, *[""] * (width - len(header))], body, at, shape, expected)
    cells = {
        name: [_restore(row[place]) if place < len(row) else "" for _, row in body]
        for place, name in names.items()
    }
    if short := sum(len(row) < len(header) for _, row in body):
        shape.append(f"{short} row(s) shorter than the header")
    table = pd.DataFrame(cells, dtype=object, index=range(len(body)))
    _read_decimal_commas(table, [number for number, _ in body], shape)
    table.attrs["origin"] = Origin(tuple(number for number, _ in body))
    return table


def _trailing(rows: Rows) -> int:
    """Blank lines at the end, which most editors leave there."""
    count = 0
    while count < len(rows) and not any(rows[-1 - count][1]):
        count += 1
    return count


def _restore(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _find_header(rows: Rows, expected: Collection[str]) -> int:
    """The first row with a known name of a column, if the first has none."""
    return next(
        (place for place, (_, row) in enumerate(rows[:_ABOVE]) if _expected_in(row, expected)), 0
    )


def _check_header(
    header: list[str], body: Rows, at: int, shape: list[str], expected: Collection[str]
) -> dict[int, str]:
    """The names by place, without columns that have neither a name nor a cell, or that number the
    rows.

    Raises:
        _NoTableError: a column without a name that holds cells, or a name twice.
    """
    names: dict[int, str] = {}
    lower = {name.lower(): name for name in expected}
    for place, name in enumerate(header):
        cells = [row[place] if place < len(row) else "" for _, row in body]
        if not name and not any(cells):
            shape.append("a column without name and cells left out")
        elif not name and place == 0 and _are_row_names(cells):
            shape.append("a column of row names left out")
        elif not name:
            number, row = next(
                (number, row) for number, row in body if place < len(row) and row[place]
            )
            comma = (
                " A decimal comma in a comma-separated table makes two cells of a number."
                if place and _looks_like_decimals(row)
                else ""
            )
            raise _NoTableError(
                f"row {number} has {len(row)} cells, and the header in row {at} has "
                f"{len([n for n in header if n])} names: column "
                f"{place + 1} has none. Name it or remove it, or quote cells that hold a "
                f"separator.{comma}"
            )
        else:
            plain = (
                name
                if name in expected or name.lower() not in lower or lower[name.lower()] in header
                else lower[name.lower()]
            )
            if plain != name:
                shape.append(f"column {name} taken as {plain}")
            if has_controls(name):
                raise _NoTableError(
                    f"row {at}: the name of column {place + 1} ({show(name)}) holds a control "
                    "character. Rename it."
                )
            names[place] = plain
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        raise _NoTableError(f"column {', '.join(twice)} appears twice. Rename or remove one.")
    return names


def _are_row_names(cells: list[str]) -> bool:
    """Whether the first column, which has no name, numbers the rows, or names each of them, as
    pandas and R write it.
    """
    return all(cells) and len(set(cells)) == len(cells) > 0


def _shift_header(header: list[str], body: Rows) -> list[str]:
    """R's `write.table` gives row names a column, and no name: each row is one longer than the
    header, and begins with its number.
    """
    numbered = [row[0] if len(row) == len(header) + 1 else "" for _, row in body]
    return (
        ["", *header]
        if numbered and numbered == [str(number) for number in range(1, len(body) + 1)]
        else header
    )


def _looks_like_decimals(row: Sequence[str]) -> bool:
    return any(a in {"0", "1", "-0"} and b.isdigit() for a, b in itertools.pairwise(row))


def _read_decimal_commas(table: pd.DataFrame, rows: Sequence[int], shape: list[str]) -> None:
    """Columns of nothing but numbers, some with a comma: the comma becomes a point.

    Raises:
        _NoTableError: both marks in a column, or commas that may divide thousands.
    """
    decimal: list[str] = []
    for column in table.columns:
        if column in _NAMES:
            continue
        cells = [cell for cell in table[column] if cell.lower() not in MISSING]
        if not any("," in cell for cell in cells) or not all(
            _NUMBER.fullmatch(cell) for cell in cells
        ):
            continue
        places = [place for place, cell in enumerate(table[column]) if _DECIMAL.fullmatch(cell)]
        if any("." in cell for cell in cells):
            raise _NoTableError(
                f"row {rows[places[0]]}: column {column} has decimal commas and decimal points. "
                "Use one of them."
            )
        if all(_THOUSANDS.fullmatch(cell) for cell in cells if "," in cell):
            example = table[column].iloc[places[0]]
            raise _NoTableError(
                f"row {rows[places[0]]}: column {column} holds {example}: is the comma a decimal "
                "mark, or does it divide thousands? Write "
                "numbers with a decimal point and without marks between thousands."
            )
        table[column] = [cell.replace(",", ".") for cell in table[column]]
        decimal.append(column)
    if decimal:
        shape.append(f"decimal commas in {', '.join(decimal)}")
