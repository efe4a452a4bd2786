"""The page, from the files of a folder alone."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe
import yaml

from medtransfer.evaluation.analyses.localisation import MEASURES
from medtransfer.evaluation.intervals.entries import NO_PROBABILITIES
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.evaluation.sentences.headline import describe_detector, headline
from medtransfer.evaluation.sentences.words import explain_interval, format_share
from medtransfer.evaluation.settings import Settings
from medtransfer.files import write_aside
from medtransfer.records.study_folder import StudyFolder
from medtransfer.report.checklist import fill_checklists
from medtransfer.report.figures import (
    COLOURS,
    draw_candidates,
    draw_decisions,
    draw_depth,
    draw_discrimination,
    draw_froc,
    draw_learning_curve,
    draw_reliability,
    draw_reuse,
    draw_subgroups,
    draw_training,
    render,
    settle,
)
from medtransfer.report.methods import describe_budgets, write_methods
from medtransfer.report.notes import (
    note_overfitting,
    note_small_cohorts,
    note_training,
    read_histories,
    read_searches,
)
from medtransfer.text.names import show_text
from medtransfer.text.tables import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Path in the report, title, help.
ROWS = (
    ("auc", "AUC", "of pairs scored by the same model; higher is better; 0.5 is chance"),
    (
        "partial_auc",
        "Partial AUC",
        "where the specificity is at least 0.8, standardised: 0.5 is chance",
    ),
    ("average_precision", "Average precision", "higher is better; chance is the prevalence"),
    ("brier", "Brier score", "lower is better"),
    ("brier_skill", "Brier skill", "1 is perfect, 0 no better than the prevalence"),
    (
        "brier_parts.miscalibration",
        "Brier: miscalibration",
        "0 is best, and not to be had: read it beside what chance alone gives",
    ),
    (
        "brier_parts.discrimination",
        "Brier: discrimination",
        "higher is better; what the order of the scores of all models together takes off",
    ),
    ("log_loss", "Log-loss", "lower is better"),
    (
        "ece",
        "ECE",
        "0 is best; up to 10 bins of as many images each; read it beside what chance alone gives",
    ),
    ("l2_ece", "Debiased L2-ECE", "0 is best; what chance gives is taken off"),
    ("smooth_ece", "Smooth ECE", "0 is best; without bins; beside what chance alone gives"),
    ("calibration.intercept", "Calibration intercept", "0 is best; above 0: probabilities too low"),
    (
        "calibration.slope",
        "Calibration slope",
        "1 is best; below 1: over-confident; an intercept for every model",
    ),
    ("calibration.observed_expected", "Observed / expected", "1 is best"),
    (
        "calibration.ici",
        "ICI",
        (
            "0 is best; mean distance from the smooth calibration curve; beside what chance alone "
            "gives"
        ),
    ),
)
# Key, title, help.
LESION_ROWS = (
    (
        "ap_50",
        "Average precision, overlap 0.5",
        "higher is better; area below precision and recall within a model, as COCO's AP50",
    ),
    ("ap_30", "Average precision, overlap 0.3", ""),
    ("ap_10", "Average precision, overlap 0.1", "whether the lesion is found at all"),
    ("map", "mAP, overlaps 0.5 to 0.95", "how well boxes fit, as COCO's AP"),
    ("cpm", "CPM", "mean sensitivity at 1/8 to 8 false positives per image"),
)
# Files of this module in `figures/` of a study; whatever else lies there is left alone.
_FIGURE_NAME = re.compile(
    r"((discrimination|reliability|decisions|subgroups|depth)(-\d+)+|training|reuse|learning|froc|candidates)\.(svg|pdf|png)"
)


def build_report(folder: Path, figures: Sequence[str] = ("svg", "pdf", "png")) -> Path:
    """Writes `report.html`, `figures/` and `tables/` beside `report.json`; returns the page.

    Uses what is there of `study.yaml`, `cohort.csv`, `audit.json`, `plan.json`, `environment.json`,
    `gallery.json` and `runs/`; of these an evaluation of foreign predictions has none.

    Args:
        folder: holds `report.json`.
        figures: formats of the files in `figures/`; where there are none, the page has no figures
            either.
    """
    files = StudyFolder(folder)
    report = files.read(files.report)
    sections = report.get("labels") or {report["label"]: report}
    arms = list(report["arms"])
    plans, environment = files.read(files.plan).get("arms", {}), files.read(files.environment)
    audit, gallery = files.read(files.audit), files.read(files.gallery)
    config = files.settings.read_text(encoding="utf-8") if files.is_study else ""
    settings = yaml.safe_load(config) if config else {}
    # Of foreign predictions nothing is known but the scores.
    reuse = {"arms": {}, "pairs": [], "flags": [], **files.read(files.reuse)}
    searches = {arm: found for arm in arms if (found := read_searches(files, arm))}
    histories = read_histories(files, arms)
    drawn = _draw(report, sections, reuse, searches, histories) if figures else {}
    if config:  # a study's own folder, which an earlier report may have filled with others
        _remove_figures(files.figures)
    pictures = _write_figures(files.figures, drawn, figures)
    _write_tables(files.tables, report, sections)
    weights = {arm: entry["weights"] for arm, entry in environment.get("arms", {}).items()}
    paragraphs, references = write_methods(report, plans, environment, audit, settings)
    own_table = bool(environment or report.get("shift"))
    context = {
        "report": report,
        "sections": [(label, part, _table(part)) for label, part in sections.items()],
        "several": len(sections) > 1,
        "rows": _table(report),
        "untrained": [
            (arm, w) for arm, w in weights.items() if w["proof"] and not w["proof"]["passed"]
        ],
        "pictures": pictures,
        "figures": [*dict.fromkeys(kind.upper() for kind in figures)],
        "trained": bool(histories),
        "left_out": _list_left_out(settings, plans, audit, reuse, figures),
        "audit": audit,
        "plans": plans,
        "environment": environment,
        "config": config,
        "notes": note_training(files, arms),
        "budgets": describe_budgets(settings, plans),
        "overfitted": note_overfitting(files, arms),
        "reuse": reuse,
        "small": note_small_cohorts(files, plans),
        "searches": searches,
        "gallery": gallery,
        "headline": headline(report),
        "found": [
            describe_detector(arm, entry)
            for arm, entry in report.get("detection", {"arms": {}})["arms"].items()
        ],
        "one_class": "detection" in report and EvaluationReport(report).one_class,
        "own_table": own_table,
        "command": _command(report, files.predictions.name if own_table else "TABLE.csv"),
        "lesion_rows": LESION_ROWS,
        "measures": MEASURES,
        "methods": paragraphs,
        "references": references,
        "checklists": fill_checklists(report, plans, environment, audit, settings, bool(gallery)),
    }
    write_aside(files.page, load_template("report.html").render(**context))
    return files.page


def _command(report: dict[str, Any], table: str) -> str:
    """What gives the same numbers from the table: every setting that is not the default is
    named.
    """
    words = ["medtransfer", "evaluate", table]
    if found := report.get("detection"):
        names = StudyFolder(Path())
        words += [
            "--candidates",
            names.candidates.name,
            "--boxes",
            names.boxes.name,
            "--hit",
            found["hit"]["rule"],
        ]
        words += ["--overlap", str(found["hit"]["overlap"])] if found["hit"]["overlap"] else []
    usual, chosen = vars(Settings()), dict(report["settings"])
    words += ["--bootstrap", str(chosen.pop("bootstrap")), "--seed", str(chosen.pop("seed"))]
    for name, value in chosen.items():
        if value != (list(usual[name]) if isinstance(usual[name], tuple) else usual[name]):
            words.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return shlex.join(words)


def _list_left_out(
    settings: Any, plans: Any, audit: Any, reuse: Any, figures: Sequence[str]
) -> list[str]:
    """What the settings of a study leave out of its page."""
    asked = {"gallery": True, "reuse": True, **settings.get("report", {})}
    measurable = settings.get("task") != "detection" and any(
        plan["strategy"] == "lp_ft" for plan in plans.values()
    )
    drawn_alone = ", among them what was reused, which reuse.json holds" if reuse["arms"] else ""
    left_out = {
        f"figures (report.figures){drawn_alone}": not figures,
        "pictures of test images (report.gallery)": not asked["gallery"],
        "what was reused of the pretrained weights (report.reuse)": measurable
        and not asked["reuse"]
        and not reuse["arms"],
        "shortcuts (audit.shortcuts)": "shortcuts" in audit.get("not_looked_for", ()),
    }
    return [what for what, absent in left_out.items() if absent]


def _draw(
    report: dict[str, Any],
    sections: dict[str, Any],
    reuse: Any,
    searches: dict[str, Any],
    histories: dict[str, Any],
) -> dict[str, Figure]:
    """The figures by name."""
    figures = {} if "detection" not in report else _draw_lesions(report["detection"])
    for place, part in enumerate(sections.values()):
        figures[f"discrimination-{place}"] = draw_discrimination(part)
        for number, (arm, entry) in enumerate(part["arms"].items()):
            if not entry.get("scored"):
                figures[f"reliability-{place}-{number}"] = draw_reliability(
                    arm, entry, COLOURS[number % len(COLOURS)]
                )
        if part["decision_curves"]["arms"]:
            figures[f"decisions-{place}"] = draw_decisions(part)
        if any(not row["suppressed"] for row in part["subgroups"]):
            figures[f"subgroups-{place}"] = draw_subgroups(part)
    if histories:
        figures["training"] = draw_training(histories)
    if reuse["arms"]:
        figures["reuse"] = draw_reuse(reuse)
    for number, (arm, found) in enumerate(searches.items()):
        if drawn := [entry for entry in found if entry["probes"]]:
            figures[f"depth-{number}"] = draw_depth(arm, drawn)
    if report["learning_curve"]:
        figures["learning"] = draw_learning_curve(report)
    return figures


def _remove_figures(folder: Path) -> None:
    for path in folder.glob("*"):
        if _FIGURE_NAME.fullmatch(path.name):
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _write_figures(
    folder: Path, figures: Mapping[str, Figure], kinds: Sequence[str]
) -> dict[str, str]:
    """Writes each figure in every format; returns them by name as what an <img> shows."""
    if figures:
        folder.mkdir(exist_ok=True)
    pictures = {}
    for name, figure in figures.items():
        settle(figure)
        rendered = {kind: render(figure, kind) for kind in dict.fromkeys((*kinds, "svg"))}
        for kind in kinds:
            write_aside(folder / f"{name}.{kind}", rendered[kind])
        pictures[name] = "data:image/svg+xml;base64," + base64.b64encode(rendered["svg"]).decode()
    return pictures


def _draw_lesions(found: dict[str, Any]) -> dict[str, Figure]:
    figures = {"froc": draw_froc(found)}
    if any(entry["calibration"] for entry in found["arms"].values()):
        figures["candidates"] = draw_candidates(found)
    return figures


def _write_tables(folder: Path, report: dict[str, Any], sections: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    whole = (
        {"": report}
        if len(sections) == 1
        else {"": report, **{f"-{i}": part for i, part in enumerate(sections.values())}}
    )
    for ending, part in whole.items():
        for name, table in EvaluationReport({"learning_curve": [], **part}).tables().items():
            write_table(table, folder / f"{name}{ending}.csv")


def load_template(name: str) -> jinja2.Template:
    """A page of this package; everything filled in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        # Names come from strangers' files: what turns text around is shown as its code.
        finalize=lambda value: (
            show_text(value)
            if isinstance(value, str) and not isinstance(value, markupsafe.Markup)
            else value
        ),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = explain_interval
    environment.filters["share"] = format_share
    environment.filters["p"] = format_p
    return environment.get_template(name)


def format_p(value: float | None) -> str:
    """`0.013`, `< 0.001`, or a dash."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per metric: title, help, and per arm the text as trained and recalibrated; rows of
    which nothing is known are left out.
    """
    table = []
    for path, title, help_text in ROWS:
        cells = []
        for entry in report["arms"].values():
            for part in (entry, entry["recalibrated"]):
                if part is None:
                    continue
                value: Any = part
                for key in path.split("."):
                    value = value.get(key, {})
                cells.append(explain_interval(value) if value else "–")
        if set(cells) - {"–", str(NO_PROBABILITIES["reason"])}:
            table.append({"title": title, "help": help_text, "cells": cells})
    return table
