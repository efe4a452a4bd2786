from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.metrics.recalibration import (
    fit_maps,
)
from medtransfer.evaluation.tables.tuning import pair_tune

from predicted import (
    overconfident_arm,
)
from scored import (
    align_arm,
)


def test_a_model_learns_from_tune_rows_of_all_but_not_of_patients_that_it_tests():
    table = overconfident_arm()
    scores, tune = align_arm(table)
    cells = pair_tune(scores, tune)
    assert len(cells) == 5
    for cell in cells:
        tested = set(scores.patients[cell.inside])
        assert not tested & set(cell.tune["patient"])
        assert len(cell.tune) == (~tune["patient"].isin(tested)).sum()
        assert len(set(cell.model)) == 5
        assert cell.weight @ np.ones(len(cell.tune)) == pytest.approx(cell.tune["image"].nunique())
    # What a patient's label is changes nothing for the model that tests him.
    changed = table.copy()
    mine = changed["patient"].isin(set(scores.patients[cells[0].inside]))
    changed.loc[mine, "target"] = 1 - changed.loc[mine, "target"]
    again = pair_tune(*align_arm(changed))
    first, second = (
        fit_maps("platt", c.logit, c.target, c.weight, c.model) for c in (cells[0], again[0])
    )
    assert first == second
