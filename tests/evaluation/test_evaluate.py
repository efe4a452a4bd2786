from __future__ import annotations

import json

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import LeakageError, PredictionsError
from medtransfer.evaluation import evaluate, read_predictions, write_predictions
from medtransfer.evaluation.analyses.comparison import judged_by
from medtransfer.evaluation.intervals.resample import (
    Draws,
    Question,
    Within,
    draw_values,
    make_drawn,
)
from medtransfer.evaluation.intervals.variance import Part, quantile, two_sided_p
from medtransfer.evaluation.metrics.discrimination import (
    weighted_auc,
    weighted_average_precision,
    weighted_partial_auc,
)
from medtransfer.evaluation.tables.predictions import check_predictions
from medtransfer.report.build import build_report
from scipy.stats import binom, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from scored import align_arm, estimate_of, make_scores, youden_sum

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


def test_every_estimate_lies_in_its_interval(scores):
    data = evaluate(scores({"a": 1.0}, seeds=2), bootstrap=300).to_dict()
    frame = mt.evaluate(scores({"a": 1.0}, seeds=2), bootstrap=300).to_frame()
    assert len(frame) == 32
    known = frame[frame["low"].notna()]
    # What cannot be 0 by chance has no interval, and what chance gives beside it.
    assert set(frame["metric"]) - set(known["metric"]) == {
        "ece",
        "smooth_ece",
        "miscalibration",
        "ici",
    }
    assert (known["low"] <= known["estimate"]).all()
    assert (known["estimate"] <= known["high"]).all()
    assert data["arms"]["a"]["auc"]["bootstrap"]["low"] < data["arms"]["a"]["auc"]["estimate"]


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


def figures(report):
    """All of a report but where its rows come from."""
    return {key: value for key, value in report.to_dict().items() if key != "accounts"}


def test_a_round_trip_through_csv_gives_the_same_numbers(scores, tmp_path):
    table = scores({"a": 1.0, "b": 0.7})
    write_predictions(
        mt.read_predictions.__globals__["check_predictions"](table), tmp_path / "p.csv"
    )
    again = read_predictions(tmp_path / "p.csv")
    assert (again["logit"].to_numpy() == table["logit"].to_numpy()).all()
    assert figures(evaluate(tmp_path / "p.csv", bootstrap=200)) == figures(
        evaluate(table, bootstrap=200)
    )


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


def test_paired_interval_agrees_with_paired_delong(scores):
    table = scores({"a": 1.2, "b": 0.8}, patients=400, folds=1)
    delta = evaluate(table, bootstrap=3000).to_dict()["comparisons"][0]["delta_auc"]
    width = (delta["high"] - delta["low"]) / (2 * norm.ppf(0.975))
    z = norm.isf(delta["p_delong"] / 2)
    assert abs(delta["estimate"]) / z == pytest.approx(width, rel=0.1)


def test_patients_are_resampled_whole(scores):
    """Ten copies of each image do not narrow the interval."""
    table = scores({"a": 0.8}, folds=1)
    copies = pd.concat(
        [table.assign(image=table["image"] + f"-{i}") for i in range(10)], ignore_index=True
    )
    once = evaluate(table, bootstrap=600).to_dict()["arms"]["a"]
    many = evaluate(copies, bootstrap=600, unit="image").to_dict()["arms"]["a"]
    assert many["auc"]["method"].endswith("clustered by patient")
    for key in ("auc", "brier"):
        assert many[key]["high"] - many[key]["low"] == pytest.approx(
            once[key]["high"] - once[key]["low"], rel=0.15
        )


def test_temperature_comes_from_tune_rows_only(scores):
    table = scores({"a": 1.0})
    changed = table.copy()
    test = changed["part"] == "test"
    changed.loc[test, "target"] = 1 - changed.loc[test, "target"]
    first, second = (
        evaluate(t, bootstrap=100).to_dict()["arms"]["a"]["recalibrated"]["maps"]
        for t in (table, changed)
    )
    assert len(first) == 2
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def test_recalibration_mends_over_confidence(scores):
    table = scores({"a": 0.9}, patients=600)
    table["logit"] *= 3
    table["probability"] = 1 / (1 + np.exp(-table["logit"]))
    arm = evaluate(table, bootstrap=200).to_dict()["arms"]["a"]
    assert "over-confident" in arm["trust"]
    assert arm["calibration"]["slope"]["high"] < 1
    assert abs(arm["recalibrated"]["calibration"]["slope"]["estimate"] - 1) < 0.25
    assert arm["recalibrated"]["log_loss"]["estimate"] < arm["log_loss"]["estimate"]


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


def test_arms_are_compared_on_the_images_they_share(scores):
    table = scores({"a": 1.0, "b": 0.5}, folds=1)
    report = evaluate(
        table.drop(index=table.index[table["arm"] == "b"][:7]), bootstrap=100
    ).to_dict()
    assert report["images"] == 113
    assert any("7 images of arm a" in warning for warning in report["warnings"])


def test_intervals_and_p_of_draws_by_hand():
    values = np.linspace(-1, 3, 401)
    spread = np.var(values, ddof=1)
    one = make_drawn(np.array([1.0]), values[None], 11)
    half = student.ppf(0.975, 11) * np.sqrt(spread)
    interval = one.interval()
    assert (interval["low"], interval["high"]) == pytest.approx((1 - half, 1 + half))
    assert one.p_value() == pytest.approx(2 * student.sf(1 / np.sqrt(spread), 11))
    share = make_drawn(np.array([0.8]), 0.8 + np.linspace(-0.1, 0.1, 401)[None], 20).interval(
        "logit"
    )
    half = student.ppf(0.975, 20) * np.std(np.linspace(-0.1, 0.1, 401), ddof=1) / (0.8 * 0.2)
    assert [np.log(share[k] / (1 - share[k])) for k in ("low", "high")] == pytest.approx(
        [np.log(4) - half, np.log(4) + half]
    )
    assert make_drawn(np.array([1.0]), np.full((1, 100), np.nan)).interval()["low"] is None
    assert (
        make_drawn(np.array([1.0]), np.full((1, 100), 1.0)).interval()["reason"]
        == "no interval: all resamples give the same"
    )
    # Three seeds at 0.9, 1 and 1.1: their mean has a variance of 0.01 / 3, known from two degrees
    # of freedom. Of the patients, only what all seeds share is added: here, all of it.
    several = make_drawn(np.array([0.9, 1.0, 1.1]), np.tile(values, (3, 1)))
    parts = spread, 0.01 / 3
    expected = (
        (parts[0] * norm.ppf(0.975) + parts[1] * student.ppf(0.975, 2))
        / sum(parts)
        * np.sqrt(sum(parts))
    )
    assert several.interval()["high"] - 1 == pytest.approx(expected)
    assert several.p_value() == pytest.approx(
        two_sided_p(1 / np.sqrt(sum(parts)), [Part(parts[0], np.inf), Part(parts[1], 2)])
    )
    # Seeds that share nothing: the variance between them is all there is.
    apart = make_drawn(np.array([0.9, 1.0, 1.1]), np.random.default_rng(0).normal(size=(3, 4000)))
    assert apart.parts[0].variance < 0.05
    assert apart.parts[1] == Part(pytest.approx(0.01 / 3), 2)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 2.5, 6.0, 30.0])
def test_p_belongs_to_the_interval(ratio):
    parts = [Part(0.4, np.inf), Part(0.6, 2)]
    p = two_sided_p(ratio, parts)
    assert quantile(parts, 1 - p) == pytest.approx(ratio, rel=1e-6)
    assert two_sided_p(ratio, [Part(1.0, 7)]) == pytest.approx(2 * student.sf(ratio, 7))
    assert two_sided_p(0.0, [Part(1.0, 7)]) == 1


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_a_difference_that_is_not_there_is_found_in_one_study_of_twenty(seeds):
    """Two procedures of one skill; with several seeds their trainings differ too."""
    rng = np.random.default_rng(seeds)
    target, found = np.repeat([0, 1], 60), 0
    for _ in range(400):
        common = rng.normal(size=120)
        arms = []
        for _ in range(2):
            skill = 1.2 + (0.35 * rng.normal(size=(seeds, 1)) if seeds > 1 else 0.0)
            logit = skill * target + common + 0.5 * rng.normal(size=(seeds, 120))
            arms.append(estimate_of(make_scores(logit, target)))
        difference = arms[0] - arms[1]
        found += difference.p_value(judged_by(difference)) < 0.05
    assert 2 <= found <= 32


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


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"bootstrap": 50}, "at least 100 draws"),
        ({"unit": "lesion"}, "use auto, image, patient"),
        ({"subgroups": ["image"]}, "image is a column of the table itself"),
        ({"aggregate": "sum"}, "use auto, max, mean, noisy_or"),
        ({"recalibration": "magic"}, "use auto, temperature"),
        ({"margin": 2}, "margin is 2; it lies between 0 and 1"),
        ({"prevalences": [0.1, 1.5]}, r"prevalences\[1\] is 1.5"),
    ],
)
def test_settings_that_are_wrong_are_told(scores, choice, message):
    with pytest.raises(PredictionsError, match=message):
        evaluate(scores({"a": 1.0}), **choice)


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


def test_images_of_two_patients_are_refused(scores):
    table = scores({"a": 1.0, "b": 0.5})
    table.loc[table["arm"] == "b", "patient"] += "-other"
    with pytest.raises(PredictionsError, match="more than one patient"):
        evaluate(table, bootstrap=100)


def test_folds_divided_anew_in_every_seed_learn_nothing_from_their_test_rows():
    """Noise stays noise: each score meets the thresholds of its own seed and fold, whose tune rows
    do not hold it.
    """
    rng = np.random.default_rng(0)
    sums = []
    for _ in range(20):
        target = rng.integers(0, 2, 120)
        frames = []
        for seed in range(3):
            fold = rng.permutation(np.arange(120) % 3)
            base = pd.DataFrame(
                {
                    "patient": [f"P{i}" for i in range(120)],
                    "target": target,
                    "logit": rng.normal(size=120),
                    "seed": seed,
                }
            )
            base["image"] = base["patient"]
            frames.append(base.assign(fold=fold, part="test"))
            frames += [base[fold == (k + 1) % 3].assign(fold=k, part="tune") for k in range(3)]
        table = pd.concat(frames)
        sums.append(youden_sum(*align_arm(check_predictions(table))))
    assert np.mean(sums) == pytest.approx(1, abs=0.03)
    warnings = evaluate(table, bootstrap=100).to_dict()["warnings"]
    assert any("folds differ between seeds" in warning for warning in warnings)


def test_controls_in_a_name_do_not_turn_the_numbers_around(scores):
    report = evaluate(scores({"a\u202etxt": 1.5, "نموذج": 0.3}), bootstrap=100).to_dict()
    assert list(report["arms"]) == ["a[U+202E]txt", "نموذج"]
    verdict = report["comparisons"][0]["verdict"]
    assert "\u202e" not in verdict
    assert "\u2068نموذج\u2069" in verdict


def test_two_seeds_do_not_find_differences_that_are_not_there():
    """Whatever is measured: the draws know no more of the seeds than the influences do."""
    rng = np.random.default_rng(2)
    metrics = {
        "auc": Within(weighted_auc, "pairs"),
        "partial_auc": Within(weighted_partial_auc, "pairs"),
        "average_precision": Within(weighted_average_precision, "positives"),
    }
    target, draws = np.repeat([0, 1], 60), Draws(np.arange(120).astype(object), 100, 0)
    studies, excluding = 150, dict.fromkeys(("delong", *metrics), 0)
    for _ in range(studies):
        common = rng.normal(size=120)
        arms = []
        for _ in range(2):
            skill = 1.2 + 0.35 * rng.normal(size=(2, 1))
            arms.append(
                make_scores(skill * target + common + 0.5 * rng.normal(size=(2, 120)), target)
            )
        first, second = draw_values([Question(arm, metrics) for arm in arms], draws)
        differences = {name: first[name] - second[name] for name in metrics}
        differences["delong"] = estimate_of(arms[0]) - estimate_of(arms[1])
        for name, difference in differences.items():
            interval = difference.interval(parts=judged_by(difference))
            excluding[name] += not interval["low"] < 0 < interval["high"]
    assert max(excluding.values()) <= binom.ppf(0.999, studies, 0.05), excluding


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


def test_scores_of_the_other_class_are_not_called_over_confident(scores):
    table = scores({"a": 1.5})
    table["logit"] *= -1
    table["probability"] = 1 - table["probability"]
    said = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]["trust"]
    assert "Do they refer to the other class?" in said
    nothing = scores({"a": 0.0}, patients=400)
    assert (
        "perhaps without any meaning"
        in evaluate(nothing, bootstrap=100).to_dict()["arms"]["a"]["trust"]
    )


def test_wrong_arguments_from_python_are_told(scores):
    with pytest.raises(PredictionsError, match="the predictions are a list; give a DataFrame"):
        evaluate([1, 2])
    with pytest.raises(PredictionsError, match="margn: no setting of an evaluation"):
        evaluate(scores({"a": 1.0}), margn=0.1)


def test_targets_may_be_true_and_false(scores, tmp_path):
    table = scores({"a": 1.0})
    plain = evaluate(table, bootstrap=100).to_dict()
    table.assign(target=table["target"].map({0: "False", 1: "True"})).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert figures(evaluate(tmp_path / "t.csv", bootstrap=100)) == {
        key: value for key, value in plain.items() if key != "accounts"
    }


def test_decisions_are_not_taken_for_probabilities(scores):
    table = scores({"a": 1.0}).drop(columns="logit")
    table["probability"] = table["probability"].round()
    assert any(
        "they are decisions" in warning
        for warning in evaluate(table, bootstrap=100).to_dict()["warnings"]
    )


def test_two_folds_give_no_interval_of_differences_beyond_one(scores):
    table = scores({"a": 1.5, "b": 0.2}, patients=30)
    low = table["arm"] == "b"
    table.loc[low & (table["fold"] == 0), "logit"] *= -1
    found = evaluate(table.drop(columns="probability"), bootstrap=100).to_dict()["comparisons"][0][
        "delta_auc"
    ]["folds"]
    assert found["low"] is None
    assert found["reason"] == "no interval: 2 folds tell too little"
