from __future__ import annotations

import json

import numpy as np
import pandas as pd
from medtransfer.evaluation.analyses.localisation import evaluate_localisation


def test_localisation_by_hand():
    lesions = pd.DataFrame(
        [("a", 0, 0, 10, 10), ("b", 40, 40, 60, 60), ("b", 0, 0, 4, 4)],
        columns=["image", "x0", "y0", "x1", "y1"],
    )
    size = {"width": 100, "height": 100}
    rows = [
        {
            "arm": "m",
            "image": "a",
            "patient": "p",
            "x": 5,
            "y": 5,
            "x0": 0,
            "y0": 0,
            "x1": 10,
            "y1": 20,
            **size,
        },  # overlap 0.5
        {
            "arm": "m",
            "image": "b",
            "patient": "q",
            "x": 80,
            "y": 5,
            "x0": 50,
            "y0": 50,
            "x1": 60,
            "y1": 60,
            **size,
        },  # overlap 0.25
        {
            "arm": "m",
            "image": "c",
            "patient": "r",
            "x": 1,
            "y": 1,
            "x0": 0,
            "y0": 0,
            "x1": 9,
            "y1": 9,
            **size,
        },  # no lesion: does not count
        {
            "arm": "n",
            "image": "a",
            "patient": "p",
            **dict.fromkeys(["x", "y", "x0", "y0", "x1", "y1"], np.nan),
            **size,
        },
        {
            "arm": "n",
            "image": "b",
            "patient": "q",
            "x": 50,
            "y": 50,
            "x0": 40,
            "y0": 40,
            "x1": 60,
            "y1": 60,
            **size,
        },
    ]
    found = evaluate_localisation(pd.DataFrame(rows).assign(seed=0, fold=0), lesions, 200)
    assert (found["images"], found["lesions"], found["centre"]) == (2, 3, 0.5)
    m, n = found["arms"]["m"], found["arms"]["n"]
    assert [m[key]["estimate"] for key in ("pointing", "found", "overlap")] == [0.5, 0.5, 0.375]
    assert [n[key]["estimate"] for key in ("pointing", "found", "overlap")] == [0.5, 0.5, 0.5]
    assert found["comparisons"][0]["delta_overlap"]["estimate"] == -0.125
    json.dumps(found, allow_nan=False)
