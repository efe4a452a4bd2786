from __future__ import annotations

import json
import re
from pathlib import Path

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.data.cohort.sources import open_cohort
from PIL import Image
from pydicom.data import get_testdata_file


@pytest.fixture
def flawed(manifest):
    """Exact and near-duplicates across labels, a constant and a broken image."""
    path = manifest(patients=12, views=1)
    folder = path.parent
    rng = np.random.default_rng(5)
    scene = np.kron(rng.integers(0, 200, (12, 14)), np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(scene).save(folder / "0-0.png")
    Image.fromarray(scene).save(folder / "1-0.png", compress_level=1)
    Image.fromarray(np.clip(scene[:, ::-1] * 0.8 + 20, 0, 255).astype(np.uint8)).save(
        folder / "2-0.png"
    )
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(folder / "3-0.png")
    (folder / "4-0.png").write_bytes(b"not a picture")
    return mt.Cohort.from_csv(path, folder, ["malignant"])


def test_every_finding_is_told_with_its_images(flawed):
    found = mt.audit(flawed)
    assert (found.found, found.readable, found.patients) == (12, 11, 12)
    assert found.duplicates == (("0-0.png", "1-0.png"),)
    assert set(found.near_duplicates) == {
        ("0-0.png", "1-0.png"),
        ("0-0.png", "2-0.png"),
        ("1-0.png", "2-0.png"),
    }
    assert found.clusters == (("0-0.png", "1-0.png", "2-0.png"),)
    kinds = {conflict.kind: conflict for conflict in found.conflicts}
    assert kinds["duplicate"].images == ("0-0.png", "1-0.png")
    assert (
        kinds["near_duplicate"].detail
        == "the same pixels under different labels (malignant 0 and 1)"
    )
    assert found.unreadable[0][0] == "4-0.png"
    assert ("3-0.png", "constant", "every pixel has the same value") in found.hazards
    assert found.classes == {"malignant = 0": 6, "malignant = 1": 6}
    actions = " ".join(found.actions)
    for part in (
        "1 of 12 images cannot be read",
        "3 pair(s)",
        "protocol.group=cluster",
        "flagged constant",
        "different labels",
    ):
        assert part in actions
    assert str(flawed.root) not in str(found) + json.dumps(found.to_dict())
    assert {"unreadable", "duplicates", "near-duplicates", "conflict", "hazard constant"} <= set(
        found.to_frame()["kind"]
    )


def test_the_answer_has_the_keys_of_the_contract(flawed):
    answer = json.loads(json.dumps(mt.audit(flawed).to_dict()))
    keys = (
        "images patients classes unreadable hazards duplicates near_duplicates conflicts "
        "shortcuts actions"
    )
    assert set(keys.split()) <= set(answer)
    assert answer["images"] == 12
    assert ["0-0.png", "1-0.png"] in answer["near_duplicates"]
    assert answer["unreadable"][0]["image"] == "4-0.png"


def test_a_clean_cohort_needs_no_hand(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(24):
        array = np.kron(rng.integers(0, 255, (10, 12)), np.ones((6, 6))).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / f"{patient}.png")
        rows.append({"image": f"{patient}.png", "patient": f"P{patient}", "y": rng.integers(0, 2)})
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    found = mt.audit(mt.Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"]))
    assert found.actions == ()
    assert str(found).endswith("Nothing has to be corrected.")
    assert found.to_frame().empty


def test_near_duplicates_of_one_patient_need_no_hand(manifest):
    path = manifest(patients=6, views=2)
    rng = np.random.default_rng(0)
    for patient in range(6):
        scene = np.kron(rng.integers(0, 200, (12, 14)), np.ones((8, 8))).astype(np.uint8)
        for view in range(2):
            Image.fromarray(scene + np.uint8(view)).save(path.parent / f"{patient}-{view}.png")
    found = mt.audit(mt.Cohort.from_csv(path, path.parent, ["malignant"]))
    assert len(found.near_duplicates) == 6
    assert not any("protocol.group" in action for action in found.actions)


def test_a_patient_under_two_labels_is_told(manifest):
    path = manifest(patients=6, views=2)
    path.write_text(path.read_text().replace("0-1.png,P0,0", "0-1.png,P0,1"))
    found = mt.audit(mt.Cohort.from_csv(path, path.parent, ["malignant"]))
    assert [c.images for c in found.conflicts if c.kind == "patient_labels"] == [
        ("0-0.png", "0-1.png")
    ]


@pytest.mark.slow
def test_a_folder_of_all_kinds_of_dicom_is_checked_in_silence(capfd):
    """All files of pydicom and pydicom-data: nothing ends the check, no UID and no remark gets
    out.
    """
    for example in ("CT_small.dcm", "RG1_UNCR.dcm"):
        cohort = open_cohort(Path(get_testdata_file(example)).parent, flat=True)
        assert len(cohort) > 40
        found = mt.audit(cohort)
        told = json.dumps(found.to_dict()) + str(found)
        assert found.readable > 30
        assert not re.search(r"\d+(\.\d+){6,}", re.sub(r"1\.2\.840\.10008[.\d]+", "", told))
        for image, reason in found.unreadable:
            assert reason.endswith("."), (image, reason)
            assert "not met before" not in reason, (image, reason)
    assert capfd.readouterr().err == ""
