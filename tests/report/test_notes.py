from __future__ import annotations

import json

import pytest
from medtransfer.records.study_folder import StudyFolder
from medtransfer.report.notes import note_overfitting


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (True, "average precision is 0.95 on images it was trained on and 0.70 on others. More"),
        (False, "log-loss is 0.05"),
    ],
)
def test_over_fitting_is_told_in_what_was_measured(tmp_path, boxes, said):
    folder = tmp_path / "runs" / "scratch" / "fold-0" / "seed-0"
    folder.mkdir(parents=True)
    run = {"kept": {"train": 0.05, "tune": 0.3}, "task": {"anchors": []} if boxes else {}}
    (folder / "run.json").write_text(json.dumps(run))
    (note,) = note_overfitting(StudyFolder(tmp_path), ["scratch"])
    assert said in note
    assert ("recalibrated" in note) is not boxes
    (folder / "run.json").write_text(json.dumps({**run, "kept": {"train": 0.05, "tune": 0.12}}))
    assert note_overfitting(StudyFolder(tmp_path), ["scratch"]) == []
