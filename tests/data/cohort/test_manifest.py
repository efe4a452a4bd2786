"""A manifest is read strictly, and every fault is reported at once."""

from __future__ import annotations

import unicodedata

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError, PredictionsError
from medtransfer.evaluation.evaluate import evaluate

from wild_files import pictures


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


def test_manifests_find_their_images_in_other_spellings(tmp_path):
    pictures(tmp_path / "images", ["Bild é1.PNG", "b.png"])
    names = ["images\\" + unicodedata.normalize("NFD", "bild é1.png"), "./images/b.png"]
    pd.DataFrame({"image": names, "patient": ["1", "2"], "y": [0, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    cohort = Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"])
    assert cohort.images["image"].tolist()[0] == "images/Bild é1.PNG"
    assert any("spelt otherwise in the manifest" in note for note in cohort.notes)


def test_a_manifest_names_the_near_file(tmp_path):
    pictures(tmp_path, ["c0.png", "c1.png"])
    pd.DataFrame({"image": ["c0.png", "c1.jpg"], "patient": ["1", "2"], "y": [0, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    with pytest.raises(CohortError, match=r"row 3: no file .*c1.jpg; is it c1.png\?"):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"])


@pytest.mark.parametrize("word", ["NA", "unknown", "NaN", "-"])
def test_a_word_for_nobody_is_no_patient(tmp_path, word):
    names = pictures(tmp_path, ["a.png", "b.png"])
    pd.DataFrame({"image": names, "patient": ["p1", word], "y": [0, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    with pytest.raises(CohortError, match=f"row 3: patient is {word}"):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"])
    with pytest.raises(PredictionsError, match=f"row 3: patient is {word}"):
        evaluate(
            pd.DataFrame({"patient": ["p1", word], "target": [0, 1], "probability": [0.1, 0.9]})
        )
