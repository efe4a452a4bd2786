"""Aligned test scores of an arm, which all statistics work on; images of a patient taken
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.errors import PredictionsError, list_faults
from medtransfer.evaluation.tables.arrays import Float, Int

Rule = Literal["max", "mean", "noisy_or"]
RULES: tuple[Rule, ...] = ("max", "mean", "noisy_or")
# Patients of whom some images were looked at, and not all: by label.
Unknown = Mapping[str, frozenset[str]]


@dataclass(frozen=True, eq=False)
class Scores:
    """Test predictions of one arm, aligned: the same images in every seed.

    Attributes:
        arm: its name.
        seeds: in order of the first axis below.
        images, patients: (image,), ids.
        target: (image,), 0 or 1.
        fold: (seed, image), the fold each image was tested in.
        logit: (seed, image).
        weight: (image,), how much each counts; 1 where nothing is said.
        given: whether figures are about these models alone, as in an external validation: no
            training is then thought to vary.
        scored: whether `logit` is a score of any scale, of which ranks alone mean something.
    """

    arm: str
    seeds: tuple[int, ...]
    images: NDArray[np.object_]
    patients: NDArray[np.object_]
    target: Int
    fold: Int
    logit: Float
    weight: Float
    given: bool = False
    scored: bool = False

    @property
    def cells(self) -> list[tuple[int, int, NDArray[np.bool_]]]:
        """Per seed (its row) and fold, the images tested there; folds may be divided anew in every
        seed.
        """
        return [
            (row, int(fold), folds == fold)
            for row, folds in enumerate(self.fold)
            for fold in np.unique(folds)
        ]

    @property
    def folds(self) -> list[int] | None:
        """The folds, where every seed has the same division; else None."""
        return np.unique(self.fold[0]).tolist() if (self.fold == self.fold[0]).all() else None

    @property
    def prevalence(self) -> float:
        """Share of positives, as images count."""
        return float(self.weight @ self.target / self.weight.sum())

    @property
    def clustered(self) -> bool:
        """Whether a patient has several images."""
        return len(self.images) > len(set(self.patients))

    def take(self, rows: NDArray[Any]) -> Scores:
        """The same arm on some of its images."""
        return replace(
            self,
            images=self.images[rows],
            patients=self.patients[rows],
            target=self.target[rows],
            fold=self.fold[:, rows],
            logit=self.logit[:, rows],
            weight=self.weight[rows],
        )


def drop_repeated_seeds(table: pd.DataFrame) -> tuple[pd.DataFrame, list[int]]:
    """Drops seeds in which every arm predicts as in an earlier one, as they show no variation;
    returns the table and the dropped seeds.
    """
    keys = [
        "arm",
        "fold",
        "part",
        "image",
        "label",
        *(["budget"] if "budget" in table.columns else []),
    ]
    repeated: list[int] = []
    different: list[pd.DataFrame] = []
    for _, of_seed in table.groupby("seed", sort=True):
        rows = of_seed[[*keys, "logit"]].sort_values(keys).reset_index(drop=True)
        if any(rows.equals(earlier) for earlier in different):
            repeated.append(int(of_seed["seed"].iloc[0]))
        else:
            different.append(rows)
    return table[~table["seed"].isin(repeated)], repeated


def gather_levels(logit: Float, most: int) -> tuple[Float, Int]:
    """The different scores, (level,), and which one each image has, (image,); beyond `most` of them
    neighbours as one, at their mean.
    """
    different, level = np.unique(logit, return_inverse=True)
    if len(different) > most:
        level = np.empty(len(logit), np.int64)
        level[np.argsort(logit, kind="stable")] = np.arange(len(logit)) * most // len(logit)
        different = np.bincount(level, logit) / np.bincount(level)
    return different, level


def choose_rule(table: pd.DataFrame) -> Rule:
    """How images become one patient: by the mean where a label is the same in all images of every
    patient, else by noisy-or.
    """
    alike = table.groupby(["label", "patient"], sort=False)["target"].nunique().max() == 1
    return "mean" if alike else "noisy_or"


def by_patient(table: pd.DataFrame, rule: Rule, unknown: Unknown | None = None) -> pd.DataFrame:
    """Joins the images of each patient into one row; the patient is positive where an image is.

    A patient without a positive image of whom others are unknown is unknown, and left out. Of how
    typical images are, the least counts; of other columns that differ within a patient the mean
    where they are numbers, else "several".

    Args:
        table: predictions.
        unknown: by label, patients with images whose target is unknown.
        rule: `max`, the highest; `mean`, of the logits, so that the order of patients does not
            depend on how confident a model is; `noisy_or`, the probability that at least one image
            is positive if they were independent (Pearl 1988, Probabilistic Reasoning in Intelligent
            Systems), which does; of scores that are no probabilities always the highest.
    """
    keys = [
        "arm",
        "seed",
        "fold",
        "part",
        "label",
        "patient",
        *(c for c in ("size", "episode", "budget") if c in table.columns),
    ]
    code = table.groupby(keys, sort=False).ngroup().to_numpy()
    joined = table.drop_duplicates(keys).reset_index(drop=True).copy()
    logit, scored = table["logit"].to_numpy(np.float64), joined["probability"].isna().to_numpy()
    joined["logit"] = _join(logit, code, rule)
    if (
        scored.any()
    ):  # a mean of scores would depend on their scale; the highest depends on their order alone
        joined["logit"] = np.where(scored, _join(logit, code, "max"), joined["logit"])
    joined["probability"] = np.where(scored, np.nan, expit(joined["logit"]))
    joined["target"] = table["target"].groupby(code).max().to_numpy(np.int64)
    if unknown:
        hidden = [
            patient in unknown.get(label, ())
            for label, patient in zip(joined["label"], joined["patient"], strict=True)
        ]
        left_out = np.array(hidden, bool) & (joined["target"] == 0).to_numpy()
    joined["image"] = joined["patient"]
    for column in table.columns.difference(
        [*keys, "logit", "probability", "target", "image", "weight"]
    ):
        if column == "typical":
            joined[column] = table[column].groupby(code).min().to_numpy()
        else:
            joined[column] = _common(table[column], code)
    if "weight" in joined.columns:
        joined["weight"] = table["weight"].groupby(code).mean().to_numpy(np.float64)
    return joined[~left_out].reset_index(drop=True) if unknown else joined


def _common(column: pd.Series, code: NDArray[Any]) -> NDArray[Any]:
    """The value of a column for each patient; see `by_patient`."""
    first = column.groupby(code).first().to_numpy()
    alike = column.groupby(code).nunique(dropna=False).to_numpy() < 2
    if alike.all():
        return np.asarray(first)
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers[column.notna()].notna().all():
        return np.asarray(numbers.groupby(code).mean().to_numpy())
    return np.where(alike, first.astype(object), "several")


def _join(logit: Float, code: NDArray[Any], rule: Rule) -> Float:
    if rule == "max":
        joined = np.full(code.max() + 1, -np.inf)
        np.maximum.at(joined, code, logit)
        return joined
    if rule == "mean":
        return np.asarray(np.bincount(code, logit) / np.bincount(code), np.float64)
    # -log of the probability that all are negative; its logit without rounding.
    none = np.bincount(code, np.logaddexp(0.0, logit))
    return np.asarray(none + np.log(-np.expm1(-none)), np.float64)


def align_scores(table: pd.DataFrame, part: str = "test") -> tuple[list[Scores], list[str]]:
    """One `Scores` per arm from the rows of one label and part, over the images that all arms
    share.

    Returns:
        Scores in order of appearance, and warnings about images left out.

    Raises:
        PredictionsError: no rows of the part, seeds with different images, or targets that differ
            between arms.
    """
    rows = table[table["part"] == part]
    if rows.empty:
        raise PredictionsError(
            f"no row has part = {part}. Performance is measured on test rows only."
        )
    targets = rows.groupby("image")["target"].nunique()
    if (targets > 1).any():
        names = [str(name) for name in targets.index[targets > 1]]
        raise PredictionsError(
            list_faults("images with more than one target", names, "An image has one true class.")
        )
    owners = rows.groupby("image")["patient"].nunique()
    if (owners > 1).any():
        names = [str(name) for name in owners.index[owners > 1]]
        raise PredictionsError(
            list_faults(
                "images with more than one patient",
                names,
                "Every arm and seed names the same patient for an image.",
            )
        )
    scores = [_align_arm(str(arm), own) for arm, own in rows.groupby("arm", sort=False)]
    common = set.intersection(*(set(s.images) for s in scores))
    # One order for all arms, whose folds and seeds may come in another.
    order = [name for name in scores[0].images if name in common]
    if not common:
        raise PredictionsError(
            "the arms share no test image, so they cannot be compared. Evaluate them one by one."
        )
    warnings = []
    for s in scores:
        if len(s.images) > len(common):
            warnings.append(
                f"{len(s.images) - len(common)} images of arm {s.arm} are left out: not every arm "
                "has them."
            )
    places = [{name: place for place, name in enumerate(s.images)} for s in scores]
    return [
        s.take(np.array([place[name] for name in order], int))
        for s, place in zip(scores, places, strict=True)
    ], warnings


def _align_arm(arm: str, rows: pd.DataFrame) -> Scores:
    seeds = tuple(sorted(int(seed) for seed in rows["seed"].unique()))
    # In the order of the rows, which follows from their content; see `order`.
    images = pd.Index(rows["image"].unique())
    wide = rows.pivot_table(
        index="image", columns="seed", values="logit", sort=True, aggfunc="first"
    ).reindex(images)
    if wide.isna().to_numpy().any():
        name = str(wide.index[wide.isna().any(axis=1)][0])
        raise PredictionsError(
            f"arm {arm}: image {name} is not tested in every seed. Every seed needs the same test "
            "images."
        )
    folds = rows.pivot_table(
        index="image", columns="seed", values="fold", sort=True, aggfunc="first"
    ).reindex(images)
    first = rows.drop_duplicates("image").set_index("image").loc[wide.index]
    return Scores(
        arm,
        seeds,
        wide.index.to_numpy(object),
        first["patient"].to_numpy(object),
        first["target"].to_numpy(np.int64),
        np.ascontiguousarray(folds[list(seeds)].to_numpy(np.int64).T),
        np.ascontiguousarray(wide[list(seeds)].to_numpy(np.float64).T),
        first["weight"].to_numpy(np.float64) if "weight" in first.columns else np.ones(len(first)),
        scored=bool(rows["probability"].isna().all()) if "probability" in rows.columns else False,
    )
