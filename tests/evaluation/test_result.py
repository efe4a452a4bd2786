from __future__ import annotations

import medtransfer as mt
import pytest
from medtransfer.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_every_estimate_lies_in_its_interval(scores):
    data = evaluate(scores({"a": 1.0}, seeds=2), bootstrap=300).to_dict()
    frame = mt.evaluate(scores({"a": 1.0}, seeds=2), bootstrap=300).to_frame()
    assert len(frame) == 32
    known = frame[frame["low"].notna()]
    # What cannot be 0 by chance has no interval, and what chance gives beside it.
    assert set(frame["metric"]) - set(known["metric"]) == {
        "ece",
        "smooth_ece",
        "miscalibration",
        "ici",
    }
    assert (known["low"] <= known["estimate"]).all()
    assert (known["estimate"] <= known["high"]).all()
    assert data["arms"]["a"]["auc"]["bootstrap"]["low"] < data["arms"]["a"]["auc"]["estimate"]
