"""The patients whom DICOM headers name, hashed."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pydicom
import pytest
from medtransfer.data.cohort.owners import name_patients
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom


def write_dicom(path, patient, number, study=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 4000, (16, 16)).astype(np.uint16)
    write_grey_dicom(
        path,
        pixels,
        patient=patient,
        number=number,
        spacing=(1, 1),
        encoding=GreyEncoding(),
    )
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = f"1.2.{study or number}"
    dataset.PatientName = "Secret^Name"
    dataset.save_as(path)


def test_patients_of_dicom_headers_are_hashed(tmp_path):
    for number in range(8):
        write_dicom(
            tmp_path / ("benign" if number % 4 < 2 else "malignant") / f"{number}.dcm",
            f"MRN{number // 2}",
            number,
        )
    cohort = mt.Cohort.from_folders(tmp_path, salt="salt")
    assert cohort.patients_known
    assert cohort.images["patient"].nunique() == 4
    assert "MRN" not in cohort.images.drop(columns="path").to_csv()
    assert mt.Cohort.from_folders(tmp_path, salt="salt").digest == cohort.digest
    assert mt.Cohort.from_folders(tmp_path, salt="other").images["patient"].nunique() == 4
    assert set(mt.Cohort.from_folders(tmp_path, salt="other").images["patient"]).isdisjoint(
        cohort.images["patient"]
    )
    table = "image,malignant\n" + "\n".join(
        f"{name},{int(name.startswith('m'))}" for name in cohort.images["image"]
    )
    (tmp_path / "m.csv").write_text(table)
    listed = mt.Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["malignant"], salt="salt")
    assert listed.images["patient"].tolist() == cohort.images["patient"].tolist()


@pytest.mark.parametrize("name", ["ANONYMOUS", ""])
def test_where_headers_name_no_patient_each_study_is_one_and_that_is_said(tmp_path, name):
    for number in range(8):
        write_dicom(
            tmp_path / ("a" if number < 4 else "b") / f"{number}.dcm",
            name,
            number,
            study=str(number // 2),
        )
    cohort = mt.Cohort.from_folders(tmp_path, positive="b")
    assert cohort.images["patient"].nunique() == 4
    assert len(cohort.by_study) == 8
    assert any("each study counts as a patient" in action for action in mt.audit(cohort).actions)
    names = [
        "",
        "P0",
        "P1",
        "P1",
        "P2",
        "P2",
        "",
        "",
    ]  # another file of the first study names its patient
    for number in range(8):
        write_dicom(
            tmp_path / ("a" if number < 4 else "b") / f"{number}.dcm",
            names[number],
            number,
            study=str(number // 2),
        )
    assert mt.Cohort.from_folders(tmp_path, positive="b").by_study == ("b/6.dcm", "b/7.dcm")


def test_a_dicom_file_that_was_cut_off_is_not_passed_over(tmp_path):
    for number in range(6):
        write_dicom(tmp_path / ("a" if number < 3 else "b") / f"{number}.dcm", f"P{number}", number)
    whole = (tmp_path / "a" / "0.dcm").read_bytes()
    at = whole.index(b"\x28\x00\x10\x00US")  # Rows
    for length in (at, at - 5):  # between two elements, and within one
        (tmp_path / "a" / "0.dcm").write_bytes(whole[:length])
        cohort = mt.Cohort.from_folders(tmp_path, positive="b")
        assert cohort.ignored == ()
        assert [image for image, _ in mt.audit(cohort).unreadable] == ["a/0.dcm"]


def test_one_broken_file_does_not_hide_whose_the_others_are(tmp_path, write_png):
    for number in range(8):
        write_dicom(
            tmp_path / ("a" if number < 4 else "b") / f"{number}.dcm", f"MRN{number // 2}", number
        )
    (tmp_path / "a" / "broken.dcm").write_bytes(b"no dicom")
    cohort = mt.Cohort.from_folders(tmp_path, positive="b")
    assert cohort.patients_known
    assert cohort.images["patient"].nunique() == 5
    write_png("a/picture.png", np.full((8, 8), 7, np.uint8))
    mixed = mt.Cohort.from_folders(tmp_path, positive="b")
    assert not mixed.patients_known
    assert mixed.images["patient"].nunique() == 6
    assert "salt" not in repr(mixed)


def test_one_patient_has_one_name_however_the_headers_are_filled():
    named = name_patients(
        [("HOSP|123", "s1"), ("|123", "s2"), ("", "s2"), ("HOSP|9", "s3"), ("", "")], "salt"
    )
    assert named[0] == named[1] == named[2] != named[3]
    assert named[4] == ""
    constant = name_patients([("|1", "s"), ("|2", "s"), ("", "s")], "salt")
    assert len(set(constant)) == 3
    two = name_patients([("A|123", "s1"), ("B|123", "s2"), ("|7", "s3")], "salt")
    assert len(set(two)) == 3
