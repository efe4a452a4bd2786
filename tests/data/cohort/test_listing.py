"""Every file of a folder is an image, or left out with its reason."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pandas as pd
import pydicom
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.sources import open_cohort
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.errors import CohortError

from wild_files import assert_adds_up, checked, invoke, pictures


def test_pictures_of_every_ending_count_and_the_rest_is_told_by_ending(tmp_path):
    for kind in ("benign", "malignant"):
        pictures(tmp_path / kind, ["a.png", "b.jfif.png", "c.webp", "d.bmp"])
        (tmp_path / kind / "b.jfif.png").rename(tmp_path / kind / "b.jfif")
    (tmp_path / "malignant" / "e.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "malignant" / "f.xyz").write_bytes(b"unknown to anybody")
    (tmp_path / "malignant" / "notes.txt").write_text("plain")
    (tmp_path / "malignant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "malignant" / "noending").write_bytes((tmp_path / "benign" / "a.png").read_bytes())
    cohort, findings = checked(
        mt.Cohort.from_folders(tmp_path, ["benign", "malignant"], outside=True)
    )
    assert len(cohort) == 10
    assert [image for image, _ in findings.unreadable] == [
        "malignant/gone.png"
    ]  # by its ending it is an image
    reasons = dict(cohort.ignored)
    assert reasons["malignant/f.xyz"].startswith("not an image")
    assert "heic" in reasons["malignant/e.heic"].lower()
    said = " ".join(findings.actions)
    assert "f.xyz" in said
    assert "e.heic" in said
    assert "notes.txt" not in said
    assert_adds_up(findings)
    result = invoke("check", tmp_path, "--positive", "malignant", "--quiet", "--outside")
    assert result.exit_code == 1
    assert "f.xyz" in result.output


def test_links_to_folders_are_followed_and_none_is_left_out_in_silence(tmp_path):
    pictures(tmp_path / "data" / "benign", ["a.png", "b.png"])
    pictures(tmp_path / "data" / "store", ["c.png", "d.png"])
    (tmp_path / "data" / "malignant").symlink_to(tmp_path / "data" / "store")
    assert len(mt.Cohort.from_folders(tmp_path / "data", ["benign", "malignant"])) == 4
    (tmp_path / "data" / "benign" / "loop").symlink_to(tmp_path / "data" / "benign")
    assert len(mt.Cohort.from_folders(tmp_path / "data", ["benign", "malignant"])) == 4


def test_files_outside_the_root_are_refused_unless_they_are_meant(tmp_path):
    pictures(tmp_path / "elsewhere", ["a.png", "b.png"])
    pictures(tmp_path / "root", ["c.png"])
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    rows = pd.DataFrame(
        {
            "image": ["c.png", "../elsewhere/b.png", "link.png"],
            "patient": list("123"),
            "y": [0, 1, 1],
        }
    )
    rows.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(
        CohortError,
        match=r"(?s)row 3: ../elsewhere/b.png lies outside.*row 4: link.png lies "
        r"outside.*cohort.outside=true",
    ):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path / "root", ["y"])
    assert len(Cohort.from_csv(tmp_path / "m.csv", tmp_path / "root", ["y"], outside=True)) == 3
    with pytest.raises(CohortError, match="links that lead out of it, such as link.png"):
        open_cohort(tmp_path / "root")
    assert len(open_cohort(tmp_path / "root", outside=True)) == 2


def test_one_series_of_two_patients_is_refused(tmp_path):
    for i in range(6):
        write_grey_dicom(
            tmp_path / f"{i}.dcm",
            np.full((16, 16), i, np.uint16),
            patient="AB"[i // 3],
            number=i,
            spacing=(1, 1),
            encoding=GreyEncoding(),
        )
        dataset = pydicom.dcmread(tmp_path / f"{i}.dcm")
        dataset.SeriesInstanceUID, dataset.ImagePositionPatient = "1.2.3", [0, 0, 3 * i]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
        dataset.save_as(tmp_path / f"{i}.dcm")
    with pytest.raises(CohortError, match="are of one series, and their headers name two patients"):
        open_cohort(tmp_path)
