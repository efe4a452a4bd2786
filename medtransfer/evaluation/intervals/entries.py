"""How an estimate stands in a report: `estimate`, `low` and `high`, and why one of them is
missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtransfer.evaluation.intervals.variance import Scale


def no_interval(reason: str, estimate: float | None = None) -> dict[str, Any]:
    """An entry without an interval.

    Args:
        reason: why it has none.
        estimate: None where that is missing too.
    """
    return {"estimate": estimate, "low": None, "high": None, "reason": reason}


# The entry of calibration and decisions where an arm gives scores.
NO_PROBABILITIES = no_interval("not measured: a score is no probability")


def interval_of(
    estimates: Mapping[str, Any], name: str, *scale: Scale, **bounds: float
) -> dict[str, Any]:
    """The interval of one of several estimates; `NO_PROBABILITIES` where it is not among them, as a
    score is no probability.
    """
    return (
        dict(estimates[name].interval(*scale, **bounds))
        if name in estimates
        else dict(NO_PROBABILITIES)
    )


def is_unmeasured(entry: Mapping[str, Any]) -> bool:
    """Whether an entry says that a score is no probability."""
    return bool(entry.get("reason") == NO_PROBABILITIES["reason"])
