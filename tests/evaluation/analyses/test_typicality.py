from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_outliers_are_counted_and_their_errors_compared(scores):
    table = scores({"a": 1.0}, patients=200)
    table["typical"] = 0.5
    odd = table["patient"].isin([f"P{i}" for i in range(20)])
    table.loc[odd, "typical"] = 0.01
    table.loc[odd, "logit"] = 4.0 * (0.5 - table.loc[odd, "target"])  # confidently wrong
    table["probability"] = 1 / (1 + np.exp(-table["logit"]))
    found = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]["outliers"]
    assert found["flagged"]["estimate"] == pytest.approx(0.1)
    assert found["difference"]["low"] > 0.2
    assert found["brier_flagged"]["estimate"] > found["brier_others"]["estimate"]
    assert (
        evaluate(table.drop(columns="typical"), bootstrap=100).to_dict()["arms"]["a"]["outliers"]
        is None
    )
