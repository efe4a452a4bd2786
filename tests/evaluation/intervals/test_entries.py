from __future__ import annotations

import numpy as np
from medtransfer.evaluation.intervals.entries import (
    NO_PROBABILITIES,
    interval_of,
    is_unmeasured,
    no_interval,
)

from scored import estimate_auc


def test_an_entry_without_an_interval_says_why():
    assert no_interval("too few", 0.7) == {
        "estimate": 0.7,
        "low": None,
        "high": None,
        "reason": "too few",
    }
    assert no_interval("too few")["estimate"] is None


def test_what_is_not_among_the_estimates_is_no_probability():
    estimate = estimate_auc(np.arange(40.0), np.arange(40) % 3 == 0)
    assert interval_of({"auc": estimate}, "auc", "logit") == estimate.interval("logit")
    assert interval_of({"auc": estimate}, "brier", least=0.0) == NO_PROBABILITIES
    assert is_unmeasured(interval_of({}, "brier"))
    assert not is_unmeasured(no_interval("too few"))


def test_changing_an_entry_changes_no_other():
    interval_of({}, "brier")["estimate"] = 1.0
    assert interval_of({}, "brier")["estimate"] is None
