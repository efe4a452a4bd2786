"""One finished training, as its folder holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.errors import FileError, MedTransferError, PredictionsError
from medtransfer.evaluation.tables.predictions import read_predictions
from medtransfer.records.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        folder: holds `run.json`, `metrics.jsonl`, `weights.safetensors`, `predictions.csv`.
        arm, fold, seed: which one.
        predictions: its tune and test rows.
        summary: the content of `run.json`.
        at_budget: the rows as predicted at the end of the budget, where training went on until
            level.
        conditions: digest of what the runs of its study share; None in runs of earlier versions.
    """

    folder: Path
    arm: str
    fold: int
    seed: int
    predictions: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)
    at_budget: pd.DataFrame | None = None
    conditions: str | None = None


def finished_run(
    folder: RunFolder, key: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Run | None:
    """The run in this folder, if it is finished and everything that decided it is unchanged.

    Args:
        folder: of the run.
        key: digest of all that decides it; None: whatever decided it.
        say: is told which file is damaged, where that is why there is no run.
    """
    try:
        summary = folder.read_summary()
        if key is not None and summary.get("key") != key:
            return None
        return _assemble(folder, summary)
    except FileNotFoundError:
        return None
    except (FileError, PredictionsError) as error:
        say(str(error))
        return None


def read_run(folder: RunFolder) -> Run:
    """The run in this folder.

    Raises:
        FileError: a file is missing or damaged.
        PredictionsError: a table of predictions is wrong.
    """
    return _assemble(folder, folder.read_summary())


def _assemble(folder: RunFolder, summary: dict[str, Any]) -> Run:
    try:
        return _read_tables(folder, summary)
    except MedTransferError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"{folder.summary}: is damaged ({type(error).__name__}: {error})."
        ) from error


def _read_tables(folder: RunFolder, summary: dict[str, Any]) -> Run:
    identity = {"key", "conditions", "files"}
    about = {name: value for name, value in summary.items() if name not in identity}
    early = None
    if about["plan"]["level"]:
        early = read_predictions(folder.at_budget.predictions, apart=True)
    return Run(
        folder.path,
        str(about["arm"]),
        int(about["fold"]),
        int(about["seed"]),
        read_predictions(folder.predictions, apart=True),
        about,
        early,
        summary.get("conditions"),
    )
