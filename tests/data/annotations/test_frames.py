"""Boxes from the coordinates of their source to the pixels of their images."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.data.annotations.frames import Frame, fit_boxes
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.contents import ReadOptions
from medtransfer.errors import CohortError
from PIL import Image

from wild_files import BOX, checked, coco, mark, pictures, volume


def test_boxes_must_fit_their_image():
    table = pd.DataFrame(
        [
            ("a", 0, 0, 10, 40.4, "x"),  # rounding: cut off
            ("a", 5, 5, 5, 9, "x"),
            ("a", -9, 0, 4, 4, "x"),
            ("b", np.nan, 0, 4, 4, "x"),
            ("gone", 0, 0, 4, 4, "x"),  # not among the images in use
        ],
        columns=["image", "x0", "y0", "x1", "y1", "label"],
    )
    shapes = {"a": Frame((40, 30)), "b": Frame((40, 30))}
    assert fit_boxes(table.iloc[[0, 4]], shapes).boxes[
        ["x0", "y0", "x1", "y1"]
    ].to_numpy().tolist() == [[0, 0, 10, 40]]
    with pytest.raises(
        CohortError,
        match=r"(?s)3 of 4 boxes.*no extent.*outside of its image, which has 30 x 40.*lacks "
        r"coordinates",
    ):
        fit_boxes(table, shapes)
    with pytest.raises(CohortError, match="a volume needs z0 and z1"):
        fit_boxes(table.iloc[:1], {"a": Frame((40, 30, 20))})


def test_boxes_follow_the_exif_turn_where_the_stated_size_says_so(tmp_path):
    names = pictures(
        tmp_path / "images", ["a.jpg"], size=(96, 60), exif=6
    )  # shown 60 wide, 96 high
    shown = mt.read_image(tmp_path / "images/a.jpg").array.shape[1:]
    assert shown == (96, 60)
    box = (10, 12, 20, 16)
    results = {}
    for name, size in (("stored", (96, 60)), ("shown", (60, 96))):
        coco(tmp_path / "m.json", names, [mark(0, 0, box)], width=size[0], height=size[1])
        cohort, _ = checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")))
        results[name] = cohort.boxes[BOX].to_numpy().tolist()[0]
    assert results["shown"] == [10, 12, 30, 28]
    # Orientation 6: the first column of the file is the top row as shown; column x becomes row x,
    # row y becomes column 60 - y.
    assert results["stored"] == [60 - 28, 10, 60 - 12, 30]
    coco(tmp_path / "m.json", names, [mark(0, 0, box)])
    with pytest.raises(
        CohortError, match="turned by its EXIF tag; were its boxes drawn before the turn"
    ):
        checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")))
    for axes, expected in (("file", results["stored"]), ("ras", results["shown"])):
        cohort, _ = checked(
            Cohort.from_boxes(
                tmp_path / "images", str(tmp_path / "m.json"), options=ReadOptions(axes=axes)
            )
        )
        assert cohort.boxes[BOX].to_numpy().tolist()[0] == expected


@pytest.mark.parametrize("exif", range(1, 9))
def test_boxes_in_the_order_of_the_file_hold_their_lesion_for_every_turn(tmp_path, exif):
    stored = np.zeros((60, 96), np.uint8)
    stored[12:28, 10:30] = 250
    (tmp_path / "images").mkdir()
    tags = Image.Exif()
    tags[0x0112] = exif
    Image.fromarray(stored).save(tmp_path / "images/a.png", exif=tags)
    pd.DataFrame([("a.png", 10, 12, 30, 28)], columns=["image", *BOX]).to_csv(
        tmp_path / "b.csv", index=False
    )
    cohort, _ = checked(
        Cohort.from_boxes(
            tmp_path / "images", str(tmp_path / "b.csv"), options=ReadOptions(axes="file")
        )
    )
    x0, y0, x1, y1 = cohort.boxes[BOX].to_numpy(int)[0]
    array = mt.read_image(tmp_path / "images/a.png").array[0]
    assert array[y0:y1, x0:x1].min() == 250
    assert (array == 250).sum() == (x1 - x0) * (y1 - y0)


def test_a_size_that_is_not_that_of_the_picture_is_refused(tmp_path):
    names = pictures(tmp_path / "images", ["a.png"])
    coco(tmp_path / "m.json", names, [mark(0, 0)], width=192, height=160)
    with pytest.raises(CohortError, match="of an image of 192 x 160 pixels, and it has 96 x 80"):
        checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")))
    table = pd.DataFrame(
        [("a.png", 1, 2, 9, 9, 48, 40)], columns=["image", *BOX, "width", "height"]
    )
    table.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(CohortError, match="of an image of 48 x 40"):
        checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "b.csv")))


@pytest.mark.parametrize("affine", [(-1, 1, 1), (1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_boxes_of_volumes_in_every_accepted_system_hold_the_lesion(tmp_path, affine):
    (tmp_path / "images").mkdir()
    array = np.random.default_rng(0).normal(0, 5, (40, 48, 20)).astype(np.float32)
    array[5:12, 8:16, 4:8] += 200
    matrix = np.diag([*np.multiply(affine, [1.0, 1.5, 2.0]), 1.0])
    matrix[:3, 3] = [3, -11, 40]
    volume(tmp_path / "images/v.nii.gz", array, matrix)
    columns = ["image", *BOX, "z0", "z1"]
    ends = matrix @ np.array([[4.5, 7.5, 3.5, 1], [11.5, 15.5, 7.5, 1]]).T
    low, high = ends[:3].min(1), ends[:3].max(1)
    image = mt.read_image(tmp_path / "images/v.nii.gz")
    where = np.argwhere(image.array[0] > 100)
    ras = (*where.min(0)[:2], *(where.max(0)[:2] + 1), where.min(0)[2], where.max(0)[2] + 1)
    for axes, row in (
        ("file", (5, 8, 12, 16, 4, 8)),
        ("mm", (low[0], low[1], high[0], high[1], low[2], high[2])),
        ("ras", ras),
    ):
        pd.DataFrame([("v.nii.gz", *row)], columns=columns).to_csv(tmp_path / "b.csv", index=False)
        cohort, findings = checked(
            Cohort.from_boxes(
                tmp_path / "images", str(tmp_path / "b.csv"), options=ReadOptions(axes=axes)
            )
        )
        assert cohort.boxes[columns[1:]].to_numpy().round(6).tolist()[0] == [
            float(v) for v in ras
        ], axes
        assert not any("cohort.axes" in action for action in findings.actions)
    cohort, findings = checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "b.csv")))
    assert any("Set cohort.axes to ras if they are right" in a for a in findings.actions) == (
        affine != (1, 1, 1)
    )


def test_implausible_boxes_are_told(tmp_path):
    names = pictures(tmp_path / "images", ["a.png", "b.png", "c.png"])
    coco(
        tmp_path / "m.json",
        names,
        [mark(0, 0, (10, 10, 0.4, 20)), mark(1, 1, (1, 1, 94, 78)), mark(2, 2, (10, 10, 20, 20))],
    )
    _, findings = checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")))
    assert any(
        "have a side below one pixel, or are one pixel, such as in a.png" in action
        for action in findings.actions
    )
    assert any(
        "take more than 80 % of their image, such as in b.png" in action
        for action in findings.actions
    )
