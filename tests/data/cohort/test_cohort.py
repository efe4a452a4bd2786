from __future__ import annotations

import re

import medtransfer as mt
import pytest
from medtransfer.errors import CohortError, LeakageError


def test_a_manifest_is_read(manifest):
    path = manifest(patients=6, views=2, site=["a", "b"] * 6)
    cohort = mt.Cohort.from_csv(path, root=path.parent, labels=["malignant"])
    assert len(cohort) == 12
    assert list(cohort.images.columns) == ["image", "patient", "path", "site", "malignant"]
    assert cohort.images["malignant"].tolist() == [0, 0, 1, 1] * 3
    assert cohort.patients_known


def test_class_names_need_the_positive_one(manifest):
    path = manifest(patients=4, views=1, kind=["benign", "malignant"] * 2)
    cohort = mt.Cohort.from_csv(path, path.parent, ["kind"], positive="malignant")
    assert cohort.images["kind"].tolist() == [0, 1, 0, 1]
    with pytest.raises(
        CohortError,
        match="column kind: holds benign, malignant in place of 0 and 1; name the class",
    ):
        mt.Cohort.from_csv(path, path.parent, ["kind"])
    with pytest.raises(
        CohortError, match="expected 'cancer' and one other class, found benign, malignant"
    ):
        mt.Cohort.from_csv(path, path.parent, ["kind"], positive="cancer")


def test_a_patient_in_two_official_parts_is_a_leak(manifest):
    path = manifest(patients=8, views=2, split=["train", "test"] * 8)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    with pytest.raises(LeakageError, match="patient P0 in fold 0: .*test"):
        mt.split_cohort(cohort)
    found = [c for c in mt.audit(cohort).conflicts if c.kind == "patient_split"]
    assert len(found) == 8
    assert "the manifest's split is leaking: 8 patient(s)" in " ".join(mt.audit(cohort).actions)


def test_digest_depends_on_labels_and_patients_alone(manifest):
    path = manifest()
    first = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    text = path.read_text()
    again = path.with_name("again.csv")
    again.write_text(text)
    assert mt.Cohort.from_csv(again, path.parent, ["malignant"]).digest == first.digest
    again.write_text(text.replace("P3", "P5"))
    assert mt.Cohort.from_csv(again, path.parent, ["malignant"]).digest != first.digest


def test_grouping_joins_patients_that_share_pixels(manifest):
    path = manifest(patients=12, views=2)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    joined = cohort.grouped(
        [("0-0.png", "2-1.png"), ("2-0.png", "4-0.png"), ("1-0.png", "1-1.png")]
    )
    group = dict(zip(joined.images["patient"], joined.images["group"], strict=True))
    assert group["P0"] == group["P2"] == group["P4"] == "P0"
    assert all(group[f"P{i}"] == f"P{i}" for i in (1, 3, 5, 6, 7, 8, 9, 10, 11))
    assert joined.digest != cohort.digest
    split = mt.split_cohort(joined, folds=4, seed=3)
    for index in range(4):
        parts = split.parts.groupby("group")[f"fold_{index}"].nunique()
        assert (parts == 1).all()
    assert cohort.units.tolist() == cohort.images["patient"].tolist()


def test_folds_do_not_depend_on_the_names_of_patients(manifest):
    path = manifest(patients=12, views=2)
    first = mt.split_cohort(mt.Cohort.from_csv(path, path.parent, ["malignant"]), folds=3)
    renamed = path.with_name("renamed.csv")
    renamed.write_text(re.sub(r"P(\d+)", lambda m: f"X{(7 * int(m[1])) % 13}", path.read_text()))
    second = mt.split_cohort(mt.Cohort.from_csv(renamed, path.parent, ["malignant"]), folds=3)
    folds = [f"fold_{i}" for i in range(3)]
    assert first.parts[folds].equals(second.parts[folds])
