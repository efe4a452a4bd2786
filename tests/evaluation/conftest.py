"""What is the same for all tests of whole evaluations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit


@pytest.fixture
def coarse_smooth_ece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the smooth ECE right to 1/32: its digits take a third of the time of an evaluation,
    and test_smooth_ece.py asks for them.
    """
    monkeypatch.setattr("medtransfer.evaluation.metrics.smooth_ece._HALVINGS", 5)


@pytest.fixture
def cohort() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.normal(-0.5, 1.3, 400)
    target = (rng.random(400) < expit(truth)).astype(int)
    return 2.2 * truth + 0.4, target  # over-confident and too high
