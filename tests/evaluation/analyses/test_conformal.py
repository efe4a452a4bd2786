from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.analyses.conformal import conformal_sets, conformal_threshold
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.metrics.recalibration import make_comparable
from medtransfer.evaluation.tables.predictions import check_predictions

from scored import align_arm, measure_question


def test_sets_of_a_hand_worked_case():
    # Distances 1 - p(class) of nine rows: .1 ... .9; with coverage .8 the ⌈10 · .8⌉ = 8th of them.
    p = 1 - np.arange(1, 10) / 10
    assert conformal_threshold(np.log(p / (1 - p)), np.ones(9, int), 0.8) == pytest.approx(0.8)
    assert conformal_threshold(np.log(p / (1 - p)), np.ones(9, int), 0.95) == np.inf  # too few rows
    # Each patient counts once, whatever the number of his images.
    z, copies = np.log(p / (1 - p)), np.arange(1, 10)
    again = conformal_threshold(
        np.repeat(z, copies), np.ones(45, int), 0.8, np.ones(45), np.repeat(np.arange(9), copies)
    )
    assert again == pytest.approx(0.8)


def shares_of_sets(table, coverage):
    """What `prediction_sets` of a report says, without the intervals, which take draws."""
    scores, tune = align_arm(check_predictions(table))
    question = conformal_sets(scores, make_comparable(scores, tune), coverage)
    names = ("coverage", "coverage_positive", "coverage_negative", "certain", "uncertain", "empty")
    return dict(zip(names, measure_question(question)["sets"], strict=True))


def test_the_report_holds_the_shares_of_sets(scores):
    table = scores({"a": 1.0}, patients=200)
    sets = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]["prediction_sets"]
    for name, share in shares_of_sets(table, 0.9).items():
        assert sets[name]["estimate"] == pytest.approx(share), name


def test_sets_hold_later_images_of_a_patient_too():
    """The first image of a patient is easier than the others: all of them count, not the first."""
    import pandas as pd

    rng = np.random.default_rng(0)
    covered = []
    for _ in range(40):
        target = rng.integers(0, 2, 300).repeat(3)
        harder = np.tile([2.0, 0.7, 0.7], 300)
        logit = harder * (2 * target - 1) + rng.normal(size=900)
        part = np.where(np.arange(300) < 150, "tune", "test").repeat(3)
        table = pd.DataFrame(
            {"patient": np.arange(300).repeat(3), "target": target, "logit": logit, "part": part}
        )
        covered.append(shares_of_sets(table, 0.9)["coverage"])
    assert np.mean(covered) == pytest.approx(0.905, abs=0.02)


def test_prediction_sets_hold_the_truth_as_often_as_promised():
    """Over cohorts, the mean coverage of either class is at least that asked for, and not much
    more.
    """
    import pandas as pd

    rng = np.random.default_rng(0)
    covered = []
    for _ in range(40):
        target = rng.integers(0, 2, 400)
        logit = 1.2 * (2 * target - 1) + 1.5 * rng.normal(size=400)
        part = np.where(np.arange(400) < 200, "tune", "test")
        table = pd.DataFrame(
            {"patient": range(400), "target": target, "logit": logit, "part": part}
        )
        sets = shares_of_sets(table, 0.8)
        assert sets["certain"] + sets["uncertain"] + sets["empty"] == pytest.approx(1)
        covered.append([sets["coverage_positive"], sets["coverage_negative"]])
    assert np.mean(covered, axis=0) == pytest.approx([0.805, 0.805], abs=0.025)
