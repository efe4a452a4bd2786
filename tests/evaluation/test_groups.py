"""Subgroups, several labels, outliers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation import evaluate
from medtransfer.evaluation.analyses.subgroups import band
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def with_columns(table, **columns):
    about = pd.DataFrame(
        {"patient": sorted(set(table["patient"]), key=lambda p: int(p[1:]))}
    ).assign(**columns)
    return table.merge(about, on="patient")


def test_a_subgroup_is_an_evaluation_of_its_rows(scores):
    table = with_columns(
        scores({"a": 1.0, "b": 0.5}, patients=200),
        sex=["f", "f", "m", "m"] * 50,
        age=np.arange(200),
    )
    report = evaluate(table, bootstrap=100, subgroups=["sex", "age"]).to_dict()
    groups = {(row["column"], row["group"]): row for row in report["subgroups"]}
    assert len(groups) == 5
    women = groups["sex", "f"]
    alone = evaluate(table[table["sex"] == "f"], bootstrap=100).to_dict()
    assert women["patients"] == alone["patients"] == 100
    for arm in ("a", "b"):
        assert women["arms"][arm]["auc"] == pytest.approx(
            {k: v for k, v in alone["arms"][arm]["auc"].items() if k in women["arms"][arm]["auc"]}
        )
        assert women["arms"][arm]["slope"]["estimate"] == pytest.approx(
            alone["arms"][arm]["calibration"]["slope"]["estimate"]
        )
    men = groups["sex", "m"]
    difference = women["arms"]["a"]["auc"]["estimate"] - men["arms"]["a"]["auc"]["estimate"]
    assert women["arms"]["a"]["auc_difference"]["estimate"] == pytest.approx(difference)
    assert women["interaction"]["estimate"] == pytest.approx(-men["interaction"]["estimate"])
    assert (
        women["interaction"]["low"]
        < women["interaction"]["estimate"]
        < women["interaction"]["high"]
    )
    assert "p" not in women["interaction"]
    # Of two groups the intervals hold together at 95 %, and one test says whether they differ.
    single = women["arms"]["a"]["auc_difference"]
    assert 0 <= women["arms"]["a"]["heterogeneity_p"] == men["arms"]["a"]["heterogeneity_p"] <= 1
    assert single["low"] < single["estimate"] < single["high"]


def test_small_groups_are_counted_and_nothing_more(scores):
    table = with_columns(scores({"a": 1.0}, patients=60), site=["big"] * 52 + ["small"] * 8)
    rows = evaluate(table, bootstrap=100, subgroups=["site"]).to_dict()["subgroups"]
    small = next(row for row in rows if row["group"] == "small")
    assert small["suppressed"]
    assert small["arms"] == {}
    assert small["patients"] == 8


def test_bands_of_numbers_and_what_is_not_stated():
    assert band(pd.Series(["1", "0", None, " "])).tolist() == ["1", "0", "not stated", "not stated"]
    ages = band(pd.Series(range(30)))
    assert ages.nunique() == 3
    assert ages.value_counts().tolist() == [10, 10, 10]
    assert band(pd.Series([1, 2, 2, 1])).tolist() == ["1", "2", "2", "1"]
    assert band(pd.Series(range(12))).nunique() == 12  # may be the codes of sites
    assert band(pd.Series(np.arange(12) / 7)).tolist()[0] == "below 0.524"


def test_a_column_that_is_not_there_is_told(scores):
    with pytest.raises(PredictionsError, match="no column scanner"):
        evaluate(scores({"a": 1.0}), bootstrap=100, subgroups="scanner")


def classes_table(patients=150, seed=0, arm="a", strength=1.5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, patients)
    p = softmax(strength * np.eye(3)[truth] * 2 + rng.normal(size=(patients, 3)), axis=1)
    part = np.where(np.arange(patients) % 3 == 0, "tune", "test")
    frames = [
        pd.DataFrame(
            {
                "arm": arm,
                "patient": np.arange(patients),
                "image": np.arange(patients),
                "part": part,
                "label": name,
                "target": (truth == c) * 1,
            }
        ).assign(probability=p[:, c])
        for c, name in enumerate(("benign", "malignant", "normal"))
    ]
    return pd.concat(frames, ignore_index=True), truth[part == "test"], p[part == "test"]


def test_classes_that_exclude_each_other():
    table, truth, p = classes_table()
    report = evaluate(table, bootstrap=200).to_dict()
    arm = report["arms"]["a"]
    assert arm["auc"]["estimate"] == pytest.approx(
        roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=1e-9
    )
    assert arm["auc_one_against_one"]["estimate"] == pytest.approx(
        roc_auc_score(truth, p, multi_class="ovo", average="macro"), abs=1e-9
    )
    assert arm["auc"]["low"] < arm["auc"]["estimate"] < arm["auc"]["high"]
    str(evaluate(table, bootstrap=100))
    assert arm["accuracy"]["share"] == pytest.approx((p.argmax(1) == truth).mean())
    top, right = p.max(1), p.argmax(1) == truth
    which = np.searchsorted(np.quantile(top, np.linspace(0, 1, 11)[1:-1]), top, side="right")
    gaps = [abs((top - right)[which == b].sum()) for b in range(10)]
    assert arm["accuracy"]["confidence_ece"] == pytest.approx(sum(gaps) / len(top), abs=0.01)
    assert set(report["labels"]) == {"benign", "malignant", "normal"}
    one = report["labels"]["malignant"]["arms"]["a"]
    assert one["auc"]["estimate"] == pytest.approx(roc_auc_score(truth == 1, p[:, 1]))
    assert one["recalibrated"]["method"] == arm["recalibrated"]["method"] == "vector"


def test_vector_scaling_mends_probabilities_that_are_too_sharp():
    table, _, _ = classes_table(patients=900, strength=0.5)
    cubed = table["probability"] ** 3
    table["probability"] = cubed / cubed.groupby(table["image"]).transform("sum")
    arm = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]
    assert arm["recalibrated"]["log_loss"]["estimate"] < 0.8 * arm["log_loss"]["estimate"]
    assert abs(arm["recalibrated"]["calibration"]["slope"]["estimate"] - 1) < 0.2


def test_labels_that_stand_for_themselves_with_unknown_targets(scores):
    edema, mass = scores({"a": 1.0, "b": 0.2}, seed=1), scores({"a": 0.5, "b": 0.4}, seed=2)
    table = pd.concat([edema.assign(label="edema"), mass.assign(label="mass")], ignore_index=True)
    table["target"] = table["target"].astype(object)
    unknown = table.index[(table["label"] == "mass") & (table["patient"] == "P3")]
    table.loc[unknown, "target"] = np.nan
    report = evaluate(table, bootstrap=200).to_dict()
    assert report["labels"]["edema"]["images"] == 120
    assert report["labels"]["mass"]["images"] == 119
    assert any(f"{len(unknown)} rows have no target" in warning for warning in report["warnings"])
    means = [report["labels"][label]["arms"]["a"]["auc"]["estimate"] for label in ("edema", "mass")]
    assert report["arms"]["a"]["auc"]["estimate"] == pytest.approx(np.mean(means))
    (comparison,) = report["comparisons"]
    assert (
        comparison["delta_auc"]["low"]
        < comparison["delta_auc"]["estimate"]
        < comparison["delta_auc"]["high"]
    )
    assert "auc_one_against_one" not in report["arms"]["a"]


def test_the_mean_over_labels_knows_that_they_share_patients(scores):
    """The same label twice carries no more than once."""
    once = scores({"a": 1.0})
    twice = pd.concat([once.assign(label="x"), once.assign(label="y")], ignore_index=True)
    first, second = (
        evaluate(t, bootstrap=100).to_dict()["arms"]["a"]["auc"] for t in (once, twice)
    )
    assert second["estimate"] == pytest.approx(first["estimate"])
    assert second["high"] - second["low"] == pytest.approx(first["high"] - first["low"], rel=0.03)


def test_outliers_are_counted_and_their_errors_compared(scores):
    table = scores({"a": 1.0}, patients=200)
    table["typical"] = 0.5
    odd = table["patient"].isin([f"P{i}" for i in range(20)])
    table.loc[odd, "typical"] = 0.01
    table.loc[odd, "logit"] = 4.0 * (0.5 - table.loc[odd, "target"])  # confidently wrong
    table["probability"] = 1 / (1 + np.exp(-table["logit"]))
    found = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]["outliers"]
    assert found["flagged"]["estimate"] == pytest.approx(0.1)
    assert found["difference"]["low"] > 0.2
    assert found["brier_flagged"]["estimate"] > found["brier_others"]["estimate"]
    assert (
        evaluate(table.drop(columns="typical"), bootstrap=100).to_dict()["arms"]["a"]["outliers"]
        is None
    )


def test_log_loss_of_one_label_is_scikit_learns():
    table, truth, p = classes_table()
    entry = evaluate(table, bootstrap=100).to_dict()["labels"]["benign"]["arms"]["a"]
    assert entry["log_loss"]["estimate"] == pytest.approx(log_loss(truth == 0, p[:, 0]), abs=1e-9)
