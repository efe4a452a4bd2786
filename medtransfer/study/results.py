"""What comes out of a study: tables, report and page, from the runs that are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from medtransfer.config.study_config import StudyConfig
from medtransfer.errors import MedTransferError, StudyError, list_faults
from medtransfer.evaluation.analyses.budgets import levelled_arms, split_budgets
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.evaluation.tables.candidates import read_candidates, write_candidates
from medtransfer.evaluation.tables.predictions import (
    AT_BUDGET,
    BUDGET,
    LEVEL,
    OTHER,
    write_predictions,
)
from medtransfer.progress import Reporter
from medtransfer.records.run import Run
from medtransfer.records.run_folder import RunFolder
from medtransfer.records.study_folder import StudyFolder
from medtransfer.report.build import build_report
from medtransfer.report.notes import list_unfinished, measure_spent
from medtransfer.study.analysis.gallery import write_gallery
from medtransfer.study.analysis.gallery_boxes import write_box_gallery
from medtransfer.study.analysis.pointing import read_localisation, write_localisation
from medtransfer.study.analysis.reuse import write_reuse
from medtransfer.study.decisions import write_decisions
from medtransfer.study.failures import read_failures
from medtransfer.study.jobs import Job, complete
from medtransfer.study.recorded import Recorded


def report_runs(
    study: Recorded, runs: dict[Job, Run], listed: int, reporter: Reporter
) -> EvaluationReport:
    """Tables and page from the runs that can be compared.

    Args:
        study: as its folder holds it.
        runs: that are finished.
        listed: how many there are in all.
        reporter: progress.

    Raises:
        StudyError: no fold was trained by all arms.
    """
    config, folder = study.config, study.folder
    usable = complete(runs, list(config.arms))
    main = _in_order(config, [job for job in usable if not job.size])
    failures = [f"{job}: {error}" for job, error in read_failures(folder).items()]
    if not main:
        raise StudyError(
            list_faults(
                f"{folder.path}: no fold has been trained by all {len(config.arms)} arms, so there "
                "is nothing to compare",
                failures,
            )
        )
    # What the page shows may be asked for otherwise than when the runs were made.
    folder.write_config(config)
    table = _gather(study, usable, main)
    write_predictions(table, folder.predictions)
    reporter.say(f"evaluating {len(table)} predictions")
    # Read back, so that the report is what anyone gets from the file alone.
    report = evaluate(folder.predictions, **_choices(config))
    about = {
        "meaning": folder.read(folder.environment).get("meaning", {}),
        "unfinished": list_unfinished(folder, list(config.arms)),
        "spent": measure_spent(folder, list(config.arms)),
    }
    report = EvaluationReport({**report.data, **about})
    compared = [usable[job] for job in main]
    if study.task.finds_boxes:
        report = EvaluationReport({**report.data, "detection": _evaluate_boxes(study, compared)})
    if len(usable) < listed:
        left_out = _describe_left_out(study, main, len(usable), listed)
        failed = [f"Run failed: {failure}" for failure in failures]
        warnings = [left_out, *failed, *report.data["warnings"]]
        report = EvaluationReport({**report.data, "warnings": warnings})
    report.save(folder.report)
    report = _look_at_images(study, report, table, compared, reporter)
    write_decisions(folder, compared, report.data, reporter.say)
    return EvaluationReport(report.data, build_report(folder.path, config.report.figures))


def _in_order(config: StudyConfig, jobs: Sequence[Job]) -> list[Job]:
    """By arm, seed and fold; of the learning curve by arm, size, draw and fold."""
    order = {arm: number for number, arm in enumerate(config.arms)}

    def place(job: Job) -> tuple[int, ...]:
        seed = () if job.size else (job.seed,)
        return (order[job.arm], *seed, job.size, job.episode, job.fold)

    return sorted(jobs, key=place)


def _gather(study: Recorded, usable: Mapping[Job, Run], main: Sequence[Job]) -> pd.DataFrame:
    """The rows of all runs that are compared, and of the draws of a learning curve."""
    config = study.config
    runs = [usable[job] for job in main]
    parts = _with_budgets(config, runs, lambda run: (run.predictions, run.at_budget))
    table = pd.concat(parts, ignore_index=True)
    draws = _in_order(config, [job for job in usable if job.size])
    if curve := [_curve_rows(job, usable[job]) for job in draws]:
        table = pd.concat([table.assign(size=0, episode=0), *curve], ignore_index=True)
    if columns := list(config.evaluate.subgroups):
        table = table.join(study.images.set_index("image")[columns], on="image")
    return table


def _describe_left_out(study: Recorded, main: Sequence[Job], usable: int, listed: int) -> str:
    """Which runs the report rests on, where some are not finished."""
    left_out = (
        f"This report rests on {usable} of {listed} runs: those of the folds and seeds that every "
        "arm has finished."
    )
    tested, folds = len({job.fold for job in main}), len(study.folds)
    if tested < folds:
        left_out += (
            f" {folds - tested} of {folds} folds are untested, their patients not in the figures."
        )
    return left_out


def _look_at_images(
    study: Recorded,
    report: EvaluationReport,
    table: pd.DataFrame,
    runs: Sequence[Run],
    reporter: Reporter,
) -> EvaluationReport:
    """Pictures of test images, where heat maps point, and what was reused: all that asks for pixels
    in the cache, or for trained models. What the cache does not hold any more is said, and what an
    earlier report measured of it stays.
    """
    config, folder = study.config, study.folder
    if not config.report.gallery:  # an earlier report may have left pictures of patients
        folder.gallery.unlink(missing_ok=True)
    absent = len(study.images) - len(study.entries)
    if absent:
        reporter.say(
            f"{absent} of {len(study.images)} images are not in the cache any more: pictures, heat "
            "maps and reuse stay as they were; the study without --report-only makes them anew"
        )
        return _with_localisation(report, read_localisation(study), folder)
    if study.task.finds_boxes:
        if config.report.gallery:
            last, candidates = (
                split_budgets(rows, levelled_arms(rows))[0]
                for rows in (table, read_candidates(folder.candidates))
            )
            write_box_gallery(study, last, candidates)
        return report
    if config.report.gallery:
        with _or_say(reporter, "there are no new pictures of test images"):
            write_gallery(study, pd.concat([run.predictions for run in runs]))
    seeds = {(run.fold, run.seed) for run in runs}
    if not seeds >= {(fold, config.protocol.seeds[0]) for fold in study.folds}:
        return report
    if study.boxes is not None:
        with _or_say(reporter, "where heat maps point is not measured anew"):
            write_localisation(study, reporter)
        report = _with_localisation(report, read_localisation(study), folder)
    with _or_say(reporter, "what was reused of the pretrained weights is not measured"):
        write_reuse(study, _at_one_budget(report.data), reporter)
    return report


@contextmanager
def _or_say(reporter: Reporter, what: str) -> Iterator[None]:
    """The report goes on without it: a model may be damaged, or the pretrained weights not to be
    had any more.
    """
    try:
        yield
    except MedTransferError as error:
        reporter.say(f"{what}: {error}")


def _with_localisation(
    report: EvaluationReport, localisation: dict[str, Any] | None, folder: StudyFolder
) -> EvaluationReport:
    """The report, saved again, with where heat maps point, if that was measured."""
    if localisation is None:
        return report
    report = EvaluationReport({**report.data, "localisation": localisation})
    report.save(folder.report)
    return report


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
            yield early.assign(**{BUDGET: AT_BUDGET})


def _evaluate_boxes(study: Recorded, runs: Sequence[Run]) -> dict[str, Any]:
    """Writes `candidates.csv`, and evaluates what anyone gets from it."""
    folder, config = study.folder, study.config

    def read(run: Run) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        files = RunFolder(run.folder)
        early = None
        if run.at_budget is not None:
            early = read_candidates(files.at_budget.candidates)
        return read_candidates(files.candidates), early

    rows = pd.concat(_with_budgets(config, runs, read), ignore_index=True)
    write_candidates(rows, folder.candidates)
    settings, rule = config.evaluate, config.detection
    return evaluate_boxes(
        folder.predictions,
        folder.candidates,
        folder.boxes,
        settings.bootstrap,
        settings.seed,
        rule.hit,
        rule.overlap,
        list(config.arms),
    )


def _curve_rows(job: Job, run: Run) -> pd.DataFrame:
    rows = run.predictions[run.predictions["part"] == "test"]
    return rows.assign(seed=job.seed, size=job.size, episode=job.episode)
