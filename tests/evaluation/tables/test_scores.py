from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.tables.scores import by_patient
from scipy.special import expit

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_patients_joined_by_hand():
    table = pd.DataFrame(
        {
            "arm": "a",
            "seed": 0,
            "fold": 0,
            "part": "test",
            "label": "y",
            "patient": ["P", "P", "Q"],
            "image": ["1", "2", "3"],
            "target": [0, 1, 0],
            "probability": [0.2, 0.5, 0.9],
        }
    )
    table["logit"] = np.log(table["probability"] / (1 - table["probability"]))
    expected = {"max": 0.5, "mean": 1 / 3, "noisy_or": 1 - 0.8 * 0.5}
    for rule, value in expected.items():
        joined = by_patient(table, rule)
        assert joined["probability"].tolist() == pytest.approx([value, 0.9])
        assert expit(joined["logit"]).tolist() == pytest.approx([value, 0.9])
        assert joined["target"].tolist() == [1, 0]


def test_a_patient_of_whom_an_image_is_unknown_is_negative_only_if_all_are():
    base = {"arm": "a", "probability": 0.4}
    rows = [
        ("P", 0),
        ("P", np.nan),
        ("Q", 1),
        ("Q", np.nan),
        ("R", 0),
        ("R", 0),
        ("S", 1),
        ("S", 1),
    ]
    table = pd.DataFrame(
        [{**base, "patient": p, "image": f"{p}{i}", "target": t} for i, (p, t) in enumerate(rows)]
    )
    table["probability"] = np.linspace(0.2, 0.8, len(table))
    report = evaluate(table, bootstrap=100).to_dict()
    assert (report["unit"], report["images"], report["positive_images"]) == ("patient", 3, 2)


def test_labels_of_images_are_joined_by_noisy_or(scores):
    table = scores({"a": 1.0}, views=3)
    assert evaluate(table, bootstrap=100).to_dict()["aggregate"] == "mean"
    mixed = table.copy()
    mixed.loc[mixed["image"].str.endswith("0"), "target"] = 0
    report = evaluate(mixed, bootstrap=100).to_dict()
    assert (report["unit"], report["aggregate"]) == ("patient", "noisy_or")
    # Where every patient is positive there is nothing to compare patients by.
    every = table.assign(
        target=(table.groupby(["fold", "part", "patient"]).cumcount() == 0).astype(int)
    )
    assert evaluate(every, bootstrap=100).to_dict()["unit"] == "image"


def test_arms_are_compared_on_the_images_they_share(scores):
    table = scores({"a": 1.0, "b": 0.5}, folds=1)
    report = evaluate(
        table.drop(index=table.index[table["arm"] == "b"][:7]), bootstrap=100
    ).to_dict()
    assert report["images"] == 113
    assert any("7 images of arm a" in warning for warning in report["warnings"])


def test_images_of_two_patients_are_refused(scores):
    table = scores({"a": 1.0, "b": 0.5})
    table.loc[table["arm"] == "b", "patient"] += "-other"
    with pytest.raises(PredictionsError, match="more than one patient"):
        evaluate(table, bootstrap=100)


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_patients_of_several_images_are_ranked_alike_whatever_the_scale_of_a_model(scores, rule):
    table = scores({"a": 1.5, "b": 0.6}, views=3, folds=3)
    rng = np.random.default_rng(4)
    fold, b = table["fold"].to_numpy(), (table["arm"] == "b").to_numpy()
    moved = table.assign(
        logit=np.where(
            b,
            table["logit"] * rng.uniform(0.3, 3, 3)[fold] + rng.normal(0, 2, 3)[fold],
            table["logit"],
        )
    )
    moved["probability"] = 1 / (1 + np.exp(-moved["logit"]))
    before, after = (
        evaluate(of, bootstrap=100, unit="patient", aggregate=rule).to_dict()
        for of in (table, moved)
    )
    for arm in "ab":
        for key in ("auc", "average_precision", "partial_auc"):
            for end in ("estimate", "low", "high"):
                assert after["arms"][arm][key][end] == pytest.approx(
                    before["arms"][arm][key][end], abs=1e-9
                )
    assert after["comparisons"][0]["verdict"] == before["comparisons"][0]["verdict"]


def test_of_a_patient_the_least_typical_image_counts_and_no_column_is_lost(scores):
    table = scores({"a": 1.0}, views=2, patients=80)
    second = table["image"].str.endswith(("1", "3", "5", "7", "9"))
    table["scanner"] = np.where(second, "B", "A")
    table["age"] = np.where(second, 50, 40)
    table["typical"] = np.where(second, 0.01, 0.9)
    report = evaluate(table, bootstrap=100, subgroups=["scanner", "age"]).to_dict()
    assert report["unit"] == "patient"
    assert report["arms"]["a"]["outliers"]["flagged"]["estimate"] == 1
    assert {row["group"] for row in report["subgroups"] if row["column"] == "scanner"} == {
        "several"
    }
    assert {row["group"] for row in report["subgroups"] if row["column"] == "age"} == {"45.0"}
