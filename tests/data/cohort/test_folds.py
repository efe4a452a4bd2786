"""The folds are those of scikit-learn, row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.cohort.folds import draw_folds
from sklearn.model_selection import StratifiedGroupKFold


def reference(label, groups, folds, seed):
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.full(len(label), -1)
    for fold, (_, test) in enumerate(splitter.split(label, label, groups)):
        fold_of[test] = fold
    return fold_of


@pytest.mark.filterwarnings("ignore:The least populated class")
@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(40, 160),
    classes=st.integers(1, 4),
    per_group=st.integers(1, 6),
    folds=st.integers(2, 10),
    seed=st.integers(0, 10_000),
)
def test_every_row_falls_into_the_fold_of_scikit_learn(rows, classes, per_group, folds, seed):
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.repeat(np.arange(classes), folds), rng.integers(classes, size=rows)])
    groups = rng.permutation(len(label)) // per_group + 7
    if len(np.unique(groups)) < folds:
        return
    expected = reference(label, groups, folds, seed)
    assert draw_folds(label, groups, folds, seed).tolist() == expected.tolist()


@pytest.mark.parametrize("folds", [5, 17])
def test_folds_of_a_rare_class_in_many_groups_are_those_of_scikit_learn(folds):
    rng = np.random.default_rng(folds)
    label = (rng.random(1500) < 0.08).astype(int)
    groups = np.sort(rng.integers(700, size=1500))
    expected = reference(label, groups, folds, 3)
    assert draw_folds(label, groups, folds, 3).tolist() == expected.tolist()
    assert draw_folds(label, groups, folds, 4).tolist() != expected.tolist()
