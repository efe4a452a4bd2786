from __future__ import annotations

import numpy as np
import pandas as pd
from medtransfer.evaluation.intervals.draws import Draws, strata_of


def test_patients_are_drawn_within_the_fold_that_tests_them():
    table = pd.DataFrame({"patient": list("abcdef"), "fold": [0, 0, 1, 1, 1, 2]})
    patients = np.array(list("fedcba"), object)
    strata = strata_of(table, patients)
    assert strata.tolist() == [2, 1, 1, 1, 0, 0]
    (_, counts), *_ = Draws(patients, 500, 0, strata).chunks(1)
    assert (counts[:, :1].sum(1) == 1).all()
    # One less than there are, so that the mean of few patients varies as it should.
    assert (counts[:, 1:4].sum(1) == 2).all()
    assert (counts[:, 4:].sum(1) == 1).all()
    assert counts[:, 1].std() > 0.5
    other = pd.concat([table, table.assign(fold=0)])
    assert strata_of(other, patients) is None
