"""Names, estimates and p-values as they stand in a sentence or a cell of a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """What arms are compared by.

    Attributes:
        key: of the report, where the estimate of an arm stands; the difference is under `delta_`.
        name: in a sentence.
        does: what an arm does that is better in it.
    """

    key: str
    name: str
    does: str

    @property
    def difference(self) -> str:
        """The key of a comparison."""
        return f"delta_{self.key}"


AUC = Measure("auc", "AUC", "separates the classes")
AP_50 = Measure("ap_50", "average precision at an overlap of 0.5", "finds lesions")
# Level of every test.
LEVEL = 0.05
NOT_ESTIMABLE = "not estimable"


def format_interval(
    value: Mapping[str, Any], spec: str = ".3f", factor: float = 1, unit: str = ""
) -> str:
    """`0.912 (0.880 to 0.940)`; the estimate alone where it has no interval.

    Args:
        value: `estimate`, `low` and `high`, each maybe None.
        spec: how each number is formatted.
        factor: by which each is multiplied.
        unit: follows the estimate.
    """
    if value["estimate"] is None:
        return NOT_ESTIMABLE
    text = f"{factor * value['estimate']:{spec}}{unit}"
    return text if value["low"] is None else f"{text} ({format_bounds(value, spec, factor)})"


def format_bounds(value: Mapping[str, Any], spec: str = ".3f", factor: float = 1) -> str:
    """`0.880 to 0.940`; arguments as `format_interval`."""
    return f"{factor * value['low']:{spec}} to {factor * value['high']:{spec}}"


def format_share(value: Mapping[str, Any]) -> str:
    """`91 % (88 to 94)`, or why there is no estimate."""
    return explain_missing(value) or format_interval(value, ".0f", 100, " %")


def explain_missing(value: Mapping[str, Any]) -> str:
    """Why there is no estimate; empty where there is one."""
    return str(value.get("reason", NOT_ESTIMABLE)) if value["estimate"] is None else ""


def explain_interval(value: Mapping[str, Any]) -> str:
    """`0.912 (0.880 to 0.940)`, or why there is no interval, or no estimate."""
    if value["estimate"] is None or value["low"] is not None:
        return explain_missing(value) or format_interval(value)
    if "null_mean" in value:  # read beside what chance gives
        return (
            f"{value['estimate']:.3f}; chance {value['null_mean']:.3f}, up to "
            f"{value['null_high']:.3f}"
        )
    reason = str(value.get("reason", NOT_ESTIMABLE)).removeprefix("no interval: ")
    return f"{value['estimate']:.3f} (no interval: {reason})"


def isolate(name: str) -> str:
    """A name as it stands in a sentence: one in a script that is read from right to left must not
    turn the numbers beside it around.
    """
    turns = any(unicodedata.bidirectional(character) in {"R", "AL", "AN"} for character in name)
    return f"\u2068{name}\u2069" if turns else name


def format_p(p: float | None) -> str:
    """`p = 0.013`, `p < 0.001`."""
    return "p not estimable" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def excludes_zero(interval: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference lies on one side of 0."""
    return bool(interval["low"] > 0 or interval["high"] < 0)


def capitalise(text: str) -> str:
    """The text with a capital first letter, the others as they are."""
    return text[0].upper() + text[1:]
