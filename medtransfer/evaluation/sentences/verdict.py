"""Which of two arms does better: a sentence or two that say no more than the interval of their
difference does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtransfer.evaluation.sentences.words import (
    AUC,
    LEVEL,
    Measure,
    excludes_zero,
    format_bounds,
    format_p,
    isolate,
)

# What the interval of a difference holds.
SCOPES = {
    "training": "95 % interval, with the variation between trainings,",
    "sites": "95 % interval over sites",
    "models": "95 % interval over patients",
}


def verdict(
    entry: Mapping[str, Any],
    values: tuple[float, float],
    comparisons: int = 1,
    measure: Measure = AUC,
) -> str:
    """Which arm of a comparison does better, or that it cannot be told.

    Where the interval holds the variation between trainings, the sentence is about training such
    arms; where nothing shows that variation, the first words say that it is about the models at
    hand.

    Args:
        entry: of a comparison: `a`, `b`, the difference, and maybe `levelled`, `at_budget` and
            `non_inferiority`.
        values: of both arms.
        comparisons: how many there are in all.
        measure: by which the arms are compared.
    """
    a, b, delta = *_name_both(entry), entry[measure.difference]
    budget = "At the same budget: " if entry.get("at_budget") else ""
    if delta["low"] is None:
        return (
            f"{budget}Cannot tell whether {a} or {b} {measure.does} better: the difference in "
            f"{measure.name} cannot be estimated on these patients."
        )
    corrected = delta.get("p_holm") if comparisons > 1 else None
    figures = (
        f"{measure.name} {values[0]:.3f} against {values[1]:.3f}, difference "
        f"{delta['estimate']:+.3f} ({SCOPES[delta['covers']]} {format_bounds(delta, '+.3f')}, "
        f"{format_p(delta['p'])}"
    )
    figures += (
        ")" if corrected is None else f"; {format_p(corrected)} for {comparisons} comparisons)"
    )
    direction = "better" if delta["estimate"] > 0 else "worse"
    start = "As these models were trained, " if delta["covers"] == "models" else ""
    if not excludes_zero(delta):
        text = _no_difference(a, b, delta, measure.does, figures)
    elif corrected is not None and corrected >= LEVEL:
        begin = f"{start}it seems that" if start else "It seems that"
        text = (
            f"{begin} {a} {measure.does} {direction} than {b}, but among {comparisons} comparisons "
            f"this may be chance: {figures}."
        )
    else:
        text = f"{start}{a} {measure.does} {direction} than {b}: {figures}.{_more_cautious(delta)}"
    return budget + text + _non_inferiority(entry, a, b)


def _name_both(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The arms of a comparison, with how long they were trained where that is not the budget of
    all.
    """
    level = entry.get("levelled", ())
    longer = " (trained until level or for four budgets)"
    a, b = (f"{isolate(entry[side])}{longer if entry[side] in level else ''}" for side in "ab")
    return a, b


def _no_difference(a: str, b: str, delta: Mapping[str, Any], does: str, figures: str) -> str:
    """The sentences on a difference whose interval includes 0: what could have been seen, and
    whether the models at hand differ.
    """
    detectable = (
        f" A true difference of {delta['detectable']:.3f} would have been seen in four of five "
        "such studies."
        if delta.get("detectable")
        else ""
    )
    models, covers = delta.get("models"), delta["covers"]
    begin = "As these models were trained, cannot tell" if covers == "models" else "Cannot tell"
    if covers == "models" or not models or models["low"] is None or not excludes_zero(models):
        return (
            f"{begin} whether {a} or {b} {does} better: {figures}; the interval includes 0."
            f"{detectable}"
        )
    direction = "better" if delta["estimate"] > 0 else "worse"
    few, more, where = (
        ("sites do not show what others", "", "at other sites")
        if covers == "sites"
        else (
            "trainings do not show what another one",
            " More seeds would (protocol.seeds).",
            "when they are trained again",
        )
    )
    return (
        f"{begin} whether {a} or {b} {does} better {where}: {figures}; the interval includes "
        f"0. Of the models at hand, those of {a} do {direction} ({format_bounds(models, '+.3f')} "
        f"over patients), but so few {few} would give.{more}"
    )


def _more_cautious(delta: Mapping[str, Any]) -> str:
    """What the interval for overlapping training sets says, where it does not say the same."""
    folds = delta.get("folds")
    if not folds or folds["low"] is None or excludes_zero(folds):
        return ""
    return (
        " An interval that allows for overlapping training sets includes 0 "
        f"({format_bounds(folds, '+.3f')}); it is more cautious than need be where trainings vary "
        "for other reasons."
    )


def _non_inferiority(entry: Mapping[str, Any], a: str, b: str) -> str:
    margin = entry.get("non_inferiority")
    if margin is None:
        return ""
    directions = [(a, b, margin["shown"]), (b, a, margin["shown_reverse"])]
    first, second = (
        f"{x} {'is' if shown else 'is not shown to be'} non-inferior to {y}"
        for x, y, shown in directions
    )
    return f" With the margin of {margin['margin']:g}, {first}, and {second}."
