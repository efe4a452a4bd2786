from __future__ import annotations

import filecmp

import medtransfer as mt
import numpy as np
import pandas as pd
import pydicom
import pytest
from medtransfer.errors import CohortError
from PIL import Image


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return mt.write_phantom(tmp_path_factory.mktemp("phantom"), 40, seed=1)


def test_the_same_seed_writes_the_same_bytes(phantom, tmp_path):
    mt.write_phantom(tmp_path, 40, seed=1)
    names = [
        path.relative_to(phantom.parent).as_posix()
        for path in phantom.parent.rglob("*")
        if path.is_file()
    ]
    assert len(names) > 100
    same, different, failed = filecmp.cmpfiles(phantom.parent, tmp_path, names, shallow=False)
    assert len(same) == len(names), (different, failed)


def test_it_is_a_mixed_cohort_of_real_dicom(phantom):
    table = pd.read_csv(phantom)
    files = [pydicom.dcmread(phantom.parent / name) for name in table["image"]]
    assert {f.PhotometricInterpretation for f in files} == {"MONOCHROME1", "MONOCHROME2"}
    assert {f.BitsStored for f in files} == {12}
    assert {float(f.RescaleSlope) for f in files} == {1.0, 0.5}
    assert len({f.SOPInstanceUID for f in files}) == len(files)
    assert set(table["lesion"]) == {"malignant", "benign", "none"}
    assert set(table.groupby("patient").size()) == {1, 2, 3}
    assert table.groupby("patient")["site"].nunique().max() == 1
    assert all("PatientName" not in f and "PatientBirthDate" not in f for f in files)


def test_boxes_and_masks_are_true(phantom):
    table = pd.read_csv(phantom).set_index("image")
    boxes = pd.read_csv(phantom.parent / "boxes.csv").set_index("image")
    assert set(boxes.index) == set(table.index[table["lesion"] != "none"])
    contrast = []
    for name, box in boxes.iterrows():
        mask = (
            np.asarray(
                Image.open(phantom.parent / name.replace("images", "masks").replace(".dcm", ".png"))
            )
            > 0
        )
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (box.x0, box.y0, box.x1, box.y1) == (
            columns[0],
            rows[0],
            columns[-1] + 1,
            rows[-1] + 1,
        )
        pixels = mt.read_image(phantom.parent / name).array[0]
        contrast.append(pixels[mask].mean() / pixels[~mask].mean())
    assert np.median(contrast) < 0.7  # lesions are dark, whatever the photometric interpretation


@pytest.mark.slow
def test_the_scanner_does_not_tell_the_label(tmp_path):
    table = pd.read_csv(mt.write_phantom(tmp_path, 200, seed=0)).drop_duplicates("patient")
    rates = table.groupby("site")["malignant"].mean()
    assert abs(rates.iloc[0] - rates.iloc[1]) < 0.2


def test_too_small_a_phantom_is_refused(tmp_path):
    with pytest.raises(CohortError, match="at least 10 patients"):
        mt.write_phantom(tmp_path, 5)


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(CohortError, match="not empty and holds no phantom"):
        mt.write_phantom(tmp_path, 10)
    assert (tmp_path / "manifest.csv").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
