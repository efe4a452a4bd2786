"""The folder of a study: the names of its files, what they hold, and whether it is this study."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medtransfer.config.study_config import StudyConfig, load_config
from medtransfer.errors import ConfigError, FileError, StudyError, WeightsError, list_faults
from medtransfer.files import read_json, refuse_unwritable, write_aside, write_json
from medtransfer.records.run_folder import RunFolder
from medtransfer.text.tables import read_table, write_table

# Sections that decide what is looked for and shown, and no number: they may change in a study that
# is finished.
_CHANGEABLE = ("audit", "report", "format")


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study, by their names.

    Attributes:
        path: of the folder.
    """

    path: Path

    # What is settled before training.

    @property
    def settings(self) -> Path:
        """The whole configuration, all defaults written out."""
        return self.path / "study.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine, weights, and how each arm is trained."""
        return self.path / "environment.json"

    @property
    def cohort(self) -> Path:
        """The images in use: patient, label, digests, and part in each fold."""
        return self.path / "cohort.csv"

    @property
    def boxes(self) -> Path:
        """The lesions of these images."""
        return self.path / "boxes.csv"

    @property
    def audit(self) -> Path:
        """What was looked for in the cohort, what was found, and what was left out."""
        return self.path / "audit.json"

    @property
    def plan(self) -> Path:
        """What of each backbone is trained; may be edited before training."""
        return self.path / "plan.json"

    @property
    def seen(self) -> Path:
        """Images that the weights of earlier studies were trained on."""
        return self.path / "seen-before.csv"

    @property
    def salt(self) -> Path:
        """What patient ids of DICOM headers are hashed with.

        Kept apart, so that a study can be handed on without it: with it, ids could be guessed at.
        """
        return self.path / "patient-salt.txt"

    # What comes out of it.

    @property
    def predictions(self) -> Path:
        """The rows of all runs that are compared."""
        return self.path / "predictions.csv"

    @property
    def candidates(self) -> Path:
        """What the detectors of these runs found."""
        return self.path / "candidates.csv"

    @property
    def localisation(self) -> Path:
        """Where the heat maps of classifiers point."""
        return self.path / "localisation.csv"

    @property
    def report(self) -> Path:
        """Every number of the study."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def gallery(self) -> Path:
        """Pictures of test images for the page."""
        return self.path / "gallery.json"

    @property
    def reuse(self) -> Path:
        """What was reused of the pretrained weights."""
        return self.path / "reuse.json"

    @property
    def failures(self) -> Path:
        """The runs that failed, and why."""
        return self.path / "failures.json"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def tables(self) -> Path:
        """Folder of the tables of the page."""
        return self.path / "tables"

    # Runs, and the locks of those under way.

    def run(self, arm: str, fold: int, seed: int) -> RunFolder:
        """The training of an arm on a fold, from a seed."""
        return RunFolder(self.path / "runs" / arm / f"fold-{fold}" / f"seed-{seed}")

    def draw(self, arm: str, fold: int, size: int, episode: int) -> RunFolder:
        """The training of an arm on a draw of so many patients per class."""
        name = Path(arm, f"fold-{fold}", f"size-{size}", f"episode-{episode}")
        return RunFolder(self.path / "curve" / name)

    def search(self, arm: str, fold: int) -> Path:
        """What the search for the depth of a fold saw and chose."""
        return self.path / "runs" / arm / f"fold-{fold}" / "depth.json"

    def runs_of(self, arm: str) -> list[RunFolder]:
        """The trainings of an arm, begun or finished, in order; none for foreign predictions, whose
        arms may be called anything.
        """
        runs = self.path / "runs"
        arms = {path.name: path for path in runs.iterdir()} if runs.is_dir() else {}
        folders = sorted(arms[arm].glob("fold-*/seed-*")) if arm in arms else []
        return [RunFolder(path) for path in folders]

    def summaries_of(self, arm: str) -> list[dict[str, Any]]:
        """What is recorded of the finished runs of an arm, without damaged ones."""
        summaries = []
        for run in self.runs_of(arm):
            with suppress(FileNotFoundError, FileError):
                summaries.append(run.read_summary(whole=False))
        return summaries

    def searches_of(self, arm: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """By fold, what the search for the depth saw."""
        folds = sorted({run.path.parent for run in self.runs_of(arm)})
        for fold in folds:
            with suppress(FileNotFoundError, FileError):
                search = read_json(fold / self.search(arm, 0).name, sealed=True)
                yield fold.name.removeprefix("fold-"), search

    @property
    def locks(self) -> Path:
        """Folder of the locks of runs under way; the system frees those of a dead process."""
        return self.path / ".locks"

    @property
    def stop_note(self) -> Path:
        """Is there while the processes of the study are asked to end."""
        return self.locks / "end"

    def lock_of(self, path: Path) -> Path:
        """The lock of whoever makes what is to lie at `path` in the study."""
        name = hashlib.sha256(str(path.relative_to(self.path)).encode()).hexdigest()[:16]
        return self.locks / f"{name}.lock"

    @property
    def lock(self) -> Path:
        """The lock of whoever settles the study."""
        return self.locks / "study.lock"

    def clear_locks(self) -> None:
        """Removes the locks of a study that is finished, or was never begun."""
        rmtree(self.locks, ignore_errors=True)

    # What the files hold.

    @property
    def is_study(self) -> bool:
        """Whether a study was begun here."""
        return self.settings.is_file()

    def read_config(self) -> StudyConfig:
        """The configuration of the study.

        Raises:
            StudyError: there is no study, or its settings cannot be read.
        """
        if not self.is_study:
            raise StudyError(
                f"{self.path}: holds no study (no {self.settings.name}). Name the folder that "
                "`compare` wrote."
            )
        try:
            return load_config(self.settings)
        except ConfigError as error:
            raise StudyError(
                f"{self.settings}: cannot be read, so it is not known what the folder holds. "
                f"Choose another --output. {error}"
            ) from error

    def write_config(self, config: StudyConfig) -> None:
        """Writes the settings of the study."""
        write_aside(self.settings, config.to_yaml())

    def read(self, path: Path) -> dict[str, Any]:
        """The content of one of the JSON files; empty where there is none.

        Raises:
            StudyError: the file is damaged, or of another format.
        """
        try:
            return read_json(path)
        except FileNotFoundError:
            return {}
        except FileError as error:
            raise StudyError(f"{error} Remove it and run the study again.") from error

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Writes one of the JSON files."""
        write_json(path, content)

    def read_salt(self) -> str | None:
        """What this study hashes the patient ids of DICOM headers with; None where it has none."""
        try:
            return self.salt.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def write_salt(self, salt: str) -> None:
        """Keeps what the patient ids are hashed with, where there are any, for the owner alone."""
        if salt:
            write_aside(self.salt, salt)
            self.salt.chmod(0o600)

    def read_cohort(self) -> pd.DataFrame:
        """The images in use, as texts.

        Raises:
            StudyError: there is no such table, or it is damaged.
        """
        return read_table(self.cohort, StudyError, "It lists the images of the study.")

    # Whether it is this study.

    def refuse_other(self, config: StudyConfig) -> None:
        """Refuses a folder that holds anything else than this study, or this study with fewer arms:
        arms may be added.

        Raises:
            StudyError: not a folder, not writable, or holding another study or other files.
        """
        refuse_unwritable(self.path)
        if self.is_study:
            there = self._without_idle(self._plain_settings(), config)
            if differing := _differences(there, yaml.safe_load(config.to_yaml())):
                raise StudyError(
                    list_faults(
                        f"{self.path}: holds a study with other settings",
                        differing,
                        "Choose another --output, or remove the folder. Arms can be added to a "
                        "study, behind those it has.",
                    )
                )
        elif self.path.is_dir() and any(
            path not in {self.plan, self.locks} for path in self.path.iterdir()
        ):
            raise StudyError(
                f"{self.path}: is not empty and holds no study. Choose another --output."
            )

    def arms_added_later(self, config: StudyConfig) -> list[str]:
        """Arms that were added to a study when it had been reported already."""
        try:
            before = list(read_json(self.environment).get("added_later") or [])
        except (OSError, FileError):
            before = []
        reported = self.is_study and self.report.is_file()
        recorded = self._plain_settings()["arms"] if reported else config.arms
        new = [arm for arm in config.arms if arm not in recorded]
        return [arm for arm in dict.fromkeys([*before, *new]) if arm in config.arms]

    def _plain_settings(self) -> dict[str, Any]:
        """The settings of a study, those that it is too old to name at their defaults."""
        settings: dict[str, Any] = yaml.safe_load(self.read_config().to_yaml())
        return settings

    def _without_idle(self, settings: dict[str, Any], config: StudyConfig) -> dict[str, Any]:
        """The settings of a study without arms that are given up before a run of theirs was
        finished.
        """
        given_up = [
            arm
            for arm in settings["arms"]
            if arm not in config.arms and not any(run.is_finished for run in self.runs_of(arm))
        ]
        arms = {arm: value for arm, value in settings["arms"].items() if arm not in given_up}
        return {**settings, "arms": arms}


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


def images_of_study(folder: Path) -> pd.DataFrame:
    """What is known of every image that the models of a study were trained on, in it and in the
    studies before it.

    Args:
        folder: of the study, or of a run in it.

    Returns:
        Columns `file_digest`, `pixel_digest`, `patient`.

    Raises:
        WeightsError: no table of the cohort there, so that it cannot be said which images the
            weights have seen.
    """
    columns = ["file_digest", "pixel_digest", "patient"]
    for parent in (folder, *list(folder.resolve().parents)[:4]):
        study = StudyFolder(parent)
        if study.cohort.is_file():
            files = [path for path in (study.cohort, study.seen) if path.is_file()]
            tables = [
                read_table(file, WeightsError, "It lists the images that the weights have seen.")
                for file in files
            ]
            return pd.concat(
                [table.replace("", np.nan).reindex(columns=columns) for table in tables],
                ignore_index=True,
            )
    raise WeightsError(
        f"{folder}: belongs to no study with a {StudyFolder(folder).cohort.name}, so it cannot be "
        "seen whether its images are among these. Keep the study's folder whole."
    )


def write_seen(study: StudyFolder, seen: pd.DataFrame) -> None:
    """Lists the images that the weights of earlier studies were trained on."""
    if len(seen):
        write_table(seen, study.seen)
