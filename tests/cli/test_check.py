from __future__ import annotations

import json

import pytest

from studies import invoke


def test_check_answers_in_json_with_the_exit_code(manifest, tmp_path):
    path = manifest(patients=12, views=2)
    clean = invoke("check", path, "--json")
    assert clean.exit_code == 0, clean.output
    answer = json.loads(clean.stdout)
    assert (answer["images"], answer["patients"], answer["actions"]) == (24, 12, [])
    (tmp_path / "0-0.png").write_bytes((tmp_path / "1-0.png").read_bytes())
    (tmp_path / "3-1.png").write_bytes(b"broken")
    found = invoke("check", path, "--json")
    assert found.exit_code == 1
    answer = json.loads(found.stdout)
    assert answer["near_duplicates"] == [["0-0.png", "1-0.png"]]
    assert answer["unreadable"][0]["image"] == "3-1.png"
    assert str(tmp_path) not in found.stdout


def test_check_writes_a_page_with_the_pictures(manifest, tmp_path):
    path = manifest(patients=12, views=1)
    (tmp_path / "0-0.png").write_bytes((tmp_path / "1-0.png").read_bytes())
    result = invoke("check", path, "--output", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    assert "To do: 1 group(s)" in result.output
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "Equal pixels under different labels (malignant 0 and 1)" in page
    assert (
        json.loads((tmp_path / "out" / "check.json").read_text())["conflicts"][0]["kind"]
        == "duplicate"
    )
    assert "http" not in page.replace("http-equiv", "")


def test_check_takes_configurations_folders_and_archives(manifest, tmp_path):
    path = manifest(patients=12, views=2)
    (tmp_path / "study.yaml").write_text(
        "cohort: {labels: [malignant]}\narms: {a: {backbone: resnet18}}\n"
    )
    settings = (f"cohort.manifest={path}", f"cohort.root={tmp_path}")
    assert invoke("check", tmp_path / "study.yaml", *settings, "-q").exit_code == 0
    less = invoke(
        "check",
        tmp_path / "study.yaml",
        *settings,
        "audit.shortcuts=false",
        "--output",
        tmp_path / "less",
        "-q",
    )
    assert (less.exit_code, "not looked for: shortcuts" in less.output) == (0, True), less.output
    assert "Not looked for: shortcuts." in (tmp_path / "less" / "check.html").read_text()
    assert json.loads((tmp_path / "less" / "check.json").read_text())["not_looked_for"] == [
        "shortcuts"
    ]
    listed = invoke("check", tmp_path, "--flat", "-q")
    assert "24 images found, 24 readable" in listed.output
    assert invoke("check", path, "x.y=1").exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file or folder"),
        ("a.csv", "image,patient\nmissing.png,P0\n", "Is the root right?"),
        ("a.csv", "image;patient\na.png;P0\n", "none of its 1 images is under"),
        ("a.csv", "PK\x03\x04\udcff", "begins as a spreadsheet or an archive"),
        ("a.csv", "", "is empty"),
        ("a.npz", "x", "not a readable archive"),
    ],
)
def test_check_says_what_it_cannot_take(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    result = invoke("check", tmp_path / name)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("replacement", "options", "message"),
    [
        (("P1,1", "P1,yes"), (), "no label was checked"),
        (("P1,1", "P1,yes"), ("--label", "malignant"), "label malignant is 'yes'"),
        ((",1\n", ",0\n"), ("--label", "malignant"), "every image has malignant = 0"),
        (("malignant", "diagnosis of it"), ("--label", "malignant"), "no column malignant"),
    ],
)
def test_a_label_that_cannot_be_checked_is_not_passed_over(manifest, replacement, options, message):
    path = manifest(patients=12, views=2)
    path.write_text(path.read_text().replace(*replacement))
    result = invoke("check", path, "-q", *options)
    assert result.exit_code in {1, 2}
    assert message in result.output


def test_check_names_what_it_found(manifest, tmp_path):
    path = manifest(patients=12, views=2, split=["train", "test"] * 12)
    path.write_text(path.read_text().replace("2-1.png,P2,0", "2-1.png,P2,1"))
    (tmp_path / "3-1.png").write_bytes(b"")
    result = invoke("check", path, "-q")
    assert result.exit_code == 1
    for part in (
        "unreadable 3-1.png: ",
        "such as 0-0.png and 0-1.png",
        "1 patient(s) under two labels",
        "patient P2 under two labels",
    ):
        assert part in result.output


def test_rows_longer_than_the_header_lose_nothing_in_silence(tmp_path):
    (tmp_path / "m.csv").write_text(
        "image,patient,malignant,age\na.png,P1,1,50,5\nb.png,P2,0,40,2\n"
    )
    result = invoke("check", tmp_path / "m.csv")
    assert result.exit_code == 2
    assert (
        "row 2 has 5 cells, and the header in row 1 has 4 names: column 5 has none" in result.output
    )
