from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.verdict import verdict
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_verdict_says_cannot_tell_when_the_interval_holds_zero(scores):
    same = evaluate(scores({"a": 0.8, "b": 0.8}), bootstrap=500).to_dict()["comparisons"][0]
    assert same["delta_auc"]["low"] <= 0 <= same["delta_auc"]["high"]
    assert same["verdict"].startswith("Cannot tell whether a or b")
    better = evaluate(scores({"a": 2.0, "b": 0.3}, folds=5), bootstrap=500).to_dict()[
        "comparisons"
    ][0]
    assert better["verdict"].startswith("a separates the classes better than b")
    assert better["delta_auc"]["p"] < 0.05
    worse = evaluate(
        scores({"a": 2.0, "b": 0.3}, folds=5), bootstrap=500, arms=["b", "a"]
    ).to_dict()["comparisons"][0]
    assert worse["verdict"].startswith("b separates the classes worse than a")
    assert worse["delta_auc"]["estimate"] == pytest.approx(-better["delta_auc"]["estimate"])


def test_the_verdict_says_what_its_interval_covers(scores):
    single = evaluate(scores({"a": 2.0, "b": 0.3}, folds=1), bootstrap=100).to_dict()[
        "comparisons"
    ][0]
    assert single["delta_auc"]["covers"] == "models"
    assert single["verdict"].startswith(
        "As these models were trained, a separates the classes better than b"
    )
    folds = evaluate(scores({"a": 2.0, "b": 0.3}, folds=5), bootstrap=100).to_dict()["comparisons"][
        0
    ]
    assert folds["delta_auc"]["covers"] == "training"
    assert "with the variation between trainings" in folds["verdict"]
    differences = [
        a - b for a, b in zip(*fold_aucs(scores({"a": 2.0, "b": 0.3}, folds=5)), strict=True)
    ]
    half = student.ppf(0.975, 4) * np.std(differences, ddof=1) / np.sqrt(5)
    assert folds["delta_auc"]["high"] - folds["delta_auc"]["estimate"] == pytest.approx(
        half, rel=0.05
    )  # folds are nearly of one size
    models = folds["delta_auc"]["models"]
    assert models["low"] < folds["delta_auc"]["estimate"] < models["high"]


def fold_aucs(table):

    test = table[table["part"] == "test"]
    parts = {
        key: roc_auc_score(rows["target"], rows["logit"])
        for key, rows in test.groupby(["arm", "fold"])
    }
    return [[parts[arm, fold] for fold in range(5)] for arm in "ab"]


def test_models_that_differ_where_trainings_may_not_are_told_apart_in_words(scores):
    table = scores({"a": 0.9, "b": 0.6}, patients=400, folds=2)
    comparison = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]
    delta = comparison["delta_auc"]
    assert delta["low"] < 0 < delta["models"]["low"]
    assert comparison["verdict"].startswith(
        "Cannot tell whether a or b separates the classes better when they are trained again"
    )
    assert "Of the models at hand, those of a do better" in comparison["verdict"]


def test_a_more_cautious_interval_that_says_otherwise_is_named(scores):
    report = evaluate(scores({"a": 2.0, "b": 0.3}, folds=5), bootstrap=100).to_dict()
    entry = report["comparisons"][0]
    entry["delta_auc"]["folds"] = {"estimate": 0.2, "low": 0.01, "high": 0.4}
    assert "overlapping training sets" not in verdict(entry, (0.9, 0.7))
    entry["delta_auc"]["folds"] = {"estimate": 0.2, "low": -0.01, "high": 0.4}
    assert (
        "An interval that allows for overlapping training sets includes 0 (-0.010 to +0.400)"
        in verdict(entry, (0.9, 0.7))
    )
