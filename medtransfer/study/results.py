"""What comes out of a study: tables, report and page from the runs that are finished, and the list
of those that failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.config.study_config import StudyConfig
from medtransfer.errors import StudyError, list_faults
from medtransfer.evaluation import EvaluationReport, evaluate, write_predictions
from medtransfer.evaluation.analyses.budgets import levelled_arms, split_budgets
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.tables.candidates import (
    CANDIDATES,
    LESIONS,
    read_candidates,
    write_candidates,
)
from medtransfer.evaluation.tables.predictions import AT_BUDGET as SAME
from medtransfer.evaluation.tables.predictions import BUDGET, LEVEL, OTHER
from medtransfer.files import write_aside
from medtransfer.progress import Reporter
from medtransfer.report.build import GALLERY, build_report
from medtransfer.report.notes import list_unfinished, measure_spent
from medtransfer.study.analysis.gallery import write_gallery
from medtransfer.study.analysis.gallery_boxes import write_sightings
from medtransfer.study.analysis.pointing import write_localisation
from medtransfer.study.analysis.reuse import write_reuse
from medtransfer.study.engines import engines_here
from medtransfer.study.folder import AT_BUDGET
from medtransfer.study.jobs import Job, Study, complete
from medtransfer.study.record import Run, write_audit_and_settings
from medtransfer.text.tables import write_table

_FAILURES = "failures.json"


def report_runs(
    study: Study, runs: dict[Job, Run], listed: int, reporter: Reporter
) -> EvaluationReport:
    """Tables and page from the runs that can be compared."""
    config, output = study.prepared.config, study.output
    order = {arm: i for i, arm in enumerate(config.arms)}
    usable = complete(runs, list(config.arms))
    main = sorted(
        (job for job in usable if not job.size),
        key=lambda job: (order[job.arm], job.seed, job.fold),
    )
    if not main:
        failures = [f"{job}: {error}" for job, error in read_failures(output).items()]
        raise StudyError(
            list_faults(
                f"{output}: no fold has been trained by all {len(order)} arms, so there is "
                "nothing to compare",
                failures,
            )
        )
    write_audit_and_settings(
        study.prepared, output
    )  # what the page shows may be asked for otherwise than when the runs were made
    table = pd.concat(
        _with_budgets(
            config, [usable[job] for job in main], lambda run: (run.predictions, run.at_budget)
        ),
        ignore_index=True,
    )
    draws = sorted(
        (job for job in usable if job.size),
        key=lambda job: (order[job.arm], job.size, job.episode, job.fold),
    )
    if curve := [_curve_rows(job, usable[job]) for job in draws]:
        table = pd.concat([table.assign(size=0, episode=0), *curve], ignore_index=True)
    if columns := list(config.evaluate.subgroups):
        table = table.join(study.prepared.cohort.images.set_index("image")[columns], on="image")
    write_predictions(table, output / "predictions.csv")
    reporter.say(f"evaluating {len(table)} predictions")
    # Read back, so that the report is what anyone gets from the file alone.
    report = evaluate(output / "predictions.csv", **_choices(config))
    about = {
        "meaning": study.prepared.cohort.meaning,
        "unfinished": list_unfinished(output, list(config.arms)),
    }
    about["spent"] = measure_spent(output, list(config.arms))
    report = EvaluationReport({**report.data, **about})
    if study.prepared.cohort.detects:
        report = EvaluationReport(
            {**report.data, "detection": _evaluate_boxes(study, [usable[job] for job in main])}
        )
    if len(usable) < listed:
        left_out = (
            f"This report rests on {len(usable)} of {listed} runs: those of the folds and seeds "
            "that every arm has finished."
        )
        tested, folds = len({job.fold for job in main}), len(study.prepared.split)
        left_out += (
            f" {folds - tested} of {folds} folds are untested, their patients not in the figures."
            if tested < folds
            else ""
        )
        failed = [f"Run failed: {job}: {error}" for job, error in read_failures(output).items()]
        report = EvaluationReport(
            {**report.data, "warnings": [left_out, *failed, *report.data["warnings"]]}
        )
    report.save(output / "report.json")
    if not config.report.gallery:  # an earlier report may have left pictures of patients
        (output / GALLERY).unlink(missing_ok=True)
    if study.prepared.cohort.detects:
        if config.report.gallery:
            last, found = (
                split_budgets(rows, levelled_arms(rows))[0]
                for rows in (table, read_candidates(output / CANDIDATES))
            )
            write_sightings(
                study.prepared, last, found, output, config.detection.hit, config.detection.overlap
            )
        return EvaluationReport(report.data, build_report(output, config.report.figures))
    here = engines_here(study.engines)
    if config.report.gallery:
        write_gallery(
            study.prepared, here, pd.concat([usable[job].predictions for job in main]), output
        )
    whole = {(job.fold, job.seed) for job in main} >= {
        (fold, config.protocol.seeds[0]) for fold in range(len(study.prepared.split))
    }
    boxed = whole and study.prepared.cohort.boxes is not None
    if boxed and (localisation := write_localisation(study.prepared, here, output, reporter)):
        report = EvaluationReport({**report.data, "localisation": localisation})
        report.save(output / "report.json")
    if whole:
        write_reuse(study.prepared, here, output, _at_one_budget(report.data), reporter)
    return EvaluationReport(report.data, build_report(output, config.report.figures))


def _at_one_budget(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparisons, of arms that were trained until level as they were at the same budget."""
    early = {
        (entry["a"], entry["b"]): entry
        for entry in (data["at_budget"] or {"comparisons": []})["comparisons"]
    }
    return [early.get((entry["a"], entry["b"]), entry) for entry in data["comparisons"]]


def _choices(config: StudyConfig) -> dict[str, Any]:
    """How the study is evaluated: as its section says, in the order of its arms, with what was
    settled about patients before training.
    """
    chosen = {
        **config.evaluate.model_dump(),
        "leave_out": config.protocol.leave_out or config.evaluate.leave_out,
    }
    if list(config.arms) != sorted(config.arms):
        chosen["arms"] = list(config.arms)
    if config.cohort.look_alikes == "different":
        chosen["look_alikes"] = "different"
    return chosen


def _with_budgets(
    config: StudyConfig,
    runs: Sequence[Run],
    read: Callable[[Run], tuple[pd.DataFrame, pd.DataFrame | None]],
) -> Iterator[pd.DataFrame]:
    """The rows of runs, and of those that were trained until level also those at the end of the
    budget, in a column `budget`.
    """
    if not any(run.at_budget is not None for run in runs):
        yield from (read(run)[0] for run in runs)
        return
    for run in runs:
        rows, early = read(run)
        shared = (
            run.summary["plan"]["strategy"] != "linear_probe" and config.arms[run.arm].times == 1
        )
        yield rows.assign(**{BUDGET: LEVEL if early is not None else "" if shared else OTHER})
        if early is not None:
            yield early.assign(**{BUDGET: SAME})


def _evaluate_boxes(study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    """Writes `candidates.csv` and `boxes.csv`, and evaluates what anyone gets from them."""
    output, config = study.output, study.prepared.config
    boxes = study.prepared.cohort.boxes
    assert boxes is not None

    def read(run: Run) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        early = (
            None if run.at_budget is None else read_candidates(run.folder / AT_BUDGET / CANDIDATES)
        )
        return read_candidates(run.folder / CANDIDATES), early

    write_candidates(
        pd.concat(_with_budgets(config, runs, read), ignore_index=True), output / CANDIDATES
    )
    write_table(boxes, output / LESIONS)
    chosen, rule = config.evaluate, config.detection
    tables = (output / "predictions.csv", output / CANDIDATES, output / LESIONS)
    return evaluate_boxes(
        *tables, chosen.bootstrap, chosen.seed, rule.hit, rule.overlap, list(config.arms)
    )


def _curve_rows(job: Job, run: Run) -> pd.DataFrame:
    rows = run.predictions[run.predictions["part"] == "test"]
    return rows.assign(seed=job.seed, size=job.size, episode=job.episode)


def write_failures(output: Path, failures: Mapping[Job, str], study: Study) -> None:
    """Those that did not succeed since; no file where there are none."""
    left = [
        {**asdict(job), "error": error}
        for job, error in failures.items()
        if study.finished(job) is None
    ]
    if left:
        write_aside(output / _FAILURES, json.dumps(left, indent=1))
    else:
        (output / _FAILURES).unlink(missing_ok=True)


def read_failures(output: Path) -> dict[Job, str]:
    """Why runs failed, as `write_failures` left it."""
    try:
        entries = json.loads((output / _FAILURES).read_text(encoding="utf-8"))
        return {
            Job(**{key: value for key, value in entry.items() if key != "error"}): entry["error"]
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def failed_runs(output: str | Path) -> list[str]:
    """The runs of a study that failed, and why."""
    return [f"{job}: {error}" for job, error in read_failures(Path(output)).items()]
