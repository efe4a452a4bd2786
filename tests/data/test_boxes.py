"""Lesion boxes: what annotators write is read, checked, and moved with the pixels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.annotations.annotations import BoxSource
from medtransfer.data.annotations.boxes import box_regions, from_axes, to_axes
from medtransfer.data.annotations.frames import Frame, fit_boxes
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.split import split_cohort
from medtransfer.data.grid.augmentation import Changes, change, change_boxes, draw_changes
from medtransfer.data.grid.placement import place
from medtransfer.data.grid.slices import boxes_of_stack, boxes_of_volume, cut
from medtransfer.errors import CohortError
from PIL import Image
from skimage.measure import label as connected

# x0, y0, x1, y1 of every format below.
TRUE = {
    "a.png": [(4.0, 6.0, 14.0, 26.0), (20.0, 2.0, 30.0, 12.0)],
    "b.png": [(0.0, 0.0, 40.0, 30.0)],
    "c.png": [],
}


@pytest.fixture
def images(tmp_path: Path) -> pd.DataFrame:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in TRUE:
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(folder / name)
    return pd.DataFrame(
        {
            "image": [f"images/{name}" for name in TRUE],
            "path": [str(folder / name) for name in TRUE],
        }
    )


def read_boxes(*args, **options):
    return read_annotations(*args, **options).boxes


def found(table: pd.DataFrame) -> dict[str, list[tuple[float, ...]]]:
    columns = ["x0", "y0", "x1", "y1"]
    return {
        name: [
            tuple(np.round(row, 3))
            for row in table.loc[table["image"] == f"images/{name}", columns].to_numpy()
        ]
        for name in TRUE
    }


def test_csv(images, tmp_path):
    rows = [
        {"image": f"images/{n}", "x0": b[0], "y0": b[1], "x1": b[2], "y1": b[3], "label": "cyst"}
        for n, own in TRUE.items()
        for b in own
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "boxes.csv", index=False)
    assert found(read_boxes("boxes.csv", images, tmp_path)) == TRUE
    pd.DataFrame(rows).assign(image=lambda t: t["image"].str.rsplit("/").str[-1]).to_csv(
        tmp_path / "names.csv", index=False
    )
    assert found(read_boxes(str(tmp_path / "names.csv"), images, tmp_path)) == TRUE
    pd.DataFrame(rows).assign(
        image=["images/a.png", "images/z.png", "images/b.png"], x0=["1", "2", "four"]
    ).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(
        CohortError, match=r"(?s)2 fault.*row 3: no image 'images/z.png'.*row 4: x0 is no number"
    ):
        read_boxes("bad.csv", images, tmp_path)


def test_yolo(images, tmp_path):
    (tmp_path / "labels").mkdir()
    for name, own in TRUE.items():
        lines = [
            f"0 {(x0 + x1) / 80} {(y0 + y1) / 60} {(x1 - x0) / 40} {(y1 - y0) / 30}"
            for x0, y0, x1, y1 in own
        ]
        if own:
            (tmp_path / "labels" / name.replace(".png", ".txt")).write_text("\n".join(lines) + "\n")
    assert found(read_boxes("yolo", images, tmp_path)) == TRUE
    (tmp_path / "labels" / "b.txt").write_text("0 0.5 nothing 1\n")
    with pytest.raises(CohortError, match=r"b.txt, line 1: expected class, x, y"):
        read_boxes("yolo", images, tmp_path)
    with pytest.raises(CohortError, match="no file in .*elsewhere"):
        read_boxes("yolo:elsewhere", images, tmp_path)


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
    assert found(read_boxes(BoxSource("coco.json", ["tumour"]), images, tmp_path)) == TRUE
    with pytest.raises(CohortError, match="no box has the label polyp. Labels here: scar, tumour"):
        read_boxes(BoxSource("coco.json", ["polyp"]), images, tmp_path)
    (tmp_path / "coco.json").write_text("[]")
    with pytest.raises(CohortError, match="holds a list, and COCO has images and annotations"):
        read_boxes("coco.json", images, tmp_path)


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
        assert found(table) == TRUE
    else:
        moved = {
            name: [(x0, y0, x1 + 1, y1 + 1) for x0, y0, x1, y1 in own] for name, own in TRUE.items()
        }
        assert found(table) == moved
    (tmp_path / "Annotations" / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>')
    with pytest.raises(CohortError, match="declares entities"):
        read_boxes("voc", images, tmp_path)


def test_masks_give_a_box_for_each_part(images, tmp_path):
    (tmp_path / "masks").mkdir()
    for name, own in TRUE.items():
        mask = np.zeros((30, 40), np.uint8)
        for x0, y0, x1, y1 in own:
            mask[int(y0) : int(y1), int(x0) : int(x1)] = 255
        Image.fromarray(mask if name != "b.png" else np.zeros_like(mask)).save(
            tmp_path / "masks" / name
        )
    read = {n: sorted(own) for n, own in found(read_boxes("masks", images, tmp_path)).items()}
    assert read == {n: sorted(o) if n != "b.png" else [] for n, o in TRUE.items()}
    Image.fromarray(np.eye(30, 41, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(
        CohortError, match=r"a.png: the mask has \(30, 41\) pixels, its image \(30, 40\)"
    ):
        read_boxes("masks", images, tmp_path)


def test_masks_of_volumes_along_their_axes(tmp_path):
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[2:5, 3:9, 1:4] = 1
    mask[9, 9, 7] = 1
    assert box_regions(connected(mask)).tolist() == [[2, 3, 5, 9, 1, 4], [9, 9, 10, 10, 7, 8]]
    for folder, array in (("images", mask * 9), ("masks", mask)):
        (tmp_path / folder).mkdir()
        nibabel.save(
            nibabel.Nifti1Image(array.astype(np.int16), np.diag([2, 2, 3, 1])),
            tmp_path / folder / "v.nii.gz",
        )
    cohort = Cohort.from_boxes(tmp_path, "masks:masks")
    assert cohort.images["image"].tolist() == ["images/v.nii.gz"]
    assert cohort.boxes is not None
    assert (
        cohort.boxes[["x0", "y0", "x1", "y1", "z0", "z1"]].to_numpy().tolist()
        == box_regions(connected(mask)).tolist()
    )


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


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(20, 300), st.integers(20, 300)),
    st.integers(32, 256),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
)
def test_boxes_survive_the_fixed_half_and_come_back(shape, size, shares):
    placement = place(shape, (1.0, 1.0), size, None, "image")
    limit = np.array([shape[1], shape[0], shape[1], shape[0]], float)
    boxes = (
        np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in shares]) * limit
    )
    assert np.abs(placement.return_boxes(placement.place_boxes(boxes)) - boxes).max() < 0.5
    assert np.array_equal(from_axes(to_axes(boxes)), boxes)


def changes(flip, turn, zoom, shift, flip_rows=False) -> Changes:
    one = np.ones(1)
    return Changes(
        np.array([flip]),
        np.array([flip_rows]),
        np.array([turn]),
        np.array([zoom]),
        np.array([shift]),
        one,
        one,
        0 * one,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.sampled_from([0.0, 0.2, -0.25]),
    st.tuples(st.floats(0.85, 1.15), st.floats(0.85, 1.15)),
    st.tuples(st.floats(-0.08, 0.08), st.floats(-0.08, 0.08)),
    st.tuples(st.integers(20, 50), st.integers(20, 60)),
)
def test_boxes_follow_the_pixels_of_the_random_half(flip, turn, zoom, shift, corner):
    """The box of a bright patch, moved, is the box of the moved patch: where it is not turned, to
    half a pixel.
    """
    shape = (96, 128)
    row, column = corner
    image = torch.zeros(1, 1, *shape)
    image[0, 0, row : row + 18, column : column + 24] = 1.0
    drawn = changes(flip, turn, zoom, shift)
    moved = change(image, drawn)[0, 0].numpy()
    rows, columns = (np.flatnonzero((moved >= 0.5).any(axis)) for axis in (1, 0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], float)
    boxes = np.array([[[row, column, row + 18, column + 24]]], float)
    told = change_boxes(boxes, drawn, shape)[0, 0]
    assert np.abs(told - seen).max() <= (1.0 if turn == 0 else 2.0)  # an edge is between two pixels
    if turn == 0:
        inverse = 1 / np.array(zoom)
        plane = np.array(shape, float)
        back = told.reshape(2, 2)
        back = (back - plane / 2) / inverse + np.array(shift) * plane + plane / 2
        if flip:
            back[:, 1] = shape[1] - back[::-1, 1]
        assert np.abs(back.ravel() - boxes[0, 0]).max() < 0.5


def test_boxes_that_leave_the_image_are_dropped():
    boxes = np.array([[[0, 0, 10, 10], [40, 40, 50, 50], [np.nan] * 4]], float)
    moved = change_boxes(boxes, changes(False, 0.0, (1.0, 1.0), (0.08, 0.08)), (96, 96))
    assert np.isnan(moved[0, 0]).all()
    assert np.isnan(moved[0, 2]).all()
    assert moved[0, 1].tolist() == pytest.approx([40 - 7.68, 40 - 7.68, 50 - 7.68, 50 - 7.68])
    assert draw_changes(0, 0, range(50), turns=False).turn.tolist() == [0.0] * 50
    assert np.array_equal(
        draw_changes(0, 0, range(50)).zoom, draw_changes(0, 0, range(50), turns=False).zoom
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_boxes_of_a_stack_are_where_its_slices_show_them(plane):
    volume = torch.zeros(1, 9, 11, 13)
    volume[0, 2:4, 3:8, 5:6] = 1.0
    boxes = np.array([[2, 3, 5, 4, 8, 6]], float)
    stack = cut(volume, plane)[:, 0].numpy()
    spans = [
        np.flatnonzero(stack.any(tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    there = boxes_of_stack(boxes, (9, 11, 13), plane)
    assert there[0].tolist() == [*(span[0] for span in spans), *(span[-1] + 1 for span in spans)]
    assert np.array_equal(boxes_of_volume(there, (9, 11, 13), plane), boxes)


def test_changes_of_volumes_move_boxes_within_slices():
    volume = torch.zeros(1, 1, 40, 36, 10)
    volume[0, 0, 6:16, 10:20, 3:5] = 1.0
    drawn = changes(True, 0.0, (1.1, 0.9), (0.05, -0.05))
    moved = change(volume, drawn, across=2)[0, 0].numpy() >= 0.5
    spans = [
        np.flatnonzero(moved.any(tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    seen = np.array([*(span[0] for span in spans), *(span[-1] + 1 for span in spans)], float)
    told = change_boxes(np.array([[[6, 10, 3, 16, 20, 5]]], float), drawn, (40, 36, 10), 2)[0, 0]
    assert np.abs(told - seen).max() <= 1.0
    assert told[2] == 3
    assert told[5] == 5


def test_patients_from_names_and_parts_from_folders(tmp_path):
    for name in (
        "train/p1_0.png",
        "train/p1_1.png",
        "train/p2_0.png",
        "train/p3_0.png",
        "train/odd.png",
        "valid/p4_0.png",
        "x.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(
        CohortError,
        match=r"is not found in 2 of 7 file names, such as train/odd.png. Set cohort.unnamed",
    ):
        Cohort.from_boxes(tmp_path, "yolo", patient=r"^(p\d)_")
    with pytest.raises(CohortError, match="found in none of 7 file names"):
        Cohort.from_boxes(tmp_path, "yolo", patient=r"^(q\d)_")
    with pytest.raises(CohortError, match="no regular expression"):
        Cohort.from_boxes(tmp_path, "yolo", patient="(")
    named = Cohort.from_boxes(tmp_path, "yolo", patient=r"^(p\d)_", unnamed="leave_out")
    assert named.images["patient"].tolist() == ["p1", "p1", "p2", "p3", "p4"]
    assert ("x.png", "its name gives no patient") in named.ignored
    assert named.patients_known
    assert len(set(split_cohort(named, 3).parts["fold_0"])) == 3
    divided = Cohort.from_boxes(tmp_path, "yolo", parts={"train": "train", "valid": "test"})
    assert divided.images["split"].tolist() == ["train"] * 5 + ["test"]
    assert ("x.png", "in none of cohort.parts") in divided.ignored
    assert not divided.patients_known
    assert split_cohort(divided).official
    with pytest.raises(CohortError, match="cohort.parts: no image in .*other"):
        Cohort.from_boxes(tmp_path, "yolo", parts={"other": "train"})
    assert divided.digest != Cohort.from_boxes(tmp_path, "yolo").digest
    assert len(divided.without(["train/odd.png"]).boxes) == 5


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


def test_outlines_of_yolo_are_boxed_and_other_lines_refused(images, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .4 .6 .4 .6 .6 .5 .6\n0 .25 .5 .25 .5 .9\n")
    assert found(read_boxes("yolo", images, tmp_path))["a.png"] == [
        (20, 12, 24, 18),
        (5, 7.5, 15, 22.5),
    ]
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .4 .6 .4 .6 .6 .5\n")
    with pytest.raises(CohortError, match="line 1: expected class, x, y"):
        read_boxes("yolo", images, tmp_path)


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


def test_planes_may_leave_z_empty(images, tmp_path):
    table = pd.DataFrame(
        [("images/a.png", 1, 1, 9, 9, "", "")],
        columns=["image", "x0", "y0", "x1", "y1", "z0", "z1"],
    )
    table.to_csv(tmp_path / "boxes.csv", index=False)
    boxes = fit_boxes(
        read_boxes("boxes.csv", images, tmp_path), {"images/a.png": Frame((30, 40))}
    ).boxes
    assert boxes.columns.tolist() == ["image", "x0", "y0", "x1", "y1", "label"]


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
    assert not cohort.detects
    assert cohort.detecting().detects
    assert cohort.detecting().images["lesion"].tolist() == [0, 1, 0, 0]
