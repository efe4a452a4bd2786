"""What is refused before anything is read or trained. Nothing here loads torch."""

from __future__ import annotations

import os
from pathlib import Path

from medtransfer.config.study_config import StudyConfig
from medtransfer.errors import ConfigError, StudyError, WeightsError
from medtransfer.models.catalog.names import refuse_unknown, refuse_unknown_tag
from medtransfer.models.weights.sources import refuse_source
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.share import Share
from medtransfer.training.tracking import refuse_missing


def refuse_settings(
    config: StudyConfig, output: Path, jobs: int, share: Share, report_only: bool
) -> None:
    """Refuses settings and options that do not fit the folder, each other, or this machine.

    Args:
        config: the study.
        output: its folder.
        jobs: processes on this machine.
        share: of the runs.
        report_only: whether the report alone is asked for.

    Raises:
        ConfigError: something does not fit.
        StudyError: the folder holds something else, cannot be written, or holds nothing to report.
    """
    folder = StudyFolder(output)
    folder.refuse_other(config)
    refuse_missing(config.train.track)
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; it is a number of processes from 1.")
    if report_only and not folder.is_study:
        raise StudyError(
            f"{output}: holds no study to report. Run it first, or name its folder with --output."
        )
    if report_only and share.of > 1:
        raise ConfigError("the report is of all shares; leave --share out with --report-only.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (jobs > 1 or config.engine != "local"):
        raise ConfigError(
            "several processes train one network here (torchrun); run them without --jobs and "
            "without engine: ray."
        )


def refuse_arms(config: StudyConfig) -> None:
    """Refuses arms whose architecture or file of weights there is not.

    Raises:
        WeightsError: an unknown architecture or source of weights, or a file that is not there.
    """
    for name, arm in config.arms.items():
        if arm.kind == "features":
            continue
        try:
            refuse_unknown(arm.backbone)
            if arm.weights is not None:
                refuse_source(arm.backbone, arm.weights)
                refuse_unknown_tag(arm.backbone, arm.weights)
        except WeightsError as error:
            raise WeightsError(f"arms.{name}: {error}") from error
