"""Lesion boxes: what annotators write is read, checked, and moved with the pixels."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from medtransfer.data.annotations.annotations import BoxSource
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError
from PIL import Image

from box_files import read_boxes
from wild_files import BOX, pictures


def test_masks_are_no_images_of_the_cohort(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            Image.fromarray(np.pad(np.full((8, 8), 200, np.uint8), 6)).save(
                tmp_path / folder / f"{name}.png"
            )
    for source in ("masks", "masks:masks", "masks:./masks"):
        cohort = Cohort.from_boxes(tmp_path, source)
        assert cohort.images["image"].tolist() == ["images/a.png", "images/b.png"], source
        assert cohort.images["lesion"].tolist() == [1, 1]
    # JPEG blurs the edges of a mask: half of the highest value is the edge.
    (tmp_path / "masks" / "a.png").unlink()
    Image.fromarray(np.pad(np.full((8, 8), 200, np.uint8), 6)).save(
        tmp_path / "masks" / "a.jpg", quality=60
    )
    cohort = Cohort.from_boxes(tmp_path, "masks")
    assert cohort.boxes[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == [[6, 6, 14, 14]] * 2
    assert any("above the middle" in note for note in cohort.notes)


def test_names_that_could_mean_several_images_are_refused(tmp_path):
    rows = []
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        for name in ("s1.png", f"{folder}.png"):
            Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / folder / name)
            rows.append((f"{folder}/{name}", str(tmp_path / folder / name)))
    images = pd.DataFrame(rows, columns=["image", "path"])

    def coco(*names):
        content = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)]}
        content["annotations"] = [{"image_id": i, "bbox": [1, 1, 5, 5]} for i in range(len(names))]
        (tmp_path / "c.json").write_text(json.dumps(content))
        return read_boxes("c.json", images, tmp_path)["image"].tolist()

    assert coco("p1/s1.png", "data/p2/s1.png", "p1.png") == ["p1/s1.png", "p2/s1.png", "p1/p1.png"]
    with pytest.raises(
        CohortError, match=r"'s1.png' may be p1/s1.png or p2/s1.png; name the folder too"
    ):
        coco("s1.png")
    with pytest.raises(CohortError, match="holds no box of these"):
        coco("p3/s1.png")  # another folder's: not a box of p1 or p2
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "images": [{"id": 0, "file_name": "p1.png"}],
                "annotations": [{"image_id": 0, "bbox": []}],
            }
        )
    )
    with pytest.raises(CohortError, match="annotation 0: needs image_id and bbox"):
        read_boxes("c.json", images, tmp_path)


def test_one_annotation_is_not_shared(images, tmp_path):
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "images" / "a.bmp")
    more = pd.concat(
        [
            images,
            pd.DataFrame([{"image": "images/a.bmp", "path": str(tmp_path / "images" / "a.bmp")}]),
        ]
    )
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    with pytest.raises(CohortError, match="images/a.bmp: has the annotation of images/a.png"):
        read_boxes("yolo", more, tmp_path)


def test_boxes_of_images_that_were_left_out_are_no_fault(tmp_path):
    for name in ("p1_a.png", "odd.png"):
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / name)
    table = pd.DataFrame(
        [(n, 1, 1, 9, 9) for n in ("p1_a.png", "odd.png", "p1_a.png")],
        columns=["image", "x0", "y0", "x1", "y1"],
    )
    table.to_csv(tmp_path / "boxes.csv", index=False)
    cohort = Cohort.from_boxes(tmp_path, "boxes.csv", patient=r"^(p\d)_", unnamed="leave_out")
    assert cohort.images["image"].tolist() == ["p1_a.png"]
    fitted = cohort.fitted(inspect_images(cohort))
    assert any("are there twice" in note for note in fitted.notes)
    assert len(fitted.boxes) == 1  # twice the same box is one lesion


def test_a_label_called_lesion_is_a_label(tmp_path):
    for i in range(4):
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / f"{i}.png")
    pd.DataFrame(
        {"image": [f"{i}.png" for i in range(4)], "patient": list("abcd"), "lesion": [0, 1, 0, 1]}
    ).to_csv(tmp_path / "m.csv", index=False)
    pd.DataFrame([("1.png", 1, 1, 9, 9)], columns=["image", "x0", "y0", "x1", "y1"]).to_csv(
        tmp_path / "b.csv", index=False
    )
    cohort = Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["lesion"]).with_boxes("b.csv")
    assert cohort.labels == ("lesion",)
    assert cohort.boxes is not None
    assert cohort.detecting().images["lesion"].tolist() == [0, 1, 0, 0]


def test_labels_of_boxes_are_told_and_those_that_say_nothing_asked_about(tmp_path):
    names = pictures(tmp_path, ["c0.png", "c1.png", "c2.png"])
    rows = [
        (names[0], 1, 1, 9, 9, "mass"),
        (names[1], 1, 1, 9, 9, "No finding"),
        (names[2], 2, 2, 9, 9, "Mass"),
    ]
    pd.DataFrame(rows, columns=["image", *BOX, "label"]).to_csv(tmp_path / "b.csv", index=False)
    images = pd.DataFrame({"image": names, "path": [str(tmp_path / name) for name in names]})
    read = read_annotations("b.csv", images, tmp_path)
    assert any("mass 1, No finding 1, Mass 1; all count as lesions" in note for note in read.notes)
    assert any("have the label No finding" in ask for ask in read.asks)
    with pytest.raises(CohortError, match="the labels mass and Mass look alike"):
        read_annotations(BoxSource("b.csv", ["mass"]), images, tmp_path)
    read = read_annotations(BoxSource("b.csv", ["mass", "Mass"]), images, tmp_path)
    assert any(
        "1 of 3 images have no box, and count as without lesion" in note for note in read.notes
    )
