"""Whether the probabilities of an arm can be used, and what is off where they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtransfer.evaluation.sentences.words import (
    LEVEL,
    format_interval,
    format_p,
    isolate,
)

# Intervals that reach beyond these leave gross over- and under-confidence, and risks a half too low
# or too high, open.
_WIDEST_SLOPE, _WIDEST_RATIO = (0.5, 2.0), (2 / 3, 1.5)


def trust(arm: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Whether the probabilities of an arm can be used: `status` (fine, off, unknown, reversed),
    `faults`, and a `sentence`.

    Intercept and slope are tested together, at 5 %, and only where that test rejects does the
    sentence say what is off. That nothing seems off is said only where the intervals would have
    shown gross faults, and each of them holds its best value.

    Args:
        arm: its name.
        entry: of the report, with `auc` and `calibration`.
    """
    name, auc, calibration = isolate(arm), entry["auc"], entry["calibration"]
    slope, intercept, joint = (calibration[key] for key in ("slope", "intercept", "joint_p"))
    if auc["high"] is not None and auc["high"] < 0.5:
        return {
            "status": "reversed",
            "faults": "lower in positive than in negative patients",
            "sentence": f"The scores of {name} are lower in positive than in negative patients: "
            f"AUC {format_interval(auc)}. Do they refer to the other class?",
        }
    unknown = f"Cannot tell whether the probabilities of {name} can be trusted"
    if slope["low"] is None or intercept["low"] is None or joint is None:
        why = _why_unknown(entry)
        return {"status": "unknown", "faults": why, "sentence": f"{unknown}: {why}."}
    figures = (
        f"slope {format_interval(slope, '.2f')}, intercept {format_interval(intercept, '+.2f')}, "
        f"together {format_p(joint)}"
    )
    if joint < LEVEL:
        faults = " and ".join(_list_faults(entry) or [_off_elsewhere(entry)])
        return {
            "status": "off",
            "faults": faults,
            "sentence": f"The probabilities of {name} are {faults}: {figures}.",
        }
    if doubt := _doubt(calibration):
        return {
            "status": "unknown",
            "faults": doubt,
            "sentence": f"{unknown}, as {doubt}: {figures}.",
        }
    return {
        "status": "fine",
        "faults": "",
        "sentence": f"No miscalibration of {name} can be seen on these patients: {figures}.",
    }


def _list_faults(entry: Mapping[str, Any]) -> list[str]:
    """The faults that the intervals of slope, intercept and observed / expected show; empty where
    all include their best values.
    """
    auc, calibration = entry["auc"], entry["calibration"]
    slope, intercept, ratio = (
        calibration["slope"],
        calibration["intercept"],
        calibration["observed_expected"],
    )
    faults = []
    if slope["low"] <= 0 and slope["high"] < 1 and (auc["low"] is None or auc["low"] <= 0.5):
        faults.append(
            "over-confident and perhaps without any meaning (slope 0 and AUC 0.5 are within the "
            "intervals)"
        )
    elif slope["high"] < 1:
        faults.append("over-confident (too close to 0 and 1)")
    elif slope["low"] > 1:
        faults.append("under-confident (too close to the middle)")
    estimable = ratio["low"] is not None
    if intercept["high"] < 0 or (estimable and ratio["high"] < 1):
        faults.append("too high on the whole")
    elif intercept["low"] > 0 or (estimable and ratio["low"] > 1):
        faults.append("too low on the whole")
    return faults


def _why_unknown(entry: Mapping[str, Any]) -> str:
    """Why calibration is not judged at all."""
    if entry["auc"]["estimate"] == 1:
        return (
            "every positive patient scores above every negative one, so that the slope has no "
            "limit (look for a leak)"
        )
    if entry["calibration"]["joint_p"] is None:
        return "there are too few patients of a class, or all have the same probability"
    return "slope or intercept has no interval on these patients"


def _doubt(calibration: Mapping[str, Any]) -> str:
    """Why a test that does not reject does not show that the probabilities are right; empty where
    the intervals are narrow enough to show it.
    """
    slope, intercept, ratio = (
        calibration["slope"],
        calibration["intercept"],
        calibration["observed_expected"],
    )
    if slope["low"] < _WIDEST_SLOPE[0] or slope["high"] > _WIDEST_SLOPE[1]:
        return (
            f"the interval of the slope reaches beyond {_WIDEST_SLOPE[0]:g} to {_WIDEST_SLOPE[1]:g}"
        )
    if ratio["low"] is None or ratio["low"] < _WIDEST_RATIO[0] or ratio["high"] > _WIDEST_RATIO[1]:
        return (
            f"the interval of observed / expected reaches beyond {_WIDEST_RATIO[0]:.2f} to "
            f"{_WIDEST_RATIO[1]:g}"
        )
    for name, interval, best in (
        ("the slope", slope, 1),
        ("the intercept", intercept, 0),
        ("observed / expected", ratio, 1),
    ):
        if not interval["low"] <= best <= interval["high"]:
            return (
                f"the interval of {name} leaves out {best}, though intercept and slope together "
                "may be chance"
            )
    return ""


def _off_elsewhere(entry: Mapping[str, Any]) -> str:
    """The fault where no interval shows one: single models are off, and their errors cancel on the
    whole.
    """
    between = entry["calibration"]["between_models_p"]
    ratios = [
        model["observed_expected"]
        for model in entry["calibration"]["by_model"]
        if model["observed_expected"] is not None
    ]
    if between is None or between >= LEVEL or not ratios or not min(ratios) < 1 < max(ratios):
        return "off by more than chance explains"
    return (
        "off in single models, whose errors cancel on the whole (observed / expected "
        f"{min(ratios):.2f} to {max(ratios):.2f})"
    )
