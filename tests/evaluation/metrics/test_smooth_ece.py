from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.metrics.smooth_ece import weighted_smooth_ece

from scored import ones


def test_smooth_ece_needs_no_bins():
    """A calibrated model has a small one that falls with its size; a shifted one that of the
    shift.
    """
    rng = np.random.default_rng(7)
    p = rng.uniform(0.1, 0.9, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert weighted_smooth_ece(logit, target, ones(logit))[0] < 0.02
    shifted = np.log((p + 0.1) / (0.9 - p + 1e-9))
    assert weighted_smooth_ece(shifted, target, ones(logit))[0] == pytest.approx(0.1, abs=0.015)
