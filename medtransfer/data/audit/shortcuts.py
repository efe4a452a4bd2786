"""Can facts beside the lesion tell the label? What predicts without looking at the image, a network
may learn too.

Zech et al. 2018, doi:10.1371/journal.pmed.1002683; Hill et al. 2024, PMC11589829.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

Float = NDArray[np.float64]

# Below, no cross-validated AUC means anything.
_FEWEST = 10
_FOLDS = 5
_DRAWS = 500


@dataclass(frozen=True)
class Shortcut:
    """How well one kind of fact predicts a label.

    Attributes:
        label: which label.
        source: site, size, border or header.
        auc: cross-validated by patient, of pairs that the same trees scored.
        low, high: 95 % bootstrap interval over patients.
        facts: what was used.
    """

    label: str
    source: str
    auc: float
    low: float
    high: float
    facts: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.label} from {self.source} alone: AUC {self.auc:.2f} ({self.low:.2f} to "
            f"{self.high:.2f})"
        )

    @property
    def warns(self) -> bool:
        """True where chance is no explanation and the effect is no trifle.

        The border of an image is anatomy too, and may tell a little with good reason.
        """
        return self.low > 0.5 and self.auc >= (0.75 if self.source == "border" else 0.6)


def probe_shortcuts(
    images: pd.DataFrame,
    facts: pd.DataFrame,
    labels: Sequence[str],
    units: pd.Series,
    seed: int = 0,
) -> list[Shortcut]:
    """Predicts each label from facts alone, with randomised trees, cross-validated by patient.

    Args:
        images: the cohort's table, with `site` where known.
        facts: rows of `inspect_images`, in the same order; unreadable images are left out.
        labels: float columns of 0/1 in `images`.
        units: what stays together, per image.
        seed: of folds, trees and bootstrap.

    Returns:
        One entry per label and kind of fact that varies at all; none below 10 units of a class.
    """
    good = (facts["error"] == "").to_numpy()
    tables = {
        source: table
        for source, table in _tabulate(images[good], facts[good]).items()
        if table.shape[1]
    }
    groups = pd.factorize(units[good])[0]
    alarms = []
    for label in labels:
        target = images.loc[good, label].to_numpy()
        by_unit = pd.Series(target).groupby(groups).max()
        if min((by_unit == 0).sum(), (by_unit == 1).sum()) < _FEWEST:
            continue
        for source, table in tables.items():
            truth = target.astype(int)
            score, fold = _cross_validate(table.to_numpy(float), truth, groups, seed)
            low, high = _interval(score, truth, fold, groups, seed)
            alarms.append(
                Shortcut(label, source, _auc(score, truth, fold), low, high, tuple(table.columns))
            )
    return alarms


def _tabulate(images: pd.DataFrame, facts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Numbers by kind of fact; texts as columns of 0/1, constants left out."""
    axes = max((len(shape) for shape in facts["shape"]), default=0)
    size = {
        f"pixels along axis {axis}": [_at(shape, axis) for shape in facts["shape"]]
        for axis in range(axes)
    }
    border = {
        name: [_at(b, i) for b in facts["border"]]
        for i, name in enumerate(("top", "bottom", "left", "right", "background"))
    }
    header: dict[str, list[Any]] = {
        name: facts[name].tolist()
        for name in ("modality", "scanner", "format", "bits_stored", "colour")
    }
    header |= {
        f"mm along axis {axis}": [_at(spacing, axis) for spacing in facts["spacing"]]
        for axis in range(axes)
    }
    site = {"site": images["site"].tolist()} if "site" in images.columns else {}
    return {
        name: _encode(table)
        for name, table in {"site": site, "size": size, "border": border, "header": header}.items()
    }


def _encode(columns: dict[str, list[Any]]) -> pd.DataFrame:
    encoded: dict[Hashable, Float] = {}
    for name, values in columns.items():
        if len(set(values)) < 2:
            continue
        if all(isinstance(value, (int, float)) for value in values):
            encoded[name] = np.array(values, dtype=float)
        else:
            for text in sorted(set(values), key=str)[:50]:
                encoded[f"{name} {text}".strip()] = np.array(
                    [value == text for value in values], dtype=float
                )
    return pd.DataFrame(encoded)


def _at(values: Sequence[float], index: int) -> float:
    return float(values[index]) if index < len(values) else -1.0


def _cross_validate(
    table: Float, target: NDArray[np.int64], groups: NDArray[Any], seed: int
) -> tuple[Float, NDArray[np.int64]]:
    """Scores of images that were held out, and the number of the trees that gave them."""
    score, fold = np.zeros(len(target)), np.zeros(len(target), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # scikit-learn's remarks on small classes, which the interval shows
        splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        for number, (train, test) in enumerate(splitter.split(table, target, groups)):
            fold[test] = number
            if len(set(target[train])) < 2:
                score[test] = target[train].mean()
                continue
            trees = ExtraTreesClassifier(
                100, min_samples_leaf=5, class_weight="balanced", random_state=seed
            )
            score[test] = trees.fit(table[train], target[train]).predict_proba(table[test])[:, 1]
    return score, fold


def _auc(score: Float, target: NDArray[np.int64], fold: NDArray[np.int64]) -> float:
    """Share of pairs within a fold that are in order, from ranks: scikit-learn's value at a
    twentieth of its time.

    NaN where no fold has a pair.
    """
    ordered = pairs = 0.0
    for number in np.unique(fold):
        inside = fold == number
        truth = target[inside]
        positive = int(truth.sum())
        ordered += float(rankdata(score[inside])[truth == 1].sum()) - positive * (positive + 1) / 2
        pairs += positive * (len(truth) - positive)
    return ordered / pairs if pairs else float("nan")


def _interval(
    score: Float,
    target: NDArray[np.int64],
    fold: NDArray[np.int64],
    groups: NDArray[Any],
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap: units are drawn, with all of their images."""
    rng = np.random.default_rng(seed)
    members = pd.Series(range(len(groups))).groupby(groups).apply(list).tolist()
    drawn = []
    for _ in range(_DRAWS):
        rows = np.concatenate(
            [members[unit] for unit in rng.integers(0, len(members), len(members))]
        )
        drawn.append(_auc(score[rows], target[rows], fold[rows]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)
