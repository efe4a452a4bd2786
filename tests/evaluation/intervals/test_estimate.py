from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.analyses.comparison import judged_by
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.intervals.variance import (
    quantile,
)
from medtransfer.evaluation.metrics.discrimination import (
    auc_interval,
    weighted_auc,
)
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from scored import estimate_auc, estimate_of, make_scores

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_repeating_every_image_of_a_patient_changes_nothing():
    """Clustered by patient, copies carry no information: the AUC and its variance stay."""
    rng = np.random.default_rng(2)
    target = rng.integers(0, 2, 60)
    score = rng.normal(size=60) + target
    once = estimate_auc(score, target)
    thrice = estimate_auc(np.repeat(score, 3), np.repeat(target, 3), np.repeat(np.arange(60), 3))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.variance == pytest.approx(once.variance)
    assert estimate_auc(np.repeat(score, 3), np.repeat(target, 3)).variance < 0.5 * once.variance


def test_clustered_variance_agrees_with_bootstrap_over_patients():
    rng = np.random.default_rng(3)
    patients, views = 80, 4
    effect = rng.normal(size=patients)
    target = rng.integers(0, 2, (patients, views))  # images of both classes within a patient
    score = (target + effect[:, None] + 0.5 * rng.normal(size=target.shape)).ravel()
    code = np.repeat(np.arange(patients), views)
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), 4000)[:, code].astype(
        float
    )
    bootstrap = weighted_auc(score, target.ravel(), weights).std(ddof=1)
    assert np.sqrt(estimate_auc(score, target.ravel(), code).variance) == pytest.approx(
        bootstrap, rel=0.08
    )


def test_few_patients_widen_the_interval():
    """With 12 patients of a class their variance is known badly: Student's t takes the place of the
    normal distribution.
    """
    rng = np.random.default_rng(9)
    target = np.repeat([0, 1], [100, 12])
    score = rng.normal(size=112) + 1.2 * target
    found = estimate_auc(score, target)
    (part,) = found.parts
    assert 11 < part.freedom < 60
    assert quantile(found.parts) == pytest.approx(student.ppf(0.975, part.freedom))
    assert quantile(found.parts) > 1.97


def test_averaging_seeds_gives_the_mean_auc():
    rng = np.random.default_rng(5)
    target = rng.integers(0, 2, 50)
    scores = rng.normal(size=(3, 50)) + target
    assert estimate_auc(scores, target).value == pytest.approx(
        np.mean([roc_auc_score(target, s) for s in scores])
    )


def test_the_interval_holds_the_variance_between_seeds():
    rng = np.random.default_rng(6)
    target = rng.integers(0, 2, 300)
    seeds = np.stack([strength * target + rng.normal(size=300) for strength in (0.5, 1.5, 2.5)])
    one, several = (
        auc_interval(estimate_auc(seeds[1], target)),
        auc_interval(estimate_auc(seeds, target)),
    )
    assert several["method"].endswith("with the variance between seeds")
    assert several["high"] - several["low"] > 2 * (one["high"] - one["low"])


def test_of_a_fold_of_one_positive_the_variance_is_known_from_the_others():
    """Each fold alone shows no variance of its one positive; together they do."""
    rng = np.random.default_rng(1)
    target = np.r_[np.ones(8, int), np.zeros(80, int)]
    fold = np.r_[np.arange(8), np.repeat(np.arange(8), 10)]
    values, errors = [], []
    for _ in range(300):
        found = estimate_auc(rng.normal(size=88) + 1.2 * target, target, fold=fold)
        values.append(found.value)
        errors.append(found.variance)
    assert np.mean(errors) == pytest.approx(np.var(values), rel=0.2)


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
