"""Arms that were trained until level: what is compared, what is beside it, and what the sentences
say.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.budgets import levelled_arms, split_budgets
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.headline import headline
from medtransfer.evaluation.tables.predictions import check_predictions

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def rows(arm, strength, seed=0, budget=None, folds=3, patients=120):
    rng = np.random.default_rng([seed, len(arm), int(100 * strength)])
    target = np.arange(patients) % 3 == 0
    table = pd.DataFrame(
        {
            "arm": arm,
            "fold": np.arange(patients) // 3 % folds,
            "part": "test",
            "image": [f"i{i}" for i in range(patients)],
            "patient": [f"p{i}" for i in range(patients)],
            "target": target.astype(int),
            "logit": strength * target + rng.normal(size=patients),
        }
    )
    return table if budget is None else table.assign(budget=budget)


@pytest.fixture(scope="module")
def table():
    parts = (
        rows("imagenet", 2.0, budget=""),
        rows("scratch", 1.2, budget="level"),
        rows("scratch", 0.4, budget="same"),
        rows("x", 1.0, budget=""),
    )
    return pd.concat(parts, ignore_index=True)


def test_both_are_compared_as_if_each_were_alone(table):
    report = evaluate(table, bootstrap=100).to_dict()
    level = evaluate(
        table[table["budget"] != "same"].drop(columns="budget"), bootstrap=100
    ).to_dict()
    same = evaluate(
        table[table["budget"] != "level"].drop(columns="budget"), bootstrap=100
    ).to_dict()
    assert {arm: entry["auc"] for arm, entry in report["arms"].items()} == {
        arm: entry["auc"] for arm, entry in level["arms"].items()
    }
    assert [pair["delta_auc"] for pair in report["comparisons"]] == [
        pair["delta_auc"] for pair in level["comparisons"]
    ]
    early = report["at_budget"]
    for arm, entry in early["arms"].items():
        assert entry["auc"]["estimate"] == same["arms"][arm]["auc"]["estimate"]
        assert entry["brier"] == pytest.approx(same["arms"][arm]["brier"])
    # Pairs without an arm that went on are what they are; the others are corrected among
    # themselves.
    assert [(pair["a"], pair["b"]) for pair in early["comparisons"]] == [
        ("imagenet", "scratch"),
        ("scratch", "x"),
    ]
    first = next(
        pair for pair in same["comparisons"] if (pair["a"], pair["b"]) == ("imagenet", "scratch")
    )
    assert early["comparisons"][0]["delta_auc"]["estimate"] == first["delta_auc"]["estimate"]
    assert early["comparisons"][0]["delta_auc"]["low"] == pytest.approx(first["delta_auc"]["low"])
    assert early["comparisons"][0]["delta_auc"]["p"] == pytest.approx(first["delta_auc"]["p"])
    assert level["at_budget"] is None


def test_the_sentences_name_what_they_compare(table):
    report = evaluate(table, bootstrap=100)
    verdicts = [pair["verdict"] for pair in report.data["comparisons"]]
    assert "scratch (trained until level or for four budgets)" in verdicts[0]
    assert "imagenet (trained" not in verdicts[0]
    assert "until level" not in verdicts[1]  # imagenet and x
    first, second, _ = headline({**report.data, "spent": {"scratch": [2.0, 4.0]}})
    assert "compared with scratch (trained until level, 2 to 4 times the budget)?" in first
    assert "; at the same budget " in second
    early = report.data["at_budget"]["comparisons"][0]
    assert early["verdict"].startswith("At the same budget: ")
    assert "until level" not in early["verdict"]
    assert any(sentence.startswith("At the same budget") for sentence in report.sentences)
    assert len(report.tables()["at_budget"]) == 2
    figures = f"{early['delta_auc']['estimate']:+.3f}"
    assert figures in second


def test_rows_of_either_kind_are_told_apart(table):
    main, early = split_budgets(table, ["scratch"])
    assert len(main) == len(early) == 360
    assert levelled_arms(table) == ["scratch"]
    assert list(dict.fromkeys(early["arm"])) == ["imagenet", "scratch", "x"]
    plain = table[table["budget"] != "same"].drop(columns="budget")
    assert split_budgets(plain, [])[0] is plain
    assert levelled_arms(plain) == []


def test_an_arm_of_another_budget_is_not_compared_at_the_same_one(table):
    """Nor is a probe, which has none."""
    other = table.copy()
    other.loc[other["arm"] == "x", "budget"] = "other"
    report = evaluate(other, bootstrap=100).to_dict()
    assert [(pair["a"], pair["b"]) for pair in report["at_budget"]["comparisons"]] == [
        ("imagenet", "scratch")
    ]
    assert list(report["at_budget"]["arms"]) == ["imagenet", "scratch"]
    assert len(report["comparisons"]) == 3


def test_detectors_need_the_column_in_both_tables():
    truth = pd.DataFrame(
        {"image": [f"i{i}" for i in range(0, 120, 3)], "x0": 1.0, "y0": 1.0, "x1": 9.0, "y1": 9.0}
    )
    tables = [
        rows("a", 1.0, budget="").assign(seed=0),
        rows("s", 1.0, budget="level").assign(seed=0),
        rows("s", 0.5, budget="same").assign(seed=0),
    ]
    predictions = pd.concat(tables, ignore_index=True).assign(label="lesion")
    candidates = predictions.assign(x0=1.0, y0=1.0, x1=9.0, y1=9.0)
    candidates.loc[candidates["budget"] == "same", "x0"] = 8.5  # nothing is found at the budget
    found = evaluate_boxes(predictions, candidates, truth, bootstrap=100)
    assert (
        found["at_budget"]["arms"]["a"]["ap_50"]["estimate"]
        == found["arms"]["a"]["ap_50"]["estimate"]
        > 0
    )
    assert (
        found["arms"]["s"]["ap_50"]["estimate"]
        > 0
        == found["at_budget"]["arms"]["s"]["ap_50"]["estimate"]
    )
    assert found["at_budget"]["comparisons"][0]["verdict"].startswith("At the same budget: ")
    with pytest.raises(
        PredictionsError, match="the predictions of s have rows at the end of the budget"
    ):
        evaluate_boxes(predictions, candidates.drop(columns="budget"), truth, bootstrap=100)


def test_another_column_of_that_name_is_refused(table):
    with pytest.raises(
        PredictionsError,
        match="column budget holds '100'; it says level, same, other or nothing. Rename it",
    ):
        check_predictions(table.assign(budget="100"))
    twice = pd.concat([table, table[table["budget"] == "same"]])
    with pytest.raises(PredictionsError, match="is there twice"):
        check_predictions(twice)


def test_a_seed_that_changes_nothing_does_not_count(table):
    main = table[table["budget"] != "same"].drop(columns="budget")
    twice = pd.concat([main.assign(seed=0), main.assign(seed=1)])
    once, both = (evaluate(of, bootstrap=100).to_dict() for of in (main.assign(seed=0), twice))
    assert both["seeds"] == 1
    assert both["comparisons"] == once["comparisons"]
    assert any("does not count as another" in warning for warning in both["warnings"])
    # Where one arm varies, it is paired with the other seed by seed.
    moved = twice.copy()
    moved.loc[(moved["seed"] == 1) & (moved["arm"] == "x"), "logit"] += np.random.default_rng(
        0
    ).normal(size=120)
    assert evaluate(moved, bootstrap=100).to_dict()["seeds"] == 2
