"""Predictions and lesions as spreadsheets and statistics programs write them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.tables.candidates import read_lesions as read_lesion_table

from wild_files import BOX


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
