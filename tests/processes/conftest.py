"""The study that is compared with: what nothing happened to."""

from __future__ import annotations

import pytest

from studies import SETTINGS, FinishedStudy, Studies, changed


@pytest.fixture
def plain(studies: Studies) -> FinishedStudy:
    """Two arms on two folds, and one draw of a learning curve: eight runs."""
    sections = changed(SETTINGS, train={"epochs": 2}, learning_curve={"sizes": [5], "episodes": 1})
    return studies.finished(studies.cohort(), **sections)
