"""`medtransfer compare`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medtransfer.cli.guard import INCOMPLETE
from medtransfer.cli.options import ConfigFile, Jobs, Overrides, Quiet, StudyOutput
from medtransfer.cli.printing import say, say_renamed
from medtransfer.errors import ConfigError
from medtransfer.study.share import WHOLE, Share

if TYPE_CHECKING:
    from medtransfer.config.study_config import StudyConfig


def compare(
    config: ConfigFile,
    overrides: Overrides = None,
    output: StudyOutput = Path("studies/compare"),
    jobs: Jobs = 1,
    share: Annotated[
        str,
        typer.Option(
            metavar="NUMBER/OF",
            help="Do only this share of the runs, such as 3/8, and write no report.",
        ),
    ] = "1/1",
    task: Annotated[int | None, typer.Option(hidden=True)] = None,
    tasks: Annotated[int | None, typer.Option(hidden=True)] = None,
    report_only: Annotated[
        bool,
        typer.Option(
            "--report-only", help="Train nothing; write the report from the runs that are finished."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train every arm on the same patients and compare them: the main job.

    The same command continues a study that was interrupted.

    A Slurm array does the runs in shares, which count from 1: sbatch --array=1-8, and in the script
    --share $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT. When all are done, the same command with
    --report-only in place of --share writes the report.
    """
    from medtransfer.config.study_config import load_config

    if task is not None or tasks is not None:
        part = _share_of_tasks(task or 0, tasks or 1)
    else:
        part = Share.parse(share)
    run(load_config(config, overrides or ()), output, quiet, jobs, part, report_only)


def _share_of_tasks(task: int, tasks: int) -> Share:
    """The share that `--task` and `--tasks`, which count from 0, mean."""

    if not 0 <= task < tasks:
        raise ConfigError(
            f"task {task} of {tasks}: tasks count from 0 to {tasks - 1}; with a Slurm array, "
            f"use --array=0-{max(0, tasks - 1)}."
        )
    share = Share(task + 1, tasks)
    say_renamed(f"--task {task} --tasks {tasks}", f"--share {share}, which counts from 1")
    return share


def run(
    config: StudyConfig,
    output: Path,
    quiet: bool,
    jobs: int,
    share: Share = WHOLE,
    report_only: bool = False,
) -> None:
    """Carries out a configuration, prints what came of it, and exits with 3 where some of it
    failed.
    """
    from medtransfer.records.study_folder import StudyFolder
    from medtransfer.study.cohort import read_cohort
    from medtransfer.study.refusals import refuse_arms, refuse_settings

    # What can be refused without torch, which takes seconds to load, is refused before.
    refuse_settings(config, output, jobs, share, report_only)
    if not report_only:
        refuse_arms(config)
    folder = StudyFolder(output)
    cohort = None if report_only else read_cohort(config, None, folder)

    from medtransfer.study.failures import failed_runs
    from medtransfer.study.study import run_study

    report = run_study(config, output, cohort, quiet, jobs, share, report_only)
    if report is not None:
        say("\n".join(report.sentences))
        say(f"\nReport: {report.page}")
        say(f'New images: mt.load_model("{output}").predict(...); see medtransfer help models')
    elif share.of > 1:
        say(f"Share {share} is done. After the last one: the same command with --report-only.")
    else:
        return  # a process that trains along with the one that reports
    # A report can be written from the runs alone.
    flow = folder.read(folder.audit).get("flow", {"images": 0, "used": 0})
    left_out = flow["images"] - flow["used"]
    if left_out:
        say(
            f"{left_out} unreadable image(s) were left out; {folder.audit} lists them.",
            err=True,
        )
    failures = failed_runs(output)
    for line in failures:
        say(f"Run failed: {line}", err=True)
    if left_out or failures:
        raise typer.Exit(INCOMPLETE)
