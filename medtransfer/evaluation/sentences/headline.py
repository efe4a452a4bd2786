"""The first lines of a report: does it help, by how much, may the probabilities be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medtransfer.evaluation.sentences.verdict import SCOPES
from medtransfer.evaluation.sentences.words import (
    AP_50,
    AUC,
    LEVEL,
    Measure,
    capitalise,
    excludes_zero,
    explain_missing,
    format_bounds,
    format_interval,
    format_share,
    isolate,
)

# Probabilities whose standard deviation is a smaller share of that of the label hardly depend on
# the patient.
_FLAT = 0.04


def headline(data: Mapping[str, Any]) -> list[str]:
    """The first three lines of a report; one where all test images have the same label.

    Args:
        data: the content of `report.json`.
    """
    detection = data.get("detection")
    if not detection and data["prevalence"] in (0.0, 1.0):
        target = f"every test {data['unit']} has target {data['prevalence']:.0f}"
        return [f"Nothing can be said: {target}, and both classes are needed."]
    measure, part = (AP_50, detection) if detection else (AUC, data)
    pairs = part["comparisons"]
    lines = (
        [
            _does_it_help(pairs[0], measure, data, len(pairs)),
            _by_how_much(pairs[0], measure, part),
        ]
        if pairs
        else [_how_good(part["arms"], measure)]
    )
    if "labels" in data:
        uses = [f"{label}: {_uses(part['arms'])}" for label, part in data["labels"].items()]
        return [*lines, f"May the probabilities be used? {' '.join(uses)}"]
    if any(
        isinstance(entry.get("trust"), str) and entry["trust"] for entry in data["arms"].values()
    ):
        lines.append(f"May the probabilities be used? {_uses(data['arms'])}")
    return lines


def _does_it_help(
    pair: Mapping[str, Any], measure: Measure, data: Mapping[str, Any], count: int
) -> str:
    first, second = (
        f"{isolate(name)}{_doubt(name, pair, data)}" for name in (pair["a"], pair["b"])
    )
    answer = capitalise(_answer(pair, measure, data, count))
    return f"Does {first} help, compared with {second}? {answer}."


def _answer(pair: Mapping[str, Any], measure: Measure, data: Mapping[str, Any], count: int) -> str:
    """Whether the first arm does better, corrected for the number of comparisons."""
    a, b, delta = isolate(pair["a"]), isolate(pair["b"]), pair[measure.difference]
    if measure == AUC and (
        reversed_arms := [
            isolate(name)
            for name in (pair["a"], pair["b"])
            if data["arms"].get(name, {}).get("trusted") == "reversed"
        ]
    ):
        return (
            f"cannot be said: the scores of {' and '.join(reversed_arms)} are lower in positive "
            "than in negative patients, as if labels or scores were reversed"
        )
    if delta["low"] is None:
        return (
            f"cannot tell: the difference between {a} and {b} cannot be estimated on these patients"
        )
    better, worse, word = (a, b, "yes") if (delta["estimate"] or 0) > 0 else (b, a, "no")
    if excludes_zero(delta):
        if delta.get("p_holm") is None or delta["p_holm"] < LEVEL:
            start = f"of the models at hand, {word}:" if delta["covers"] == "models" else f"{word},"
            return f"{start} {better} does better than {worse}"
        return (
            f"cannot tell: {better} seems to do better than {worse}, but among {count} "
            "comparisons this may be chance"
        )
    if (
        delta["covers"] == "training"
        and delta["models"]["low"] is not None
        and excludes_zero(delta["models"])
    ):
        return (
            f"cannot tell whether {better} would do better than {worse} if both were trained "
            "again; of the models at hand it does"
        )
    return f"cannot tell: the difference between {a} and {b} may be chance"


def _doubt(name: str, pair: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """What a reader has to know of an arm beforehand: how long it was trained, or that its scores
    hardly differ.
    """
    spent = _describe_spent(data.get("spent", {}).get(name))
    if name in data.get("unfinished", ()):
        return f" (still improving when its training ended{spent})"
    labels = data.get("labels", {"": data}).values()
    if all(_is_flat(part["arms"].get(name, {}), part.get("prevalence")) for part in labels):
        return " (its scores hardly differ from patient to patient)"
    return f" (trained until level{spent})" if name in pair.get("levelled", ()) else ""


def _describe_spent(times: Sequence[float] | None) -> str:
    """How many times the budget the runs of an arm took."""
    if not times:
        return ""
    return (
        f", {min(times):g} times the budget"
        if min(times) == max(times)
        else f", {min(times):g} to {max(times):g} times the budget"
    )


def _is_flat(entry: Mapping[str, Any], prevalence: float | None) -> bool:
    deviation = 0.5 if prevalence is None else (prevalence * (1 - prevalence)) ** 0.5
    return bool(entry.get("spread", 1.0) < _FLAT * deviation)


def _by_how_much(pair: Mapping[str, Any], measure: Measure, part: Mapping[str, Any]) -> str:
    difference = _describe_difference(pair, part["arms"], measure)
    if difference is None:
        return (
            f"By how much? The {measure.name} of {isolate(pair['a'])} or {isolate(pair['b'])} "
            "cannot be estimated."
        )
    early = part.get("at_budget") or {"arms": {}, "comparisons": []}
    for early_pair in early["comparisons"]:
        if (early_pair["a"], early_pair["b"]) == (pair["a"], pair["b"]):
            at_budget = _describe_difference(early_pair, early["arms"], measure)
            difference += f"; at the same budget {at_budget}" if at_budget else ""
    return f"By how much? {capitalise(measure.name)}: {difference}."


def _describe_difference(
    pair: Mapping[str, Any], arms: Mapping[str, Any], measure: Measure
) -> str | None:
    """Both values and their difference; None where one cannot be estimated."""
    delta = pair[measure.difference]
    first, second = delta.get("of_arms") or [
        arms[name][measure.key]["estimate"] for name in (pair["a"], pair["b"])
    ]
    if first is None or second is None:
        return None
    text = f"{first:.3f} against {second:.3f}"
    if delta["low"] is None:
        return f"{text}; the difference has no interval"
    return (
        f"{text}, difference {delta['estimate']:+.3f} ({SCOPES[delta['covers']]} "
        f"{format_bounds(delta, '+.3f')})"
    )


def _how_good(arms: Mapping[str, Any], measure: Measure) -> str:
    values = []
    for name, entry in arms.items():
        value = entry[measure.key]
        shown = "cannot be estimated" if value["estimate"] is None else f"{value['estimate']:.3f}"
        interval = "" if value["low"] is None else f" (95 % interval {format_bounds(value)})"
        values.append(f"{isolate(name)} {shown}{interval}")
    question = (
        "How well are lesions found" if measure == AP_50 else "How well are the classes told apart"
    )
    return f"{question}? {capitalise(measure.name)}: {'; '.join(values)}."


def _uses(arms: Mapping[str, Any]) -> str:
    """Whether the probabilities of each arm may be used, arms of the same answer together."""
    names: dict[str, list[str]] = {}
    for name, entry in arms.items():
        names.setdefault(_use(entry), []).append(isolate(name))
    return " ".join(f"{' and '.join(alike)}: {use}." for use, alike in names.items())


def _use(entry: Mapping[str, Any]) -> str:
    after = entry.get("recalibrated")
    if entry.get("scored"):
        return "not asked, as these are scores"
    if entry["trusted"] == "fine":
        return "yes, as they are"
    if after and after["trusted"] == "fine":
        return (
            f"after recalibration; as trained it cannot be told, as {entry['faults']}"
            if entry["trusted"] == "unknown"
            else f"after recalibration; as trained they are {entry['faults']}"
        )
    last = after or entry
    if last["trusted"] != "unknown":
        return f"no, {last['faults']}"
    use = f"cannot be told, as {last['faults']}"
    if entry["trusted"] != "unknown":
        return f"not as trained, {entry['faults']}; after recalibration it {use}"
    return use


def describe_detector(arm: str, entry: Mapping[str, Any]) -> str:
    """One sentence on what an arm finds."""
    ap = entry["ap_50"]
    return (
        f"{isolate(arm)} finds {format_share(entry['sensitivity_1'])} of the lesions at one false "
        "positive per image; average precision at an overlap of 0.5: "
        f"{explain_missing(ap) or format_interval(ap)}."
    )
