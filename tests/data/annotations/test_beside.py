"""Annotation files beside their images."""

from __future__ import annotations

import os

import numpy as np
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError
from PIL import Image

from wild_files import assert_adds_up, checked, pictures


@pytest.mark.parametrize("word", ["yolo", "voc", "masks"])
def test_an_annotation_file_with_nearly_the_name_of_an_image_is_no_negative(tmp_path, word):
    pictures(tmp_path / "images", ["scan 1.png", "scan 2.png"])
    folder = tmp_path / {"yolo": "labels", "voc": "Annotations", "masks": "masks"}[word]
    folder.mkdir()

    def annotate(stem):
        if word == "yolo":
            (folder / f"{stem}.txt").write_text("0 .5 .5 .2 .2\n")
        elif word == "voc":
            box = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
            (folder / f"{stem}.xml").write_text(
                f"<annotation><object><name>x</name>{box}</object></annotation>"
            )
        else:
            Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((30, 42), (40, 48)))).save(
                folder / f"{stem}.png"
            )

    annotate("scan 1")
    annotate("scan_2")
    with pytest.raises(CohortError, match=r"scan_2.*is it the annotation of images/scan 2.png\?"):
        Cohort.from_boxes(tmp_path, word)
    os.rename(next(folder.glob("scan_2*")), folder / f"Scan 2{next(folder.glob('scan_2*')).suffix}")
    assert Cohort.from_boxes(tmp_path, word).images["lesion"].tolist() == [1, 1]
    annotate("other")
    _, findings = checked(Cohort.from_boxes(tmp_path, word))
    assert any("of no image here" in action for action in findings.actions)
    assert_adds_up(findings)


@pytest.mark.parametrize("word", ["yolo", "masks"])
def test_annotation_files_with_added_names_are_near_ones_too(tmp_path, word):
    pictures(tmp_path / "images", ["c0.png", "c1.png"])
    folder = tmp_path / {"yolo": "labels", "masks": "masks"}[word]
    folder.mkdir()
    if word == "yolo":
        for name in ("c0.txt", "c1_png.rf.0a1b2c3d4e5f.txt"):
            (folder / name).write_text("0 .5 .5 .2 .2\n")
        with pytest.raises(CohortError, match=r"is it the annotation of images/c1.png"):
            Cohort.from_boxes(tmp_path, word)
        return
    for name in ("c0.png", "c1_segmentation.png"):  # as ISIC names them: the mask of c1
        Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((30, 42), (40, 48)))).save(
            folder / name
        )
    assert Cohort.from_boxes(tmp_path, word).images["lesion"].tolist() == [1, 1]


def test_files_of_other_endings_among_annotations_are_counted(tmp_path):
    pictures(tmp_path / "images", ["c0.png", "c1.png"])
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((30, 42), (40, 48)))).save(
        tmp_path / "masks" / "c0.png"
    )
    (tmp_path / "masks" / "other.npy").write_bytes(b"x")
    (account,) = [a for a in Cohort.from_boxes(tmp_path, "masks").accounts if a.what == "masks"]
    assert (account.given, account.used) == (2, 1)
    assert account.actions
    (tmp_path / "masks" / "c1.json").write_text("{}")
    with pytest.raises(CohortError, match=r"c1.json: is it the annotation of images/c1.png"):
        Cohort.from_boxes(tmp_path, "masks")


def test_masks_of_nnunet_belong_to_the_image_of_the_first_channel(tmp_path):
    pictures(tmp_path / "imagesTr", ["v_001_0000.png", "v_002_0000.png"])
    (tmp_path / "labelsTr").mkdir()
    Image.fromarray(np.pad(np.ones((8, 8), np.uint8), ((30, 42), (40, 48)))).save(
        tmp_path / "labelsTr" / "v_001.png"
    )
    assert Cohort.from_boxes(tmp_path / "imagesTr", "masks:../labelsTr").images[
        "lesion"
    ].tolist() == [1, 0]


def test_two_annotations_of_one_image_that_differ_are_refused(tmp_path):
    pictures(tmp_path / "images", ["c0.png"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "c0.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "images" / "c0.txt").write_text("0 .3 .5 .2 .2\n")
    with pytest.raises(CohortError, match="has two annotations that differ"):
        Cohort.from_boxes(tmp_path, "yolo")
