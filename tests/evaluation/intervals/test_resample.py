from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.analyses.comparison import judged_by
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.estimate import estimate
from medtransfer.evaluation.intervals.resample import (
    Question,
    WithinModels,
    draw_values,
    make_drawn_metric,
    tabulate,
)
from medtransfer.evaluation.intervals.variance import (
    Part,
    two_sided_p,
)
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics.discrimination import (
    weighted_auc,
    weighted_average_precision,
    weighted_partial_auc,
)
from medtransfer.evaluation.tables.scores import Scores, align_scores
from scipy.stats import binom, norm
from scipy.stats import t as student

from scored import estimate_of, make_scores

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_the_bootstrap_and_the_influences_agree(scores):
    report = evaluate(scores({"a": 1.2, "b": 0.6}, patients=500, folds=1), bootstrap=2000).to_dict()
    delta = report["comparisons"][0]["delta_auc"]
    assert delta["covers"] == "models"
    widths = [delta["high"] - delta["low"], delta["bootstrap"]["high"] - delta["bootstrap"]["low"]]
    assert widths[0] == pytest.approx(widths[1], rel=0.08)


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


def test_intervals_and_p_of_draws_by_hand():
    values = np.linspace(-1, 3, 401)
    spread = np.var(values, ddof=1)
    one = make_drawn_metric(np.array([1.0]), values[None], 11)
    half = student.ppf(0.975, 11) * np.sqrt(spread)
    interval = one.interval()
    assert (interval["low"], interval["high"]) == pytest.approx((1 - half, 1 + half))
    assert one.p_value() == pytest.approx(2 * student.sf(1 / np.sqrt(spread), 11))
    share = make_drawn_metric(
        np.array([0.8]), 0.8 + np.linspace(-0.1, 0.1, 401)[None], 20
    ).interval("logit")
    half = student.ppf(0.975, 20) * np.std(np.linspace(-0.1, 0.1, 401), ddof=1) / (0.8 * 0.2)
    assert [np.log(share[k] / (1 - share[k])) for k in ("low", "high")] == pytest.approx(
        [np.log(4) - half, np.log(4) + half]
    )
    assert make_drawn_metric(np.array([1.0]), np.full((1, 100), np.nan)).interval()["low"] is None
    assert (
        make_drawn_metric(np.array([1.0]), np.full((1, 100), 1.0)).interval()["reason"]
        == "no interval: all resamples give the same"
    )
    # Three seeds at 0.9, 1 and 1.1: their mean has a variance of 0.01 / 3, known from two degrees
    # of freedom. Of the patients, only what all seeds share is added: here, all of it.
    several = make_drawn_metric(np.array([0.9, 1.0, 1.1]), np.tile(values, (3, 1)))
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
    apart = make_drawn_metric(
        np.array([0.9, 1.0, 1.1]), np.random.default_rng(0).normal(size=(3, 4000))
    )
    assert apart.parts[0].variance < 0.05
    assert apart.parts[1] == Part(pytest.approx(0.01 / 3), 2)


def test_two_seeds_do_not_find_differences_that_are_not_there():
    """Whatever is measured: the draws know no more of the seeds than the influences do."""
    rng = np.random.default_rng(2)
    metrics = {
        "auc": WithinModels(weighted_auc, "pairs"),
        "partial_auc": WithinModels(weighted_partial_auc, "pairs"),
        "average_precision": WithinModels(weighted_average_precision, "positives"),
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
