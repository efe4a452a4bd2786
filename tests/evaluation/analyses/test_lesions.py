"""Detection numbers agree with COCO's evaluation, with MONAI's FROC and with cases worked by
hand.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.sentences.headline import describe_detector

from detected import (
    detection_tables,
)
from predicted import (
    assert_close,
    move_scores,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("volumes", [False, True])
def test_the_report_of_two_arms(seeds, volumes):
    predictions, candidates, boxes = detection_tables(seeds, volumes=volumes)
    report = evaluate_boxes(predictions, candidates, boxes, bootstrap=300)
    good, poor = report["arms"]["good"], report["arms"]["poor"]
    assert (report["images"], report["patients"]) == (60, 30)
    for entry in (good, poor):
        for key in ("ap_10", "ap_50", "map", "cpm", "sensitivity_1"):
            assert 0 <= entry[key]["low"] < entry[key]["estimate"] < entry[key]["high"] <= 1, key
        assert (
            entry["ap_10"]["estimate"] >= entry["ap_30"]["estimate"] >= entry["ap_50"]["estimate"]
        )
        if not volumes:  # else too few are found on the tune part
            assert entry["calibration"]["observed_expected"]["estimate"] == pytest.approx(
                1, abs=0.5
            )
        assert sum(size["lesions"] for size in entry["by_size"]) == report["lesions"]
    delta = report["comparisons"][0]["delta_ap_50"]
    assert delta["estimate"] == pytest.approx(good["ap_50"]["estimate"] - poor["ap_50"]["estimate"])
    assert delta["low"] > 0
    assert delta["p"] < 0.05
    start = "As these models were trained, " if seeds == 1 else ""
    assert report["comparisons"][0]["verdict"].startswith(
        f"{start}good finds lesions better than poor: average precision"
    )
    assert describe_detector("good", good).startswith("good finds")
    json.dumps(report, allow_nan=False)


def test_equal_arms_are_not_told_apart():
    predictions, candidates, boxes = detection_tables()
    alone = [table[table["arm"] == "good"] for table in (predictions, candidates)]
    twice = [pd.concat([table, table.assign(arm="twin")]) for table in alone]
    report = evaluate_boxes(*twice, boxes, bootstrap=200)
    assert report["comparisons"][0]["delta_ap_50"]["low"] is None
    assert report["comparisons"][0]["verdict"].startswith(
        "Cannot tell whether good or twin finds lesions better"
    )


def test_edges():
    predictions, candidates, boxes = detection_tables()
    none = evaluate_boxes(predictions, candidates.iloc[:0], boxes, bootstrap=100)
    assert none["arms"]["good"]["ap_50"]["estimate"] == 0.0
    assert none["arms"]["good"]["calibration"] is None
    with pytest.raises(PredictionsError, match="no test image has a lesion"):
        evaluate_boxes(predictions, candidates, boxes[boxes["image"] == "nowhere"], bootstrap=100)
    with pytest.raises(PredictionsError, match="tested on different images"):
        evaluate_boxes(
            predictions[~((predictions["arm"] == "poor") & (predictions["image"] == "i2"))],
            candidates,
            boxes,
        )
    with pytest.raises(PredictionsError, match="overlap is 0"):
        evaluate_boxes(predictions, candidates, boxes, overlap=0)
    own = predictions[predictions["patient"] == "p2"]
    one = evaluate_boxes(
        own, candidates[candidates["image"].isin(own["image"])], boxes, bootstrap=100
    )
    json.dumps(one, allow_nan=False)
    assert one["patients"] == 1


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
        for c in (candidates, move_scores(candidates, "a", seed))
    )
    for arm in "ab":
        for key in ("ap_10", "ap_50", "map", "cpm", "sensitivity_1", "froc", "by_size"):
            assert_close(before["arms"][arm][key], after["arms"][arm][key])
    assert_close(before["comparisons"], after["comparisons"])
    assert before["arms"]["a"]["pooled"] != after["arms"]["a"]["pooled"]
