"""The composition root: configuration -> cohort, split, arms -> runs -> predictions -> report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from accelerate import PartialState
from filelock import FileLock

from medtransfer.config.arm import Arm
from medtransfer.config.study_config import StudyConfig, make_config
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.grid.cache import feature_folder
from medtransfer.errors import CohortError, ConfigError, MedTransferError, StudyError
from medtransfer.evaluation import EvaluationReport
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.progress import Reporter
from medtransfer.study.draws import refuse_large_sizes
from medtransfer.study.engines import choose_engines, recorded_engines
from medtransfer.study.folder import LOCKS, check_folder
from medtransfer.study.jobs import Job, Study, list_jobs
from medtransfer.study.pool import run_jobs
from medtransfer.study.record import Prepared, write_record, write_salt
from medtransfer.study.results import read_failures, report_runs, write_failures
from medtransfer.study.settle import fixed_of, prepare
from medtransfer.training.device import join_processes, use_threads, uses_cuda
from medtransfer.training.tracking import refuse_missing


def compare(
    cohort: Cohort,
    arms: Mapping[str, Arm],
    output: str | Path,
    quiet: bool = False,
    jobs: int = 1,
    **sections: Mapping[str, Any],
) -> EvaluationReport:
    """Trains every arm on the same patients, folds and seeds, and compares them on the test
    patients.

    Args:
        cohort: the images.
        arms: contestants by name; pairs are compared in this order.
        output: folder of the study; an unfinished study with the same settings is continued, and
            arms may be added to it.
        quiet: no progress.
        jobs: processes on this machine, which divide its cores.
        **sections: `image`, `protocol`, `plan`, `train`, `evaluate`: the sections of a
        configuration, such as
            `protocol={"folds": 3, "seeds": [0, 1]}`.

    Raises:
        MedTransferError: see `run_study`.
    """
    if not isinstance(cohort, Cohort):
        raise CohortError(
            f"the cohort is a {type(cohort).__name__}; make one with mt.Cohort.from_csv or "
            "mt.Cohort.from_folders."
        )
    if not isinstance(arms, Mapping) or not all(isinstance(arm, Arm) for arm in arms.values()):
        raise ConfigError(
            'arms are given by name: {"imagenet": mt.Arm("tf_efficientnet_lite0", '
            'weights="imagenet")}.'
        )
    values = {
        "task": "detection" if cohort.detects else "classification",
        "cohort": cohort.source,
        "arms": {name: arm.model_dump(exclude_unset=True) for name, arm in arms.items()},
        **sections,
    }
    report = run_study(make_config(values, "compare"), output, cohort, quiet, jobs)
    assert report is not None  # one task does all
    return report


def run_study(
    config: StudyConfig,
    output: str | Path,
    cohort: Cohort | None = None,
    quiet: bool = False,
    jobs: int = 1,
    task: tuple[int, int] = (0, 1),
    report_only: bool = False,
) -> EvaluationReport | None:
    """Carries out a configuration; the main job.

    Everything is checked before the folder is touched. Finished runs of an earlier study with the
    same settings, interrupted or with fewer arms, are taken as they are. A run that fails is
    listed, and the others go on.

    Args:
        config: the study.
        output: its folder.
        cohort: its images; None: as the configuration says.
        quiet: no progress.
        jobs: processes on this machine, which divide its cores.
        task: number of this task and of all of them: this one does its share of the runs and writes
            no report.
        report_only: writes the report from the runs that are finished, and trains nothing.

    Returns:
        The report; None for one of several tasks, or for a process that trains along with another.

    Raises:
        ConfigError, CohortError, LeakageError, WeightsError: found before anything is written.
        StudyError: the folder holds another study or cannot be written, or no run can be reported.
        KeyboardInterrupt: an end was asked for; what was under way is kept, and the same call goes
            on.
    """
    output = Path(output)
    _refuse_settings(config, jobs, task, report_only, output)
    use_threads(jobs)
    with Reporter(quiet or not _is_first()) as reporter:
        if task[1] > 1:
            study = _settle_among_tasks(config, output, cohort, reporter, jobs, task[1])
        else:
            study = _settle(config, output, cohort, reporter, jobs, report_only=report_only)
        listed = list_jobs(study.prepared)
        own = listed[task[0] :: task[1]]
        failures: dict[Job, str] = {}
        if report_only:
            runs = {job: run for job in own if (run := study.finished(job)) is not None}
        else:
            runs, failures = run_jobs(study, own, jobs, config.engine, reporter)
        if task[1] > 1:
            reporter.say(
                f"task {task[0]} of {task[1]}: {len(runs)} of {len(own)} runs done, "
                f"{len(failures)} failed"
            )
        if not _is_first():
            return None
        write_failures(output, {**read_failures(output), **failures}, study)
        if task[1] > 1:
            return None
        report = report_runs(study, runs, len(listed), reporter)
        if len(runs) == len(listed):
            _clear(study)
        return report


def _is_first() -> bool:
    """Of the processes that `torchrun` began, the one that reports."""
    return int(os.environ.get("RANK", "0")) == 0


def _refuse_settings(
    config: StudyConfig, jobs: int, task: tuple[int, int], report_only: bool, output: Path
) -> None:
    check_folder(output, config)
    refuse_missing(config.train.track)
    number, tasks = task
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; it is a number of processes from 1.")
    if not 0 <= number < tasks:
        raise ConfigError(
            f"task {number} of {tasks}: tasks count from 0 to {tasks - 1}; with a Slurm array, "
            f"use --array=0-{max(0, tasks - 1)}."
        )
    if report_only and not (output / "study.yaml").is_file():
        raise StudyError(
            f"{output}: holds no study to report. Run it first, or name its folder with --output."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (jobs > 1 or config.engine != "local"):
        raise ConfigError(
            "several processes train one network here (torchrun); run them without --jobs and "
            "without engine: ray."
        )


def _settle(
    config: StudyConfig,
    output: Path,
    cohort: Cohort | None,
    reporter: Reporter,
    jobs: int,
    tasks: int = 1,
    report_only: bool = False,
) -> Study:
    """Checks and plans everything, then writes the record."""
    prepared = _prepare_in_turn(config, output, cohort, reporter)
    refuse_large_sizes(prepared)
    engines = (
        recorded_engines(prepared, output)
        if report_only
        else choose_engines(prepared, output, jobs * tasks)
    )
    next(iter(engines.values())).wait()  # all have read what is recorded before it is written anew
    output.mkdir(parents=True, exist_ok=True)
    if _is_first() and not report_only:
        write_record(prepared, engines, output)
    store = feature_folder() / hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]
    return Study(prepared, engines, output, store, jobs)


def _prepare_in_turn(
    config: StudyConfig, output: Path, cohort: Cohort | None, reporter: Reporter
) -> Prepared:
    """Of several processes that train together the first one decodes and chooses the salt; the
    others find both.
    """
    _, processes, _ = join_processes(uses_cuda(config.train.device))
    with PartialState().main_process_first() if processes > 1 else nullcontext():
        prepared = prepare(config, cohort, output, reporter, fixed_of(config))
        if processes > 1 and _is_first():
            output.mkdir(parents=True, exist_ok=True)
            write_salt(prepared.cohort, output)
    return prepared


def _settle_among_tasks(
    config: StudyConfig,
    output: Path,
    cohort: Cohort | None,
    reporter: Reporter,
    jobs: int,
    tasks: int,
) -> Study:
    """The first task chooses salt and precision; the others, which wait for it, take them up."""
    (output / LOCKS).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCKS / "study.lock"):
            return _settle(config, output, cohort, reporter, jobs, tasks)
    except MedTransferError:
        if not (output / "study.yaml").is_file():
            rmtree(output / LOCKS, ignore_errors=True)
            with suppress(OSError):
                output.rmdir()
        raise


def _clear(study: Study) -> None:
    """What is of no use to a finished study."""
    rmtree(study.store, ignore_errors=True)
    rmtree(study.output / LOCKS, ignore_errors=True)


def plan_study(config: StudyConfig, quiet: bool = False) -> dict[str, tuple[FreezePlan, Backbone]]:
    """The plans that `run_study` would follow, and nothing else."""
    with Reporter(quiet) as reporter:
        prepared = prepare(config, None, None, reporter, None)
    return {name: (plan, prepared.backbones[name]) for name, plan in prepared.plans.items()}
