from __future__ import annotations

import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.lesions import evaluate_boxes

from detected import detection_tables, few_detections


def test_candidates_that_belong_to_nothing_are_refused():
    predictions, candidates, boxes = detection_tables()
    for changed, message in (
        (
            candidates.assign(arm="other"),
            "arm.s. of the candidates are not in the predictions, such as other",
        ),
        (
            candidates.assign(image="images/" + candidates["image"]),
            "image.s. of the candidates are not in the predictions",
        ),
        (candidates[candidates["arm"] == "good"], "poor, seed 0, has no candidate at all"),
        (candidates.assign(z0=0.0, z1=1.0), "one has z0 and z1"),
    ):
        with pytest.raises(PredictionsError, match=message):
            evaluate_boxes(predictions, changed, boxes, bootstrap=100)
    with pytest.raises(PredictionsError, match="no test rows"):
        evaluate_boxes(predictions[predictions["part"] == "tune"], candidates, boxes)
    alone = predictions[predictions["arm"] == "good"]
    nameless = candidates[candidates["arm"] == "good"].assign(arm="model")
    assert list(evaluate_boxes(alone, nameless, boxes, bootstrap=100)["arms"]) == ["good"]
    labels = pd.concat([alone, alone.assign(label="other")])
    twice, once = (
        evaluate_boxes(t, nameless, boxes, bootstrap=100)["arms"]["good"] for t in (labels, alone)
    )
    assert twice["ap_50"] == once["ap_50"]


def test_a_box_file_of_other_names_is_refused_with_the_near_one():
    tested, candidates, lesions = few_detections(1)
    with pytest.raises(PredictionsError, match="is it i1 of the predictions"):
        evaluate_boxes(
            tested,
            candidates,
            lesions.assign(image=lesions["image"].replace("i1", "I1")),
            bootstrap=100,
        )
    other = candidates.assign(patient="elsewhere")
    with pytest.raises(PredictionsError, match="in the candidates, of"):
        evaluate_boxes(tested, other, lesions, bootstrap=100)
