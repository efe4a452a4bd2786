from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.headline import headline
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from predicted import (
    assert_close,
    move_scores,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_all_deltas_are_there_and_agree_with_the_arms(scores):
    report = evaluate(
        scores({"a": 1.5, "b": 0.5, "c": 0.4}, seeds=2, folds=4),
        bootstrap=300,
        margin=0.05,
        threshold=0.3,
    ).to_dict()
    assert [(c["a"], c["b"]) for c in report["comparisons"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    for c in report["comparisons"]:
        for metric in ("auc", "brier", "log_loss", "average_precision"):
            a, b = (report["arms"][c[key]][metric]["estimate"] for key in ("a", "b"))
            assert c[f"delta_{metric}"]["estimate"] == pytest.approx(a - b, abs=1e-12)
        assert {"estimate", "low", "high", "p"} <= set(c["delta_slope"])
        assert {"estimate", "low", "high", "p", "threshold"} <= set(c["delta_net_benefit"])
        assert all(
            c[key]["p"] is None for key in c if key.startswith("delta_") and key != "delta_auc"
        )
        assert c["delta_auc"]["p_holm"] >= c["delta_auc"]["p"]
        margin = c["non_inferiority"]
        assert margin["coverage"] == pytest.approx(1 - 0.05 / 3)
        assert margin["low"] < c["delta_auc"]["low"] < c["delta_auc"]["high"] < margin["high"]
        assert (margin["shown"], margin["shown_reverse"]) == (
            margin["low"] > -0.05,
            margin["high"] < 0.05,
        )
        assert (
            c["delta_auc"]["folds"]["low"]
            < c["delta_auc"]["folds"]["estimate"]
            < c["delta_auc"]["folds"]["high"]
        )
    assert "for 3 comparisons" in report["comparisons"][0]["verdict"]
    assert "non-inferior" in report["comparisons"][0]["verdict"]


def test_what_could_have_been_seen_follows_from_the_standard_error(scores):
    table = scores({"a": 1.0, "b": 0.9}, patients=400, folds=1)
    delta = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]["delta_auc"]
    error = (delta["high"] - delta["low"]) / 2 / 1.959964
    assert delta["detectable"] == pytest.approx((1.959964 + 0.841621) * error, rel=0.01)


def test_the_mean_over_folds_is_nadeau_and_bengio(scores):
    table = scores({"a": 1.0, "b": 0.5}, folds=4, patients=200)
    folds = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]["delta_auc"]["folds"]
    test = table[table["part"] == "test"]

    parts = {
        key: roc_auc_score(rows["target"], rows["logit"])
        for key, rows in test.groupby(["arm", "fold"])
    }
    differences = [parts["a", fold] - parts["b", fold] for fold in range(4)]
    tune = (table["part"] == "tune").sum() / 2 / 4  # of each model
    ratio = np.mean(
        [(test["fold"] == f).sum() / 2 / ((test["fold"] != f).sum() / 2 - tune) for f in range(4)]
    )
    half = student.ppf(0.975, 3) * np.sqrt(np.var(differences, ddof=1) * (1 / 4 + ratio))
    assert (folds["estimate"], folds["high"]) == pytest.approx(
        (np.mean(differences), np.mean(differences) + half)
    )


def test_arms_with_other_numbers_of_seeds_are_compared_over_patients(scores):
    table = pd.concat([scores({"a": 1.0}, seeds=3), scores({"b": 0.8}, seeds=2)])
    report = evaluate(table, bootstrap=100).to_dict()
    delta = report["comparisons"][0]["delta_auc"]
    assert delta["low"] < delta["estimate"] < delta["high"]
    assert any("different seeds" in warning for warning in report["warnings"])


def test_paired_interval_agrees_with_paired_delong(scores):
    table = scores({"a": 1.2, "b": 0.8}, patients=400, folds=1)
    delta = evaluate(table, bootstrap=3000).to_dict()["comparisons"][0]["delta_auc"]
    width = (delta["high"] - delta["low"]) / (2 * norm.ppf(0.975))
    z = norm.isf(delta["p_delong"] / 2)
    assert abs(delta["estimate"]) / z == pytest.approx(width, rel=0.1)


def test_two_folds_give_no_interval_of_differences_beyond_one(scores):
    table = scores({"a": 1.5, "b": 0.2}, patients=30)
    low = table["arm"] == "b"
    table.loc[low & (table["fold"] == 0), "logit"] *= -1
    found = evaluate(table.drop(columns="probability"), bootstrap=100).to_dict()["comparisons"][0][
        "delta_auc"
    ]["folds"]
    assert found["low"] is None
    assert found["reason"] == "no interval: 2 folds tell too little"


# What may change when the scores of a model are moved: their calibration alone.
MOVED_WITH_SCORES = ("auc", "partial_auc", "average_precision")


@pytest.mark.parametrize(("folds", "seeds", "seed"), [(3, 1, 0), (2, 3, 1)])
def test_moving_the_scores_of_every_model_changes_no_ranking_no_difference_and_no_verdict(
    folds, seeds, seed
):
    rng = np.random.default_rng(seed)
    frames = []
    target = rng.permutation(np.arange(90) % 3 == 0).astype(int)
    for arm, strength in (("a", 1.3), ("b", 0.7)):
        for s in range(seeds):
            logit = strength * target + rng.normal(size=90)
            base = pd.DataFrame(
                {
                    "arm": arm,
                    "seed": s,
                    "patient": np.arange(90).astype(str),
                    "target": target,
                    "logit": logit,
                }
            )
            fold = np.arange(90) // 3 % folds
            frames += [
                base.assign(fold=fold, part="test"),
                base.assign(fold=(fold + 1) % folds, part="tune"),
            ]
    table = pd.concat(frames, ignore_index=True)
    table["site"] = table["patient"].astype(int) % 2
    before, after = (
        evaluate(t, bootstrap=100, subgroups=["site"], margin=0.1).to_dict()
        for t in (table, move_scores(table, "a", seed))
    )
    for arm in "ab":
        for key in MOVED_WITH_SCORES:
            assert_close(before["arms"][arm][key], after["arms"][arm][key])
        assert_close(before["arms"][arm]["curves"]["roc"], after["arms"][arm]["curves"]["roc"])
    first, second = before["comparisons"][0], after["comparisons"][0]
    for key in (
        "delta_auc",
        "delta_partial_auc",
        "delta_average_precision",
        "non_inferiority",
        "verdict",
    ):
        assert_close(first[key], second[key])
    for report in (
        before,
        after,
    ):  # whether scores hardly vary is a matter of their scale, and said
        for arm in "ab":
            report["arms"][arm]["spread"] = 1.0
    assert headline(before)[:2] == headline(after)[:2]
    for row, again in zip(before["subgroups"], after["subgroups"], strict=True):
        for arm in row["arms"]:
            assert_close(row["arms"][arm]["auc"], again["arms"][arm]["auc"])
            assert_close(row["arms"][arm]["auc_difference"], again["arms"][arm]["auc_difference"])
    assert (
        before["arms"]["a"]["pooled"]["auc"]["estimate"]
        != after["arms"]["a"]["pooled"]["auc"]["estimate"]
    )


@pytest.mark.parametrize("folds", [1, 4])
def test_one_seed_against_several_shows_training_by_folds_alone(scores, folds):
    """A single seed shows no variance between seeds, so that half of it would be missing."""
    table = pd.concat(
        [scores({"a": 1.0}, seeds=1, folds=folds), scores({"b": 0.8}, seeds=3, folds=folds)]
    )
    entry = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]
    assert {entry[f"delta_{key}"]["covers"] for key in ("auc", "brier", "partial_auc")} == {
        "training" if folds > 1 else "models"
    }
