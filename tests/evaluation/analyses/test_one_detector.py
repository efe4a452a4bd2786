from __future__ import annotations

import pandas as pd
from medtransfer.evaluation.analyses.lesions import evaluate_boxes

from detected import (
    detection_tables,
)


def test_sensitivity_by_size_follows_the_threshold_of_all_ties():
    """All scores equal: one false positive per image lets nothing through where there are more."""
    predictions, candidates, boxes = detection_tables()
    alone = predictions[predictions["arm"] == "good"]
    flat = candidates[candidates["arm"] == "good"].assign(logit=1.0)
    many = pd.concat(
        [flat, *[flat.assign(x0=flat["x0"] + 200, x1=flat["x1"] + 200 + i) for i in range(4)]]
    )
    entry = evaluate_boxes(alone, many, boxes, bootstrap=100)["arms"]["good"]
    assert [size["sensitivity"]["estimate"] for size in entry["by_size"]] == [0.0] * 3
    equal = boxes.assign(x1=boxes["x0"] + 10, y1=boxes["y0"] + 10)
    found = evaluate_boxes(alone, flat, equal, bootstrap=100)["arms"]["good"]["by_size"]
    assert [size["lesions"] for size in found] == [
        len(equal[equal["image"].isin(alone.loc[alone["part"] == "test", "image"])])
    ]
