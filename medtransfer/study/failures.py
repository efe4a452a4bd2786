"""The runs of a study that failed, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from medtransfer.errors import FileError
from medtransfer.files import read_json
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.jobs import Job


def write_failures(folder: StudyFolder, failures: Mapping[Job, str]) -> None:
    """Lists them in `failures.json`; no file where there are none."""
    if failures:
        rows = [{**asdict(job), "error": error} for job, error in failures.items()]
        folder.write(folder.failures, {"runs": rows})
    else:
        folder.failures.unlink(missing_ok=True)


def read_failures(folder: StudyFolder) -> dict[Job, str]:
    """Why runs failed, as `write_failures` left it."""
    try:
        rows = read_json(folder.failures)["runs"]
        return {
            Job(**{key: value for key, value in row.items() if key != "error"}): str(row["error"])
            for row in rows
        }
    except (OSError, FileError, KeyError, TypeError):
        return {}


def failed_runs(output: str | Path) -> list[str]:
    """The runs of a study that failed, and why."""
    return [f"{job}: {error}" for job, error in read_failures(StudyFolder(Path(output))).items()]
