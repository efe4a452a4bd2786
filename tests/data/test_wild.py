"""Files as people have them: what is handed over is used, or its absence is told; facts that a file
states twice are compared.

Each test writes one situation; the letters are those of the kinds: A what does not match, B a fact
compared with nothing, C a coordinate system assumed, D one identity in two spellings, H a refusal
with the wrong cause, I masks, L limits and links.
"""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from urllib.parse import quote

import medtransfer as mt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from medtransfer.cli.app import app
from medtransfer.data.annotations.masks import read_lesions
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.audit.audit import audit
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.contents import ReadOptions
from medtransfer.data.cohort.sources import open_cohort
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.errors import CohortError, ImageError
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

BOX = ["x0", "y0", "x1", "y1"]


def pictures(folder: Path, names, size=(96, 80), exif=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(
            np.random.default_rng(i).integers(0, 255, size[::-1], dtype=np.uint8)
        )
        tags = Image.Exif()
        if exif:
            tags[0x0112] = exif
        picture.save(folder / name, **({"exif": tags} if exif else {}))
    return list(names)


def coco(path: Path, names, annotations, **more):
    images = [{"id": i, "file_name": name, **more} for i, name in enumerate(names)]
    path.write_text(
        json.dumps(
            {
                "images": images,
                "categories": [{"id": 1, "name": "tumour"}],
                "annotations": annotations,
            }
        )
    )


def mark(i, image, bbox=(10, 12, 20, 16), **more):
    return {"id": i, "image_id": image, "category_id": 1, "bbox": list(bbox), **more}


def checked(cohort):
    facts = inspect_images(cohort, jobs=1)
    cohort = cohort.fitted(facts)
    return cohort, audit(cohort, facts, shortcuts=False)


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def assert_adds_up(findings):
    assert findings.accounts
    for account in findings.accounts:
        assert account.given == account.used + sum(part.count for part in account.left_out), account


# A: nothing disappears unsaid


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


def test_pictures_of_every_ending_count_and_the_rest_is_told_by_ending(tmp_path):
    for kind in ("benign", "malignant"):
        pictures(tmp_path / kind, ["a.png", "b.jfif.png", "c.webp", "d.bmp"])
        (tmp_path / kind / "b.jfif.png").rename(tmp_path / kind / "b.jfif")
    (tmp_path / "malignant" / "e.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "malignant" / "f.xyz").write_bytes(b"unknown to anybody")
    (tmp_path / "malignant" / "notes.txt").write_text("plain")
    (tmp_path / "malignant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "malignant" / "noending").write_bytes((tmp_path / "benign" / "a.png").read_bytes())
    cohort, findings = checked(
        mt.Cohort.from_folders(tmp_path, ["benign", "malignant"], outside=True)
    )
    assert len(cohort) == 10
    assert [image for image, _ in findings.unreadable] == [
        "malignant/gone.png"
    ]  # by its ending it is an image
    reasons = dict(cohort.ignored)
    assert reasons["malignant/f.xyz"].startswith("not an image")
    assert "heic" in reasons["malignant/e.heic"].lower()
    said = " ".join(findings.actions)
    assert "f.xyz" in said
    assert "e.heic" in said
    assert "notes.txt" not in said
    assert_adds_up(findings)
    result = invoke("check", tmp_path, "--positive", "malignant", "--quiet", "--outside")
    assert result.exit_code == 1
    assert "f.xyz" in result.output


def test_links_to_folders_are_followed_and_none_is_left_out_in_silence(tmp_path):
    pictures(tmp_path / "data" / "benign", ["a.png", "b.png"])
    pictures(tmp_path / "data" / "store", ["c.png", "d.png"])
    (tmp_path / "data" / "malignant").symlink_to(tmp_path / "data" / "store")
    assert len(mt.Cohort.from_folders(tmp_path / "data", ["benign", "malignant"])) == 4
    (tmp_path / "data" / "benign" / "loop").symlink_to(tmp_path / "data" / "benign")
    assert len(mt.Cohort.from_folders(tmp_path / "data", ["benign", "malignant"])) == 4


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


def test_manifests_find_their_images_in_other_spellings(tmp_path):
    pictures(tmp_path / "images", ["Bild é1.PNG", "b.png"])
    names = ["images\\" + unicodedata.normalize("NFD", "bild é1.png"), "./images/b.png"]
    pd.DataFrame({"image": names, "patient": ["1", "2"], "y": [0, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    cohort = Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"])
    assert cohort.images["image"].tolist()[0] == "images/Bild é1.PNG"
    assert any("spelt otherwise in the manifest" in note for note in cohort.notes)


# B: facts that are stated twice


def volume(path: Path, array, affine, code=1):
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code)
    nib.save(image, path)


@pytest.mark.parametrize("flips", [(-1, -1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_mask_whose_header_states_no_place_lies_as_its_image_is_stored(tmp_path, flips):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    array = np.random.default_rng(0).normal(0, 5, (40, 48, 20)).astype(np.float32)
    mask = np.zeros(array.shape, np.uint8)
    mask[5:12, 8:16, 4:8] = 1
    array[mask > 0] += 200
    affine = np.diag([*np.multiply(flips, [1.0, 1.0, 2.0]), 1.0])
    affine[:3, 3] = [20, 24, 0]
    volume(tmp_path / "images/v.nii.gz", array, affine)
    volume(tmp_path / "masks/v.nii.gz", mask, np.eye(4))
    cohort = Cohort.from_boxes(tmp_path / "images", "masks:../masks")
    x0, y0, x1, y1, z0, z1 = cohort.boxes[[*BOX, "z0", "z1"]].to_numpy(int)[0]
    assert mt.read_image(tmp_path / "images/v.nii.gz").array[0, x0:x1, y0:y1, z0:z1].mean() > 190
    assert any("states no place" in note for note in cohort.notes)


def test_a_mask_that_lies_elsewhere_by_its_affine_is_refused(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    moved = affine.copy()
    moved[0, 3] = 7.0
    mask = np.zeros((20, 24, 10), np.uint8)
    mask[2:6, 3:9, 1:4] = 1
    volume(tmp_path / "images/v.nii.gz", mask.astype(np.float32), affine)
    volume(tmp_path / "masks/v.nii.gz", mask, moved)
    with pytest.raises(CohortError, match=r"lies up to 7 voxels off its image"):
        Cohort.from_boxes(tmp_path / "images", "masks:../masks")
    volume(
        tmp_path / "masks/v.nii.gz", mask[::-1].copy(), np.diag([1.0, -1.0, 2.0, 1.0]) @ np.eye(4)
    )
    with pytest.raises(CohortError, match="off its image"):
        Cohort.from_boxes(tmp_path / "images", "masks:../masks")


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


# C: coordinate systems


def test_shares_where_pixels_are_meant_are_refused(tmp_path):
    names = pictures(tmp_path / "images", [f"c{i}.png" for i in range(3)])
    coco(tmp_path / "m.json", names, [mark(i, i, (0.2, 0.3, 0.25, 0.2)) for i in range(3)])
    with pytest.raises(CohortError, match="are they shares of the image"):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json"))
    pd.DataFrame([("c0.png", 0.2, 0.3, 0.5, 0.6)], columns=["image", *BOX]).to_csv(
        tmp_path / "b.csv", index=False
    )
    with pytest.raises(CohortError, match="are they shares of the image"):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "b.csv"))


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


def test_check_draws_boxes_on_planes_and_volumes(tmp_path):
    names = pictures(tmp_path / "images", ["a.png", "b.png"])
    coco(tmp_path / "m.json", names, [mark(0, 0)])
    config = (
        "task: detection\ncohort: {root: %s, boxes: %s}\narms:\n  scratch: "
        "{backbone: tf_efficientnet_lite0, weights: none}\n"
    )
    (tmp_path / "s.yaml").write_text(config % (tmp_path / "images", tmp_path / "m.json"))
    result = invoke("check", tmp_path / "s.yaml", "--output", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "check.html").read_text()
    assert 'alt="a.png with its boxes"' in page
    assert "m.json: 1 annotations, 1 used" in page


# D: one identity, two spellings


@pytest.mark.parametrize("other", ["{}.0", "00{}", "{}\u200b", "P{}"])
def test_patients_that_look_alike_are_asked_about(tmp_path, other):
    names = pictures(tmp_path / "images", [f"Bild {i}.png" for i in range(12)])
    stem = "p{}" if other == "P{}" else "{}"
    people = [(other if i % 2 else stem).format(i // 2) for i in range(12)]
    pd.DataFrame({"image": names, "patient": people, "y": [i // 2 % 2 for i in range(12)]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    cohort, findings = checked(Cohort.from_csv(tmp_path / "m.csv", tmp_path / "images", ["y"]))
    assert any(
        "6 group(s) of patients whose ids look alike" in action for action in findings.actions
    )
    with pytest.raises(
        CohortError,
        match=r"(?s)6 group\(s\) of patients whose ids look alike.*cohort.look_alikes=same, or "
        r"different",
    ):
        cohort.told_apart("ask")
    assert cohort.told_apart("same").images["patient"].nunique() == 6
    assert cohort.told_apart("different").images["patient"].nunique() == 12
    arms = {"formulas": mt.Arm("features")}
    with pytest.raises(CohortError, match="look alike"):
        mt.compare(cohort, arms, tmp_path / "study", quiet=True)
    assert not (tmp_path / "study").exists()


def test_blanks_and_composed_letters_are_one_patient_without_a_question(tmp_path):
    names = pictures(tmp_path / "images", [f"{i}.png" for i in range(4)])
    people = ["é1", " e\u03011 ", "p2", "p2\u00a0"]
    pd.DataFrame({"image": names, "patient": people, "y": [0, 0, 1, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    cohort = Cohort.from_csv(tmp_path / "m.csv", tmp_path / "images", ["y"])
    assert cohort.images["patient"].nunique() == 2
    assert cohort.alike == ()


def test_patients_of_a_manifest_are_compared_with_those_of_the_headers(tmp_path):
    rows = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 999, (40, 40)).astype(np.uint16)
        write_grey_dicom(
            tmp_path / f"{i}.dcm",
            pixels,
            patient=f"H{i // 2}",
            number=i,
            spacing=(1, 1),
            encoding=GreyEncoding(),
        )
        rows.append((f"{i}.dcm", f"p{i // 2}", i // 2 % 2))
    table = pd.DataFrame(rows, columns=["image", "patient", "y"])

    def actions(frame):
        frame.to_csv(tmp_path / "m.csv", index=False)
        return " ".join(checked(Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"]))[1].actions)

    assert "headers" not in actions(table)
    split = table.assign(patient=["p0", "p9", "p1", "p1", "p2", "p2"])
    assert (
        "such as 0.dcm and 1.dcm, are of one patient by their headers, and several in the manifest"
        in actions(split)
    )
    joined = table.assign(patient=["p0", "p0", "p0", "p0", "p2", "p2"])
    assert (
        "such as 0.dcm and 2.dcm, are of one patient in the manifest, and several by their headers"
        in actions(joined)
    )
    assert "H0" not in actions(split) + actions(joined)


# I: masks


def disc():
    mask = np.zeros((80, 96), np.uint8)
    mask[20:40, 30:50] = 255
    return mask


def boxes_of(values):
    lesions, note = read_lesions(np.atleast_3d(values).transpose(2, 0, 1).astype(np.float32))
    return [tuple(map(int, box)) for box in mt_boxes(lesions)], note


def mt_boxes(lesions):
    from medtransfer.data.annotations.boxes import box_regions

    return box_regions(lesions)


WHOLE = (30, 20, 50, 40)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("two values", disc, [WHOLE]),
        ("0 and 1", lambda: disc() // 255, [WHOLE]),
        ("neither 0", lambda: np.where(disc() > 0, 200, 64), [WHOLE]),
        ("blurred", lambda: np.round(gaussian_filter(disc().astype(float), 3)), [WHOLE]),
        (
            "antialiased",
            lambda: (
                np.where(disc() > 0, 255, 0) - 127 * ((disc() > 0) & ~(np.roll(disc(), 1, 0) > 0))
            ),
            [WHOLE],
        ),
        ("residues", lambda: np.where(disc() > 0, 1, 1e-6 * (np.arange(80)[:, None] % 2)), [WHOLE]),
        ("shares", lambda: gaussian_filter(disc() / 255.0, 2), [WHOLE]),
        (
            "instances",
            lambda: disc() // 255 + (disc() > 0) * (np.arange(96) >= 40),
            [(30, 20, 40, 40), (40, 20, 50, 40)],
        ),
        (
            "grey instances",
            lambda: (disc() > 0) * np.where(np.arange(96) >= 40, 200, 100),
            [(30, 20, 40, 40), (40, 20, 50, 40)],
        ),
        (
            "core in its rim",
            lambda: disc() // 255 + (gaussian_filter(disc().astype(float), 4) > 200),
            [WHOLE],
        ),
        ("nothing", lambda: np.zeros((80, 96)), []),
        (
            "colours",
            lambda: np.stack([disc(), disc() * (np.arange(96) >= 40), 0 * disc()], -1),
            [(30, 20, 40, 40), (40, 20, 50, 40)],
        ),
        (
            "white and red",
            lambda: np.where(disc()[..., None] > 0, [200, 0, 0], [255, 255, 255]),
            [WHOLE],
        ),
    ],
)
def test_what_the_values_of_a_mask_mean(name, make, expected):
    found, note = boxes_of(make())
    assert sorted(found) == expected
    assert bool(note) == (name not in {"two values", "0 and 1", "nothing"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 255 - disc(), "is it inverted"),
        (lambda: np.full((80, 96), 255), "100 % of it are lesion"),
        (lambda: np.random.default_rng(0).normal(size=(80, 96)), "values from -.* not a mask"),
        (lambda: 255 - np.round(gaussian_filter(disc().astype(float), 3)), "is it inverted"),
    ],
)
def test_what_is_no_mask_is_refused(make, message):
    with pytest.raises(ImageError, match=message):
        boxes_of(make())


def test_palette_masks_are_read_by_their_colours(tmp_path):
    pictures(tmp_path / "images", ["a.png"])
    (tmp_path / "masks").mkdir()
    index = (disc() > 0).astype(np.uint8) + ((disc() > 0) & (np.arange(96) >= 40))
    picture = Image.fromarray(index, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    picture.save(tmp_path / "masks/a.png")
    boxes = Cohort.from_boxes(tmp_path / "images", "masks:../masks").boxes
    assert boxes[BOX].to_numpy().tolist() == [[30, 20, 40, 40], [40, 20, 50, 40]]


# L: hostile names, links, what lies outside


def test_files_outside_the_root_are_refused_unless_they_are_meant(tmp_path):
    pictures(tmp_path / "elsewhere", ["a.png", "b.png"])
    pictures(tmp_path / "root", ["c.png"])
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    rows = pd.DataFrame(
        {
            "image": ["c.png", "../elsewhere/b.png", "link.png"],
            "patient": list("123"),
            "y": [0, 1, 1],
        }
    )
    rows.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(
        CohortError,
        match=r"(?s)row 3: ../elsewhere/b.png lies outside.*row 4: link.png lies "
        r"outside.*cohort.outside=true",
    ):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path / "root", ["y"])
    assert len(Cohort.from_csv(tmp_path / "m.csv", tmp_path / "root", ["y"], outside=True)) == 3
    with pytest.raises(CohortError, match="links that lead out of it, such as link.png"):
        open_cohort(tmp_path / "root")
    assert len(open_cohort(tmp_path / "root", outside=True)) == 2


def test_control_characters_in_names_are_shown_as_codes_and_refused_before_anything_is_trained(
    tmp_path,
):
    pictures(tmp_path / "root" / "a", ["x.png", "y\r.png", "z\x1b[31m.png"])
    pictures(tmp_path / "root" / "b", ["x.png", "y.png"])
    cohort, findings = checked(Cohort.from_folders(tmp_path / "root", ["a", "b"], "b"))
    assert len(cohort) == 3
    assert any("control character" in action for action in findings.actions)
    assert "\x1b" not in invoke("check", tmp_path / "root", "--positive", "b", "--quiet").output
    (tmp_path / "m.csv").write_text('image,patient,y\na/x.png,"p\r1",0\nb/x.png,p2,1\n', newline="")
    with pytest.raises(CohortError, match=r"row 2: p\[U\+000D\]1 holds a control character"):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path / "root", ["y"])


def test_marks_that_turn_text_around_are_codes_on_the_page(tmp_path):
    pictures(tmp_path / "root" / "a", ["x\u202egnp.png", "y.png"])
    pictures(tmp_path / "root" / "b", ["x.png", "y.png"])
    invoke("check", tmp_path / "root", "--positive", "b", "--quiet", "--output", tmp_path / "out")
    page = (tmp_path / "out" / "check.html").read_text()
    assert "\u202e" not in page


def test_a_full_disk_names_the_file_and_the_space(tmp_path, monkeypatch):
    from medtransfer.files import write_aside

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"it needs 3 MB, and .* are free on this disk") as caught:
        write_aside(tmp_path / "big.bin", bytes(3 * 2**20))
    assert caught.value.filename == str(tmp_path / "big.bin")
    assert list(tmp_path.iterdir()) == []
