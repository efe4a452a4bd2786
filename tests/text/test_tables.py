"""The one reader of tables: what is read whatever its shape, what is refused and why, and that what
is written comes back.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.errors import CohortError
from medtransfer.text.names import look_alikes, normalise, show, show_text
from medtransfer.text.tables import describe_shape, read_table, row_of, to_csv, write_table

KNOWN = ("image", "patient", "target", "probability")
ROWS = [("a.png", "P1", "1", "0.25"), ("b.png", "P2", "0", "0.5")]


def read(path, content: bytes | str | None = None):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, CohortError, "Give a table.", KNOWN)


def lines(mark=",", decimal=".", header="image,patient,target,probability"):
    rows = [mark.join([*row[:3], row[3].replace(".", decimal)]) for row in ROWS]
    return "\n".join([header.replace(",", mark), *rows]) + "\n"


PLAIN = lines()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PLAIN, ""),
        (PLAIN.replace("\n", "\r\n"), ""),
        (PLAIN.replace("\n", "\r"), ""),  # an old Mac
        ("\ufeff" + PLAIN, ""),
        (PLAIN.replace(",", ", "), ""),
        (PLAIN.replace("a.png", '"a.png"'), ""),
        (PLAIN.replace("P1", " P1\u00a0"), ""),
        (lines(";"), "separated by semicolons"),
        (lines("\t"), "separated by tabs"),
        (lines("|"), "separated by bars"),
        (lines(" "), "separated by blanks"),
        (lines(";", ","), "separated by semicolons, decimal commas in probability"),
        (lines("\t", ","), "separated by tabs, decimal commas in probability"),
        (
            "sep=;\n" + lines(";", ","),
            "a line sep=;, separated by semicolons, decimal commas in probability",
        ),
        ("sep=,\r\n" + PLAIN, "a line sep=,"),
        (PLAIN.encode("utf-16"), "read as UTF-16"),
        (PLAIN.encode("utf-16-le"), "read as UTF-16-LE"),
        (PLAIN.encode("utf-16-be"), "read as UTF-16-BE"),
        (PLAIN.encode("utf-32"), "read as UTF-32"),
        ("\n\n" + PLAIN.replace("b.png", "\nb.png"), "3 blank line(s) left out"),
        (PLAIN + "\n\n,,,\n", ""),
        (
            "\n".join(line + ",," for line in PLAIN.splitlines()),
            "a column without name and cells left out",
        ),
        (
            "".join(
                f"{n},{line}\n" for n, line in zip(["", 0, 1], PLAIN.splitlines(), strict=True)
            ),
            "a column of row names left out",
        ),
        (
            "".join(
                f"{n},{line}\n" for n, line in zip(["", 1, 2], PLAIN.splitlines(), strict=True)
            ),
            "a column of row names left out",
        ),
        (
            '"";"image";"patient";"target";"probability"\n"r1";"a.png";"P1";1;0,25\n"r2";"b.png";"P2";0;0,5\n',
            "a column of row names left out",
        ),
        (
            "image patient target probability\n1 a.png P1 1 0.25\n2 b.png P2 0 0.5\n",
            "a column of row names left out",
        ),
        ("Export of 3 May\nby: nobody\n\n" + PLAIN, "2 line(s) above the header left out"),
        (PLAIN.replace("image,patient", "Image,PATIENT"), "column Image taken as image"),
    ],
)
def test_one_table_in_many_shapes(tmp_path, content, told):
    table = read(tmp_path / "t.csv", content)
    assert [tuple(row) for row in table[list(KNOWN)].itertuples(index=False)] == ROWS
    assert told in describe_shape(table)
    if not told:
        assert describe_shape(table) == ""


@pytest.mark.parametrize("ending", ["xlsx", "ods", "csv"])
def test_spreadsheets(tmp_path, ending):
    """Whatever they are called; numbers that are whole have no point, dates and text stay as they
    are shown.
    """
    frame = pd.DataFrame(
        {"patient": [12, 7], "target": [1, 0], "probability": [0.25, 1 / 3], "image": ["007", "a"]}
    )
    path = tmp_path / f"t.{'xlsx' if ending == 'csv' else ending}"
    frame.to_excel(path, index=False)
    path = path.rename(tmp_path / f"t.{ending}")
    table = read(path)
    assert table["patient"].tolist() == ["12", "7"]
    assert table["target"].tolist() == ["1", "0"]
    assert [float(value) for value in table["probability"]] == [0.25, 1 / 3]
    assert table["image"].tolist() == ["007", "a"]
    assert "read from a sheet of a spreadsheet" in describe_shape(table)
    assert row_of(table, 0) == 2


def test_the_sheet_with_known_columns_is_taken_and_two_are_asked_about(tmp_path):
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as writer:
        pd.DataFrame({"note": ["made by hand"]}).to_excel(writer, sheet_name="About", index=False)
        pd.DataFrame({"patient": ["a"], "target": [1]}).to_excel(
            writer, sheet_name="Data", index=False
        )
    table = read(path)
    assert table["patient"].tolist() == ["a"]
    assert "read from a sheet of a spreadsheet, without 1 other(s)" in describe_shape(table)
    with pd.ExcelWriter(path) as writer:
        for name in ("One", "Two"):
            pd.DataFrame({"patient": ["a"]}).to_excel(writer, sheet_name=name, index=False)
    with pytest.raises(CohortError, match=r"2 filled sheets \(One, Two\)"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (
            "image,patient\na.png,P1\nb.png,P2,1,5\n",
            r"row 3 has 4 cells, and the header in row 1 has 2 names: column 3 has none",
        ),
        ("image,patient,x,x\na,b,1,2\n", "column x appears twice"),
        (
            "image,probability\na.png,0,5\n",
            "A decimal comma in a comma-separated table makes two cells",
        ),
        (
            "image;probability\na;0,5\nb;0.5\n",
            "row 2: column probability has decimal commas and decimal points",
        ),
        (
            "image;x0\na;1,024\nb;2,048\n",
            "is the comma a decimal mark, or does it divide thousands",
        ),
        (
            'image,patient\n"a.png,P1\nb.png,P2\n',
            "row 2: a quotation mark is opened and not closed",
        ),
        (
            'image,patient\n"a.png,P1\nb.png,P2\nc.png",P3\n',
            r"row 2: a quotation mark is opened and closed 2 line\(s\) below",
        ),
        (b"image,patient\na.png,\0\0\n", "null bytes"),
        (b"\x89PNG\r\n\x1a\n0000", "is a PNG picture, not a table"),
        (b"%PDF-1.7 ", "is a PDF"),
        ("<!DOCTYPE html><html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "git lfs pull"),
        (b"PK\x03\x04damaged", "begins as a spreadsheet or an archive"),
        (
            "image,pa\x07tient\na,b\n",
            r"the name of column 2 \(pa\[U\+0007\]tient\) holds a control character",
        ),
    ],
)
def test_what_has_no_one_reading_is_refused_with_the_cause(tmp_path, content, message):
    with pytest.raises(CohortError, match=message):
        read(tmp_path / "t.csv", content)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(CohortError, match=r"no such file. Give a table."):
        read(tmp_path / "gone.csv")
    with pytest.raises(CohortError, match="cannot be read"):
        read(tmp_path)


def test_encodings_that_are_not_utf8_are_told(tmp_path):
    table = read(tmp_path / "t.csv", PLAIN.replace("P1", "Müller").encode("latin-1"))
    assert table["patient"][0] == "Müller"
    assert "read as Windows-1252 as it is not UTF-8" in describe_shape(table)


def test_rows_are_numbered_as_a_spreadsheet_shows_them(tmp_path):
    table = read(tmp_path / "t.csv", 'sep=,\n\nimage,patient\n\na.png,"two\nlines"\nb.png,P2\n')
    assert [row_of(table, place) for place in range(2)] == [5, 7]
    assert row_of(pd.DataFrame({"a": [1, 2]}), 1) == 3


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), max_size=12).map(
    normalise
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            TEXT,
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(["=1+1", "+x", "-3", "@a", "'=b", "''-", "a"]),
        )
    ),
)
def test_what_is_written_is_read_again_to_the_last_digit(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    frame = pd.DataFrame(rows, columns=["image", "probability", "patient"]).assign(target=1)
    write_table(frame, path)
    if frame.empty:
        return
    table = read(path)
    assert table["image"].tolist() == frame["image"].tolist()
    assert table["patient"].tolist() == frame["patient"].tolist()
    assert [float(value) for value in table["probability"]] == frame["probability"].tolist()


def test_no_cell_begins_as_a_formula():
    frame = pd.DataFrame(
        {
            "patient": ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "plain"],
            "x": [-1.0, 2, 3, 4, 5],
        }
    )
    text = to_csv(frame)
    cells = pd.read_csv(io.StringIO(text), dtype=str)["patient"]
    assert not cells.str.match(r"[=+\-@]").any()
    assert np.allclose(
        pd.read_csv(io.StringIO(text))["x"], frame["x"]
    )  # a number below 0 is no formula


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["12", "12.0"], [("12", "12.0")]),
        (["7", "007", "7.00"], [("7", "007", "7.00")]),
        (["p1", "P1", "p2"], [("p1", "P1")]),
        (["p1", "p1\u200b"], [("p1", "p1\u200b")]),
        (["a b", "a\u00a0b", "a  b"], [("a b", "a\u00a0b", "a  b")]),
        (["ﬁ1", "fi1"], [("ﬁ1", "fi1")]),
        (["1.01", "1.1", "10", "100", "a-1", "a1", "p10", "p1"], []),
    ],
)
def test_names_that_look_alike(names, groups):
    assert look_alikes(names) == groups


def test_names_are_shown_without_their_controls():
    assert show("a\x1b[31mb\u202ec\n") == "a[U+001B][31mb[U+202E]c[U+000A]"
    assert show_text("a\nb\x1b[2J \u2068x\u2069") == "a\nb[U+001B][2J \u2068x\u2069"
    assert normalise(" e\u0301\ufeff ") == "é"
