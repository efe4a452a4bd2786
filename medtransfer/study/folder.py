"""What a study folder holds already, and whether it is this study."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

from medtransfer.config.study_config import StudyConfig, load_config
from medtransfer.errors import ConfigError, StudyError, list_faults

# Of a run that went on until level: what its weights at the end of the budget predict.
AT_BUDGET = "at-budget"
# Locks of runs under way; the system frees those of a dead process.
LOCKS = ".locks"
# What patient ids of DICOM headers are hashed with.
SALT = "patient-salt.txt"
# Sections that decide what is looked for and shown, and no number: they may change in a study that
# is finished.
_CHANGEABLE = ("audit", "report")


def run_folder(output: Path, arm: str, fold: int, seed: int) -> Path:
    """Where a study keeps the training of an arm on a fold, from a seed."""
    return output / "runs" / arm / f"fold-{fold}" / f"seed-{seed}"


def lock_path(output: Path, path: Path) -> Path:
    """The lock of whoever makes what is to lie at `path` in the study."""
    name = hashlib.sha256(str(path.relative_to(output)).encode()).hexdigest()[:16]
    return output / LOCKS / f"{name}.lock"


def check_folder(output: Path, config: StudyConfig) -> None:
    """Refuses a folder that holds anything else than this study, or this study with fewer arms:
    arms may be added.

    Raises:
        StudyError: not a folder, not writable, or holding another study or other files.
    """
    if output.exists() and not output.is_dir():
        raise StudyError(f"{output}: is a file. Choose another --output.")
    record = output / "study.yaml"
    if record.is_file():
        if differing := _differences(
            _without_idle(_read_settings(record), config, output), yaml.safe_load(config.to_yaml())
        ):
            raise StudyError(
                list_faults(
                    f"{output}: holds a study with other settings",
                    differing,
                    "Choose another --output, or remove the folder. Arms can be added to a study, "
                    "behind those it has.",
                )
            )
    elif output.is_dir() and any(
        path.name not in {"plan.json", LOCKS} for path in output.iterdir()
    ):
        raise StudyError(f"{output}: is not empty and holds no study. Choose another --output.")
    parent = output
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise StudyError(f"{parent}: cannot be written. Choose another --output.")


def _read_settings(record: Path) -> dict[str, Any]:
    """The settings of a study, those that it is too old to name at their defaults.

    Raises:
        StudyError: the file cannot be read.
    """
    try:
        settings: dict[str, Any] = yaml.safe_load(load_config(record).to_yaml())
    except ConfigError as error:
        raise StudyError(
            f"{record}: cannot be read, so nobody knows what the folder holds. Choose another "
            f"--output. {error}"
        ) from error
    return settings


def _without_idle(there: dict[str, Any], config: StudyConfig, output: Path) -> dict[str, Any]:
    """The settings of a study without arms that are given up before a run of theirs was
    finished.
    """
    given_up = [
        arm
        for arm in there["arms"]
        if arm not in config.arms and not any((output / "runs" / arm).glob("*/*/run.json"))
    ]
    return {
        **there,
        "arms": {arm: section for arm, section in there["arms"].items() if arm not in given_up},
    }


def _differences(there: Any, here: Any, key: str = "") -> list[str]:
    """Settings that a study has and this one has not, or has otherwise; arms behind those it has
    make no difference.
    """
    if key in _CHANGEABLE:
        return []
    if not isinstance(there, dict) or not isinstance(here, dict):
        return [] if there == here else [f"{key}: {there} there, {here} here"]
    if key == "arms" and list(here)[: len(there)] != list(there):
        return [f"arms: {', '.join(there)} there, {', '.join(here)} here"]
    names = [
        name
        for name in (*there, *(n for n in here if n not in there))
        if key != "arms" or name in there
    ]
    return [
        line
        for name in names
        for line in _differences(there.get(name), here.get(name), f"{key}.{name}".strip("."))
    ]


def added_later(output: Path, config: StudyConfig) -> list[str]:
    """Arms that were added to a study when it had been reported already."""
    try:
        before = list(
            json.loads((output / "environment.json").read_text(encoding="utf-8")).get(
                "added_later", []
            )
        )
    except (OSError, ValueError, AttributeError):
        before = []
    reported = (output / "study.yaml").is_file() and (output / "report.json").is_file()
    new = (
        [arm for arm in config.arms if arm not in _read_settings(output / "study.yaml")["arms"]]
        if reported
        else []
    )
    return [arm for arm in dict.fromkeys([*before, *new]) if arm in config.arms]


def read_salt(output: Path) -> str | None:
    """What this study hashes the patient ids of DICOM headers with; None where it has none."""
    try:
        return (output / SALT).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
