"""The sentences of a report: who is better, whether probabilities can be trusted, and the three
lines that come first.

Each says no more than its interval does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Intervals that reach beyond these leave gross over- and under-confidence, and risks a half too low
# or too high, open.
_WIDEST_SLOPE, _WIDEST_RATIO = (0.5, 2.0), (2 / 3, 1.5)
# Probabilities whose standard deviation is a smaller share of that of the label hardly depend on
# the patient.
_FLAT = 0.04
# What an interval of a difference holds.
_SCOPES = {
    "training": "95 % interval, with the variation between trainings,",
    "sites": "95 % interval over sites",
    "models": "95 % interval over patients",
}
# Level of the joint test of calibration.
_LEVEL = 0.05


def verdict(
    entry: Mapping[str, Any],
    value_a: float,
    value_b: float,
    comparisons: int = 1,
    key: str = "delta_auc",
    metric: str = "AUC",
    does: str = "separates the classes",
) -> str:
    """A sentence or two that say no more than the interval of a difference does, that of the AUC
    where nothing else is said.

    Where the interval holds the variation between trainings, it is about training such arms; where
    nothing shows that variation, the first words say that it is about the models at hand.
    """
    a, b, delta = *_name_both(entry), entry[key]
    same = "At the same budget: " if entry.get("at_budget") else ""
    return same + _verdict(entry, a, b, delta, value_a, value_b, comparisons, metric, does)


def _name_both(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The arms of a comparison, with how long they were trained where that is not the budget of
    all.
    """
    level = entry.get("levelled", ())
    longer = " (trained until level or for four budgets)"
    a, b = (f"{isolate(entry[side])}{longer if entry[side] in level else ''}" for side in "ab")
    return a, b


def _verdict(
    entry: Mapping[str, Any],
    a: str,
    b: str,
    delta: Mapping[str, Any],
    value_a: float,
    value_b: float,
    comparisons: int,
    metric: str,
    does: str,
) -> str:
    if delta["low"] is None:
        return (
            f"Cannot tell whether {a} or {b} {does} better: the difference in {metric} cannot be "
            "estimated on these patients."
        )
    again = delta["covers"] != "models"
    interval = _SCOPES[delta["covers"]]
    figures = (
        f"{metric} {value_a:.3f} against {value_b:.3f}, difference {delta['estimate']:+.3f} "
        f"({interval} {delta['low']:+.3f} to {delta['high']:+.3f}, {format_p(delta['p'])}"
    )
    several = comparisons > 1 and delta.get("p_holm") is not None
    figures += f"; {format_p(delta['p_holm'])} for {comparisons} comparisons)" if several else ")"
    direction = "better" if delta["estimate"] > 0 else "worse"
    added = _non_inferiority(entry, a, b)
    start = "" if again else "As these models were trained, "
    if _different(delta) and several and delta["p_holm"] >= _LEVEL:
        chance = f"but among {comparisons} comparisons this may be chance"
        return (
            f"{_begin(start, 'it seems that')} {a} {does} {direction} than {b}, {chance}: "
            f"{figures}.{added}"
        )
    if _different(delta):
        return f"{start}{a} {does} {direction} than {b}: {figures}.{_more_cautious(delta)}{added}"
    seen = (
        f" A true difference of {delta['detectable']:.3f} would have been seen in four of five "
        "such studies."
        if delta.get("detectable")
        else ""
    )
    models = delta.get("models")
    if again and models and models["low"] is not None and _different(models):
        few = (
            "sites do not show what others"
            if delta["covers"] == "sites"
            else "trainings do not show what another one"
        )
        seen = (
            f" Of the models at hand, those of {a} do {direction} ({models['low']:+.3f} to "
            f"{models['high']:+.3f} over patients), but so few {few} would give."
        )
        more = " More seeds would (protocol.seeds)." if delta["covers"] == "training" else ""
        where = "at other sites" if delta["covers"] == "sites" else "when they are trained again"
        return (
            f"Cannot tell whether {a} or {b} {does} better {where}: {figures}; the interval "
            f"includes 0.{seen}{more}{added}"
        )
    return (
        f"{_begin(start, 'cannot tell')} whether {a} or {b} {does} better: {figures}; the "
        f"interval includes 0.{seen}{added}"
    )


def _more_cautious(delta: Mapping[str, Any]) -> str:
    """What the interval for overlapping training sets says, where it does not say the same."""
    folds = delta.get("folds")
    if not folds or folds["low"] is None or _different(folds):
        return ""
    return (
        f" An interval that allows for overlapping training sets includes 0 ({folds['low']:+.3f} "
        f"to {folds['high']:+.3f}); it is more "
        "cautious than need be where trainings vary for other reasons."
    )


def _begin(start: str, words: str) -> str:
    return start + words if start else words[0].upper() + words[1:]


def _different(delta: Mapping[str, Any]) -> bool:
    return bool(delta["low"] > 0 or delta["high"] < 0)


def _non_inferiority(entry: Mapping[str, Any], a: str, b: str) -> str:
    margin = entry.get("non_inferiority")
    if margin is None:
        return ""
    words = [(a, b, margin["shown"]), (b, a, margin["shown_reverse"])]
    said = [
        f"{x} {'is' if shown else 'is not shown to be'} non-inferior to {y}"
        for x, y, shown in words
    ]
    return f" With the margin of {margin['margin']:g}, {said[0]}, and {said[1]}."


def trust(arm: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Whether the probabilities of an arm can be used: `status` (fine, off, unknown, reversed),
    `faults`, and a `sentence`.

    Intercept and slope are tested together, at 5 %; only then it is said what is off. That nothing
    is seen to be off is said only where the intervals would have shown what is grossly off, and
    each of them holds its best value.
    """
    arm, auc = isolate(arm), entry["auc"]
    slope, intercept, joint = (
        entry["calibration"]["slope"],
        entry["calibration"]["intercept"],
        entry["calibration"]["joint_p"],
    )
    if auc["high"] is not None and auc["high"] < 0.5:
        return {
            "status": "reversed",
            "faults": "lower in positive than in negative patients",
            "sentence": f"The scores of {arm} are lower in positive than in negative patients: "
            f"AUC {auc['estimate']:.3f} "
            f"({auc['low']:.3f} to {auc['high']:.3f}). Do they refer to the other class?",
        }
    if slope["low"] is None or intercept["low"] is None or joint is None:
        return {
            "status": "unknown",
            "faults": (why := _why_unknown(entry)),
            "sentence": f"Cannot tell whether the probabilities of {arm} can be trusted: {why}.",
        }
    figures = (
        f"slope {slope['estimate']:.2f} ({slope['low']:.2f} to {slope['high']:.2f}), "
        f"intercept {intercept['estimate']:+.2f} ({intercept['low']:+.2f} to "
        f"{intercept['high']:+.2f}), together {format_p(joint)}"
    )
    if joint < _LEVEL:
        faults = " and ".join(_faults(entry) or [_off_elsewhere(entry)])
        return {
            "status": "off",
            "faults": faults,
            "sentence": f"The probabilities of {arm} are {faults}: {figures}.",
        }
    if doubt := _doubtful(entry["calibration"]):
        return {
            "status": "unknown",
            "faults": doubt,
            "sentence": f"Cannot tell whether the probabilities of {arm} can be trusted, as "
            f"{doubt}: {figures}.",
        }
    return {
        "status": "fine",
        "faults": "",
        "sentence": f"No miscalibration of {arm} can be seen on these patients: {figures}.",
    }


def _faults(entry: Mapping[str, Any]) -> list[str]:
    """What is off, by the intervals of slope, intercept and observed / expected; empty where all
    hold their best values.
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
    known = ratio["low"] is not None
    if intercept["high"] < 0 or (known and ratio["high"] < 1):
        faults.append("too high on the whole")
    elif intercept["low"] > 0 or (known and ratio["low"] > 1):
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


def _doubtful(calibration: Mapping[str, Any]) -> str:
    """Why intervals that no test speaks against do not show that nothing is off; empty where they
    do.
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
    """What is off where neither interval says so: single models, whose errors cancel, or these
    models, if another training may not.
    """
    between = entry["calibration"]["between_models_p"]
    ratios = [
        model["observed_expected"]
        for model in entry["calibration"]["by_model"]
        if model["observed_expected"] is not None
    ]
    if between is None or between >= _LEVEL or not ratios or not min(ratios) < 1 < max(ratios):
        return "off by more than chance explains"
    return (
        "off in single models, whose errors cancel on the whole (observed / expected "
        f"{min(ratios):.2f} to {max(ratios):.2f})"
    )


def headline(data: Mapping[str, Any]) -> list[str]:
    """The first three lines of a report: does it help, by how much, may the probabilities be
    used.
    """
    found = data.get("detection")
    if not found and data["prevalence"] in (0.0, 1.0):
        return [
            (
                f"Nothing can be said: every test {data['unit']} has target "
                f"{data['prevalence']:.0f}, "
                "and both classes are needed."
            )
        ]
    pairs = (found or data)["comparisons"]
    key, metric = (
        ("delta_ap_50", "average precision at an overlap of 0.5") if found else ("delta_auc", "AUC")
    )
    arms = (found or data)["arms"]
    value = "ap_50" if found else "auc"
    lines = (
        [
            _does_it_help(pairs[0], key, data, len(pairs)),
            _by_how_much(pairs[0], found or data, key, value, metric),
        ]
        if pairs
        else [_how_good(arms, value, metric)]
    )
    if "labels" in data:
        uses = [f"{label}: {_uses(part['arms'])}" for label, part in data["labels"].items()]
        return [*lines, f"May the probabilities be used? {' '.join(uses)}"]
    if any(
        isinstance(entry.get("trust"), str) and entry["trust"] for entry in data["arms"].values()
    ):
        lines.append(f"May the probabilities be used? {_uses(data['arms'])}")
    return lines


def _does_it_help(pair: Mapping[str, Any], key: str, data: Mapping[str, Any], count: int) -> str:
    a, b, delta = isolate(pair["a"]), isolate(pair["b"]), pair[key]
    better, worse, word = (a, b, "yes") if (delta["estimate"] or 0) > 0 else (b, a, "no")
    turned = (
        []
        if key != "delta_auc"
        else [
            n
            for n in (pair["a"], pair["b"])
            if data["arms"].get(n, {}).get("trusted") == "reversed"
        ]
    )
    if turned:
        answer = (
            f"cannot be said: the scores of {' and '.join(map(isolate, turned))} are lower in "
            "positive than in negative patients, as if "
            "labels or scores were reversed"
        )
    elif delta["low"] is None:
        answer = (
            f"cannot tell: the difference between {a} and {b} cannot be estimated on these patients"
        )
    elif _different(delta) and (delta.get("p_holm") is None or delta["p_holm"] < _LEVEL):
        about = f"of the models at hand, {word}:" if delta["covers"] == "models" else f"{word},"
        answer = f"{about} {better} does better than {worse}"
    elif _different(delta):
        answer = (
            f"cannot tell: {better} seems to do better than {worse}, but among {count} "
            "comparisons this may be chance"
        )
    elif (
        delta["covers"] == "training"
        and delta["models"]["low"] is not None
        and _different(delta["models"])
    ):
        answer = (
            f"cannot tell whether {better} would do better than {worse} if both were trained "
            "again; of the models at hand it does"
        )
    else:
        answer = f"cannot tell: the difference between {a} and {b} may be chance"
    first, second = (
        f"{isolate(name)}{_doubt(name, pair, data)}" for name in (pair["a"], pair["b"])
    )
    return f"Does {first} help, compared with {second}? {answer[0].upper()}{answer[1:]}."


def _doubt(name: str, pair: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """What has to be known of an arm before anything is said of it: how long it was trained, that
    it says the same of everybody.
    """
    if name in data.get("unfinished", ()):
        times = _spent(data.get("spent", {}).get(name))
        return f" (still improving when its training ended{times})"
    until = (
        f" (trained until level{_spent(data.get('spent', {}).get(name))})"
        if name in pair.get("levelled", ())
        else ""
    )
    labels = data.get("labels", {"": data}).values()
    if all(_flat(part["arms"].get(name, {}), part.get("prevalence")) for part in labels):
        return " (its scores hardly differ from patient to patient)"
    return until


def _spent(times: Sequence[float] | None) -> str:
    """How many times the budget the runs of an arm took."""
    if not times:
        return ""
    return (
        f", {min(times):g} times the budget"
        if min(times) == max(times)
        else f", {min(times):g} to {max(times):g} times the budget"
    )


def _flat(entry: Mapping[str, Any], prevalence: float | None) -> bool:
    of_label = 0.5 if prevalence is None else (prevalence * (1 - prevalence)) ** 0.5
    return bool(entry.get("spread", 1.0) < _FLAT * of_label)


def _by_how_much(
    pair: Mapping[str, Any], data: Mapping[str, Any], key: str, value: str, metric: str
) -> str:
    text = f"By how much? {metric[0].upper()}{metric[1:]}: "
    told = _tell_difference(pair, data["arms"], key, value)
    if told is None:
        return (
            f"By how much? The {metric} of {isolate(pair['a'])} or {isolate(pair['b'])} cannot be "
            "estimated."
        )
    early = data.get("at_budget") or {"arms": {}, "comparisons": []}
    same = next(
        (
            other
            for other in early["comparisons"]
            if (other["a"], other["b"]) == (pair["a"], pair["b"])
        ),
        None,
    )
    at_budget = _tell_difference(same, early["arms"], key, value) if same else None
    return f"{text}{told}{f'; at the same budget {at_budget}' if at_budget else ''}."


def _tell_difference(
    pair: Mapping[str, Any], arms: Mapping[str, Any], key: str, value: str
) -> str | None:
    """Both values and their difference; None where one cannot be estimated."""
    delta = pair[key]
    known = delta.get("of_arms") or [
        arms[name][value]["estimate"] for name in (pair["a"], pair["b"])
    ]
    if None in known:
        return None
    text = f"{known[0]:.3f} against {known[1]:.3f}"
    if delta["low"] is None:
        return f"{text}; the difference has no interval"
    return (
        f"{text}, difference {delta['estimate']:+.3f} ({_SCOPES[delta['covers']]} "
        f"{delta['low']:+.3f} to {delta['high']:+.3f})"
    )


def _how_good(arms: Mapping[str, Any], value: str, metric: str) -> str:
    said = []
    for name, entry in arms.items():
        of = entry[value]
        shown = "cannot be estimated" if of["estimate"] is None else f"{of['estimate']:.3f}"
        said.append(
            f"{isolate(name)} {shown}"
            + ("" if of["low"] is None else f" (95 % interval {of['low']:.3f} to {of['high']:.3f})")
        )
    what = (
        "How well are lesions found" if value == "ap_50" else "How well are the classes told apart"
    )
    return f"{what}? {metric[0].upper()}{metric[1:]}: {'; '.join(said)}."


def _uses(arms: Mapping[str, Any]) -> str:
    said: dict[str, list[str]] = {}
    for name, entry in arms.items():
        after = entry.get("recalibrated")
        if entry.get("scored"):
            use = "not asked, as these are scores"
        elif entry["trusted"] == "fine":
            use = "yes, as they are"
        elif after and after["trusted"] == "fine" and entry["trusted"] == "unknown":
            use = f"after recalibration; as trained it cannot be told, as {entry['faults']}"
        elif after and after["trusted"] == "fine":
            use = f"after recalibration; as trained they are {entry['faults']}"
        else:
            last = after or entry
            use = (
                f"cannot be told, as {last['faults']}"
                if last["trusted"] == "unknown"
                else f"no, {last['faults']}"
            )
            if last["trusted"] == "unknown" and entry["trusted"] != "unknown":
                use = f"not as trained, {entry['faults']}; after recalibration it {use}"
        said.setdefault(use, []).append(isolate(name))
    return " ".join(f"{' and '.join(names)}: {use}." for use, names in said.items())


def isolate(name: str) -> str:
    """A name as it stands in a sentence: one in a script from right to left must not turn the
    numbers beside it around.
    """
    turns = any(unicodedata.bidirectional(character) in {"R", "AL", "AN"} for character in name)
    return f"\u2068{name}\u2069" if turns else name


def format_p(p: float | None) -> str:
    """`p = 0.013`, `p < 0.001`."""
    return "p not estimable" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
