from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.metrics.utility import THRESHOLDS, lock_threshold, net_benefit, wilson
from medtransfer.evaluation.tables.predictions import check_predictions
from scipy.stats import binomtest, norm

from scored import align_arm, youden_sum

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_thresholds_of_a_hand_worked_case():
    score, target = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 0, 1, 1])
    # Three positives at 0, 2, 3: a new one lies below the lowest with a chance of 1 in 4, below the
    # second with 2 in 4.
    assert lock_threshold(score, target, "sensitivity", 0.8) == -np.inf
    assert lock_threshold(score, target, "sensitivity", 0.75) == 0.0
    assert lock_threshold(score, target, "sensitivity", 0.5) == 2.0
    # Three negatives at -2, -1, 1: called is what lies above.
    assert lock_threshold(score, target, "specificity", 0.8) == np.inf
    assert lock_threshold(score, target, "specificity", 0.75) == np.nextafter(1.0, 2)
    assert lock_threshold(score, target, "specificity", 0.5) == np.nextafter(-1.0, 2)
    assert lock_threshold(score, target, "youden") == -0.5  # 1 + 2/3, as at 1.5; the first


@pytest.mark.parametrize("positives", [9, 10, 20, 40])
def test_a_sensitivity_is_reached_on_average(positives):
    rng = np.random.default_rng(positives)
    reached = []
    for _ in range(3000):
        cut = lock_threshold(
            np.r_[rng.normal(size=positives) + 1, rng.normal(size=50)],
            np.repeat([1, 0], [positives, 50]),
            "sensitivity",
            0.9,
        )
        reached.append(norm.sf(cut - 1))
    assert 0.895 < np.mean(reached) < 0.93


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), least=st.floats(0.1, 0.95))
def test_copies_of_a_patient_move_no_threshold(seed, least):
    rng = np.random.default_rng(seed)
    target = np.r_[0, 1, rng.integers(0, 2, 30)]
    score = np.round(rng.normal(size=32) + target, 2)
    copies = rng.integers(1, 4, 32)
    rows = np.repeat(np.arange(32), copies)
    for rule in ("sensitivity", "specificity", "youden"):
        once = lock_threshold(score, target, rule, least)
        again = lock_threshold(score[rows], target[rows], rule, least, 1 / copies[rows], rows)
        assert again == once


def test_operating_points_are_those_of_the_test_rows(scores):
    table = scores({"a": 1.0}, patients=200)
    entry = evaluate(
        table, bootstrap=200, prevalences=[0.1], threshold=0.3, recalibration="platt"
    ).to_dict()["arms"]["a"]
    points = {point["rule"]: point for point in entry["operating_points"]}
    assert set(points) == {"sensitivity", "specificity", "youden", "probability"}
    test = table[table["part"] == "test"]
    truth = (test["target"] == 1).to_numpy()
    for point in points.values():
        cuts = {row["fold"]: row["probability"] for row in point["thresholds"]}
        logit = test["logit"].to_numpy()
        if point["rule"] == "probability":
            for name, use in (("factor", np.multiply), ("shift", np.add)):
                logit = use(
                    logit,
                    test["fold"]
                    .map({m["fold"]: m[name] for m in entry["recalibrated"]["maps"]})
                    .to_numpy(),
                )
            cuts = {0: 0.3, 1: 0.3}
        called = (
            logit
            >= test["fold"]
            .map({fold: np.log(cut / (1 - cut)) for fold, cut in cuts.items()})
            .to_numpy()
            - 1e-12
        )
        assert point["sensitivity"]["estimate"] == pytest.approx(called[truth].mean())
        assert point["specificity"]["estimate"] == pytest.approx((~called)[~truth].mean())
        assert point["ppv"]["estimate"] == pytest.approx(truth[called].mean())
        assert point["npv"]["estimate"] == pytest.approx((~truth)[~called].mean())
        assert point["flagged"]["estimate"] == pytest.approx(called.mean())
        assert point["number_needed_to_read"]["estimate"] == pytest.approx(1 / truth[called].mean())
        found, quiet = point["sensitivity"]["estimate"], point["specificity"]["estimate"]
        assert point["at_prevalence"][0]["ppv"]["estimate"] == pytest.approx(
            0.1 * found / (0.1 * found + 0.9 * (1 - quiet))
        )
        assert point["sensitivity"]["method"] == "Wilson"


def test_wilson_equals_scipy_and_never_collapses():
    for hits, size in ((37, 50), (0, 12), (12, 12)):
        found, expected = (
            wilson(hits / size, size),
            binomtest(hits, size).proportion_ci(method="wilson"),
        )
        assert (found["low"], found["high"]) == pytest.approx(
            (expected.low, expected.high), abs=1e-9
        )
    assert wilson(1.0, 12)["low"] < 0.8
    assert wilson(float("nan"), 0)["estimate"] is None


def test_intervals_keep_patients_together(scores):
    table = scores({"a": 0.8})
    import pandas as pd

    copies = pd.concat(
        [table.assign(image=table["image"] + f"-{i}") for i in range(6)], ignore_index=True
    )
    once, many = (
        evaluate(t, bootstrap=800).to_dict()["arms"]["a"]["operating_points"][0]["sensitivity"]
        for t in (table, copies)
    )
    assert many["estimate"] == pytest.approx(once["estimate"])
    assert many["high"] - many["low"] == pytest.approx(once["high"] - once["low"], rel=0.25)


def test_net_benefit_of_a_hand_worked_case():
    p, target = np.array([0.1, 0.6, 0.7, 0.9]), np.array([0, 0, 1, 1])
    found = net_benefit()(np.log(p / (1 - p)), target, np.ones((1, 4)))[0]
    at = {
        threshold: found[np.argmin(np.abs(THRESHOLDS - threshold))]
        for threshold in (0.5, 0.05, 0.8)
    }
    assert at[0.5] == pytest.approx(2 / 4 - 1 / 4)
    assert at[0.05] == pytest.approx(2 / 4 - 2 / 4 * 0.05 / 0.95)
    assert at[0.8] == pytest.approx(1 / 4)
    # Of cases and controls, for patients of whom one in ten is positive: sensitivity 1, specificity
    # 1/2 at 0.5.
    there = net_benefit(0.1)(np.log(p / (1 - p)), target, np.ones((1, 4)))[0]
    assert there[np.argmin(np.abs(THRESHOLDS - 0.5))] == pytest.approx(1.0 * 0.1 - 0.5 * 0.9)


def test_a_case_control_cohort_is_judged_at_the_prevalence_it_is_meant_for():
    """Half of the cohort is positive, one patient in fifty will be: net benefit is that of such
    patients.
    """
    import pandas as pd

    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], 10_000)
    logit = 1.5 * (1.5 * target + rng.normal(size=20_000)) - 1.125
    table = pd.DataFrame({"patient": range(20_000), "target": target, "logit": logit})
    report = evaluate(table, bootstrap=100, target_prevalence=0.02, threshold=0.05).to_dict()
    place = int(np.argmin(np.abs(THRESHOLDS - 0.05)))
    population = rng.random(400_000) < 0.02
    real = np.log(0.02 / 0.98) + 1.5 * (1.5 * population + rng.normal(size=400_000)) - 1.125
    called = real >= np.log(0.05 / 0.95)
    expected = (called & population).mean() - (called & ~population).mean() * 0.05 / 0.95
    assert report["decision_curves"]["arms"]["model"]["estimate"][place] == pytest.approx(
        expected, abs=1e-3
    )
    assert report["decision_curves"]["all"][place] == pytest.approx(0.02 - 0.98 * 0.05 / 0.95)
    point = next(
        p for p in report["arms"]["model"]["operating_points"] if p["rule"] == "probability"
    )
    assert point["at_prevalence"][0]["ppv"]["estimate"] == pytest.approx(
        population[called].mean(), abs=0.02
    )


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
