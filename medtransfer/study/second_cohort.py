"""A second cohort for the models of a study, read without torch: a wrong path is refused in a
second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.sources import open_second
from medtransfer.errors import StudyError
from medtransfer.evaluation.analyses.budgets import split_budgets
from medtransfer.evaluation.tables.predictions import read_predictions
from medtransfer.records.study_folder import StudyFolder


def open_on(
    study: str | Path,
    path: str | Path,
    root: str | Path | None = None,
    labels: Sequence[str] = (),
    positive: str | None = None,
) -> Cohort:
    """A second cohort for the models of a study: its classes are matched by name, see
    `sources.open_second`.

    Raises:
        StudyError: no study there.
        CohortError: the names do not fit, and nobody said which is which.
    """
    folder = StudyFolder(Path(study))
    first = folder.read_config().cohort
    label = label_of(read_compared(folder))
    return open_second(path, label, first.classes, first.positive or label, root, labels, positive)


def read_compared(study: StudyFolder) -> pd.DataFrame:
    """The predictions of the models that the study left, without the draws of a learning curve and
    what they were before.
    """
    table = read_predictions(study.predictions, apart=True)
    return split_budgets(table[table["size"] == 0] if "size" in table.columns else table, ())[0]


def label_of(table: pd.DataFrame) -> str:
    """The label of a study, of which a study has one."""
    return str(table["label"].iloc[0])


def refuse_study_folder(output: Path) -> None:
    """Refuses to write the results of a second cohort over those of a study.

    Raises:
        StudyError: the folder holds a study, or is a file.
    """
    if StudyFolder(output).is_study or output.is_file():
        raise StudyError(f"{output}: holds a study, or is a file. Choose another --output.")
