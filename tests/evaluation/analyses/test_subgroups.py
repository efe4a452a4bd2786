from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.subgroups import band
from medtransfer.evaluation.evaluate import evaluate

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


def test_groups_of_different_models_are_not_tested_against_each_other(scores):
    table = scores({"a": 1.0}, patients=200, folds=2)
    table["site"] = table["patient"].str[1:].astype(int) % 2  # as the folds
    row = evaluate(table, bootstrap=100, subgroups=["site"]).to_dict()["subgroups"][0]
    assert row["arms"]["a"]["auc_difference"] is None
    assert row["arms"]["a"]["heterogeneity_p"] is None
