"""Writes validation_sizes.csv: sizes of external validations by pmvalsampsize 0.2.1, the package of
Riley and Ensor.

Usage, in an environment of its own: pip install pmvalsampsize==0.2.1; python validation_sizes.py.
It finds the slope's information by simulation and steps through standard errors of 0.0001, so that
its numbers are right to a percent or so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pmvalsampsize.pmvalsampsize import pmvalsampsize

np.random.seed(0)  # noqa: NPY002
CASES = {
    "rare": {"prevalence": 0.018, "cstatistic": 0.8, "lpnormal": (-5, 2.5)},
    "common": {"prevalence": 0.3, "cstatistic": 0.75, "lpnormal": (-1, 1.2), "threshold": 0.2},
}
KEYS = {
    "O/E": "observed_expected",
    "C-slope": "slope",
    "C statistic": "auc",
    "St Net Benefit": "net_benefit",
}
rows = ["name,value"]
for name, case in CASES.items():
    found = pmvalsampsize(type="b", noprint=True, **case)
    for row in found["results_table"]:
        key = KEYS.get(str(row[0]).split(" - ")[-1])
        if key:
            rows.append(f"{name}.{key},{int(row[1])}")
    rows += [
        f"{name}.{key},{float(found[key]):.12g}"
        for key in ("sensitivity", "specificity")
        if key in found
    ]
Path(__file__).with_name("validation_sizes.csv").write_text("\n".join(rows) + "\n")
