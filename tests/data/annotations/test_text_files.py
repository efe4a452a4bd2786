"""Boxes of YOLO and Pascal VOC."""

from __future__ import annotations

import pytest
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError

from box_files import TRUE, boxes_by_image, read_boxes
from wild_files import BOX, checked, pictures


def test_yolo(images, tmp_path):
    (tmp_path / "labels").mkdir()
    for name, own in TRUE.items():
        lines = [
            f"0 {(x0 + x1) / 80} {(y0 + y1) / 60} {(x1 - x0) / 40} {(y1 - y0) / 30}"
            for x0, y0, x1, y1 in own
        ]
        if own:
            (tmp_path / "labels" / name.replace(".png", ".txt")).write_text("\n".join(lines) + "\n")
    assert boxes_by_image(read_boxes("yolo", images, tmp_path)) == TRUE
    (tmp_path / "labels" / "b.txt").write_text("0 0.5 nothing 1\n")
    with pytest.raises(CohortError, match=r"b.txt, line 1: expected class, x, y"):
        read_boxes("yolo", images, tmp_path)
    with pytest.raises(CohortError, match="no file in .*elsewhere"):
        read_boxes("yolo:elsewhere", images, tmp_path)


@pytest.mark.parametrize("first", [1, 0])
def test_voc_counts_pixels_from_1(images, tmp_path, first):
    (tmp_path / "Annotations").mkdir()
    for name, own in TRUE.items():
        # The last pixel is named: from 1 its number is the upper end, from 0 one less.
        parts = "".join(
            f"<object><name>x</name><bndbox>"
            f"<xmin>{b[0] + first:g}</xmin><ymin>{b[1] + first:g}</ymin>"
            f"<xmax>{b[2]:g}</xmax><ymax>{b[3]:g}</ymax></bndbox></object>"
            for b in own
        )
        (tmp_path / "Annotations" / name.replace(".png", ".xml")).write_text(
            f"<annotation>{parts}</annotation>"
        )
    table = read_boxes("voc", images, tmp_path)
    if first:
        assert boxes_by_image(table) == TRUE
    else:
        moved = {
            name: [(x0, y0, x1 + 1, y1 + 1) for x0, y0, x1, y1 in own] for name, own in TRUE.items()
        }
        assert boxes_by_image(table) == moved
    (tmp_path / "Annotations" / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>')
    with pytest.raises(CohortError, match="declares entities"):
        read_boxes("voc", images, tmp_path)


def test_outlines_of_yolo_are_boxed_and_other_lines_refused(images, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .4 .6 .4 .6 .6 .5 .6\n0 .25 .5 .25 .5 .9\n")
    assert boxes_by_image(read_boxes("yolo", images, tmp_path))["a.png"] == [
        (20, 12, 24, 18),
        (5, 7.5, 15, 22.5),
    ]
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .4 .6 .4 .6 .6 .5\n")
    with pytest.raises(CohortError, match="line 1: expected class, x, y"):
        read_boxes("yolo", images, tmp_path)


def test_voc_states_size_and_file_name(tmp_path):
    pictures(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "Annotations").mkdir()
    box = "<object><name>x</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>"  # noqa: E501

    def write(name, size):
        text = f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>{box}</annotation>"  # noqa: E501
        (tmp_path / "Annotations" / "a.xml").write_text(text)

    write("a.png", (96, 80))
    cohort, _ = checked(Cohort.from_boxes(tmp_path, "voc"))
    assert cohort.boxes[BOX].to_numpy().tolist() == [[9, 9, 30, 30]]
    write("a.png", (80, 96))
    with pytest.raises(CohortError, match="of an image of 80 x 96"):
        checked(Cohort.from_boxes(tmp_path, "voc"))
    write("b.png", (96, 80))
    with pytest.raises(CohortError, match="says that it is of b.png"):
        Cohort.from_boxes(tmp_path, "voc")
    write("old-name.png", (96, 80))
    assert any(
        "name another image than theirs" in note
        for note in Cohort.from_boxes(tmp_path, "voc").notes
    )


def yolo(tmp_path, *lines):
    pictures(tmp_path / "images", [f"c{i}.png" for i in range(len(lines))], size=(100, 100))
    (tmp_path / "labels").mkdir(exist_ok=True)
    for i, line in enumerate(lines):
        (tmp_path / "labels" / f"c{i}.txt").write_text(line + "\n")
    return read_annotations("yolo", Cohort.from_files(tmp_path, boxes="yolo").images, tmp_path)


def test_lines_of_yolo_are_told_apart_by_the_whole_source(tmp_path):
    assert (
        yolo(tmp_path, "0 .5 .5 .2 .2 .9", "0 .5 .5 .2 .2 .7")
        .notes[0]
        .endswith("a confidence behind the box, which is not used")
    )
    assert "number of a track" in yolo(tmp_path, "0 .5 .5 .2 .2 17", "0 .5 .5 .2 .2 18").notes[0]
    pose = "0 .5 .5 .4 .4 .4 .4 .6 .6"
    with pytest.raises(
        CohortError, match="may be an outline of 4 points, or a box with 2 keypoints"
    ):
        yolo(tmp_path, pose, pose)
    with pytest.raises(CohortError, match="boxes with keypoints are not read"):
        yolo(tmp_path, "0 .5 .5 .4 .4 .4 .4 2 .6 .6 2 .5 .5 2")
    outline = yolo(tmp_path, "0 .1 .1 .3 .1 .3 .4 .1 .4", "0 .5 .5 .9 .5 .9 .9 .7 .95 .5 .9")
    assert outline.boxes[BOX].to_numpy().round(6).tolist() == [[10, 10, 30, 40], [50, 50, 90, 95]]
    with pytest.raises(
        CohortError, match="YOLO has shares of the image, from 0 to 1, and these are pixels"
    ):
        yolo(tmp_path, "0 50 50 20 20", "0 40 50 20 20")
