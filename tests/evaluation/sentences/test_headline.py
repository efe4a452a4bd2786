from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.headline import describe_detector, headline

from detected import (
    detection_tables,
)
from predicted import (
    classes_by_site,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_a_perfect_detector_is_described():
    predictions, _, boxes = detection_tables()
    alone = predictions[predictions["arm"] == "good"]
    perfect = boxes.assign(arm="good", seed=0, fold=0, part="test", logit=3.0)
    entry = evaluate_boxes(alone, perfect, boxes, bootstrap=100)["arms"]["good"]
    assert describe_detector("good", entry) == (
        "good finds 100 % of the lesions at one false positive per image; average precision at an "
        "overlap of 0.5: 1.000."
    )


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


def test_an_arm_that_says_the_same_of_everybody_is_named_whatever_the_labels(scores):
    assert (
        "b (its scores hardly differ from patient to patient)"
        in headline(evaluate(classes_by_site(True), bootstrap=100).to_dict())[0]
    )
    assert "hardly differ" not in headline(evaluate(classes_by_site(), bootstrap=100).to_dict())[0]
    alone = scores({"a": 1.5, "b": 0.5}, patients=24, folds=24)  # a model tests one patient
    assert "hardly differ" not in headline(evaluate(alone, bootstrap=100).to_dict())[0]


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
