from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.evaluate import evaluate
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_auc_is_the_mean_over_models_and_the_pooled_one_stands_beside_it(scores):
    table = scores({"a": 0.8}, seeds=3)
    test = table[table["part"] == "test"]
    entry = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]
    pooled = np.mean(
        [roc_auc_score(rows["target"], rows["logit"]) for _, rows in test.groupby("seed")]
    )
    assert entry["pooled"]["auc"]["estimate"] == pytest.approx(pooled)
    models = {
        key: (roc_auc_score(r["target"], r["logit"]), r["target"].sum() * (1 - r["target"]).sum())
        for key, r in test.groupby(["seed", "fold"])
    }
    by_seed = [
        np.average([models[s, f][0] for f in (0, 1)], weights=[models[s, f][1] for f in (0, 1)])
        for s in range(3)
    ]
    assert entry["auc"]["estimate"] == pytest.approx(np.mean(by_seed))
    assert {
        (row["seed"], row["fold"]): row["auc"] for row in entry["auc"]["by_model"]
    } == pytest.approx({k: v[0] for k, v in models.items()})
    assert (
        evaluate(scores({"a": 0.8}, folds=1), bootstrap=100).to_dict()["arms"]["a"]["pooled"]
        is None
    )


def test_every_seed_is_binned_by_its_own_scores_and_a_copy_of_a_seed_changes_nothing(scores):
    first, second = (scores({"a": strength}, patients=200, seed=1) for strength in (1.0, 0.4))
    second["logit"] += 4  # a model whose scores lie elsewhere
    second["probability"] = 1 / (1 + np.exp(-second["logit"]))

    def entry(*tables):
        table = pd.concat([table.assign(seed=seed) for seed, table in enumerate(tables)])
        report = evaluate(table, bootstrap=100).to_dict()
        return report["arms"]["a"], report["warnings"]

    alone, other, both = entry(first)[0], entry(second)[0], entry(first, second)[0]
    for metric in ("ece", "l2_ece"):
        assert both[metric]["estimate"] == pytest.approx(
            (alone[metric]["estimate"] + other[metric]["estimate"]) / 2
        )
    twice, warnings = entry(first, first)
    assert twice["ece"]["estimate"] == pytest.approx(alone["ece"]["estimate"])
    assert twice["recalibrated"]["chosen"] == alone["recalibrated"]["chosen"]
    assert any(
        warning.startswith("Seed 1: every arm predicts as it does with an earlier seed")
        for warning in warnings
    )


def test_a_test_part_of_one_model_gives_what_it_gave(scores):
    """One fold is the plain AUC with DeLong's interval, and what is pooled is not told twice."""
    table = scores({"a": 1.0}, folds=1)
    entry = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]
    assert entry["pooled"] is None
    assert entry["auc"]["estimate"] == entry["auc"]["fold_mean"]


def test_models_that_are_given_have_intervals_over_patients_alone(scores):
    """Two models of a study on a second cohort are not two draws of a training: their mean is held
    by the patients.
    """
    table = pd.concat(
        [scores({"a": s}, folds=1, seed=1).assign(seed=i) for i, s in enumerate((1.5, 0.2))]
    )
    sampled, given = (
        evaluate(table, bootstrap=100, models=kind).to_dict()["arms"]["a"]["auc"]
        for kind in ("sampled", "given")
    )
    assert sampled["high"] - sampled["low"] > 0.5
    assert given["high"] - given["low"] < 0.2
    assert given["estimate"] == sampled["estimate"]
    assert [row["seed"] for row in given["by_model"]] == [0, 1]
