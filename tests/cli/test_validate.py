"""How the command reaches `mt.validate`, which tests/study/test_external.py is about."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from medtransfer.study import external, second_cohort

from studies import invoke


class Report(SimpleNamespace):
    def to_dict(self):
        return {"images": 24}

    def __str__(self):
        return "As good."


@pytest.fixture
def calls(tmp_path, monkeypatch):
    received = []

    def open_on(*arguments):
        received.append(arguments)
        return "second"

    def validate(*arguments, **settings):
        received.append((*arguments, settings))
        return Report(page=tmp_path / "report.html")

    monkeypatch.setattr(second_cohort, "open_on", open_on)
    monkeypatch.setattr(external, "validate", validate)
    return received


OPTIONS = ["--root", "there", "--label", "grade", "--positive", "high", "margin=0.05", "--json"]


def test_a_study_is_validated_on_a_second_cohort(calls, tmp_path):
    out = tmp_path / "out"
    result = invoke("validate", tmp_path, "second.csv", "-o", out)
    assert result.exit_code == 0, result.output
    opened, validated = calls
    assert [str(part) for part in opened] == [str(tmp_path), "second.csv", "None", "()", "None"]
    assert validated == (tmp_path, "second", out, False, {})
    assert result.stdout == f"As good.\n\nReport: {tmp_path / 'report.html'}\n"


def test_evaluate_on_does_the_same_and_says_what_to_write(calls, tmp_path):
    out = tmp_path / "out"
    now = invoke("validate", tmp_path, "second.csv", "-o", out, *OPTIONS)
    before = invoke("evaluate", tmp_path, "--on", "second.csv", "-o", out, *OPTIONS)
    assert (now.exit_code, before.exit_code) == (0, 0), before.output
    assert json.loads(now.stdout) == json.loads(before.stdout) == {"images": 24}
    (opened, validated), (opened_before, validated_before) = calls[:2], calls[2:]
    assert opened_before == opened
    assert validated_before[:-1] == validated[:-1]
    assert validated[-1] == {"margin": 0.05}
    # `evaluate` has options of its own for these.
    assert validated_before[-1] == {"margin": 0.05, "bootstrap": 2000, "seed": 0}
    assert now.stderr == ""
    assert (
        "evaluate STUDY --on COHORT goes with the next release; write `medtransfer validate STUDY "
        "COHORT`."
    ) in before.stderr
    assert "--on" not in invoke("evaluate", "--help").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "second.csv"], "name their folder with --output"),
        (["--root", "there"], "name it with --on"),
        (["--on", "second.csv", "--boxes", "boxes.csv"], "give both, and no --on"),
        (["--on", "b.csv", "--boxes", "b.csv", "--candidates", "c.csv"], "give both, and no --on"),
    ],
)
def test_evaluate_on_says_what_it_needs(calls, tmp_path, words, message):
    result = invoke("evaluate", tmp_path, *words)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert calls == []


def test_the_folder_of_a_study_is_not_written_over(calls, tmp_path):
    (tmp_path / "study.yaml").write_text("")
    result = invoke("validate", tmp_path, "second.csv", "-o", tmp_path)
    assert (result.exit_code, "holds a study" in result.output) == (2, True), result.output
    assert calls == []
