"""The page, from the files of a folder alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from medtransfer.evaluation.predictions import write_aside
from medtransfer.report.figures import (
    COLOURS,
    draw_depth,
    draw_learning_curve,
    draw_reliability,
    draw_reuse,
    draw_roc,
    draw_training,
    render,
)

ROWS = (
    ("auc", "AUC", "higher is better; 0.5 is chance"),
    ("average_precision", "Average precision", "higher is better; chance is the prevalence"),
    ("brier", "Brier score", "lower is better"),
    ("brier_skill", "Brier skill", "1 is perfect, 0 no better than the prevalence"),
    ("log_loss", "Log-loss", "lower is better"),
    ("ece", "ECE", "0 is best; read it beside what chance alone gives"),
    ("calibration.intercept", "Calibration intercept", "0 is best; above 0: probabilities too low"),
    ("calibration.slope", "Calibration slope", "1 is best; below 1: over-confident"),
    ("calibration.observed_expected", "Observed / expected", "1 is best"),
    ("calibration.ici", "ICI", "0 is best; mean distance from the smooth calibration curve"),
)


# Log-loss on tune images against training images: a gap beyond both is worth a warning.
_GAP_RATIO, _GAP = 2.0, 0.1


def build_report(folder: Path) -> Path:
    """Writes `report.html` and `figures/` beside `report.json`; returns the page.

    Uses what is there of `study.yaml`, `cohort.csv`, `audit.json`, `plan.json`, `environment.json` and
    `runs/`; of these an evaluation of foreign predictions has none.
    """
    report = _read_json(folder / "report.json")
    histories = _read_histories(folder, list(report["arms"]))
    figures = {"roc": draw_roc(report)}
    for number, (arm, entry) in enumerate(report["arms"].items()):
        figures[f"reliability-{number}"] = draw_reliability(arm, entry, COLOURS[number % len(COLOURS)])
    if histories:
        figures["training"] = draw_training(histories)
    # Of foreign predictions nothing is known but the scores.
    reuse = {"arms": {}, "pairs": [], "flags": [], **_read_json(folder / "reuse.json")}
    if reuse["arms"]:
        figures["reuse"] = draw_reuse(reuse)
    searches = {arm: found for arm in report["arms"] if (found := _read_searches(folder, arm))}
    for number, (arm, found) in enumerate(searches.items()):
        if drawn := [entry for entry in found if entry["probes"]]:
            figures[f"depth-{number}"] = draw_depth(arm, drawn)
    if report["learning_curve"]:
        figures["learning"] = draw_learning_curve(report)
    (folder / "figures").mkdir(exist_ok=True)
    pictures = {}
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            content = render(figure, kind)
            write_aside(folder / "figures" / f"{name}.{kind}", content)
            if kind == "svg":
                pictures[name] = "data:image/svg+xml;base64," + base64.b64encode(content).decode()
    study, plans = folder / "study.yaml", _read_json(folder / "plan.json").get("arms", {})
    environment = _read_json(folder / "environment.json")
    weights = {arm: entry["weights"] for arm, entry in environment.get("arms", {}).items()}
    context = {
        "report": report,
        "untrained": [(arm, w) for arm, w in weights.items() if w["proof"] and not w["proof"]["passed"]],
        "rows": _table(report),
        "pictures": pictures,
        "audit": _read_json(folder / "audit.json"),
        "plans": plans,
        "environment": environment,
        "config": study.read_text(encoding="utf-8") if study.is_file() else "",
        "notes": _training_notes(folder, list(report["arms"])),
        "overfitted": _overfitting_notes(folder, list(report["arms"])),
        "reuse": reuse,
        "small": _small_notes(folder, plans),
        "searches": searches,
    }
    page = folder / "report.html"
    write_aside(page, load_template("report.html").render(**context))
    return page


def load_template(name: str) -> jinja2.Template:
    """A page of this package; everything filled in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = format_interval
    return environment.get_template(name)


def format_interval(value: dict[str, Any]) -> str:
    """`0.912 (0.880 to 0.940)`, or why there is none."""
    if value["estimate"] is None:
        return str(value.get("reason", "not estimable"))
    if value["low"] is None:
        return f"{value['estimate']:.3f} (no interval: {value.get('reason', 'not estimable')})"
    return f"{value['estimate']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per metric: title, help, and per arm the text as trained and recalibrated."""
    table = []
    for path, title, help_text in ROWS:
        cells = []
        for entry in report["arms"].values():
            for part in (entry, entry["recalibrated"]):
                if part is None:
                    continue
                value: Any = part
                for key in path.split("."):
                    value = value[key]
                text = format_interval(value)
                if path == "ece":
                    text += f"; chance {value['null_mean']:.3f}, up to {value['null_high']:.3f}"
                cells.append(text)
        table.append({"title": title, "help": help_text, "cells": cells})
    return table


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _run_folders(folder: Path, arm: str) -> list[Path]:
    # Arms of a study are folder names; those of foreign predictions may be anything and have no runs.
    runs = folder / "runs"
    known = {path.name: path for path in runs.iterdir()} if runs.is_dir() else {}
    return sorted(known[arm].glob("fold-*/seed-*")) if arm in known else []


def _read_runs(folder: Path, arm: str) -> list[dict[str, Any]]:
    """What is recorded of the finished runs of an arm."""
    return [run for path in _run_folders(folder, arm) if (run := _read_json(path / "run.json"))]


def _read_histories(folder: Path, arms: list[str]) -> dict[str, list[list[dict[str, float]]]]:
    histories = {}
    for arm in arms:
        files = [path / "metrics.jsonl" for path in _run_folders(folder, arm)]
        runs = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files if file.is_file()]
        if runs:
            histories[arm] = runs
    return histories


def _read_searches(folder: Path, arm: str) -> list[dict[str, Any]]:
    """What the search for the depth saw, fold by fold."""
    folds = sorted({path.parent for path in _run_folders(folder, arm)})
    found = [{"fold": path.name.removeprefix("fold-"), **_read_json(path / "depth.json")} for path in folds]
    return [entry for entry in found if "reason" in entry]


def _small_notes(folder: Path, plans: dict[str, Any]) -> list[str]:
    """Per arm that was planned as a probe on few patients: why, and what simpler heads reach on the same features."""
    notes = []
    for arm, plan in plans.items():
        if plan["strategy"] != "linear_probe" or plan["evidence"] != "weak":
            continue
        runs = _read_runs(folder, arm)
        checks = [found for run in runs if (found := run["probe"].get("checks"))]
        note = f"{arm}: {plan['reason']}"
        if checks:
            means = {name: sum(found[name] for found in checks) / len(checks) for name in checks[0]}
            note += (
                f" Within the training parts, by repeated cross-validation, its linear head reaches AUC {means['logistic']:.2f}, the "
                f"nearest class mean {means['prototype']:.2f}, nearest neighbours {means['neighbours']:.2f}: a check, not a result."
            )
        notes.append(note)
    return notes


def _overfitting_notes(folder: Path, arms: list[str]) -> list[str]:
    """Per arm, a warning where its networks know their training images much better than others."""
    notes = []
    for arm in arms:
        runs = _read_runs(folder, arm)
        gaps = [(run["kept"]["train"], run["kept"]["tune"]) for run in runs if "kept" in run]
        learnt = [(train, tune) for train, tune in gaps if tune > _GAP_RATIO * train and tune - train > _GAP]
        if len(learnt) > len(gaps) / 2:
            train, tune = (sum(column) / len(learnt) for column in zip(*learnt, strict=True))
            notes.append(
                f"{arm} is over-fitted in {len(learnt)} of {len(gaps)} runs: its log-loss is {train:.2f} on images it was trained on and "
                f"{tune:.2f} on others. Its probabilities are too extreme until a temperature is applied; more patients, more frozen "
                "stages or L2-SP would narrow the gap."
            )
    return notes


def _training_notes(folder: Path, arms: list[str]) -> list[str]:
    """Per arm, how training ended; says so where the budget ended before the model was done."""
    notes = []
    for arm in arms:
        runs = _read_runs(folder, arm)
        if not runs:
            continue
        epochs = [run["epochs"] for run in runs]
        unfinished = sum(run["epochs"] > 0 and run["best_epoch"] >= 0.9 * run["epochs"] and not run["stopped_early"] for run in runs)
        seconds = sum(run["seconds"] for run in runs)
        kept = ", ".join(str(run["best_epoch"]) for run in runs)
        spread = f"{min(epochs)} to {max(epochs)} epochs, weights kept from epochs {kept}"
        note = f"{arm}: {len(runs)} runs of {spread}; {seconds:.0f} s of training."
        if unfinished:
            note += f" In {unfinished} of {len(runs)} runs the best epoch was among the last: this arm might gain from more train.epochs."
        notes.append(note)
    return notes
