from __future__ import annotations

import html
import json
import shlex

import medtransfer as mt
import pytest

from studies import invoke


def test_evaluate_prints_and_answers_in_json(scores, tmp_path):
    path = tmp_path / "p.csv"
    scores({"a": 1.5, "b": 0.4}).to_csv(path, index=False)
    result = invoke("evaluate", path, "--bootstrap", 100)
    assert result.exit_code == 0
    assert "a separates the classes better than b" in result.output
    answer = json.loads(invoke("evaluate", path, "--bootstrap", 100, "--json").output)
    assert answer == mt.evaluate(path, bootstrap=100).to_dict()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("patient,target\n1,0\n", "no column probability"),
        ("patient,target,probability\n1,0,0.2\n2,1,x\n", "row 3: probability is 'x'"),
        ("patient,target,probability\n1,,0.2\n2,,0.3\n", "column target is empty"),
    ],
)
def test_evaluate_refuses_with_the_place(tmp_path, text, message):
    path = tmp_path / "p.csv"
    if text is not None:
        path.write_text(text)
    result = invoke("evaluate", path, "--output", tmp_path / "out")
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_on_the_page_gives_the_numbers_of_the_page(scores, tmp_path):
    table = scores({"a": 1.0, "b": 0.5}, views=2)
    table["the site"] = [
        "north" if int(patient[1:]) % 3 else "south" for patient in table["patient"]
    ]
    table["w"] = 1.0 + (table["patient"].str[1:].astype(int) % 2)
    table.to_csv(tmp_path / "TABLE.csv", index=False)
    settings = [
        "unit=patient",
        "weight=w",
        "subgroups=[the site]",
        "margin=0.05",
        "prevalences=[0.01,0.1]",
        "sensitivity=null",
        "threshold=0.3",
    ]
    first = invoke(
        "evaluate",
        tmp_path / "TABLE.csv",
        *settings,
        "--bootstrap",
        100,
        "--seed",
        3,
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert first.exit_code == 0, first.output
    page = (tmp_path / "out" / "report.html").read_text()
    command = shlex.split(html.unescape(page.split("<code>medtransfer ")[1].split("</code>")[0]))
    command[1] = tmp_path / command[1]
    assert json.loads(invoke(*command, "--json").stdout) == json.loads(first.stdout)
