from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.split import Split, split_cohort
from medtransfer.errors import CohortError, LeakageError


def make_cohort(patients: int, views: list[int], positive_share: float, **columns) -> Cohort:
    rows = []
    for p in range(patients):
        label = float(p < positive_share * patients)
        rows += [
            {"image": f"{p}-{v}", "patient": f"P{p}", "path": "", "y": label}
            for v in range(views[p % len(views)])
        ]
    return Cohort(pd.DataFrame(rows).assign(**columns), ("y",), Path())


@settings(max_examples=40, deadline=None)
@given(
    patients=st.integers(24, 80),
    views=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    share=st.floats(0.25, 0.75),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_folds_are_disjoint_complete_and_stratified(patients, views, share, folds, seed):
    cohort = make_cohort(patients, views, share)
    split = split_cohort(cohort, folds, seed)
    assert len(split) == folds
    patient, label = cohort.images["patient"].to_numpy(), cohort.images["y"].to_numpy()
    tested = []
    for index in range(folds):
        fold = split.fold(index)
        parts = [set(patient[rows]) for rows in (fold.train, fold.tune, fold.test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert sum(map(len, (fold.train, fold.tune, fold.test))) == len(cohort)
        assert all(len(set(label[rows])) == 2 for rows in (fold.train, fold.tune, fold.test))
        tested += fold.test.tolist()
    assert sorted(tested) == list(range(len(cohort)))


def test_labels_are_stratified():
    cohort = make_cohort(100, [1], 0.3)
    split = split_cohort(cohort, 5, 0, tune=0.2)
    for index in range(5):
        fold = split.fold(index)
        assert cohort.images["y"][fold.test].sum() == 6
        assert len(fold.test) == 20
        assert len(fold.tune) == 16


def test_the_seed_decides():
    cohort = make_cohort(40, [1, 2], 0.5)
    assert split_cohort(cohort, 3, 1).parts.equals(split_cohort(cohort, 3, 1).parts)
    assert not split_cohort(cohort, 3, 1).parts.equals(split_cohort(cohort, 3, 2).parts)


def test_an_official_split_is_honoured():
    official = ["train"] * 20 + ["tune"] * 10 + ["test"] * 10
    cohort = (
        make_cohort(40, [1], 0.5)
        .images.sample(frac=1, random_state=0)
        .reset_index(drop=True)
        .assign(split=official)
    )
    split = split_cohort(Cohort(cohort, ("y",), Path()), folds=5)
    assert split.official
    assert split.parts["fold_0"].tolist() == official
    assert len(split) == 1


def test_an_official_split_without_tune_part_keeps_its_test_part():
    official = np.array(["train", "test"])[np.arange(40) % 2]
    images = (
        make_cohort(40, [1], 0.5)
        .images.sample(frac=1, random_state=0)
        .reset_index(drop=True)
        .assign(split=official)
    )
    parts = split_cohort(Cohort(images, ("y",), Path())).parts["fold_0"].to_numpy()
    assert ((parts == "test") == (official == "test")).all()
    assert 2 <= (parts == "tune").sum() <= 6


def test_a_shared_patient_is_a_leak():
    cohort = make_cohort(4, [2], 0.5)
    parts = cohort.images[["image", "patient"]].assign(
        fold_0=["train", "test", "train", "train", "tune", "tune", "test", "test"]
    )
    with pytest.raises(LeakageError, match="patient P0 in fold 0: train, test"):
        Split(parts, 0, "")
    twice = cohort.images[["image", "patient"]].assign(
        fold_0=["test"] * 2 + ["train"] * 6, fold_1=["test"] * 2 + ["train"] * 6
    )
    with pytest.raises(LeakageError, match="patient P0: tested in fold 0 and fold 1"):
        Split(twice, 0, "")


@pytest.mark.parametrize(("patients", "share", "folds"), [(1, 1.0, 2), (2, 0.5, 2), (30, 0.1, 5)])
def test_too_few_patients_are_refused_with_a_remedy(patients, share, folds):
    with pytest.raises(CohortError, match="too few for .* folds. Set protocol.folds to at most"):
        split_cohort(make_cohort(patients, [3], share), folds)


def test_there_is_no_such_fold():
    with pytest.raises(CohortError, match="folds 0 to 1"):
        split_cohort(make_cohort(20, [1], 0.5), 2).fold(2)
