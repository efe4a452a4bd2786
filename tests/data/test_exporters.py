"""What annotation tools, spreadsheets and statistics programs write: names they add to, systems
they leave out, words for nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from medtransfer.data.annotations.annotations import BoxSource
from medtransfer.data.annotations.masks import read_lesions
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.sources import open_cohort
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.errors import CohortError, PredictionsError
from medtransfer.evaluation import evaluate
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.tables.candidates import read_lesions as read_lesion_table
from PIL import Image

BOX = ["x0", "y0", "x1", "y1"]


def pictures(folder: Path, names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (80, 96), dtype=np.uint8)).save(
            folder / name
        )
    return list(names)


def coco(path: Path, names, marks, **more):
    content = {
        "images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
        "categories": [{"id": 1, "name": "mass"}],
        **more,
    }
    path.write_text(json.dumps(content | {"annotations": marks}))
    return str(path)


def mark(image, **more):
    return {"id": image, "image_id": image, "category_id": 1, "bbox": [10, 12, 20, 16]} | more


# Names


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
            tmp_path / "images", coco(tmp_path / "m.json", [names[0], name], [mark(0), mark(1)])
        )


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


def test_an_image_of_another_part_is_not_that_of_the_same_name(tmp_path):
    pictures(tmp_path / "images" / "train", ["c0.png", "c1.png"])
    pictures(tmp_path / "images" / "val", ["c0.png", "c1.png"])
    rows = [("train/c0.png", 10, 10, 30, 30), ("val/c1.png", 50, 50, 70, 70)]
    pd.DataFrame(rows, columns=["image", *BOX]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(CohortError, match="row 3: no image 'val/c1.png' in the cohort"):
        Cohort.from_boxes(tmp_path / "images" / "train", str(tmp_path / "b.csv"))
    source = coco(
        tmp_path / "m.json",
        ["train/c0.png", "val/c0.png", "val/c1.png"],
        [mark(0), mark(1), mark(2)],
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


def test_masks_beside_images_are_no_images(tmp_path):
    for kind in ("benign", "malignant"):
        pictures(
            tmp_path / kind,
            [
                "a.png",
                "a_segmentation.png",
                "b.png",
                "b-mask.png",
                "c.png",
                "c_seg.png",
                "c_seg_1.png",
                "d_mask.png",
            ],
        )
    cohort = Cohort.from_folders(tmp_path)
    assert [Path(name).name for name in cohort.images["image"][:4]] == [
        "a.png",
        "b.png",
        "c.png",
        "d_mask.png",
    ]  # d_mask is of no d


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


def test_folders_of_parts_are_no_classes_and_alike_ones_are_asked_about(tmp_path):
    for part in ("train", "val", "test"):
        pictures(tmp_path / "xray" / part / "NORMAL", ["a.png", "b.png"])
    with pytest.raises(CohortError, match="are parts of a set, not classes"):
        open_cohort(tmp_path / "xray")
    for kind in ("benign", "Benign "):
        pictures(tmp_path / "twice" / kind, ["a.png", "b.png"])
    with pytest.raises(CohortError, match="look alike"):
        open_cohort(tmp_path / "twice")


def test_a_manifest_names_the_near_file(tmp_path):
    pictures(tmp_path, ["c0.png", "c1.png"])
    pd.DataFrame({"image": ["c0.png", "c1.jpg"], "patient": ["1", "2"], "y": [0, 1]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    with pytest.raises(CohortError, match=r"row 3: no file .*c1.jpg; is it c1.png\?"):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path, ["y"])


# Facts of boxes


def test_coco_without_bbox_with_text_ids_and_in_other_encodings(tmp_path):
    names = pictures(tmp_path / "images", ["c0.png", "é.png"])
    outline = {
        "id": 1,
        "image_id": "1",
        "category_id": "1",
        "segmentation": [[30, 20, 60, 20, 60, 50]],
    }
    source = Path(coco(tmp_path / "m.json", names, [outline]))
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
            coco(tmp_path / "m.json", names, [mark(0, bbox=[10, 12, 30, 28], area=320)]),
        )


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


def test_boxes_of_kaggle_and_words_for_no_box(tmp_path):
    names = pictures(tmp_path, ["c0.png", "c1.png"])
    table = pd.DataFrame(
        {
            "patientId": names,
            "x": [1, np.nan],
            "y": [2, np.nan],
            "width": [20, np.nan],
            "height": [10, np.nan],
        }
    )
    table.to_csv(tmp_path / "b.csv", index=False)
    images = pd.DataFrame({"image": names, "path": [str(tmp_path / name) for name in names]})
    with pytest.raises(CohortError, match="x1 = x \\+ width"):
        read_annotations("b.csv", images, tmp_path)
    rows = [(names[0], "1,5", "2,5", "20,5", "10,5"), (names[1], "NA", "NA", "NA", "NA")]
    pd.DataFrame(rows, columns=["image", *BOX]).to_csv(tmp_path / "c.csv", index=False, sep=";")
    boxes = read_annotations("c.csv", images, tmp_path).boxes
    assert boxes[BOX].to_numpy().tolist() == [[1.5, 2.5, 20.5, 10.5]]


# Masks


def instances(side: int, count: int) -> np.ndarray:
    """Squares numbered from 1, a pixel apart."""
    mask = np.zeros((10 * (side + 1) + 1,) * 2, np.float32)
    for number in range(count):
        row, column = divmod(number, 10)
        mask[1 + row * (side + 1) :][:side, 1 + column * (side + 1) :][:, :side] = number + 1
    return mask


@pytest.mark.parametrize(("side", "count"), [(2, 25), (5, 100), (3, 80)])
def test_many_numbered_lesions_are_all_kept(side, count):
    mask = np.zeros((200, 200), np.float32)
    drawn = instances(side, count)
    mask[: drawn.shape[0], : drawn.shape[1]] = drawn
    assert read_lesions(mask[None])[0].max() == count


def test_residues_alone_are_nothing():
    mask = np.zeros((1, 40, 40), np.float32)
    mask[0, 3, 3] = 1e-7
    lesions, note = read_lesions(mask)
    assert lesions.max() == 0
    assert "residues" in note


# Patients


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


def test_one_series_of_two_patients_is_refused(tmp_path):
    for i in range(6):
        write_grey_dicom(
            tmp_path / f"{i}.dcm",
            np.full((16, 16), i, np.uint16),
            patient="AB"[i // 3],
            number=i,
            spacing=(1, 1),
            encoding=GreyEncoding(),
        )
        dataset = pydicom.dcmread(tmp_path / f"{i}.dcm")
        dataset.SeriesInstanceUID, dataset.ImagePositionPatient = "1.2.3", [0, 0, 3 * i]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
        dataset.save_as(tmp_path / f"{i}.dcm")
    with pytest.raises(CohortError, match="are of one series, and their headers name two patients"):
        open_cohort(tmp_path)


# Predictions


def test_predictions_of_r_with_row_names_decimal_commas_and_na(tmp_path):
    rows = [f'"{n}";"p{n}";{n % 2};{("NA" if n == 4 else f"0,{10 + n}")}' for n in range(1, 9)]
    rows[3] = '"4";"p4";NA;0,14'
    (tmp_path / "p.csv").write_text(
        '"";"patient";"target";"probability"\n' + "\n".join(rows) + "\n"
    )
    report = evaluate(tmp_path / "p.csv", bootstrap=100).to_dict()
    (account,) = report["accounts"]
    assert (account["given"], account["used"]) == (8, 7)
    assert "row names" in account["sentence"]


def test_parts_have_their_usual_names_and_grades_are_numbers():
    frame = pd.DataFrame(
        {
            "patient": list("abcd"),
            "part": ["Test", "test", "val", "Validation"],
            "target": [0, 1, 0, 1],
            "probability": 0.5,
        }
    )
    assert evaluate(frame, bootstrap=100).to_dict()["images"] == 2
    with pytest.raises(PredictionsError, match=r"4\.1, 4\.2 and 4\.3 for 4a, 4b and 4c"):
        evaluate(pd.DataFrame({"patient": list("ab"), "target": [0, 1], "score": ["3", "4b"]}))


def test_scores_of_several_images_are_joined_by_order_alone():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "patient": [f"p{i // 2}" for i in range(120)],
            "target": np.repeat(rng.integers(0, 2, 60), 2),
        }
    )
    frame["score"] = rng.normal(size=120) + frame["target"]
    first, second = (
        evaluate(frame.assign(score=score), bootstrap=100, unit="patient").to_dict()["arms"][
            "model"
        ]["auc"]["estimate"]
        for score in (frame["score"], np.exp(3 * frame["score"]) + 7)
    )
    assert first == second


def test_unused_columns_are_named():
    frame = pd.DataFrame(
        {
            "patient": list("abcd"),
            "target": [0, 1, 0, 1],
            "probability": [0.1, 0.8, 0.3, 0.6],
            "reader1": [1, 4, 2, 5],
        }
    )
    assert "columns not used: reader1" in str(evaluate(frame, bootstrap=100))


def lesions_of(names):
    boxes = pd.DataFrame([(name, 1, 1, 9, 9) for name in names], columns=["image", *BOX])
    found = boxes.assign(arm="a", seed=0, fold=0, part="test", logit=1.0)
    return boxes, found


def test_lesions_under_other_names_doubled_or_against_the_targets(tmp_path):
    images = [f"i{n}.png" for n in range(6)]
    rows = {
        "arm": "a",
        "part": "test",
        "image": images,
        "patient": images,
        "target": [1, 1, 1, 0, 0, 0],
        "probability": 0.5,
        "seed": 0,
        "fold": 0,
    }
    tested = pd.DataFrame(rows)
    boxes, found = lesions_of(images[:3])
    for other in ("images/i1.png", "i1", "I1.PNG"):
        with pytest.raises(PredictionsError, match=r"is it i1.png of the predictions"):
            evaluate_boxes(
                tested,
                found,
                boxes.assign(image=boxes["image"].replace("i1.png", other)),
                bootstrap=100,
            )
    pd.concat([boxes, boxes]).to_csv(tmp_path / "b.csv", index=False)
    assert len(read_lesion_table(tmp_path / "b.csv")) == 3
    report = evaluate_boxes(tested, found, tmp_path / "b.csv", bootstrap=100)
    assert report["lesions"] == 3
    assert "3 left out (there twice" in report["accounts"][1]["sentence"]
    with pytest.raises(PredictionsError, match="is the target that of a lesion"):
        evaluate_boxes(tested.assign(target=1 - tested["target"]), found, boxes, bootstrap=100)
