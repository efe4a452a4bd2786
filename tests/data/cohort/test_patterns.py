"""Patients from the names of files, parts from their folders."""

from __future__ import annotations

import numpy as np
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.split import split_cohort
from medtransfer.errors import CohortError
from PIL import Image


def test_patients_from_names_and_parts_from_folders(tmp_path):
    for name in (
        "train/p1_0.png",
        "train/p1_1.png",
        "train/p2_0.png",
        "train/p3_0.png",
        "train/odd.png",
        "valid/p4_0.png",
        "x.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(
        CohortError,
        match=r"is not found in 2 of 7 file names, such as train/odd.png. Set cohort.unnamed",
    ):
        Cohort.from_boxes(tmp_path, "yolo", patient=r"^(p\d)_")
    with pytest.raises(CohortError, match="found in none of 7 file names"):
        Cohort.from_boxes(tmp_path, "yolo", patient=r"^(q\d)_")
    with pytest.raises(CohortError, match="no regular expression"):
        Cohort.from_boxes(tmp_path, "yolo", patient="(")
    named = Cohort.from_boxes(tmp_path, "yolo", patient=r"^(p\d)_", unnamed="leave_out")
    assert named.images["patient"].tolist() == ["p1", "p1", "p2", "p3", "p4"]
    assert ("x.png", "its name gives no patient") in named.ignored
    assert named.patients_known
    assert len(set(split_cohort(named, 3).parts["fold_0"])) == 3
    divided = Cohort.from_boxes(tmp_path, "yolo", parts={"train": "train", "valid": "test"})
    assert divided.images["split"].tolist() == ["train"] * 5 + ["test"]
    assert ("x.png", "in none of cohort.parts") in divided.ignored
    assert not divided.patients_known
    assert split_cohort(divided).official
    with pytest.raises(CohortError, match="cohort.parts: no image in .*other"):
        Cohort.from_boxes(tmp_path, "yolo", parts={"other": "train"})
    assert divided.digest != Cohort.from_boxes(tmp_path, "yolo").digest
    assert len(divided.without(["train/odd.png"]).boxes) == 5
