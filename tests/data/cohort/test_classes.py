"""Names of classes."""

from __future__ import annotations

import pytest
from medtransfer.data.cohort.classes import match_classes
from medtransfer.errors import CohortError


def test_misspellings_are_found_near_and_not_far():
    with pytest.raises(CohortError, match="Is 'malignat' the study's 'malignant'"):
        match_classes(["malignant", "benign"], ["malignat", "benign"], "x")
    with pytest.raises(CohortError) as told:
        match_classes(["malignant", "benign"], ["cyst", "benign"], "x")
    assert " Is '" not in str(told.value)
