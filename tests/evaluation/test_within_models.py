"""What the sentences mean: pairs of one model, seeds counted once, trainings covered, sites, and
tables moved model by model.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation import evaluate
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.analyses.sites import by_site, meta_auc, meta_difference
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.resample import Draws, strata_of
from medtransfer.evaluation.intervals.variance import (
    Cells,
    Part,
    between_folds,
    between_seeds,
    trained_again,
)
from medtransfer.evaluation.metrics.recalibration import recalibrate
from medtransfer.evaluation.sentences.headline import headline
from medtransfer.evaluation.sentences.trust import trust
from medtransfer.evaluation.sentences.verdict import verdict
from medtransfer.evaluation.tables.predictions import check_predictions
from medtransfer.evaluation.tables.scores import align_scores
from scipy.stats import t as student

from scored import align_arm, codes_of, estimate_of, make_scores, youden_sum

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")
# What may change when the scores of a model are moved: their calibration alone.
MOVED_WITH_SCORES = ("auc", "partial_auc", "average_precision")


def move(table: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """The logits of one arm, shifted and scaled at random in every model."""
    rng = np.random.default_rng(seed)
    moved = table.copy()
    for _, rows in moved[moved["arm"] == arm].groupby(["seed", "fold"]):
        moved.loc[rows.index, "logit"] = np.exp(rng.normal()) * rows["logit"] + 3 * rng.normal()
    return moved.drop(columns="probability", errors="ignore")


def same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            same(a, b)
    elif isinstance(first, float):
        assert second == pytest.approx(first, abs=1e-9)
    else:
        assert first == second


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
        for t in (table, move(table, "a", seed))
    )
    for arm in "ab":
        for key in MOVED_WITH_SCORES:
            same(before["arms"][arm][key], after["arms"][arm][key])
        same(before["arms"][arm]["curves"]["roc"], after["arms"][arm]["curves"]["roc"])
    first, second = before["comparisons"][0], after["comparisons"][0]
    for key in (
        "delta_auc",
        "delta_partial_auc",
        "delta_average_precision",
        "non_inferiority",
        "verdict",
    ):
        same(first[key], second[key])
    for report in (
        before,
        after,
    ):  # whether scores hardly vary is a matter of their scale, and said
        for arm in "ab":
            report["arms"][arm]["spread"] = 1.0
    assert headline(before)[:2] == headline(after)[:2]
    for row, again in zip(before["subgroups"], after["subgroups"], strict=True):
        for arm in row["arms"]:
            same(row["arms"][arm]["auc"], again["arms"][arm]["auc"])
            same(row["arms"][arm]["auc_difference"], again["arms"][arm]["auc_difference"])
    assert (
        before["arms"]["a"]["pooled"]["auc"]["estimate"]
        != after["arms"]["a"]["pooled"]["auc"]["estimate"]
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_moving_the_candidates_of_every_model_changes_no_detection_figure(seed):
    rng = np.random.default_rng(seed)
    images = [f"i{i}" for i in range(45)]
    about, found = [], []
    for arm, sure in (("a", 2.0), ("b", 1.0)):
        for s in range(2):
            fold = np.arange(45) % 3
            about.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": s,
                        "fold": fold,
                        "part": "test",
                        "image": images,
                        "patient": images,
                    }
                )
            )
            for i in range(45):
                rows = [(10.0, rng.normal(sure))] * (rng.random() < 0.8) + [
                    (40.0, rng.normal()) for _ in range(rng.poisson(1.5))
                ]
                found += [(arm, s, fold[i], images[i], x, 10.0, x + 10, 20.0, z) for x, z in rows]
    columns = ["arm", "seed", "fold", "image", "x0", "y0", "x1", "y1", "logit"]
    candidates = pd.DataFrame(found, columns=columns).assign(part="test")
    boxes = pd.DataFrame({"image": images, "x0": 10.0, "y0": 10.0, "x1": 20.0, "y1": 20.0})
    predictions = pd.concat(about)
    before, after = (
        evaluate_boxes(predictions, c, boxes, bootstrap=100)
        for c in (candidates, move(candidates, "a", seed))
    )
    for arm in "ab":
        for key in ("ap_10", "ap_50", "map", "cpm", "sensitivity_1", "froc", "by_size"):
            same(before["arms"][arm][key], after["arms"][arm][key])
    same(before["comparisons"], after["comparisons"])
    assert before["arms"]["a"]["pooled"] != after["arms"]["a"]["pooled"]


def test_a_test_part_of_one_model_gives_what_it_gave(scores):
    """One fold is the plain AUC with DeLong's interval, and what is pooled is not told twice."""
    table = scores({"a": 1.0}, folds=1)
    entry = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]
    assert entry["pooled"] is None
    assert entry["auc"]["estimate"] == entry["auc"]["fold_mean"]


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


def test_the_part_of_patients_that_differs_from_seed_to_seed_is_counted_once():
    """Noise drawn anew for every image and seed: what seeds share is nothing, and the mean of S of
    them has 1 / S of the variance.
    """
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], [140, 60])
    for seeds in (2, 5):
        values, variances = [], []
        for _ in range(400):
            found = estimate_of(make_scores(target + rng.normal(size=(seeds, 200)), target))
            values.append(found.value)
            variances.append(found.variance)
        assert np.mean(variances) == pytest.approx(
            np.var(values), rel=0.25
        )  # what was counted twice was more by a half
    # The same noise in every seed: the patients are all there is.
    copies = np.tile(target + rng.normal(size=200), (3, 1))
    one, three = (estimate_of(make_scores(of, target)) for of in (copies[:1], copies))
    assert three.variance == pytest.approx(one.variance)


def test_seeds_of_the_same_folds_show_their_variance_in_every_fold():
    """Two seeds, two folds with three pairs against one: (9/16 · 0.02 + 1/16 · 0.08) / 2, known
    from as many folds as count.
    """
    cells = Cells(np.array([[0.7, 0.5], [0.9, 0.9]]), np.array([3.0, 1.0]), 0)
    (part,) = between_seeds(np.array([0.65, 0.9]), cells)
    assert part.variance == pytest.approx((9 / 16 * 0.02 + 1 / 16 * 0.08) / 2)
    assert part.freedom == pytest.approx((10 / 16) ** 2 / (81 / 256 + 1 / 256))
    assert between_seeds(np.array([0.65, 0.9])) == (Part(pytest.approx(0.03125 / 2), 1),)
    assert between_seeds(np.array([0.7])) == ()


def test_folds_alike_give_the_usual_t_interval():
    values = np.array([0.7, 0.8, 0.75, 0.9])
    part = between_folds(Cells(values[None], np.ones(4), 0))
    assert (part.variance, part.freedom) == (
        pytest.approx(values.var(ddof=1) / 4),
        pytest.approx(3),
    )
    assert between_folds(Cells(np.array([[0.7]]), np.ones(1), 0)) is None
    missing = Cells(np.array([[0.7, np.nan, 0.9]]), np.ones(3), 0)
    assert between_folds(missing).freedom == pytest.approx(1)


def test_what_shows_trainings_is_mixed_by_its_degrees_of_freedom():
    shared = (Part(0.001, np.inf),)
    one = Cells(np.array([[0.7, 0.8, 0.75]]), np.ones(3), 0)
    assert trained_again(shared, shared, (), one) == (between_folds(one),)
    assert trained_again(shared, shared, (), None) == ()
    seeds = between_seeds(np.array([0.7, 0.8]))
    assert trained_again(shared, shared, seeds, None) == (*shared, *seeds)
    two = Cells(np.array([[0.7, 0.8, 0.75], [0.72, 0.81, 0.71]]), np.ones(3), 0)
    patients, mixed = trained_again(shared, shared, between_seeds(two.estimates.mean(1), two), two)
    seeds, folds = between_seeds(two.estimates.mean(1), two)[0], between_folds(two)
    assert patients.variance == pytest.approx(0.001 * 3 / 5)
    assert mixed.variance == pytest.approx((3 * seeds.variance + 2 * folds.variance) / 5)
    assert mixed.freedom == pytest.approx(5)


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
    from sklearn.metrics import roc_auc_score

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


def test_the_first_lines_answer_the_three_questions(scores):
    data = evaluate(scores({"a": 2.0, "b": 0.3}, folds=5), bootstrap=100).to_dict()
    lines = headline(data)
    assert lines[0] == "Does a help, compared with b? Yes, a does better than b."
    assert lines[1].startswith("By how much? AUC: 0.")
    assert lines[2].startswith("May the probabilities be used? ")
    unfinished = headline({**data, "unfinished": ["b"]})[0]
    assert (
        unfinished
        == "Does a help, compared with b (still improving when its training ended)? Yes, a does "
        "better than b."
    )
    flat = {**data, "arms": {**data["arms"], "b": {**data["arms"]["b"], "spread": 0.001}}}
    assert headline(flat)[0].startswith(
        "Does a help, compared with b (its scores hardly differ from patient to patient)?"
    )
    turned = headline(
        evaluate(scores({"b": 0.3, "a": 2.0}, folds=5), bootstrap=100, arms=["b", "a"]).to_dict()
    )
    assert turned[0] == "Does b help, compared with a? No, a does better than b."
    arm = {**data["arms"]["b"], "trusted": "off", "faults": "over-confident"}
    uncertain = {
        "b": {
            **arm,
            "recalibrated": {
                **arm["recalibrated"],
                "trusted": "unknown",
                "faults": "the interval of the slope is wide",
            },
        }
    }
    assert headline({**data, "arms": {**data["arms"], **uncertain}})[2].endswith(
        "b: not as trained, over-confident; after recalibration it cannot be told, as the "
        "interval of the slope is wide."
    )
    alone = headline(evaluate(scores({"a": 2.0}), bootstrap=100).to_dict())
    assert alone[0].startswith("How well are the classes told apart? AUC: a 0.")


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


def sites_of(rng, sites, patients, apart):
    site = np.arange(sites).repeat(patients)
    target = (rng.random(len(site)) < 0.4).astype(int)
    logit = (
        (1.5 + apart * rng.normal(size=sites))[site] * target
        + rng.normal(size=len(site))
        + 2 * rng.normal(size=sites)[site]
    )
    return logit, target, site


def over(scores):
    codes = codes_of(scores)
    return by_site(scores, codes, int(codes.max()) + 1)


def test_sites_are_a_sample_of_sites():
    rng = np.random.default_rng(0)
    logit, target, site = sites_of(rng, 8, 200, 0.4)
    scores = make_scores(logit, target, fold=site)
    found = meta_auc(over(scores))
    alone = estimate_of(scores).interval("logit")
    assert found["high"] - found["low"] > 1.3 * (alone["high"] - alone["low"])
    assert (
        found["new_site"]["low"]
        <= found["low"]
        < found["estimate"]
        < found["high"]
        <= found["new_site"]["high"]
    )
    assert len(found["sites"]) == 8
    assert meta_auc(over(make_scores(logit[:200], target[:200], fold=site[:200]))) is None
    moved = make_scores(logit + rng.normal(size=8)[site], target, fold=site)
    same(meta_auc(over(moved))["estimate"], found["estimate"])
    assert meta_difference(over(scores), over(moved)) is None  # no two sites differ


def test_sites_that_separate_the_classes_do_not_raise_the_mean():
    """Of eight sites of twenty patients some have an AUC of 1 by chance; the truth is Φ(2.33 / √2)
    = 0.95.
    """
    rng, pooled = np.random.default_rng(3), []
    for _ in range(150):
        site, target = (
            np.repeat(np.arange(8), 20),
            np.tile(np.r_[np.zeros(12, int), np.ones(8, int)], 8),
        )
        pooled.append(
            meta_auc(over(make_scores(2.326 * target + rng.normal(size=160), target, fold=site)))[
                "estimate"
            ]
        )
    assert np.mean(pooled) == pytest.approx(0.95, abs=0.01)


def test_a_difference_over_sites_is_that_of_the_arms_beside_it():
    rng = np.random.default_rng(5)
    target, site = (
        np.tile(np.r_[np.zeros(12, int), np.ones(8, int)], 6),
        np.repeat(np.arange(6), 20),
    )
    for _ in range(10):
        arms = [
            over(make_scores(skill * target + rng.normal(size=120), target, fold=site))
            for skill in (2.0, 1.9)
        ]
        delta = meta_difference(*arms)
        assert delta["of_arms"][0] - delta["of_arms"][1] == pytest.approx(delta["estimate"])


def test_a_study_that_leaves_sites_out_is_reported_over_sites(scores):
    table = scores({"a": 1.5, "b": 0.6}, patients=300, folds=5)
    report = evaluate(table, bootstrap=100, leave_out="site").to_dict()
    entry = report["arms"]["a"]["auc"]
    assert entry["method"].startswith("random effects over sites")
    assert entry["over_patients"]["method"].startswith("DeLong")
    delta = report["comparisons"][0]["delta_auc"]
    assert delta["method"] == "random effects over sites of the difference within each"
    assert delta["new_site"]["low"] <= delta["low"] < delta["estimate"]
    verdict = report["comparisons"][0]["verdict"]
    assert "95 % interval over sites" in verdict
    first, second = delta["of_arms"]
    assert f"AUC {first:.3f} against {second:.3f}" in verdict
    assert (
        f"AUC: {first:.3f} against {second:.3f}, difference {delta['estimate']:+.3f}"
        in headline(report)[1]
    )
    assert first - second == pytest.approx(delta["estimate"])
    other = table[table["arm"] == "b"].assign(fold=lambda t: 4 - t["fold"])
    apart = evaluate(
        pd.concat([table[table["arm"] == "a"], other]), bootstrap=100, leave_out="site"
    ).to_dict()["comparisons"][0]
    assert apart["delta_auc"]["covers"] == "models"


def classes_by_site(flat=False):
    """Three classes, six sites, each tested by a model of its own; of arm b all scores are alike
    where `flat`.
    """
    rng = np.random.default_rng(2)
    truth, site, frames = rng.integers(0, 3, 360), np.arange(360) % 6, []
    for arm, skill in (("a", 2.0), ("b", 1.0)):
        z = (skill * np.eye(3)[truth] + rng.normal(size=(360, 3))) * (
            0.01 if flat and arm == "b" else 1.0
        )
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        about = {
            "arm": arm,
            "seed": 0,
            "fold": site,
            "part": "test",
            "patient": range(360),
            "image": range(360),
        }
        frames += [
            pd.DataFrame(
                {**about, "label": name, "target": (truth == c) * 1, "probability": p[:, c]}
            )
            for c, name in enumerate("XYZ")
        ]
    return pd.concat(frames, ignore_index=True)


def test_means_over_labels_are_over_sites_too():
    report = evaluate(classes_by_site(), bootstrap=100, leave_out="site").to_dict()
    delta, entry = report["comparisons"][0]["delta_auc"], report["arms"]["a"]["auc"]
    assert (delta["covers"], entry["method"]) == ("sites", "random effects over sites, logit scale")
    assert entry["over_patients"]["method"].startswith("mean over labels")
    of_labels = [part["arms"]["a"]["auc"] for part in report["labels"].values()]
    for place, site in enumerate(entry["sites"]):
        assert site["estimate"] == pytest.approx(
            np.mean([of["sites"][place]["estimate"] for of in of_labels])
        )
    assert report["models"] == 6
    assert any("judged by how the 6 sites vary" in text for text in report["warnings"])


def test_an_arm_that_says_the_same_of_everybody_is_named_whatever_the_labels(scores):
    assert (
        "b (its scores hardly differ from patient to patient)"
        in headline(evaluate(classes_by_site(True), bootstrap=100).to_dict())[0]
    )
    assert "hardly differ" not in headline(evaluate(classes_by_site(), bootstrap=100).to_dict())[0]
    alone = scores({"a": 1.5, "b": 0.5}, patients=60, folds=60)  # a model tests one patient
    assert "hardly differ" not in headline(evaluate(alone, bootstrap=100).to_dict())[0]


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_patients_of_several_images_are_ranked_alike_whatever_the_scale_of_a_model(scores, rule):
    table = scores({"a": 1.5, "b": 0.6}, views=3, folds=3)
    rng = np.random.default_rng(4)
    fold, b = table["fold"].to_numpy(), (table["arm"] == "b").to_numpy()
    moved = table.assign(
        logit=np.where(
            b,
            table["logit"] * rng.uniform(0.3, 3, 3)[fold] + rng.normal(0, 2, 3)[fold],
            table["logit"],
        )
    )
    moved["probability"] = 1 / (1 + np.exp(-moved["logit"]))
    before, after = (
        evaluate(of, bootstrap=100, unit="patient", aggregate=rule).to_dict()
        for of in (table, moved)
    )
    for arm in "ab":
        for key in ("auc", "average_precision", "partial_auc"):
            for end in ("estimate", "low", "high"):
                assert after["arms"][arm][key][end] == pytest.approx(
                    before["arms"][arm][key][end], abs=1e-9
                )
    assert after["comparisons"][0]["verdict"] == before["comparisons"][0]["verdict"]


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


def test_among_several_comparisons_the_first_line_knows_chance(scores):
    report = evaluate(
        scores({"a": 1.0, "b": 0.8, "c": 0.7, "d": 0.9}, folds=5), bootstrap=100
    ).to_dict()
    delta = report["comparisons"][0]["delta_auc"]
    for low, p_holm, said in (
        (0.02, 0.2, "among 6 comparisons this may be chance"),
        (0.02, 0.03, "Yes, a does better than b"),
    ):
        delta |= {"estimate": 0.06, "low": low, "high": 0.1, "p_holm": p_holm, "covers": "training"}
        assert said in headline(report)[0]


def test_patients_are_drawn_within_the_fold_that_tests_them():
    table = pd.DataFrame({"patient": list("abcdef"), "fold": [0, 0, 1, 1, 1, 2]})
    patients = np.array(list("fedcba"), object)
    strata = strata_of(table, patients)
    assert strata.tolist() == [2, 1, 1, 1, 0, 0]
    (_, counts), *_ = Draws(patients, 500, 0, strata).chunks(1)
    assert (counts[:, :1].sum(1) == 1).all()
    # One less than there are, so that the mean of few patients varies as it should.
    assert (counts[:, 1:4].sum(1) == 2).all()
    assert (counts[:, 4:].sum(1) == 1).all()
    assert counts[:, 1].std() > 0.5
    other = pd.concat([table, table.assign(fold=0)])
    assert strata_of(other, patients) is None


def test_trainings_never_show_less_than_the_patients_by_themselves(scores):
    """Three folds may agree by luck; the interval that holds trainings must not lie within that of
    these models.
    """
    patients = (Part(0.01, np.inf),)
    assert (
        trained_again(patients, patients, (), Cells(np.array([[0.70, 0.71, 0.705]]), np.ones(3), 0))
        == patients
    )
    for seed in range(20):
        first, second = align_scores(scores({"a": 1.0, "b": 0.9}, folds=3, seed=seed))[0]
        difference = estimate_of(first) - estimate_of(second)
        told, alone = (
            difference.interval(parts=parts)
            for parts in (difference.trained_again, difference.models_alone)
        )
        assert told["low"] <= alone["low"] + 1e-12
        assert told["high"] >= alone["high"] - 1e-12
    delta = evaluate(scores({"a": 1.0, "b": 0.9}, folds=3), bootstrap=100).to_dict()["comparisons"][
        0
    ]["delta_auc"]
    assert delta["covers"] == "training"


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


@pytest.mark.parametrize(("seeds", "folds"), [((1, 3), 4), ((2, 3), 1)])
def test_equal_procedures_with_other_numbers_of_seeds_are_told_apart_in_a_twentieth(seeds, folds):
    rng, told = np.random.default_rng(1), 0
    target = np.repeat([0, 1], [140, 60])
    fold = np.arange(200) % folds
    for _ in range(300):
        base, arms = rng.normal(size=200), []
        for count in seeds:
            apart = 1.2 + 0.4 * rng.normal(size=(count, folds))[:, fold]
            arms.append(
                estimate_of(
                    make_scores(
                        apart * target + base + 0.5 * rng.normal(size=(count, 200)),
                        target,
                        fold=fold,
                    )
                )
            )
        difference = arms[0] - arms[1]
        told += difference.p_value(difference.trained_again) < 0.05
    assert told / 300 < 0.085  # 5 % and twice the error of 300 studies


def test_arms_with_other_numbers_of_seeds_count_what_seeds_share_with_patients_once(scores):
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], [140, 60])
    values, variances = [], []
    for _ in range(400):
        three, two = (
            estimate_of(make_scores(target + rng.normal(size=(seeds, 200)), target))
            for seeds in (3, 2)
        )
        difference = three - two
        values.append(difference.value)
        variances.append(sum(part.variance for part in difference.trained_again))
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.25)
    table = pd.concat([scores({"a": 1.0}, seeds=3, folds=1), scores({"b": 0.8}, seeds=2, folds=1)])
    entry = evaluate(table, bootstrap=100).to_dict()["comparisons"][0]
    assert {entry[key]["covers"] for key in entry if key.startswith("delta_")} == {"training"}


def test_errors_of_models_that_cancel_are_not_called_calibrated():
    """Two models off by 0.8 in opposite directions: the mean is right, and neither can be used."""
    rng = np.random.default_rng(1)
    truth = rng.normal(-0.5, 1.4, 600)
    target = (rng.random(600) < 1 / (1 + np.exp(-truth))).astype(int)
    fold = np.arange(600) % 2
    table = pd.DataFrame(
        {
            "patient": range(600),
            "target": target,
            "fold": fold,
            "logit": truth + np.where(fold == 1, 0.8, -0.8),
        }
    )
    entry = evaluate(table, bootstrap=100).to_dict()["arms"]["model"]
    assert entry["trusted"] == "off"
    assert "off in single models, whose errors cancel on the whole" in entry["trust"]
    right = evaluate(table.assign(logit=truth), bootstrap=100).to_dict()["arms"]["model"]
    assert right["trusted"] == "fine"


@pytest.mark.parametrize("models", ["given", "sampled"])
def test_errors_of_seeds_that_cancel_are_not_called_calibrated(models):
    """Five models of the same patients, off by -1.2 to 1.2: their mean is right, and none but one
    can be used.
    """
    rng = np.random.default_rng(0)
    truth = rng.normal(-0.5, 1.4, 400)
    target = (rng.random(400) < 1 / (1 + np.exp(-truth))).astype(int)
    right = pd.concat(
        [
            pd.DataFrame({"patient": range(400), "target": target, "seed": seed, "logit": truth})
            for seed in range(5)
        ]
    )
    moved = right.assign(logit=right["logit"] + 0.6 * (right["seed"] - 2))
    entries = [
        evaluate(table, bootstrap=100, models=models).to_dict()["arms"]["model"]
        for table in (moved, right)
    ]
    assert [entry["trusted"] for entry in entries] == ["off", "fine"]
    assert "off in single models, whose errors cancel on the whole" in entries[0]["trust"]


def entry_of(joint=0.4, between=None, **intervals):
    """What `trust` reads of an arm; intervals (low, high) of slope, intercept and ratio."""
    parts = {"slope": (0.8, 1.3), "intercept": (-0.3, 0.3), "ratio": (0.85, 1.2), **intervals}
    shown = {
        name: {"estimate": sum(ends) / 2, "low": ends[0], "high": ends[1]}
        for name, ends in parts.items()
    }
    models = [{"observed_expected": 0.8}, {"observed_expected": 1.2}]
    return {
        "auc": {"estimate": 0.8, "low": 0.7, "high": 0.9},
        "calibration": {
            "slope": shown["slope"],
            "intercept": shown["intercept"],
            "observed_expected": shown["ratio"],
            "joint_p": joint,
            "between_models_p": between,
            "by_model": models,
        },
    }


@pytest.mark.parametrize(
    ("entry", "status", "faults"),
    [
        (entry_of(), "fine", ""),
        (
            entry_of(slope=(0.4, 1.6)),
            "unknown",
            "the interval of the slope reaches beyond 0.5 to 2",
        ),
        (
            entry_of(ratio=(0.9, 1.6)),
            "unknown",
            "the interval of observed / expected reaches beyond 0.67 to 1.5",
        ),
        # A table that shows an interval without its best value beside a plain yes would contradict
        # itself.
        (
            entry_of(intercept=(0.1, 0.9)),
            "unknown",
            "the interval of the intercept leaves out 0, though intercept and slope together",
        ),
        (
            entry_of(ratio=(1.02, 1.3)),
            "unknown",
            "the interval of observed / expected leaves out 1",
        ),
        (entry_of(joint=0.01, slope=(0.3, 0.8)), "off", "over-confident"),
        (entry_of(joint=0.01, ratio=(0.5, 0.9)), "off", "too high on the whole"),
        # Neither interval says what is off: the models cancel only where they differ by more than
        # chance.
        (
            entry_of(joint=0.01, between=0.01),
            "off",
            (
                "off in single models, whose errors cancel on the whole (observed / expected "
                "0.80 to "
                "1.20)"
            ),
        ),
        (entry_of(joint=0.01, between=0.6), "off", "off by more than chance explains"),
    ],
)
def test_what_is_said_of_probabilities_never_contradicts_the_intervals(entry, status, faults):
    told = trust("a", entry)
    assert told["status"] == status
    assert told["faults"].startswith(faults)


def test_scores_that_are_turned_around_are_not_compared(scores):
    table = scores({"a": 2.0, "b": 1.0}, folds=5)
    table["target"] = 1 - table["target"]
    report = evaluate(table, bootstrap=100).to_dict()
    assert headline(report)[0] == (
        "Does a help, compared with b? Cannot be said: the scores of a and b are lower in "
        "positive than in negative patients, as if labels "
        "or scores were reversed."
    )
    assert (
        sum(
            "lower in positive than in negative patients" in warning
            for warning in report["warnings"]
        )
        == 2
    )


def test_of_one_class_the_first_line_says_that_nothing_can_be_said():
    table = pd.DataFrame(
        {"patient": range(20), "target": 0, "probability": np.linspace(0.1, 0.9, 20)}
    )
    report = evaluate(table, bootstrap=100)
    assert (
        report.sentences[0]
        == "Nothing can be said: every test image has target 0, and both classes are needed."
    )


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


def test_of_a_patient_the_least_typical_image_counts_and_no_column_is_lost(scores):
    table = scores({"a": 1.0}, views=2, patients=80)
    second = table["image"].str.endswith(("1", "3", "5", "7", "9"))
    table["scanner"] = np.where(second, "B", "A")
    table["age"] = np.where(second, 50, 40)
    table["typical"] = np.where(second, 0.01, 0.9)
    report = evaluate(table, bootstrap=100, subgroups=["scanner", "age"]).to_dict()
    assert report["unit"] == "patient"
    assert report["arms"]["a"]["outliers"]["flagged"]["estimate"] == 1
    assert {row["group"] for row in report["subgroups"] if row["column"] == "scanner"} == {
        "several"
    }
    assert {row["group"] for row in report["subgroups"] if row["column"] == "age"} == {"45.0"}


def test_groups_of_different_models_are_not_tested_against_each_other(scores):
    table = scores({"a": 1.0}, patients=200, folds=2)
    table["site"] = table["patient"].str[1:].astype(int) % 2  # as the folds
    row = evaluate(table, bootstrap=100, subgroups=["site"]).to_dict()["subgroups"][0]
    assert row["arms"]["a"]["auc_difference"] is None
    assert row["arms"]["a"]["heterogeneity_p"] is None


def test_nothing_leaks_from_models_that_learnt_their_labels_by_heart():
    """Labels independent of images; every model knows its training labels, tune and test labels are
    known to others: still noise.
    """
    from sklearn.linear_model import LogisticRegression

    sums, losses = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        features, target = rng.normal(size=(120, 60)), rng.permutation(np.arange(120) % 2)
        fold, frames = np.arange(120) // 2 % 4, []
        for model in range(4):
            others = rng.permutation(np.flatnonzero(fold != model))
            tune, train = others[:20], others[20:]
            fitted = LogisticRegression(C=1.0).fit(features[train], target[train])
            for part, rows in (("test", np.flatnonzero(fold == model)), ("tune", tune)):
                logit = fitted.decision_function(features[rows])
                about = {
                    "patient": rows,
                    "image": rows,
                    "target": target[rows],
                    "fold": model,
                    "part": part,
                    "logit": logit,
                }
                frames.append(pd.DataFrame(about))
        scores, tune = align_arm(check_predictions(pd.concat(frames)))
        sums.append(youden_sum(scores, tune))
        losses.append(estimate_of(recalibrate(scores, tune).scores, influence.log_loss).value)
    assert np.mean(sums) == pytest.approx(1, abs=0.05)
    assert np.mean(losses) > np.log(2)
