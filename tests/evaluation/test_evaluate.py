from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.report.build import build_report
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def numbers(value, path=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{path}.{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from numbers(part, f"{path}[{i}]")
    else:
        yield path, value


def test_report_has_the_keys_others_rely_on(scores):
    data = evaluate(scores({"a": 1.5, "b": 0.5}, seeds=2), bootstrap=200).to_dict()
    assert set(data["arms"]) == {"a", "b"}
    for arm in data["arms"].values():
        for part in (arm, arm["recalibrated"]):
            assert {"estimate", "low", "high", "method"} <= set(part["auc"])
            for key in ("average_precision", "brier", "brier_skill", "log_loss"):
                assert {"estimate", "low", "high"} <= set(part[key])
            assert {"estimate", "low", "high", "null_mean", "null_high"} <= set(part["ece"])
            for key in ("intercept", "slope", "observed_expected", "ici"):
                assert {"estimate", "low", "high"} <= set(part["calibration"][key])
    (comparison,) = data["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("a", "b")
    for key in ("delta_auc", "delta_brier", "delta_slope"):
        assert {"estimate", "low", "high", "p"} <= set(comparison[key])
    assert isinstance(comparison["verdict"], str)
    assert data["learning_curve"] == []
    assert isinstance(data["warnings"], list)
    json.dumps(data, allow_nan=False)


def test_three_columns_are_enough():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 60)
    table = pd.DataFrame(
        {
            "patient": range(60),
            "target": target,
            "probability": np.clip(rng.normal(0.3 + 0.3 * target, 0.2), 0, 1),
        }
    )
    data = evaluate(table, bootstrap=200).to_dict()
    assert data["arms"]["model"]["auc"]["estimate"] == pytest.approx(
        roc_auc_score(target, table["probability"])
    )
    assert data["comparisons"] == []
    assert data["arms"]["model"]["recalibrated"] is None
    assert any("not recalibrated" in warning for warning in data["warnings"])
    assert any("exactly 0 or 1" in warning for warning in data["warnings"])


@pytest.mark.parametrize("n", [2, 5])
def test_tiny_and_perfect_tables_are_told_not_guessed(n):
    table = pd.DataFrame(
        {"patient": range(2 * n), "target": [0, 1] * n, "probability": [0.2, 0.9] * n}
    )
    report = evaluate(table, bootstrap=100)
    arm = report.to_dict()["arms"]["model"]
    assert arm["auc"]["estimate"] == 1
    assert arm["auc"]["low"] < 0.99
    assert arm["calibration"]["slope"]["estimate"] is None
    assert "reason" in arm["calibration"]["slope"]
    assert "Cannot tell" in arm["trust"]
    assert "not estimable" in str(report)


def test_all_scores_equal_is_chance():
    table = pd.DataFrame({"patient": range(40), "target": [0, 1] * 20, "probability": 0.5})
    arm = evaluate(table, bootstrap=100).to_dict()["arms"]["model"]
    assert arm["auc"]["estimate"] == 0.5
    assert arm["auc"]["low"] < 0.5 < arm["auc"]["high"]


EDGES = {
    "one class": {"target": [1] * 8, "probability": np.linspace(0.1, 0.9, 8)},
    "one patient": {
        "patient": ["P"] * 4,
        "target": [0, 1, 1, 0],
        "probability": [0.2, 0.7, 0.6, 0.4],
    },
    "one image": {"target": [1], "probability": [0.7]},
    "five images": {"target": [0, 1, 0, 1, 1], "probability": [0.1, 0.4, 0.4, 0.8, 0.3]},
    "all equal": {"target": [0, 1] * 10, "probability": 0.5},
    "all ties but one": {"target": [0, 1] * 10, "probability": [0.5] * 19 + [0.6]},
    "certain": {"target": [0, 1] * 10, "probability": [0.0, 1.0] * 10},
    "certain and wrong": {"target": [0, 1] * 10, "probability": [1.0, 0.0] * 10},
    "separated": {"target": [0] * 15 + [1] * 15, "probability": np.linspace(0.05, 0.95, 30)},
    "weights": {
        "target": [0, 1] * 20,
        "probability": np.linspace(0.2, 0.8, 40),
        "weight": [0.5, 2.0] * 20,
    },
    "weights of 0": {
        "target": [0, 1] * 20,
        "probability": np.linspace(0.2, 0.8, 40),
        "weight": [0.0, 1.0] * 20,
    },
    "fold without a class": {
        "target": [0, 1] * 10 + [1] * 5,
        "probability": np.linspace(0.2, 0.8, 25),
        "fold": [0] * 20 + [1] * 5,
    },
    "unknown targets": {"target": [0, 1, np.nan] * 8, "probability": np.linspace(0.2, 0.8, 24)},
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_give_a_number_with_its_caveat_or_the_reason(name, tmp_path):
    """Never a crash, never NaN in the file, never an interval without an estimate, and a page."""
    table = pd.DataFrame(EDGES[name])
    if "patient" not in table.columns:
        table.insert(0, "patient", [f"P{i}" for i in range(len(table))])
    both = pd.concat(
        [table.assign(arm="a"), table.assign(arm="b", probability=1 - table["probability"])]
    )
    choices = {"weight": "weight"} if "weight" in table.columns else {}
    for case in (table, both):
        report = evaluate(case, bootstrap=100, **choices)
        json.dumps(report.to_dict(), allow_nan=False)
        str(report)
        for entry in report.to_dict()["arms"].values():
            for path, value in numbers(
                {
                    key: entry[key]
                    for key in ("auc", "brier", "log_loss", "ece", "calibration", "brier_skill")
                }
            ):
                assert not (isinstance(value, float) and not np.isfinite(value)), path
            for metric in (
                entry["auc"],
                *(v for v in entry["calibration"].values() if isinstance(v, dict)),
            ):
                if metric["estimate"] is None:
                    assert metric["low"] is None
                    assert metric["reason"]
    report.save(tmp_path / "report.json")
    assert "<h1>" in build_report(tmp_path, ["svg"]).read_text(encoding="utf-8")
    if name == "one class":
        arm = evaluate(table, bootstrap=100).to_dict()["arms"]["model"]
        assert arm["auc"]["reason"] == "not estimable: no negative image"
        assert arm["brier"]["estimate"] is not None
    if name == "separated":
        arm = evaluate(table, bootstrap=100).to_dict()["arms"]["model"]
        assert arm["auc"]["low"] < 1 == arm["auc"]["high"]
        assert arm["calibration"]["slope"]["estimate"] is None
    if name == "weights of 0":
        assert (
            evaluate(table, bootstrap=100, weight="weight").to_dict()["arms"]["model"]["auc"][
                "estimate"
            ]
            is None
        )
        # A column of this name that nobody asked for may be the weight of a body.
        assert (
            evaluate(table, bootstrap=100).to_dict()["arms"]["model"]["auc"]["estimate"] is not None
        )


def test_weights_count_images_several_times(scores):
    table = scores({"a": 1.0}, folds=1)
    heavy = table["patient"].str[1:].astype(int) % 3 == 0
    copies = pd.concat(
        [table, table[heavy].assign(image=table["image"] + "-again")], ignore_index=True
    )
    weighted = evaluate(
        table.assign(times=np.where(heavy, 2.0, 1.0)), bootstrap=200, weight="times"
    ).to_dict()["arms"]["a"]
    copied = evaluate(copies, bootstrap=200, unit="image").to_dict()["arms"]["a"]
    for key in ("auc", "brier", "log_loss", "average_precision", "brier_skill"):
        assert weighted[key]["estimate"] == pytest.approx(copied[key]["estimate"])
    # Several images of a patient call for Student's t, which is a little wider.
    for key in ("intercept", "slope", "observed_expected"):
        for bound in ("estimate", "low", "high"):
            assert weighted["calibration"][key][bound] == pytest.approx(
                copied["calibration"][key][bound], abs=0.01
            )
    assert (weighted["auc"]["low"], weighted["auc"]["high"]) == pytest.approx(
        (copied["auc"]["low"], copied["auc"]["high"]), abs=0.002
    )


def test_wrong_arguments_from_python_are_told(scores):
    with pytest.raises(PredictionsError, match="the predictions are a list; give a DataFrame"):
        evaluate([1, 2])
    with pytest.raises(PredictionsError, match="margn: no setting of an evaluation"):
        evaluate(scores({"a": 1.0}), margn=0.1)


def test_both_units_are_shown(scores):
    table = scores({"a": 1.0, "b": 0.5}, views=3)
    by_image = evaluate(table, bootstrap=100, unit="image").to_dict()
    by_patient_ = evaluate(
        table, bootstrap=100
    ).to_dict()  # where patients have several images, they are what is counted
    assert by_image["other_unit"]["unit"] == "patient, mean of the images"
    assert (by_patient_["unit"], by_patient_["aggregate"]) == ("patient", "mean")
    assert by_image["images"] == by_patient_["other_unit"]["cases"] == 360
    assert by_patient_["images"] == by_image["other_unit"]["cases"] == 120
    for arm in ("a", "b"):
        assert (
            by_image["other_unit"]["arms"][arm]["auc"]["estimate"]
            == by_patient_["arms"][arm]["auc"]["estimate"]
        )
        assert (
            by_patient_["other_unit"]["arms"][arm]["auc"]["estimate"]
            == by_image["arms"][arm]["auc"]["estimate"]
        )
        for key in ("intercept", "observed_expected"):
            again = by_image["other_unit"]["arms"][arm]["recalibrated"][key]["estimate"]
            assert again == by_patient_["arms"][arm]["recalibrated"]["calibration"][key]["estimate"]
    assert evaluate(scores({"a": 1.0}), bootstrap=100).to_dict()["other_unit"] is None
