"""What is the same for all tests of whole evaluations."""

from __future__ import annotations

import pytest


@pytest.fixture
def coarse_smooth_ece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the smooth ECE right to 1/32: its digits take a third of the time of an evaluation,
    and test_calibration.py asks for them.
    """
    monkeypatch.setattr("medtransfer.evaluation.metrics.calibration._HALVINGS", 5)
