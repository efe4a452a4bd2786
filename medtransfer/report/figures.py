"""Figures from the curves of `report.json` and the histories of the runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from medtransfer.evaluation.sentences.words import format_interval

# Okabe & Ito's palette, told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "medtransfer",  # the same figure gives the same bytes
    "svg.fonttype": "path",
}


def draw_discrimination(report: Mapping[str, Any]) -> Figure:
    """ROC and precision-recall curves of all arms."""
    figure, (roc, recall) = _panels(8.6, 4.0, 2)
    roc.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=":")
    recall.axhline(
        report["prevalence"],
        color="0.7",
        linewidth=1,
        linestyle=":",
        label=f"chance: {report['prevalence']:.2f}",
    )
    for colour, (arm, entry) in zip(_colours(report["arms"]), report["arms"].items(), strict=True):
        curves = entry["curves"]
        roc.plot(
            curves["roc"]["false_positive_rate"],
            curves["roc"]["sensitivity"],
            color=colour,
            label=f"{_short(arm)}: AUC {format_interval(entry['auc'])}",
        )
        shown = curves["precision_recall"]
        recall.plot(
            shown["recall"],
            shown["precision"],
            color=colour,
            label=f"{_short(arm)}: {format_interval(entry['average_precision'])}",
        )
    roc.set(
        xlabel="1 − specificity", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.01), title="ROC"
    )
    recall.set(
        xlabel="Sensitivity (recall)",
        ylabel="Positive predictive value (precision)",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    recall.set_title("Precision and recall (average precision)")
    roc.legend(loc="lower right", frameon=False, fontsize=8)
    recall.legend(loc="lower left", frameon=False, fontsize=8)
    return figure


def draw_reliability(arm: str, entry: Mapping[str, Any], colour: str) -> Figure:
    """Reliability before and after recalibration: bins with the consistency band, the smooth curve,
    and the scores by class below.
    """
    panels = [("as trained", entry)]
    if entry["recalibrated"]:
        panels.append((f"recalibrated ({entry['recalibrated']['method']})", entry["recalibrated"]))
    with _style():
        figure = _empty_figure(figsize=(3.6 * len(panels) + 0.4, 4.6), layout="constrained")
        axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=(3, 1), sharex=True)
        figure.suptitle(_short(arm))
    for column, (name, part) in enumerate(panels):
        curve, smooth, histogram = (
            part["curves"][key] for key in ("reliability", "smooth", "histogram")
        )
        top, bottom = axes[0, column], axes[1, column]
        top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
        top.fill_between(
            curve["predicted"],
            curve["low"],
            curve["high"],
            color="0.88",
            label="90 % band if calibrated",
            linewidth=0,
        )
        low, high, observed = (
            np.array(smooth[key], float) for key in ("low", "high", "observed")
        )  # None becomes NaN
        top.fill_between(smooth["predicted"], low, high, color=colour, alpha=0.15, linewidth=0)
        top.plot(
            smooth["predicted"],
            observed,
            color=colour,
            linewidth=1.3,
            label="smooth curve, 95 % band",
        )
        top.plot(
            curve["predicted"],
            curve["observed"],
            color=colour,
            marker="o",
            markersize=3.5,
            linestyle="none",
            label="bins",
        )
        ece = part["ece"]
        top.set(xlim=(0, 1), ylim=(0, 1))
        top.set_title(
            f"{name}\nECE {ece['estimate']:.3f} (chance: up to {ece['null_high']:.3f})", fontsize=10
        )
        if column == 0:
            top.set_ylabel("Observed frequency")
            bottom.set_ylabel("Images")
            top.legend(loc="upper left", frameon=False, fontsize=8)
        edges = histogram["edges"]
        width = edges[1] - edges[0]
        bottom.bar(
            edges[:-1], histogram["negative"], width, align="edge", color="0.7", label="negative"
        )
        bottom.bar(
            edges[:-1],
            histogram["positive"],
            width,
            align="edge",
            color=colour,
            alpha=0.7,
            label="positive",
        )
        bottom.set_xlabel("Predicted probability")
        if column == 0:
            bottom.legend(frameon=False, fontsize=7)
    return figure


def draw_decisions(report: Mapping[str, Any]) -> Figure:
    """Net benefit by threshold probability, with 95 % bands."""
    figure, axes = _figure(5.6, 3.8)
    curves = report["decision_curves"]
    threshold = curves["threshold"]
    axes.axhline(0, color="0.4", linewidth=1, label="call none")
    axes.plot(threshold, curves["all"], color="0.4", linewidth=1, linestyle="--", label="call all")
    for colour, (arm, curve) in zip(_colours(curves["arms"]), curves["arms"].items(), strict=True):
        low, high = (np.array(curve[key], float) for key in ("low", "high"))  # None becomes NaN
        axes.fill_between(threshold, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(threshold, curve["estimate"], color=colour, label=_short(arm))
    highest = [
        value for curve in curves["arms"].values() for value in curve["high"] if value is not None
    ]
    top = max([curves["prevalence"], *highest])
    axes.set(
        xlabel="Threshold probability",
        ylabel="Net benefit per image",
        xlim=(0, 1),
        ylim=(-0.25 * top - 0.01, 1.05 * top + 0.01),
    )
    axes.set_title("Decision curve")
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_froc(detection: Mapping[str, Any]) -> Figure:
    """Sensitivity against false positives per image, with 95 % intervals at the rates of the
    CPM.
    """
    figure, axes = _figure(5.6, 3.8)
    for number, (colour, (arm, entry)) in enumerate(
        zip(_colours(detection["arms"]), detection["arms"].items(), strict=True)
    ):
        curve, points = entry["froc"]["curve"], entry["froc"]["sensitivity"]
        axes.plot(
            curve["false_positives"],
            curve["sensitivity"],
            color=colour,
            label=f"{_short(arm)}: CPM {format_interval(entry['cpm'])}",
        )
        for rate, value in zip(entry["froc"]["rates"], points, strict=True):
            at = rate * 1.03**number  # side by side
            axes.plot(at, value["estimate"], color=colour, marker="o", markersize=3)
            if value["low"] is not None:
                axes.plot([at, at], [value["low"], value["high"]], color=colour, linewidth=1)
    rates = next(iter(detection["arms"].values()))["froc"]["rates"]
    axes.set(
        xscale="log",
        xlim=(0.08, 10),
        ylim=(0, 1.01),
        xlabel="False positives per image",
        ylabel="Sensitivity",
        title="FROC",
    )
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return figure


def draw_candidates(detection: Mapping[str, Any]) -> Figure:
    """How often candidates are lesions, against their probability."""
    figure, axes = _figure(3.8, 3.8)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    for colour, (arm, entry) in zip(
        _colours(detection["arms"]), detection["arms"].items(), strict=True
    ):
        if entry["calibration"]:
            curve = entry["calibration"]["curve"]
            expected, observed = (
                [point["expected"] for point in curve],
                [point["observed"] for point in curve],
            )
            axes.plot(expected, observed, color=colour, marker="o", markersize=4, label=_short(arm))
    axes.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="Probability of being a lesion",
        ylabel="Share of lesions",
        title="Candidates",
    )
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def draw_subgroups(report: Mapping[str, Any]) -> Figure:
    """AUC of every group with its interval, arm by arm; the dotted lines are those of all
    patients.
    """
    rows = [row for row in report["subgroups"] if not row["suppressed"]]
    figure, axes = _figure(6.4, 1.2 + 0.34 * len(rows))
    arms = list(report["arms"])
    for number, arm in enumerate(arms):
        colour = COLOURS[number % len(COLOURS)]
        axes.axvline(
            report["arms"][arm]["auc"]["estimate"], color=colour, linewidth=1, linestyle=":"
        )
        shift = 0.16 * (number - (len(arms) - 1) / 2)
        for place, row in enumerate(rows):
            auc = row["arms"][arm]["auc"]
            axes.plot([auc["low"], auc["high"]], [place + shift] * 2, color=colour, linewidth=1.2)
            label = _short(arm) if place == 0 else None
            axes.plot(
                auc["estimate"],
                place + shift,
                color=colour,
                marker="o",
                markersize=4,
                linestyle="none",
                label=label,
            )
    names = [f"{_short(row['column'])}: {_short(row['group'])} ({row['patients']})" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set(xlabel="AUC, 95 % interval", title="Subgroups (patients)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_training(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Figure:
    """Tune log-loss, or 1 - average precision, by epoch: a thin line per run, a dot at the epoch
    kept. Epoch 0 is the head alone.
    """
    figure, axes = _figure(5.2, 3.4)
    for colour, (arm, runs) in zip(_colours(histories), histories.items(), strict=True):
        for number, run in enumerate(runs):
            epochs, losses = [row["epoch"] for row in run], [row["tune_loss"] for row in run]
            axes.plot(
                epochs,
                losses,
                color=colour,
                linewidth=0.9,
                alpha=0.7,
                label=_short(arm) if number == 0 else None,
            )
            best = min(range(len(losses)), key=losses.__getitem__)
            axes.plot(epochs[best], losses[best], color=colour, marker="o", markersize=3.5)
    lesions = any(
        "tune_average_precision" in row
        for runs in histories.values()
        for run in runs
        for row in run
    )
    name = (
        "1 − average precision on the tune part"
        if lesions
        else "Log-loss on the tune part, at best temperature"
    )
    axes.set(xlabel="Epoch", ylabel=name, title="Training (dots: weights kept)")
    # A few runs of training from scratch start very high and would hide the rest.
    values = sorted(row["tune_loss"] for runs in histories.values() for run in runs for row in run)
    axes.set_ylim(0, max(1.0, 1.1 * values[int(0.97 * (len(values) - 1))]))
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_depth(arm: str, searches: Sequence[Mapping[str, Any]]) -> Figure:
    """Probe AUC and log-loss by stage, a line per fold; triangles: depths tried, filled: chosen."""
    figure, panels = _panels(7.6, 3.6, 2)
    for axes, key, name in zip(
        panels,
        ("auc", "log_loss"),
        ("AUC of a linear head", "Log-loss of a linear head"),
        strict=True,
    ):
        for number, search in enumerate(searches):
            values = [probe[key] for probe in search["probes"]]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=colour,
                linewidth=1,
                label=f"fold {search['fold']}",
            )
            for place, trial in enumerate(search["trials"]):
                # Where the frozen part ends: behind that stage training begins; 0 before the first.
                depth = trial["frozen_stages"]
                height = values[max(depth, 1) - 1]
                face = colour if place == search["chosen"] else "white"
                axes.plot(
                    depth,
                    height,
                    marker="^" if place else "o",
                    color=colour,
                    markerfacecolor=face,
                    markersize=7,
                    zorder=3,
                )
        if key == "log_loss":
            axes.axhline(0.6931, color="0.7", linewidth=1, linestyle=":")
        axes.set(xlabel="Stage, from the image upwards", title=name)
        axes.set_xlim(-0.5, len(searches[0]["probes"]) + 0.5)
    panels[0].legend(frameon=False, fontsize=7, title=_short(arm))
    return figure


def draw_reuse(reuse: Mapping[str, Any]) -> Figure:
    """For every stage: similarity to the pretrained network (and to scratch), distance moved, and
    the AUC lost when the stage is reset.
    """
    figure, panels = _panels(9.6, 3.4, 3)
    for colour, (arm, entry) in zip(_colours(reuse["arms"]), reuse["arms"].items(), strict=True):
        places = range(1, len(entry["stages"]) + 1)
        panels[0].plot(places, entry["cka"], color=colour, label=f"{_short(arm)}, before and after")
        panels[1].plot(
            places, [100 * value for value in entry["moved"]], color=colour, label=_short(arm)
        )
        panels[2].plot(
            places,
            [value - entry["auc"] for value in entry["reset_auc"]],
            color=colour,
            marker="o",
            markersize=3,
        )
    for colour, pair in zip(reversed(COLOURS), reuse["pairs"], strict=False):
        label = f"{_short(pair['a'])} and {_short(pair['b'])}"
        panels[0].plot(
            range(1, len(pair["cka"]) + 1), pair["cka"], color=colour, linestyle="--", label=label
        )
    panels[0].set(title="Likeness (CKA)", ylim=(-0.05, 1.05))
    panels[1].set(title="Way moved, % of length")
    panels[2].set(title="Change of AUC when set back")
    panels[2].axhline(0, color="0.7", linewidth=1, linestyle=":")
    for axes in panels:
        axes.set_xlabel("Stage, from the image upwards")
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def draw_learning_curve(report: Mapping[str, Any]) -> Figure:
    """AUC by patients per class, with intervals; dashed: the fitted power law."""
    figure, axes = _figure(5.2, 3.6)
    arms = list(dict.fromkeys(row["arm"] for row in report["learning_curve"]))
    for colour, arm in zip(_colours(dict.fromkeys(arms)), arms, strict=True):
        rows = [
            row
            for row in report["learning_curve"]
            if row["arm"] == arm and row["auc"]["estimate"] is not None
        ]
        measured = [row for row in rows if not row["extrapolated"]]
        if not measured:
            continue
        sizes, values = (
            [row["size"] for row in measured],
            [row["auc"]["estimate"] for row in measured],
        )
        has_intervals = all(
            row["auc"]["low"] is not None for row in rows
        )  # a single draw of each size gives no intervals
        errors = (
            [
                [abs(row["auc"]["estimate"] - row["auc"][key]) for row in measured]
                for key in ("low", "high")
            ]
            if has_intervals
            else None
        )
        axes.errorbar(
            sizes,
            values,
            yerr=errors,
            color=colour,
            marker="o",
            markersize=4,
            capsize=2,
            label=_short(arm),
        )
        extrapolated = [row for row in rows if row["extrapolated"]]
        if extrapolated:
            places = [row["size"] for row in (measured[-1], *extrapolated)]
            axes.plot(
                places,
                [row["auc"]["estimate"] for row in (measured[-1], *extrapolated)],
                color=colour,
                linestyle="--",
                linewidth=1,
            )
            if has_intervals:
                low, high = (
                    [row["auc"][key] for row in (measured[-1], *extrapolated)]
                    for key in ("low", "high")
                )
                axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(
        xscale="log",
        xlabel="Patients per class to train and tune on",
        ylabel="AUC",
        title="Learning curve (dashed: extrapolated)",
    )
    ticks = sorted({row["size"] for row in report["learning_curve"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def settle(figure: Figure) -> None:
    """Finds the places of all parts, once for all kinds of file."""
    with _style():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def render(figure: Figure, kind: str) -> bytes:
    """The figure as `svg`, `pdf` or `png`, without a date."""
    stream = io.BytesIO()
    dates: dict[str, dict[str, None]] = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
        "png": {"Software": None},
    }
    with _style():
        figure.savefig(stream, format=kind, dpi=150, metadata=dates[kind])
    return stream.getvalue()


def _style() -> AbstractContextManager[None]:
    import matplotlib as mpl  # takes a second, and a study begins without it

    return mpl.rc_context(_STYLE)


def _empty_figure(**options: Any) -> Figure:
    from matplotlib.figure import Figure

    return Figure(**options)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    with _style():
        figure = _empty_figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _panels(width: float, height: float, count: int) -> tuple[Figure, Any]:
    with _style():
        figure = _empty_figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, count)


def _colours(arms: Mapping[str, Any]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(arms))]


def _short(text: str) -> str:
    """Names as plain text of at most 24 characters; `$` is escaped, as it would start a formula."""
    text = text if len(text) <= 24 else text[:23] + "…"
    return text.replace("$", r"\$")
