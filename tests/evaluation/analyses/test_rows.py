from __future__ import annotations

import numpy as np
import pandas as pd
from medtransfer.evaluation.evaluate import evaluate

from predicted import (
    clustered_table,
)


def test_the_account_of_rows_adds_up():
    frame = clustered_table(0, images=1)
    frame.loc[frame.index[:5], "target"] = np.nan
    frame = pd.concat([frame, frame.assign(part="train", fold=7).head(3)])
    (account,) = evaluate(frame, bootstrap=100).to_dict()["accounts"]
    assert account["given"] == len(frame)
    assert account["used"] + sum(part["count"] for part in account["left_out"]) == len(frame)
    reasons = {part["reason"]: part["count"] for part in account["left_out"]}
    assert reasons["no target"] >= 5
