"""Patient-disjoint, label-stratified folds; official splits honoured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.folds import draw_folds
from medtransfer.data.cohort.manifest import PARTS
from medtransfer.errors import CohortError, LeakageError, list_faults

# Most folds that leave out one value of a column each.
_MOST_VALUES = 20


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of the cohort.

    Attributes:
        index: number of the fold, from 0.
        train, tune, test: row numbers of `Cohort.images`, sorted. `tune` serves early stopping and
            recalibration.
    """

    index: int
    train: np.ndarray[Any, np.dtype[np.int64]]
    tune: np.ndarray[Any, np.dtype[np.int64]]
    test: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Split:
    """Folds of train, tune and test, disjoint by patient, and by group where near-duplicates are
    grouped.

    Attributes:
        parts: one row per image in the cohort's order, columns `image`, `patient`, maybe `group`,
            `fold_0`, `fold_1`, ... with values train, tune or test.
        seed: the seed the folds were drawn with.
        cohort_digest: `Cohort.digest` of the cohort divided.
        official: True where the manifest's own split was taken.

    Raises:
        LeakageError: a patient stands in two parts of a fold, or in the test part of two folds.
    """

    parts: pd.DataFrame
    seed: int
    cohort_digest: str
    official: bool = False

    def __post_init__(self) -> None:
        faults: list[str] = []
        tested: dict[str, int] = {}
        unit = "group" if "group" in self.parts.columns else "patient"
        for index in range(len(self)):
            column = f"fold_{index}"
            unknown = sorted(set(self.parts[column]) - set(PARTS))
            if unknown:
                raise CohortError(
                    f"{column}: {', '.join(map(str, unknown))} is none of {', '.join(PARTS)}"
                )
            parts = self.parts[[unit, column]].drop_duplicates()
            divided = parts.duplicated(unit, keep=False)
            for patient, names in parts[divided].groupby(unit, sort=False)[column]:
                faults.append(f"{unit} {patient} in fold {index}: {', '.join(names)}")
            for patient in parts.loc[~divided & (parts[column] == "test"), unit]:
                first = tested.setdefault(str(patient), index)
                if first != index:
                    faults.append(f"{unit} {patient}: tested in fold {first} and fold {index}")
        if faults:
            remedy = (
                "Put all images of one into one part, or remove the column split to have one made."
            )
            raise LeakageError(
                list_faults(
                    f"the split is not disjoint by {unit}", faults, remedy if self.official else ""
                )
            )

    @property
    def columns(self) -> list[str]:
        """Of `parts`, those of the folds."""
        return [column for column in self.parts.columns if column.startswith("fold_")]

    def __len__(self) -> int:
        return len(self.columns)

    def fold(self, index: int) -> Fold:
        """Row numbers of fold `index`."""
        if not 0 <= index < len(self):
            raise CohortError(f"no fold {index}: the split has folds 0 to {len(self) - 1}")
        column = self.parts[f"fold_{index}"].to_numpy()
        train, tune, test = (np.flatnonzero(column == part) for part in PARTS)
        return Fold(index, train, tune, test)


def split_cohort(
    cohort: Cohort, folds: int = 5, seed: int = 0, tune: float = 0.2, leave_out: str | None = None
) -> Split:
    """Divides a cohort by patient (by group after `Cohort.grouped`), stratified by the first label.
    Of boxes, images without any are not needed.

    An official split in the manifest is taken as it is: one fold; where it has no tune part, one is
    taken from the training patients.

    Args:
        cohort: the images.
        folds: number of folds; every patient is tested once.
        seed: seed of the draw.
        tune: share of the training patients held back for early stopping and recalibration, 0 to 1.
        leave_out: a column such as `site`: each of its values is a fold that is tested by models
            trained on the others, in place of random folds or an official split.

    Raises:
        CohortError: too few patients of a class for so many folds, or a column that cannot be left
            out by.
        LeakageError: the official split shares a patient between parts.
    """
    table = cohort.images[
        [c for c in ("image", "patient", "group") if c in cohort.images.columns]
    ].copy()
    label = cohort.images[cohort.labels[0]].to_numpy(int)
    needed = cohort.needed_classes
    # Numbered as they appear: the folds do not depend on how patients are called.
    groups = pd.factorize(cohort.units)[0]
    official = "split" in cohort.images.columns and leave_out is None
    if leave_out is not None:
        for index, inside in enumerate(_values_of(cohort, leave_out)):
            parts = np.where(inside, "test", "train").astype(object)
            table[f"fold_{index}"] = _hold_back(
                parts, label, groups, tune, seed + 1 + index, needed
            )
    elif official:
        parts = cohort.images["split"].to_numpy(object).copy()
        absent = [part for part in ("train", "test") if part not in parts]
        if absent:
            raise CohortError(
                f"the manifest's split has no {' and no '.join(absent)} part. Add it, or remove "
                "column split."
            )
        if "tune" not in parts:
            parts = _hold_back(parts, label, groups, tune, seed, needed)
        table["fold_0"] = parts
    else:
        _require_patients(cohort, folds, needed)
        tested = draw_folds(_strata(label, folds, needed), groups, folds, seed)
        for index in range(folds):
            parts = np.where(tested == index, "test", "train").astype(object)
            table[f"fold_{index}"] = _hold_back(
                parts, label, groups, tune, seed + 1 + index, needed
            )
    split = Split(table, seed, cohort.digest, official)
    # A site may have patients of one class only; models are trained and tuned on both.
    _require_classes(split, label, PARTS if leave_out is None else PARTS[:2], needed)
    return split


def _values_of(cohort: Cohort, column: str) -> list[Any]:
    """Rows of each value of a column, bool (image,)."""
    if column not in cohort.images.columns:
        raise CohortError(
            f"protocol.leave_out: no column {column!r} in the cohort. It must be a column of the "
            "manifest."
        )
    values = cohort.images[column].astype(str)
    names = sorted(set(values))
    if not 2 <= len(names) <= _MOST_VALUES or "" in names:
        empty = f", {int((values == '').sum())} images without one" if "" in names else ""
        raise CohortError(
            f"protocol.leave_out: column {column!r} has {len(names)} different values{empty}; 2 "
            f"to {_MOST_VALUES}, none empty, can be left out by."
        )
    return [(values == name).to_numpy() for name in names]


def _hold_back(
    parts: Any, label: Any, groups: Any, tune: float, seed: int, needed: tuple[int, ...]
) -> Any:
    """Moves about a share `tune` of the training patients, stratified, to the tune part."""
    train = np.flatnonzero(parts == "train")
    patients_per_class = min(len(np.unique(groups[train][label[train] == c])) for c in needed)
    if patients_per_class < 2:
        raise CohortError(
            f"the training part has {patients_per_class} patient(s) of a class; at least 2 are "
            "needed, one of them to tune on. "
            "Use fewer folds or more patients."
        )
    pieces = min(max(2, round(1 / tune)), patients_per_class)
    piece = draw_folds(_strata(label[train], pieces, needed), groups[train], pieces, seed)
    parts = parts.copy()
    parts[train[piece == 0]] = "tune"
    return parts


def _strata(label: Any, pieces: int, needed: tuple[int, ...]) -> Any:
    """What folds are stratified by: the label, or nothing where a class that is not needed is too
    rare to be divided.
    """
    return (
        label
        if len(needed) > 1 or min(int((label == value).sum()) for value in (0, 1)) >= pieces
        else np.zeros_like(label)
    )


def _require_patients(cohort: Cohort, folds: int, needed: tuple[int, ...]) -> None:
    by_patient = cohort.unit_labels(cohort.labels[0])
    for value in needed:
        count = int((by_patient == value).sum())
        # Each fold needs a test patient, and the rest at least one to train and one to tune on.
        if count < max(folds, 3):
            raise CohortError(
                f"{count} patient(s) with {cohort.labels[0]} = {value}, too few for {folds} folds. "
                f"Set protocol.folds to at most {count} (3 patients of each class at least), or "
                "add patients."
            )


def _require_classes(
    split: Split, label: Any, parts: tuple[str, ...], needed: tuple[int, ...]
) -> None:
    for index in range(len(split)):
        fold = split.fold(index)
        for part in parts:
            rows = getattr(fold, part)
            if not set(needed) <= set(label[rows]):
                lacks = "one of the two classes" if len(needed) > 1 else "lesions"
                raise CohortError(
                    f"the {part} part of fold {index} ({len(rows)} images) lacks {lacks}. "
                    "Use fewer folds, another split_seed, or more patients."
                )
