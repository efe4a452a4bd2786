"""Writes cases.csv, the scores that reference.R evaluates: 240 patients, two models, ties among the
scores.

Usage: python make_cases.py; then Rscript reference.R (R 4.2, pROC 1.18, rms 6.5).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

rng = np.random.default_rng(20261125)
truth = rng.normal(-0.6, 1.4, 240)
target = (rng.random(240) < 1 / (1 + np.exp(-truth))).astype(int)
logits = {
    "a": 1.5 * (truth + rng.normal(0, 0.5, 240)) + 0.3,
    "b": 0.9 * (truth + rng.normal(0, 1.2, 240)),
}
table = pd.DataFrame({"patient": np.arange(240), "target": target})
for name, values in logits.items():
    table[name] = np.round(1 / (1 + np.exp(-values)), 3).clip(0.001, 0.999)
table.to_csv(Path(__file__).with_name("cases.csv"), index=False, lineterminator="\n")
