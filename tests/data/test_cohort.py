from __future__ import annotations

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.errors import CohortError, LeakageError


def test_a_manifest_is_read(manifest):
    path = manifest(patients=6, views=2, site=["a", "b"] * 6)
    cohort = mt.Cohort.from_csv(path, root=path.parent, labels=["malignant"])
    assert len(cohort) == 12
    assert list(cohort.images.columns) == ["image", "patient", "path", "site", "malignant"]
    assert cohort.images["malignant"].tolist() == [0, 0, 1, 1] * 3
    assert cohort.patients_known


def test_class_names_need_the_positive_one(manifest):
    path = manifest(patients=4, views=1, kind=["benign", "malignant"] * 2)
    cohort = mt.Cohort.from_csv(path, path.parent, ["kind"], positive="malignant")
    assert cohort.images["kind"].tolist() == [0, 1, 0, 1]
    with pytest.raises(CohortError, match=r"row 2: label kind is 'benign'; use 0 or 1 \(or name the positive class"):
        mt.Cohort.from_csv(path, path.parent, ["kind"])
    with pytest.raises(CohortError, match="expected 'cancer' and one other class, found benign, malignant"):
        mt.Cohort.from_csv(path, path.parent, ["kind"], positive="cancer")


def test_every_fault_is_reported_with_its_row(tmp_path, manifest):
    manifest(patients=2, views=1)
    rows = ["image,patient,malignant,split", "0-0.png,P0,0,train", "0-0.png,P0,1,train", "none.png,P1,1,test"]
    text = "\n".join([*rows, "1-0.png,,1,test", ",P2,,test", "1-0.png,P3,2,later"])
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(CohortError) as caught:
        mt.Cohort.from_csv(tmp_path / "bad.csv", tmp_path, ["malignant"])
    message = str(caught.value)
    for expected in (
        "row 3: image '0-0.png' is already in row 2",
        "row 4: no file",
        "row 5: patient is empty",
        "row 6: image is empty",
        "row 6: label malignant is empty",
        "row 7: image '1-0.png' is already in row 5",
        "row 7: label malignant is '2'",
        "row 7: split is 'later'",
    ):
        assert expected in message, message


@pytest.mark.parametrize("word", ["NaN", "nan", "", "NA"])
def test_a_missing_label_is_refused(tmp_path, manifest, word):
    manifest(patients=2, views=1)
    (tmp_path / "bad.csv").write_text(f"image,patient,malignant\n0-0.png,P0,0\n1-0.png,P1,{word}\n")
    with pytest.raises(CohortError, match="row 3: label malignant is empty"):
        mt.Cohort.from_csv(tmp_path / "bad.csv", tmp_path, ["malignant"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable CSV"),
        ("image,patient,malignant\n", "no rows below the header"),
        ("image,malignant\na,1\n", "no column patient"),
        ("image,patient,patient,malignant\n", "appears twice|not a readable CSV|no rows"),
        ("image,patient,malignant\n0-0.png,P0,1\n1-0.png,P1,1\n", "Both classes are needed"),
    ],
)
def test_a_faulty_manifest_is_refused(tmp_path, manifest, text, message):
    manifest(patients=2, views=1)
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(CohortError, match=message):
        mt.Cohort.from_csv(tmp_path / "bad.csv", tmp_path, ["malignant"])


def test_a_missing_class_name_is_not_the_negative_class(manifest):
    path = manifest(patients=4, views=1, kind=["yes", "NA", "no", "yes"])
    with pytest.raises(CohortError, match="row 3: label kind is empty"):
        mt.Cohort.from_csv(path, path.parent, ["kind"], positive="yes")


def test_spellings_of_one_file_are_one_image(manifest, tmp_path):
    manifest(patients=2, views=1)
    (tmp_path / "bad.csv").write_text("image,patient,malignant\n0-0.png,P0,0\n./0-0.png,P1,1\n")
    with pytest.raises(CohortError, match="row 3: image './0-0.png' is already in row 2"):
        mt.Cohort.from_csv(tmp_path / "bad.csv", tmp_path, ["malignant"])


def test_labels_cannot_overwrite_other_columns(manifest, write_png):
    path = manifest(patients=4, views=1, site=[0, 1, 0, 1])
    with pytest.raises(CohortError, match="label site: this name is taken"):
        mt.Cohort.from_csv(path, path.parent, ["site"])
    for name in ("control/a.png", "patient/b.png", "control/.ipynb_checkpoints/a-checkpoint.png"):
        root = write_png(f"classes/{name}", np.full((8, 8), 7, np.uint8))
    cohort = mt.Cohort.from_folders(path.parent / "classes", ["control", "patient"], "patient")
    assert cohort.labels == ("class patient",)
    assert cohort.images["patient"].tolist() == ["control/a.png", "patient/b.png"]
    assert root.is_file()


def test_no_manifest_and_no_label_say_what_to_do(tmp_path, manifest):
    with pytest.raises(CohortError, match="no such file"):
        mt.Cohort.from_csv(tmp_path / "none.csv", tmp_path, ["malignant"])
    with pytest.raises(CohortError, match="name at least one label column. Columns here: image, patient, malignant"):
        mt.Cohort.from_csv(manifest(), tmp_path)


def test_a_patient_in_two_official_parts_is_a_leak(manifest):
    path = manifest(patients=4, views=2, split=["train", "test"] * 4)
    with pytest.raises(LeakageError, match="patient P0: train, test"):
        mt.Cohort.from_csv(path, path.parent, ["malignant"])


def test_class_folders_are_read(write_png):
    for name in ("benign/a.png", "benign/b.png", "malignant/a.png", "malignant/a_mask.png", "malignant/.hidden.png"):
        root = write_png(name, np.full((8, 8), 7, np.uint8)).parents[1]
    (root / "benign" / "notes.txt").write_text("x")
    cohort = mt.Cohort.from_folders(root, positive="malignant")
    assert cohort.images["image"].tolist() == ["benign/a.png", "benign/b.png", "malignant/a.png"]
    assert cohort.images["malignant"].tolist() == [0, 0, 1]
    assert not cohort.patients_known
    assert dict(cohort.ignored) == {"benign/notes.txt": "not an image", "malignant/a_mask.png": "mask of another image"}


def test_faulty_folders_are_refused(tmp_path, write_png):
    with pytest.raises(CohortError, match="no such folder"):
        mt.Cohort.from_folders(tmp_path / "none")
    (tmp_path / "benign").mkdir()
    with pytest.raises(CohortError, match="two classes are compared, 1 given"):
        mt.Cohort.from_folders(tmp_path)
    (tmp_path / "malignant").mkdir()
    write_png("benign/a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(CohortError, match="malignant: no image in this folder"):
        mt.Cohort.from_folders(tmp_path)
    with pytest.raises(CohortError, match="no class folder cancer. Folders in .*: benign, malignant"):
        mt.Cohort.from_folders(tmp_path, ["benign", "cancer"])


def test_digest_depends_on_labels_and_patients_alone(manifest):
    path = manifest()
    first = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    text = path.read_text()
    again = path.with_name("again.csv")
    again.write_text(text)
    assert mt.Cohort.from_csv(again, path.parent, ["malignant"]).digest == first.digest
    again.write_text(text.replace("P3", "P5"))
    assert mt.Cohort.from_csv(again, path.parent, ["malignant"]).digest != first.digest


def test_fingerprint_counts_patients_and_sizes(manifest):
    path = manifest(patients=7, views=2)
    found = mt.Cohort.from_csv(path, path.parent, ["malignant"]).fingerprint()
    assert found.patients_per_class == {"0": 4, "1": 3}
    assert found.images_per_class == {"0": 8, "1": 6}
    assert (found.rows, found.columns) == ((40, 40, 40), (48, 48, 48))
    assert (found.domain, found.smallest_class, found.ndim) == ("far", 3, 2)


def test_audit_finds_duplicates_conflicts_and_bad_files(manifest):
    path = manifest(patients=6, views=1)
    folder = path.parent
    (folder / "1-0.png").write_bytes((folder / "0-0.png").read_bytes())
    (folder / "4-0.png").write_bytes(b"not a picture")
    result = mt.audit(mt.Cohort.from_csv(path, folder, ["malignant"]))
    assert (result.found, result.readable, result.patients) == (6, 5, 6)
    assert result.duplicates == (("0-0.png", "1-0.png"),)
    assert result.conflicts == result.duplicates
    assert result.unreadable[0][0] == "4-0.png"
    assert str(folder) not in str(result)
    assert len(result.to_frame()) == 3
