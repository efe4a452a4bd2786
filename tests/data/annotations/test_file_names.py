"""Names of annotations that are spelt otherwise than those of their images."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

import pandas as pd
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError

from exported_files import annotation, write_coco
from wild_files import BOX, coco, mark, pictures

SPELT = {
    "slashes": lambda n: "..\\label\\" + n,
    "percent": quote,
    "case": str.upper,
    "decomposed": lambda n: unicodedata.normalize("NFD", n),
    "windows path": lambda n: "C:\\data\\" + n,
    "blanks": lambda n: f" {n} ",
}


@pytest.mark.parametrize("how", SPELT)
def test_names_of_annotations_in_other_spellings_are_matched_and_told(tmp_path, how):
    names = pictures(tmp_path / "images", ["a 1.png", "b2.png", "é6.PNG"])
    coco(tmp_path / "m.json", [SPELT[how](name) for name in names], [mark(i, i) for i in range(2)])
    cohort = Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json"))
    assert dict(zip(cohort.images["image"], cohort.images["lesion"], strict=True)) == {
        "a 1.png": 1,
        "b2.png": 1,
        "é6.PNG": 0,
    }
    assert any("spelt otherwise" in note for note in cohort.notes)


@pytest.mark.parametrize("wrong", ["a1.jpg", "A_1.png", "a-1.PNG", "á1.png"])
def test_a_name_that_is_nearly_that_of_an_image_is_refused_with_it(tmp_path, wrong):
    names = pictures(tmp_path / "images", ["a1.png", "b.png"])
    coco(tmp_path / "m.json", [wrong, names[1]], [mark(0, 0), mark(1, 1)])
    with pytest.raises(CohortError, match=r"which is not here; is it a1.png\?"):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json"))


@pytest.mark.parametrize(
    "name",
    [
        "c1_png.rf.0a1b2c3d4e5f.jpg",
        "1a2b3c4d-c1.png",
        "images/1a2b3c4d-c1.png",
        "c1 (1).png",
        "c1 copy.png",
    ],
)
def test_names_that_exporters_add_to_are_near_ones(tmp_path, name):
    names = pictures(tmp_path / "images", ["c0.png", "c1.png"])
    with pytest.raises(CohortError, match=r"which is not here; is it c1.png\?"):
        Cohort.from_boxes(
            tmp_path / "images",
            write_coco(tmp_path / "m.json", [names[0], name], [annotation(0), annotation(1)]),
        )


def test_an_image_of_another_part_is_not_that_of_the_same_name(tmp_path):
    pictures(tmp_path / "images" / "train", ["c0.png", "c1.png"])
    pictures(tmp_path / "images" / "val", ["c0.png", "c1.png"])
    rows = [("train/c0.png", 10, 10, 30, 30), ("val/c1.png", 50, 50, 70, 70)]
    pd.DataFrame(rows, columns=["image", *BOX]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(CohortError, match="row 3: no image 'val/c1.png' in the cohort"):
        Cohort.from_boxes(tmp_path / "images" / "train", str(tmp_path / "b.csv"))
    source = write_coco(
        tmp_path / "m.json",
        ["train/c0.png", "val/c0.png", "val/c1.png"],
        [annotation(0), annotation(1), annotation(2)],
    )
    cohort = Cohort.from_boxes(tmp_path / "images" / "train", source)
    assert cohort.images["lesion"].tolist() == [1, 0]
    assert len(cohort.boxes) == 1


def test_two_names_of_one_image_are_refused(tmp_path):
    pictures(tmp_path / "images", ["c0.png"])
    rows = [("c0.png", 10, 10, 30, 30), ("images/C0.PNG", 50, 50, 70, 70)]
    pd.DataFrame(rows, columns=["image", *BOX]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(CohortError, match="both mean c0.png"):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "b.csv"))
