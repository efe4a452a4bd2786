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
from medtransfer.data.grid.fixed import fixed_of
from medtransfer.errors import CohortError, ConfigError, MedTransferError
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.progress import Reporter
from medtransfer.records.run import Run, finished_run
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.draws import refuse_large_sizes
from medtransfer.study.engines import choose_engines
from medtransfer.study.environment import write_record
from medtransfer.study.failures import read_failures, write_failures
from medtransfer.study.jobs import Job, list_jobs, name_jobs
from medtransfer.study.pool import run_jobs
from medtransfer.study.recorded import Recorded
from medtransfer.study.refusals import refuse_settings
from medtransfer.study.results import report_runs
from medtransfer.study.settle import Settled, settle
from medtransfer.study.share import WHOLE, Share
from medtransfer.study.worker import Worker
from medtransfer.tasks.kinds import choose_kind
from medtransfer.training.device import uses_cuda
from medtransfer.training.process import join_processes, training_settings


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
            configuration, such as `protocol={"folds": 3, "seeds": [0, 1]}`.

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
        "task": choose_kind(cohort.needed_classes),
        "cohort": cohort.source,
        "arms": {name: arm.model_dump(exclude_unset=True) for name, arm in arms.items()},
        **sections,
    }
    report = run_study(make_config(values, "compare"), output, cohort, quiet, jobs)
    assert report is not None  # one share is all of it
    return report


def run_study(
    config: StudyConfig,
    output: str | Path,
    cohort: Cohort | None = None,
    quiet: bool = False,
    jobs: int = 1,
    share: Share = WHOLE,
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
        share: of the runs that are done now; of several, each writes no report.
        report_only: writes the report from the runs that are finished, and trains nothing; the
            folder suffices, without the files of the cohort or pretrained weights.

    Returns:
        The report; None for one of several shares, or for a process that trains along with another.

    Raises:
        ConfigError, CohortError, LeakageError, WeightsError: found before anything is written.
        StudyError: the folder holds another study or cannot be written, or no run can be reported.
        KeyboardInterrupt: an end was asked for; what was under way is kept, and the same call goes
            on.
    """
    folder = StudyFolder(Path(output))
    refuse_settings(config, folder.path, jobs, share, report_only)
    on_cuda = uses_cuda(config.train.device)
    with training_settings(on_cuda, jobs), Reporter(quiet or not _is_first()) as reporter:
        if report_only:
            runs, listed = _finished(config, folder, reporter)
            report = report_runs(Recorded(folder, config), runs, listed, reporter)
            if len(runs) == listed:
                _clear(folder)
            return report
        worker = _settle_in_turn(config, folder, cohort, reporter, jobs, share)
        jobs_of_study = list_jobs(worker.settled)
        jobs_of_share = share.take(jobs_of_study)
        runs, failures = run_jobs(worker, jobs_of_share, jobs, config.engine, reporter)
        if share.of > 1:
            reporter.say(
                f"share {share}: {len(runs)} of {len(jobs_of_share)} runs done, "
                f"{len(failures)} failed"
            )
        if not _is_first():
            return None
        _note_failures(worker, failures)
        if share.of > 1:
            return None
        report = report_runs(Recorded(folder, config), runs, len(jobs_of_study), reporter)
        if len(runs) == len(jobs_of_study):
            _clear(folder)
        return report


def _is_first() -> bool:
    """Of the processes that `torchrun` began, the one that reports."""
    return int(os.environ.get("RANK", "0")) == 0


def _finished(
    config: StudyConfig, folder: StudyFolder, reporter: Reporter
) -> tuple[dict[Job, Run], int]:
    """The finished runs that the folder holds, and how many a whole study has."""
    listed = name_jobs(config, len(Recorded(folder, config).folds), list(config.arms))
    agreed = folder.read(folder.environment).get("conditions")

    def say(damage: str) -> None:
        reporter.say(
            f"{damage} The run is left out; the study without --report-only does it again."
        )

    runs = {}
    for job in listed:
        run = finished_run(job.folder(folder), say=say)
        if run is not None and run.conditions == agreed:
            runs[job] = run
        elif run is not None:
            say(f"{run.folder}: comes from other code, libraries, images or parts than the study.")
    return runs, len(listed)


def _note_failures(worker: Worker, failures: Mapping[Job, str]) -> None:
    """Lists the failures of this part of the study beside those of its others, without runs that
    were finished since.
    """
    both = {**read_failures(worker.folder), **failures}
    write_failures(
        worker.folder, {job: error for job, error in both.items() if worker.finished(job) is None}
    )


def _settle_in_turn(
    config: StudyConfig,
    folder: StudyFolder,
    cohort: Cohort | None,
    reporter: Reporter,
    jobs: int,
    share: Share,
) -> Worker:
    """The first of several shares chooses salt and precision; the others, which wait for it, take
    them up.
    """
    if share.of == 1:
        return _settle(config, folder, cohort, reporter, jobs)
    folder.locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.lock):
            return _settle(config, folder, cohort, reporter, jobs, share.of)
    except MedTransferError:
        if not folder.is_study:
            folder.clear_locks()
            with suppress(OSError):
                folder.path.rmdir()
        raise


def _settle(
    config: StudyConfig,
    folder: StudyFolder,
    cohort: Cohort | None,
    reporter: Reporter,
    jobs: int,
    shares: int = 1,
) -> Worker:
    """Checks and plans everything, then writes the record."""
    settled = _settle_along(config, folder, cohort, reporter)
    refuse_large_sizes(settled)
    engines = choose_engines(settled, folder, jobs * shares)
    next(iter(engines.values())).wait()  # all have read what is recorded before it is written anew
    folder.path.mkdir(parents=True, exist_ok=True)
    if _is_first():
        write_record(settled, engines, folder)
    return Worker(settled, engines, folder, _store_of(folder), jobs)


def _store_of(folder: StudyFolder) -> Path:
    """Where the activations are kept while the study lasts."""
    name = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    return feature_folder() / name


def _clear(folder: StudyFolder) -> None:
    """Removes what a finished study does not need any more."""
    rmtree(_store_of(folder), ignore_errors=True)
    folder.clear_locks()


def _settle_along(
    config: StudyConfig, folder: StudyFolder, cohort: Cohort | None, reporter: Reporter
) -> Settled:
    """Of several processes that train together the first one decodes and chooses the salt; the
    others find both.
    """
    _, processes, _ = join_processes(uses_cuda(config.train.device))
    with PartialState().main_process_first() if processes > 1 else nullcontext():
        settled = settle(config, cohort, folder, reporter, fixed_of(config.image))
        if processes > 1 and _is_first():
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_salt(settled.cohort.salt)
    return settled


def plan_study(
    config: StudyConfig, cohort: Cohort | None = None, quiet: bool = False
) -> dict[str, tuple[FreezePlan, Backbone]]:
    """The plans that `run_study` would follow, and nothing else.

    Args:
        config: the study.
        cohort: its images; None: as the configuration says.
        quiet: no progress.
    """
    with Reporter(quiet) as reporter:
        settled = settle(config, cohort, None, reporter, None)
    return {name: (plan, settled.backbones[name]) for name, plan in settled.plans.items()}
