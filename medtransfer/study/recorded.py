"""What the folder of a study says of its cohort and its runs: all that a report rests on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from medtransfer.config.study_config import StudyConfig
from medtransfer.data.audit.inspection import recall_images
from medtransfer.data.cohort.box_grid import place_images
from medtransfer.data.grid.fixed import fixed_of
from medtransfer.data.grid.placement import Placement
from medtransfer.errors import StudyError
from medtransfer.inference.model import TrainedModel
from medtransfer.records.study_folder import StudyFolder
from medtransfer.tasks.kinds import make_task
from medtransfer.tasks.task import Task
from medtransfer.text.tables import read_table


@dataclass(frozen=True)
class Recorded:
    """A study as its folder holds it; neither the files of the cohort nor backbones are read.

    Attributes:
        folder: of the study.
        config: its settings.
    """

    folder: StudyFolder
    config: StudyConfig

    @cached_property
    def images(self) -> pd.DataFrame:
        """The images in use, as texts."""
        return self.folder.read_cohort()

    @cached_property
    def facts(self) -> pd.DataFrame:
        """What the cache still holds of the images: `image`, `entry`, `shape`, `spacing`, and
        `error` of those that are gone.
        """
        facts = recall_images(self.images["file_digest"].tolist(), fixed_of(self.config.image))
        return facts.assign(image=self.images["image"].to_numpy())

    @cached_property
    def entries(self) -> dict[str, Path]:
        """By image, its file in the cache; without those that are gone."""
        held = self.facts[self.facts["error"] == ""]
        return {i: Path(e) for i, e in zip(held["image"], held["entry"], strict=True)}

    @cached_property
    def placements(self) -> dict[str, Placement]:
        """By image, where its pixels lie in the cache; without those that are gone."""
        held = self.facts[self.facts["error"] == ""]
        placed = place_images(fixed_of(self.config.image), held)
        return dict(zip(held["image"], placed, strict=True))

    @cached_property
    def boxes(self) -> pd.DataFrame | None:
        """The lesions of the images; None where the cohort has none."""
        if not self.folder.boxes.is_file():
            return None
        boxes = read_table(self.folder.boxes, StudyError, "It lists the lesions of the study.")
        numbers = [c for c in boxes.columns if c in {"x0", "y0", "x1", "y1", "z0", "z1"}]
        return boxes.assign(**{c: boxes[c].astype(float) for c in numbers})

    @property
    def units(self) -> dict[str, str]:
        """By image, what must not be divided: the group where there is one, else the patient."""
        column = "group" if "group" in self.images.columns else "patient"
        return dict(zip(self.images["image"], self.images[column], strict=True))

    @property
    def folds(self) -> list[int]:
        """The folds of the split."""
        columns = [c for c in self.images.columns if re.fullmatch(r"fold_\d+", c)]
        return list(range(len(columns)))

    @property
    def task(self) -> Task:
        """What is learnt."""
        return make_task(self.config.task, self.config.cohort.labels or ("label",), ())

    def part(self, fold: int, name: str) -> list[str]:
        """The images of a part of a fold, in the order of the cohort."""
        return self.images.loc[self.images[f"fold_{fold}"] == name, "image"].tolist()

    def open(self, arm: str, fold: int, seed: int) -> TrainedModel:
        """The model that a run left.

        Raises:
            WeightsError: there is none, or it is damaged.
        """
        # On CUDA where the study asks for it and there is one: a report may be written elsewhere.
        device = "cpu" if self.config.train.device == "cpu" else "auto"
        return TrainedModel.open(self.folder.run(arm, fold, seed).path, device)
