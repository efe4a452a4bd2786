from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_decisions_are_not_taken_for_probabilities(scores):
    table = scores({"a": 1.0}).drop(columns="logit")
    table["probability"] = table["probability"].round()
    assert any(
        "they are decisions" in warning
        for warning in evaluate(table, bootstrap=100).to_dict()["warnings"]
    )


def test_folds_without_pairs_are_left_out_and_named(scores):
    table = scores({"a": 1.0}, folds=4)
    table.loc[table["fold"] == 2, "target"] = 1
    report = evaluate(table[table["part"] == "test"], bootstrap=100).to_dict()
    assert any(
        warning.startswith("Fold 2: only one class was tested") for warning in report["warnings"]
    )
    kept = evaluate(
        table[(table["part"] == "test") & (table["fold"] != 2)], bootstrap=100
    ).to_dict()
    assert report["arms"]["a"]["auc"]["estimate"] == pytest.approx(
        kept["arms"]["a"]["auc"]["estimate"]
    )


def test_the_caveat_of_one_seed_says_what_judges_the_difference(scores):
    def said(table):
        (text,) = [
            text
            for text in evaluate(table, bootstrap=100).to_dict()["warnings"]
            if text.startswith("One seed")
        ]
        return text

    table = scores({"a": 1.5, "b": 0.6}, folds=4)
    assert "judged by how the 4 folds vary" in said(table)
    other = table.assign(fold=np.where(table["arm"] == "b", 3 - table["fold"], table["fold"]))
    assert "nothing here shows it" in said(other)
    assert "nothing here shows it" in said(table[table["arm"] == "a"])


def test_rows_that_look_like_copies_or_classes_are_asked_about():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "patient": np.repeat(np.arange(30), 3),
            "target": np.tile([1, 0, 0], 30),
            "probability": rng.random(90),
        }
    )
    warnings = " ".join(evaluate(table, bootstrap=100).to_dict()["warnings"])
    assert "Exactly one row in 3 of every patient has target 1." in warnings
    assert "Are they copies?" not in warnings
    again = pd.concat(
        [
            table,
            table.iloc[:2],
            pd.DataFrame({"patient": [99], "target": [0], "probability": [0.2]}),
        ]
    )
    warnings = " ".join(evaluate(again, bootstrap=100).to_dict()["warnings"])
    assert "2 test rows say the same as another row of their patient." in warnings
    assert "Exactly one row" not in warnings
