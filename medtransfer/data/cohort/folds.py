"""Stratified folds of whole groups, as scikit-learn draws them, for a hundred thousand images.

`StratifiedGroupKFold` asks numpy for a standard deviation of a handful of numbers for every group
and fold, which takes minutes for a cohort of 100,000 images. The same arithmetic is done here on
plain numbers, operation by operation, so that every row falls into the fold that scikit-learn puts
it in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Tolerances of `numpy.isclose`, by which scikit-learn calls two folds equally good.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-8


def draw_folds(
    label: NDArray[Any], groups: NDArray[Any], folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold that each row is tested in; equal to `StratifiedGroupKFold(folds, shuffle=True,
    random_state=seed)`.

    Groups are dealt out one after another, those of the most uneven labels first, each to the fold
    that leaves the labels spread most evenly.

    Args:
        label: (row,), what the folds are stratified by.
        groups: (row,), rows of one group stay together.
        folds: number of folds, at most the number of groups.
        seed: of the order among groups that are alike.

    Returns:
        int64 (row,), 0 to folds - 1.
    """
    classes, class_of, sizes = np.unique(label, return_inverse=True, return_counts=True)
    names, group_of = np.unique(groups, return_inverse=True)
    cells = np.bincount(group_of * len(classes) + class_of, minlength=len(names) * len(classes))
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)  # scikit-learn's generator
    counts = cells.reshape(len(names), len(classes)).astype(float)[order]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    fold_of = np.empty(len(names), np.int64)
    ranked = np.argsort(-np.std(counts, axis=1), kind="stable")
    fold_of[ranked] = _deal(counts[ranked].tolist(), sizes.tolist(), folds)
    return np.asarray(fold_of[place[group_of]], np.int64)


def _deal(counts: Sequence[Sequence[float]], sizes: Sequence[int], folds: int) -> list[int]:
    """The fold of each group.

    Args:
        counts: (group, class), rows of each group by class, in the order in which they are dealt.
        sizes: rows of each class.
        folds: number of folds.
    """
    # Of one class numpy adds up in another order than of several; where there are many folds the
    # last bit tells.
    spread = _spread if len(sizes) > 1 else _spread_of_one_class
    shares = [[0.0] * folds for _ in sizes]
    filled = [[0.0] * folds for _ in sizes]
    rows = [0.0] * folds
    dealt = []
    for group in counts:
        # A class that the group lacks is spread alike, whichever fold takes the group.
        spreads = [
            [spread(values)] * folds
            if not count
            else _spreads_with(values, filled[number], count, sizes[number], spread)
            for number, (values, count) in enumerate(zip(shares, group, strict=True))
        ]
        best, lowest, fewest = 0, math.inf, math.inf
        for fold in range(folds):
            mean = _mean([of_class[fold] for of_class in spreads])
            if mean < lowest or (
                abs(mean - lowest) <= _ABSOLUTE + _RELATIVE * lowest and rows[fold] < fewest
            ):
                best, lowest, fewest = fold, mean, rows[fold]
        for number, count in enumerate(group):
            filled[number][best] += count
            shares[number][best] = filled[number][best] / sizes[number]
            rows[best] += count
        dealt.append(best)
    return dealt


def _spreads_with(
    shares: list[float], filled: list[float], count: float, size: int, spread: Any
) -> list[float]:
    """How unevenly a class is spread over the folds, once for each fold that takes `count` more."""
    spreads = []
    for fold, before in enumerate(shares):
        shares[fold] = (filled[fold] + count) / size
        spreads.append(spread(shares))
        shares[fold] = before
    return spreads


def _mean(values: Sequence[float]) -> float:
    """Added up from the left, as numpy does with fewer than eight values."""
    if len(values) >= 8:
        return float(np.mean(values))
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation, added up from the left as numpy does along the first of two axes."""
    total = 0.0
    for value in values:
        total += value
    mean, total = total / len(values), 0.0
    for value in values:
        total += (value - mean) * (value - mean)
    return math.sqrt(total / len(values))


def _spread_of_one_class(values: Sequence[float]) -> float:
    return float(np.std(values))
