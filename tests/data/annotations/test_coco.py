"""Boxes of COCO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from medtransfer.data.annotations.annotations import BoxSource
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError

from box_files import TRUE, boxes_by_image, read_boxes
from exported_files import annotation, write_coco
from wild_files import BOX, assert_adds_up, checked, coco, mark, pictures


def test_coco(images, tmp_path):
    content = {
        "images": [
            {"id": 7 + i, "file_name": name, "width": 40, "height": 30}
            for i, name in enumerate(TRUE)
        ],
        "categories": [{"id": 1, "name": "tumour"}, {"id": 2, "name": "scar"}],
        "annotations": [
            {"image_id": 7 + i, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "category_id": 1}
            for i, own in enumerate(TRUE.values())
            for b in own
        ],
    }
    content["annotations"].append(
        {"image_id": 7, "bbox": [0, 0, 40, 30], "category_id": 1, "iscrowd": 1}
    )
    content["annotations"].append({"image_id": 9, "bbox": [1, 1, 5, 5], "category_id": 2})
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert boxes_by_image(read_boxes(BoxSource("coco.json", ["tumour"]), images, tmp_path)) == TRUE
    with pytest.raises(CohortError, match="no box has the label polyp. Labels here: scar, tumour"):
        read_boxes(BoxSource("coco.json", ["polyp"]), images, tmp_path)
    (tmp_path / "coco.json").write_text("[]")
    with pytest.raises(CohortError, match="holds a list, and COCO has images and annotations"):
        read_boxes("coco.json", images, tmp_path)


def test_images_whose_only_annotation_is_a_crowd_are_neither_positive_nor_negative(tmp_path):
    names = pictures(tmp_path / "images", [f"c{i}.png" for i in range(6)])
    rle = {"counts": [972, 16] + [64, 16] * 19 + [5000], "size": [80, 96]}
    crowds = [mark(2, 1, iscrowd=1, segmentation=rle), mark(3, 2, iscrowd=1, segmentation=rle)]
    coco(tmp_path / "m.json", names, [mark(1, 0, iscrowd=0), *crowds, mark(4, 3, iscrowd=0)])
    cohort, findings = checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")))
    assert cohort.images["image"].tolist() == ["c0.png", "c3.png", "c4.png", "c5.png"]
    assert cohort.images["lesion"].tolist() == [1, 1, 0, 0]
    assert any(
        "2 image(s), such as c1.png, are left out: annotated as a crowd" in action
        for action in findings.actions
    )
    (account,) = [a for a in findings.accounts if a.what == "annotations"]
    assert (account.given, account.used, account.left_out[0].count) == (4, 2, 2)
    assert_adds_up(findings)


def test_annotations_of_other_images_are_counted_and_images_beyond_the_list_asked_about(tmp_path):
    names = pictures(tmp_path / "images", ["a.png", "b.png", "new.png"])
    coco(tmp_path / "m.json", [*names[:2], "elsewhere.png"], [mark(0, 0), mark(1, 2)])
    _, findings = checked(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")))
    assert any("of an image that is not here" in str(account) for account in findings.accounts)
    assert any(
        "1 image(s) are not listed in m.json, such as new.png" in action
        for action in findings.actions
    )
    assert_adds_up(findings)


@pytest.mark.parametrize("change", ["image twice", "id twice", "no category", "two of one"])
def test_numbers_of_a_coco_file_that_contradict_each_other_are_refused(tmp_path, change):
    names = pictures(tmp_path / "images", ["a.png", "b.png"])
    coco(tmp_path / "m.json", names, [mark(0, 0)])
    content = json.loads((tmp_path / "m.json").read_text())
    message = {
        "image twice": "file name",
        "id twice": "id of another one",
        "no category": "no category with id 9",
        "two of one": "both mean",
    }
    if change == "image twice":
        content["images"].append({"id": 7, "file_name": "a.png"})
    elif change == "id twice":
        content["images"].append({"id": 0, "file_name": "c.png"})
    elif change == "no category":
        content["annotations"][0]["category_id"] = 9
    else:
        content["images"].append({"id": 7, "file_name": "A.PNG"})
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(CohortError, match=message[change]):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json"))


def test_a_bbox_of_two_corners_contradicts_its_outline(tmp_path):
    names = pictures(tmp_path / "images", ["a.png"])
    outline = [[30, 20, 60, 20, 60, 50, 30, 50]]
    coco(tmp_path / "m.json", names, [mark(0, 0, (30, 20, 30, 30), segmentation=outline)])
    assert len(Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json")).boxes) == 1
    coco(tmp_path / "m.json", names, [mark(0, 0, (30, 20, 60, 50), segmentation=outline)])
    with pytest.raises(
        CohortError, match="bbox and outline disagree; it seems to hold two corners"
    ):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json"))


def test_coco_without_bbox_with_text_ids_and_in_other_encodings(tmp_path):
    names = pictures(tmp_path / "images", ["c0.png", "é.png"])
    outline = {
        "id": 1,
        "image_id": "1",
        "category_id": "1",
        "segmentation": [[30, 20, 60, 20, 60, 50]],
    }
    source = Path(write_coco(tmp_path / "m.json", names, [outline]))
    source.write_bytes(
        json.dumps(json.loads(source.read_text()), ensure_ascii=False).encode("utf-16")
    )
    boxes = Cohort.from_boxes(tmp_path / "images", str(source)).boxes
    assert boxes[["image", *BOX]].to_numpy().tolist() == [["é.png", 30, 20, 60, 50]]
    source.write_text("[1, 2]")
    with pytest.raises(CohortError, match="holds a list, and COCO has images and annotations"):
        Cohort.from_boxes(tmp_path / "images", str(source))


def test_an_area_shows_a_bbox_of_two_corners(tmp_path):
    names = pictures(tmp_path / "images", ["c0.png"])
    with pytest.raises(CohortError, match="by its area, its bbox holds two corners"):
        Cohort.from_boxes(
            tmp_path / "images",
            write_coco(
                tmp_path / "m.json", names, [annotation(0, bbox=[10, 12, 30, 28], area=320)]
            ),
        )
