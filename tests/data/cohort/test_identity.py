"""One patient in two spellings, and two sources that name patients."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.errors import CohortError

from wild_files import checked, pictures


@pytest.mark.parametrize("other", ["{}.0", "00{}", "{}\u200b", "P{}"])
def test_patients_that_look_alike_are_asked_about(tmp_path, other):
    names = pictures(tmp_path / "images", [f"Bild {i}.png" for i in range(12)])
    stem = "p{}" if other == "P{}" else "{}"
    people = [(other if i % 2 else stem).format(i // 2) for i in range(12)]
    pd.DataFrame({"image": names, "patient": people, "y": [i // 2 % 2 for i in range(12)]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    cohort, findings = checked(Cohort.from_csv(tmp_path / "m.csv", tmp_path / "images", ["y"]))
    assert any(
        "6 group(s) of patients whose ids look alike" in action for action in findings.actions
    )
    with pytest.raises(
        CohortError,
        match=r"(?s)6 group\(s\) of patients whose ids look alike.*cohort.look_alikes=same, or "
        r"different",
    ):
        cohort.told_apart("ask")
    assert cohort.told_apart("same").images["patient"].nunique() == 6
    assert cohort.told_apart("different").images["patient"].nunique() == 12
    arms = {"formulas": mt.Arm("features")}
    with pytest.raises(CohortError, match="look alike"):
        mt.compare(cohort, arms, tmp_path / "study", quiet=True)
    assert not (tmp_path / "study").exists()


def test_blanks_and_composed_letters_are_one_patient_without_a_question(tmp_path):
    names = pictures(tmp_path / "images", [f"{i}.png" for i in range(4)])
    people = ["é1", " e\u03011 ", "p2", "p2\u00a0"]
    pd.DataFrame({"image": names, "patient": people, "y": [0, 0, 1, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    cohort = Cohort.from_csv(tmp_path / "m.csv", tmp_path / "images", ["y"])
    assert cohort.images["patient"].nunique() == 2
    assert cohort.alike == ()


def test_patients_of_a_manifest_are_compared_with_those_of_the_headers(tmp_path):
    rows = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 999, (40, 40)).astype(np.uint16)
        write_grey_dicom(
            tmp_path / f"{i}.dcm",
            pixels,
            patient=f"H{i // 2}",
            number=i,
            spacing=(1, 1),
            encoding=GreyEncoding(),
        )
        rows.append((f"{i}.dcm", f"p{i // 2}", i // 2 % 2))
    table = pd.DataFrame(rows, columns=["image", "patient", "y"])

    def actions(frame):
        frame.to_csv(tmp_path / "m.csv", index=False)
        return " ".join(checked(Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"]))[1].actions)

    assert "headers" not in actions(table)
    split = table.assign(patient=["p0", "p9", "p1", "p1", "p2", "p2"])
    assert (
        "such as 0.dcm and 1.dcm, are of one patient by their headers, and several in the manifest"
        in actions(split)
    )
    joined = table.assign(patient=["p0", "p0", "p0", "p0", "p2", "p2"])
    assert (
        "such as 0.dcm and 2.dcm, are of one patient in the manifest, and several by their headers"
        in actions(joined)
    )
    assert "H0" not in actions(split) + actions(joined)
