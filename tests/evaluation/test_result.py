from __future__ import annotations

import json

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.errors import FileError
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.files import FORMAT

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_every_estimate_lies_in_its_interval(scores):
    data = evaluate(scores({"a": 1.0}, seeds=2), bootstrap=300).to_dict()
    frame = mt.evaluate(scores({"a": 1.0}, seeds=2), bootstrap=300).to_frame()
    assert len(frame) == 32
    known = frame[frame["low"].notna()]
    # What cannot be 0 by chance has no interval, and what chance gives beside it.
    assert set(frame["metric"]) - set(known["metric"]) == {
        "ece",
        "smooth_ece",
        "miscalibration",
        "ici",
    }
    assert (known["low"] <= known["estimate"]).all()
    assert (known["estimate"] <= known["high"]).all()
    assert data["arms"]["a"]["auc"]["bootstrap"]["low"] < data["arms"]["a"]["auc"]["estimate"]


@pytest.fixture(scope="module")
def report(scores):
    return evaluate(scores({"a": 1.2, "b": 0.4}), bootstrap=100)


def test_a_report_is_read_as_it_was_written(report, tmp_path):
    report.save(tmp_path / "report.json")
    again = EvaluationReport.load(tmp_path / "report.json")
    assert again.to_dict() == json.loads(json.dumps(report.to_dict()))
    assert again.sentences == report.sentences
    assert str(again) == str(report)


def test_the_number_of_the_format_stands_first(report, tmp_path):
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert list(content) == ["format", *report.to_dict()]
    assert content["format"] == FORMAT == 1


def test_a_report_of_another_format_is_refused_with_what_to_do(report, tmp_path):
    path = tmp_path / "report.json"
    for number in (2, "1", True):
        path.write_text(json.dumps({"format": number, **report.to_dict()}))
        with pytest.raises(FileError, match=r"report\.json: is of format .*Use the version that"):
            EvaluationReport.load(path)
    # Reports that are older than the first format say no number.
    path.write_text(json.dumps(report.to_dict()))
    assert EvaluationReport.load(path).to_dict() == json.loads(json.dumps(report.to_dict()))


def test_what_is_no_number_is_not_written(report, tmp_path):
    faulty = EvaluationReport({**report.to_dict(), "prevalence": np.nan})
    with pytest.raises(ValueError, match="Out of range float values"):
        faulty.save(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_tables_hold_every_entry(report):
    tables = report.tables()
    assert list(tables) == ["metrics", "comparisons", "operating_points"]
    assert tables["comparisons"].loc[0, "delta_auc_estimate"] == pytest.approx(
        report.to_dict()["comparisons"][0]["delta_auc"]["estimate"]
    )
    points = report.to_dict()["arms"]["a"]["operating_points"]
    assert len(tables["operating_points"]) == 2 * len(points)
