from __future__ import annotations

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import LeakageError, PredictionsError
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.tables.predictions import read_predictions, write_predictions

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def without_accounts(report):
    """All of a report but where its rows come from."""
    return {key: value for key, value in report.to_dict().items() if key != "accounts"}


def test_a_round_trip_through_csv_gives_the_same_numbers(scores, tmp_path):
    table = scores({"a": 1.0, "b": 0.7})
    write_predictions(
        mt.read_predictions.__globals__["check_predictions"](table), tmp_path / "p.csv"
    )
    again = read_predictions(tmp_path / "p.csv")
    assert (again["logit"].to_numpy() == table["logit"].to_numpy()).all()
    assert without_accounts(evaluate(tmp_path / "p.csv", bootstrap=200)) == without_accounts(
        evaluate(table, bootstrap=200)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="target"), "no column target"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(target=2), "row 2: target is 2; use 0 or 1"),
        (
            lambda t: t.assign(target=t["target"].map({0: "benign", 1: "malignant"})),
            "holds benign, malignant, not 0 and 1. Write 0 and 1",
        ),
        (
            lambda t: t.assign(target=np.arange(len(t)) % 3),
            "holds 0, 1, 2, not 0 and 1. Of several classes give one row per class",
        ),
        (
            lambda t: t.assign(target=["lesion", *t["target"][1:]]),
            "row 2: target is 'lesion', not a number",
        ),
        (lambda t: t.assign(probability=100 * t["probability"]), "are they per cent"),
        (lambda t: t.assign(probability=1.5, logit=0.0), "outside 0 to 1"),
        (
            lambda t: t.assign(probability=[np.nan, *t["probability"][1:]]),
            "row 2: probability is empty",
        ),
        (lambda t: t.assign(probability=np.nan, logit=np.nan), "row 2: probability is empty"),
        (lambda t: t.assign(probability="high"), "'high', not a number"),
        (lambda t: t.assign(probability=0.9, logit=-3.0), "disagree"),
        (lambda t: t.assign(image="same"), "is there twice"),
        (lambda t: t.assign(seed=0.5), "seed is 0.5, not a whole number"),
        (lambda t: t.assign(part="holdout"), "use train, tune or test"),
        (lambda t: t.assign(part="tune"), "no row has part = test"),
        (lambda t: t.assign(target=np.nan), "column target is empty"),
        (lambda t: t.assign(seed=1e30), "seed is 1e.30, not a whole number"),
        (lambda t: t.assign(size=7), "Rename it if it is something else"),
        (lambda t: t.assign(size=7, episode=1), "every one has a size above 0"),
        (lambda t: t.assign(image=np.nan), "row 2: image is empty"),
        (
            lambda t: t.assign(label=np.where(t["target"] == 1, "malignant", "benign")),
            "column label holds the class",
        ),
    ],
)
def test_a_faulty_table_is_refused_with_the_place(scores, change, message):
    table = scores({"a": 1.0}, patients=20, folds=1)
    with pytest.raises(PredictionsError, match=message):
        evaluate(change(table), bootstrap=100)


def test_a_patient_tested_in_two_folds_is_a_leak(scores):
    table = scores({"a": 1.0}, views=2)
    test = table.index[table["part"] == "test"]
    table.loc[test[0], "fold"] = 1 - table.loc[test[0], "fold"]
    with pytest.raises(LeakageError, match="patient P0"):
        evaluate(table, bootstrap=100)


def test_a_patient_tuned_and_tested_in_one_fold_is_a_leak(scores):
    table = scores({"a": 1.0})
    table.loc[table["part"] == "tune", "fold"] = 1 - table.loc[table["part"] == "tune", "fold"]
    with pytest.raises(LeakageError, match="more than one part of a fold"):
        evaluate(table, bootstrap=100)


def test_image_names_reused_in_another_fold_are_refused(scores):
    table = scores({"a": 1.0})
    table["image"] = table["image"].str.split("/").str[1].astype(int) // 2
    with pytest.raises(PredictionsError, match="is there twice"):
        evaluate(table, bootstrap=100)


def test_names_may_be_numbers(scores):
    table = scores({"a": 1.0}).assign(arm=1, label=5)
    assert evaluate(table, bootstrap=100).to_dict()["arms"]["1"]["recalibrated"] is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "patient,target,probability\nA,1,0,0.7\nB,0,0,0.2\n",
            "row 2 has 4 cells, and the header in row 1 has 3 names.*decimal comma",
        ),
        (
            "patient,target,probability,probability\nA,1,0.7,0.6\n",
            "column probability appears twice",
        ),
    ],
)
def test_files_that_would_be_read_wrongly_are_refused(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(tmp_path / "p.csv")


def test_targets_may_be_true_and_false(scores, tmp_path):
    table = scores({"a": 1.0})
    plain = evaluate(table, bootstrap=100).to_dict()
    table.assign(target=table["target"].map({0: "False", 1: "True"})).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert without_accounts(evaluate(tmp_path / "t.csv", bootstrap=100)) == {
        key: value for key, value in plain.items() if key != "accounts"
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p7", "p7 "),
        ("p7", "P7"),
        ("7", "007"),
        ("12", "12.0"),
        ("p7", "p7\u200b"),
        ("é", "e\u0301"),
    ],
)
def test_one_patient_in_two_spellings_on_both_sides_is_a_leak(one, other):
    rows = [
        (one, "tune", 0, 0.3),
        (other, "test", 0, 0.4),
        *((f"q{i}", "test", i % 2, 0.2 + 0.1 * i) for i in range(6)),
    ]
    frame = pd.DataFrame(rows, columns=["patient", "part", "target", "probability"])
    with pytest.raises(LeakageError):
        evaluate(frame, bootstrap=100)
    if one == "p7" and other == "P7":
        assert evaluate(frame, bootstrap=100, look_alikes="different").to_dict()["patients"] == 7


def test_look_alikes_on_one_side_are_told():
    frame = pd.DataFrame(
        {
            "patient": ["7", "007", "1", "2"],
            "target": [0, 1, 0, 1],
            "probability": [0.1, 0.8, 0.3, 0.6],
        }
    )
    assert any(
        "may be written in two ways, such as 7 and 007" in text
        for text in evaluate(frame, bootstrap=100).to_dict()["warnings"]
    )
