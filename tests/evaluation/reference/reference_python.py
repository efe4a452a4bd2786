"""Adds to reference.csv what Python packages of other authors say of cases.csv.

Usage, in an environment of its own: pip install relplot==1.0.3 dcurves==1.1.7
uncertainty-calibration==0.1.4 scikit-learn; python reference_python.py (after reference.R).
"""

from __future__ import annotations

from pathlib import Path

import calibration
import dcurves
import numpy as np
import pandas as pd
import relplot
import relplot.config
from sklearn.metrics import average_precision_score, log_loss

here = Path(__file__).parent
cases = pd.read_csv(here / "cases.csv")
found = {}
relplot.config.smECE_mesh_pts = 20_001
for model in ("a", "b"):
    p, y = cases[model].to_numpy(), cases["target"].to_numpy()
    found[f"{model}.smooth_ece"] = relplot.smECE(p, y)  # its bandwidth is found to 1/1024 only
    found[f"{model}.smooth_ece_at_0.1"] = relplot.smECE_sigma(p, y, 0.1)
    found[f"{model}.average_precision"] = average_precision_score(y, p)
    found[f"{model}.log_loss"] = log_loss(y, p)
    bins = [*(k / 10 + 0.0005 for k in range(1, 10)), 1.0]  # no probability lies on an edge
    data = calibration.bin(list(zip(p, y, strict=True)), bins)
    found[f"{model}.l2_ece_squared"] = calibration.unbiased_square_ce(data)
    table = dcurves.dca(
        data=cases, outcome="target", modelnames=[model], thresholds=np.array([0.1, 0.3, 0.5])
    )
    for threshold in (0.1, 0.3, 0.5):
        row = table[(table["model"] == model) & np.isclose(table["threshold"], threshold)]
        found[f"{model}.net_benefit_{threshold}"] = float(row["net_benefit"].iloc[0])
rows = pd.read_csv(here / "reference.csv", dtype=str)
rows = rows[~rows["name"].isin(found)]
new = pd.DataFrame({"name": list(found), "value": [f"{value:.15g}" for value in found.values()]})
pd.concat([rows, new]).to_csv(here / "reference.csv", index=False, lineterminator="\n")
