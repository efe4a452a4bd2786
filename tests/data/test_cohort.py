from __future__ import annotations

import re

import medtransfer as mt
import nibabel as nib
import numpy as np
import pydicom
import pytest
from medtransfer.data.cohort.owners import name_patients
from medtransfer.data.cohort.sources import open_cohort
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
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
    with pytest.raises(
        CohortError, match=r"row 2: label kind is 'benign'; use 0 or 1 \(or name the positive class"
    ):
        mt.Cohort.from_csv(path, path.parent, ["kind"])
    with pytest.raises(
        CohortError, match="expected 'cancer' and one other class, found benign, malignant"
    ):
        mt.Cohort.from_csv(path, path.parent, ["kind"], positive="cancer")


def test_every_fault_is_reported_with_its_row(tmp_path, manifest):
    manifest(patients=2, views=1)
    rows = [
        "image,patient,malignant,split",
        "0-0.png,P0,0,train",
        "0-0.png,P0,1,train",
        "none.png,P1,1,test",
    ]
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
        ("", "is empty"),
        ("image,patient,malignant\n", "no rows below the header"),
        ("image,malignant\n0-0.png,1\n", "no column patient, and 1 image"),
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
    with pytest.raises(
        CohortError, match="name at least one label column. Columns here: image, patient, malignant"
    ):
        mt.Cohort.from_csv(manifest(), tmp_path)


def test_a_patient_in_two_official_parts_is_a_leak(manifest):
    path = manifest(patients=8, views=2, split=["train", "test"] * 8)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    with pytest.raises(LeakageError, match="patient P0 in fold 0: .*test"):
        mt.split_cohort(cohort)
    found = [c for c in mt.audit(cohort).conflicts if c.kind == "patient_split"]
    assert len(found) == 8
    assert "the manifest's split is leaking: 8 patient(s)" in " ".join(mt.audit(cohort).actions)


def test_class_folders_are_read(write_png):
    for name in (
        "benign/a.png",
        "benign/b.png",
        "malignant/a.png",
        "malignant/a_mask.png",
        "malignant/.hidden.png",
    ):
        root = write_png(name, np.full((8, 8), 7, np.uint8)).parents[1]
    (root / "benign" / "notes.txt").write_text("x")
    cohort = mt.Cohort.from_folders(root, positive="malignant")
    assert cohort.images["image"].tolist() == ["benign/a.png", "benign/b.png", "malignant/a.png"]
    assert cohort.images["malignant"].tolist() == [0, 0, 1]
    assert not cohort.patients_known
    assert dict(cohort.ignored) == {
        "benign/notes.txt": "not an image (.txt)",
        "malignant/a_mask.png": "mask of another image",
        "malignant/.hidden.png": "hidden: its name, or that of its folder, begins with a dot",
    }


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
    with pytest.raises(
        CohortError, match="no class folder cancer. Folders in .*: benign, malignant"
    ):
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
    found = mt.fingerprint(mt.Cohort.from_csv(path, path.parent, ["malignant"]))
    assert found.patients_per_class == {"0": 4, "1": 3}
    assert found.images_per_class == {"0": 8, "1": 6}
    assert (found.shape, found.spacing) == (((40, 40, 40), (48, 48, 48)), ())
    assert (found.domain, found.smallest_class, found.ndim) == ("far", 3, 2)


def test_grouping_joins_patients_that_share_pixels(manifest):
    path = manifest(patients=12, views=2)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    joined = cohort.grouped(
        [("0-0.png", "2-1.png"), ("2-0.png", "4-0.png"), ("1-0.png", "1-1.png")]
    )
    group = dict(zip(joined.images["patient"], joined.images["group"], strict=True))
    assert group["P0"] == group["P2"] == group["P4"] == "P0"
    assert all(group[f"P{i}"] == f"P{i}" for i in (1, 3, 5, 6, 7, 8, 9, 10, 11))
    assert joined.digest != cohort.digest
    split = mt.split_cohort(joined, folds=4, seed=3)
    for index in range(4):
        parts = split.parts.groupby("group")[f"fold_{index}"].nunique()
        assert (parts == 1).all()
    assert cohort.units.tolist() == cohort.images["patient"].tolist()


def test_folds_do_not_depend_on_the_names_of_patients(manifest):
    path = manifest(patients=12, views=2)
    first = mt.split_cohort(mt.Cohort.from_csv(path, path.parent, ["malignant"]), folds=3)
    renamed = path.with_name("renamed.csv")
    renamed.write_text(re.sub(r"P(\d+)", lambda m: f"X{(7 * int(m[1])) % 13}", path.read_text()))
    second = mt.split_cohort(mt.Cohort.from_csv(renamed, path.parent, ["malignant"]), folds=3)
    folds = [f"fold_{i}" for i in range(3)]
    assert first.parts[folds].equals(second.parts[folds])


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


def test_archives_keep_their_split_and_state_their_labels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("val", 6), ("test", 8)):
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    cohort = mt.Cohort.from_medmnist(tmp_path / "breastmnist.npz")
    assert cohort.labels == ("malignant",)
    assert cohort.images["malignant"].tolist()[:4] == [1, 0, 1, 0]  # 0 is malignant
    assert cohort.images["split"].value_counts().to_dict() == {"train": 12, "test": 8, "tune": 6}
    assert not cohort.patients_known
    assert np.array_equal(
        mt.read_image(cohort.images["path"][14]).array[0], arrays["val_images"][2]
    )
    assert mt.split_cohort(cohort).official
    other = tmp_path / "unknown.npz"
    np.savez(other, **arrays)
    with pytest.raises(CohortError, match="name one of the classes 0, 1"):
        mt.Cohort.from_medmnist(other)
    assert mt.Cohort.from_medmnist(other, "1").labels == ("1",)
    np.savez(other, x=np.zeros(3))
    with pytest.raises(CohortError, match=r"holds train_images|no array"):
        mt.Cohort.from_medmnist(other)


def test_volumes_of_archives_and_colour(tmp_path):
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = (
            np.random.default_rng(1).integers(0, 255, (4, 28, 28, 28)).astype(np.uint8)
        )
        arrays[f"{part}_labels"] = np.array([[0], [1], [0], [1]])
    np.savez(tmp_path / "nodulemnist3d_64.npz", **arrays)
    cohort = mt.Cohort.from_medmnist(tmp_path / "nodulemnist3d_64.npz")
    assert cohort.images["malignant"].tolist()[:4] == [0, 1, 0, 1]
    assert mt.read_image(cohort.images["path"][5]).array.shape == (1, 28, 28, 28)


def test_what_is_to_be_checked_is_recognised(manifest, write_png, tmp_path):
    path = manifest(patients=4, views=1)
    assert open_cohort(path).labels == ("malignant",)
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1", "c/2"):
        root = write_png(f"three/{name}.png", np.full((8, 8), 7, np.uint8)).parents[1]
    assert open_cohort(root).labels == ("a", "b", "c")
    assert open_cohort(root, flat=True).labels == ()
    assert open_cohort(root / "a").images["image"].tolist() == ["1.png", "2.png"]
    with pytest.raises(CohortError, match="no such file or folder"):
        open_cohort(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="no image in this folder"):
        open_cohort(tmp_path / "empty")


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


def test_masks_of_volumes_are_no_images(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x.nii.gz", "x_mask.nii.gz", "y.nii.gz"):
            nib.save(
                nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)),
                tmp_path / folder / name,
            )
    cohort = mt.Cohort.from_folders(tmp_path, positive="b")
    assert cohort.images["image"].tolist() == [
        "a/x.nii.gz",
        "a/y.nii.gz",
        "b/x.nii.gz",
        "b/y.nii.gz",
    ]
    assert ("a/x_mask.nii.gz", "mask of another image") in cohort.ignored


def test_folders_without_images_and_loose_images_do_not_change_the_classes(tmp_path, write_png):
    for name in ("a/1", "a/2", "b/1", "b/2", "loose"):
        write_png(f"set/{name}.png", np.full((8, 8), 7, np.uint8))
    (tmp_path / "set" / "checked").mkdir()
    cohort = open_cohort(tmp_path / "set")
    assert cohort.labels == ("a", "b")
    assert ("loose.png", "beside the class folders") in cohort.ignored
    with pytest.raises(CohortError, match="label is for manifests"):
        open_cohort(tmp_path / "set", labels=["x"])
    with pytest.raises(CohortError, match="is one image"):
        open_cohort(tmp_path / "set" / "loose.png")
