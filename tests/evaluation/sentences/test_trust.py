from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.trust import trust

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


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
