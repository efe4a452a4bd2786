"""Several trained models as one, and what a path opens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.config.study_config import StudyConfig
from medtransfer.errors import WeightsError
from medtransfer.inference.description import describe_answer
from medtransfer.inference.model import TrainedModel
from medtransfer.records.study_folder import StudyFolder


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several trained models of one task, with the face of one.

    Attributes:
        models: whose predictions are averaged.
    """

    models: Sequence[TrainedModel]

    def __repr__(self) -> str:
        first = self.models[0].description
        return f"{len(self.models)} models of arm {first.arm} ({describe_answer(first)})"

    @property
    def labels(self) -> tuple[str, ...]:
        """What they tell apart."""
        return self.models[0].labels

    def predict(self, images: str | Path | Sequence[str | Path]) -> pd.DataFrame:
        """Predicts images.

        Args:
            images: as `TrainedModel.predict`.

        Returns:
            As `TrainedModel.predict`. Of classifiers `probability` is the mean over the models,
            after the recalibration of their study where that was reported, `logit` its logit,
            `spread` the standard deviation between the models, and `typical` the mean. Of detectors
            the candidates of every model, which is named in a column `model`: they are not merged.
        """
        tables = [model.predict(images) for model in self.models]
        if self.models[0].description.task.finds_boxes:
            named = zip(self.models, tables, strict=True)
            return pd.concat(
                [table.assign(model=model.name) for model, table in named], ignore_index=True
            )
        first = tables[0]
        calibrated = [
            table["recalibrated"].fillna(table["probability"])
            if "recalibrated" in table
            else table["probability"]
            for table in tables
        ]
        values = np.stack([column.to_numpy(float) for column in calibrated])
        mean = values.mean(0)
        with np.errstate(divide="ignore"):
            logit = np.log(mean) - np.log1p(-mean)
        result = first[["image", "label"]].assign(
            probability=mean, logit=logit, spread=values.std(0)
        )
        if all("typical" in table for table in tables):
            result["typical"] = np.mean([table["typical"].to_numpy(float) for table in tables], 0)
        return result.assign(error=first["error"])


def load_model(path: str | Path, device: str = "auto") -> TrainedModel | Ensemble:
    """Opens what a study left, to predict new images.

    Args:
        path: the folder of a run, which is one model, or of a study, which is the ensemble of all
            models of its best pretrained arm, recalibrated as its report says; the arm with the
            highest AUC of test patients. The folder may have been moved.
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.

    Raises:
        WeightsError: no model there, a file that is missing, damaged or of another format, or a
            study without a report.
    """
    folder = StudyFolder(Path(path))
    if not folder.path.is_dir():
        raise WeightsError(
            f"{path}: there is no such folder. Name the folder of a study, or of one of its runs."
        )
    if not folder.is_study:
        return TrainedModel.open(path, device)
    config = folder.read_config()
    if not folder.report.is_file():
        raise WeightsError(
            f"{folder.path}: has no {folder.report.name}, so that its best arm is not known. "
            "Finish the study with `medtransfer compare`, or name the folder of one of its runs."
        )
    try:
        arms = folder.read(folder.report)["arms"]
        arm = _best_arm(arms, config)
        cells = [(entry["fold"], entry["seed"]) for entry in arms[arm]["auc"]["by_model"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{folder.report}: does not name the models of the study ({type(error).__name__}: "
            f"{error}). Write it again with `medtransfer compare --report-only`."
        ) from error
    return Ensemble([TrainedModel.open(folder.run(arm, *cell).path, device) for cell in cells])


def _best_arm(reported: Mapping[str, Any], config: StudyConfig) -> str:
    """The pretrained arm, or where there is none the arm, with the highest AUC of its report."""

    def auc(arm: str) -> float:
        estimate = reported[arm]["auc"]["estimate"]
        return -math.inf if estimate is None else float(estimate)

    arms = [arm for arm in config.arms if arm in reported]
    return max([arm for arm in arms if config.arms[arm].weights is not None] or arms, key=auc)
