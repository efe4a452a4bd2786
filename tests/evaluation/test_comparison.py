from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation import evaluate
from medtransfer.evaluation.analyses.sample_size import advise, required_n, required_n_slope
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.estimate import estimate
from medtransfer.evaluation.intervals.resample import Draws, Question, draw_values, tabulate
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics.discrimination import weighted_auc, weighted_average_precision
from medtransfer.evaluation.tables.scores import Scores, align_scores, by_patient
from scipy.special import expit
from scipy.stats import t as student

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


def test_the_bootstrap_and_the_influences_agree(scores):
    report = evaluate(scores({"a": 1.2, "b": 0.6}, patients=500, folds=1), bootstrap=2000).to_dict()
    delta = report["comparisons"][0]["delta_auc"]
    assert delta["covers"] == "models"
    widths = [delta["high"] - delta["low"], delta["bootstrap"]["high"] - delta["bootstrap"]["low"]]
    assert widths[0] == pytest.approx(widths[1], rel=0.08)


def test_what_could_have_been_seen_follows_from_the_standard_error(scores):
    table = scores({"a": 1.0, "b": 0.9}, patients=400, folds=1)
    delta = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]["delta_auc"]
    error = (delta["high"] - delta["low"]) / 2 / 1.959964
    assert delta["detectable"] == pytest.approx((1.959964 + 0.841621) * error, rel=0.01)


def test_the_mean_over_folds_is_nadeau_and_bengio(scores):
    table = scores({"a": 1.0, "b": 0.5}, folds=4, patients=200)
    folds = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]["delta_auc"]["folds"]
    test = table[table["part"] == "test"]
    from sklearn.metrics import roc_auc_score

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


def test_rows_that_are_gathered_give_the_numbers_of_the_images():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 300)
    logit = np.round(rng.normal(size=300) + target, 1)
    patients = np.arange(300) // 3
    table = tabulate(logit, target, np.ones(300), patients, 100)
    assert len(table.logit) < 120
    counts = rng.integers(0, 3, (5, 100)).astype(float)
    gathered = weighted_auc(table.logit, table.target, (table.weight.T @ counts.T).T)
    assert gathered == pytest.approx(weighted_auc(logit, target, counts[:, patients]), abs=1e-12)


def test_many_scores_are_drawn_in_levels_without_harm():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 30_000)
    logit = rng.normal(size=30_000) + target
    table = tabulate(logit, target, np.ones(30_000), np.arange(30_000), 30_000)
    assert len(table.logit) <= 2 * 4096
    ones = np.ones((1, 30_000))
    for metric in (
        weighted_auc,
        weighted_average_precision,
        cal.weighted_brier,
        cal.weighted_log_loss,
    ):
        assert metric(table.logit, table.target, table.total)[0] == pytest.approx(
            metric(logit, target, ones)[0], abs=2e-4
        )
    names = np.arange(30_000).astype(object)
    arm = Scores("a", (0,), names, names, target, target[None] * 0, logit[None], ones[0])
    draws = Draws(arm.patients, 40, 0)
    (rows, counts), *_ = draws.chunks(1)
    found = draw_values([Question(arm, {"auc": weighted_auc})], draws)[0]["auc"].draws
    assert found[0, rows] == pytest.approx(weighted_auc(logit, target, counts), abs=1e-5)


def test_draws_hold_the_variance_over_patients(scores):
    (arm,), _ = align_scores(scores({"a": 1.0}, seeds=4))
    draws = Draws(np.unique(arm.patients), 4000, 0)
    drawn = draw_values([Question(arm, {"brier": cal.weighted_brier})], draws)[0]["brier"]
    assert drawn.mean.mean() == pytest.approx(drawn.value, abs=0.003)
    found = estimate(arm, draws.codes(arm.patients), len(draws.patients), influence.brier)
    assert drawn.value == pytest.approx(found.value)
    assert drawn.mean.var() == pytest.approx(found.of_patients, rel=0.1)
    assert drawn.parts[0].variance == pytest.approx(found.parts[0].variance, rel=0.1)
    assert drawn.parts[1].variance == pytest.approx(found.parts[1].variance)


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


def test_sizes_for_a_validation():
    n = required_n(0.8, 0.2, 0.05)
    middle, auc = n / 2 - 1, 0.8
    error = np.sqrt(auc * 0.2 * (1 + middle * 0.2 / 1.2 + middle * auc / 1.8) / (n**2 * 0.2 * 0.8))
    assert 1.959964 * error == pytest.approx(0.05, rel=0.005)
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1.2, 5000)
    n = required_n_slope(logit, 0.4)
    slopes = []
    for _ in range(60):
        x = rng.choice(logit, n)
        y = (rng.random(n) < expit(x)).astype(int)
        slopes.append(influence.slope(x, y, np.ones(n), np.zeros(n, int))[0])
    assert 2 * 1.96 * np.std(slopes) == pytest.approx(0.4, rel=0.25)
    advice = advise(0.8, 0.2, logit, rng.random(5000) < expit(logit), 0.3)
    assert set(advice["needed"]) == {"auc", "observed_expected", "slope", "net_benefit"}
    assert advice["patients"] == max(advice["needed"].values())
    assert advise(None, 0.0, logit, logit > 0, None)["patients"] is None
    # A case-control sample tells of the population that it is drawn from: logits there, and as many
    # positives as there.
    truth = rng.normal(size=400_000) - 3 + 2 * (here := rng.random(400_000) < 0.05)
    whole = 2 * truth + 4 + np.log(0.05 / 0.95)
    cases = np.r_[np.flatnonzero(here), np.flatnonzero(~here)[: here.sum()]]
    sampled, population = (
        advise(0.9, 0.05, whole[rows], here[rows], None)["needed"]["slope"]
        for rows in (cases, slice(None))
    )
    assert sampled == pytest.approx(population, rel=0.03)
    with pytest.raises(ValueError, match="no information"):
        required_n_slope(np.zeros(5))


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
