from __future__ import annotations

import pandas as pd
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.laterality import allowed_changes, labels_of_a_side, tell_sides
from medtransfer.data.grid.settings import Augment


def cohort(tmp_path, label="malignant", **columns):
    images = [f"{i}.png" for i in range(4)]
    for image in images:
        (tmp_path / image).write_bytes(b"")
    table = pd.DataFrame({"image": images, "patient": list("abcd"), label: [0, 1, 0, 1], **columns})
    table.to_csv(tmp_path / "m.csv", index=False)
    return Cohort.from_csv(tmp_path / "m.csv", tmp_path, [label])


@pytest.mark.parametrize("label", ["left", "Left_lung", "side", "tumour (right)", "laterality"])
def test_a_label_that_names_a_side_is_noticed(tmp_path, label):
    found = cohort(tmp_path, label)
    assert labels_of_a_side(found) == [label]
    assert "not mirrored" in tell_sides(found)[0]
    assert (
        "images are mirrored all the same (augment.flip=left_right)"
        in tell_sides(found, "left_right")[0]
    )
    assert tell_sides(found, "none") == ()
    assert allowed_changes(found) == Augment(flip="none")
    every = Augment(flip="all", rotate=5, intensity=0.5)
    assert allowed_changes(found, every) == every


@pytest.mark.parametrize("label", ["malignant", "lateral", "bright", "cleft", "upright", "inside"])
def test_others_are_not(tmp_path, label):
    assert labels_of_a_side(cohort(tmp_path, label)) == []
    assert allowed_changes(cohort(tmp_path, label)) == Augment(flip="left_right")


def test_a_column_that_names_a_side_is_noticed(tmp_path):
    assert tell_sides(cohort(tmp_path)) == ()
    found = tell_sides(cohort(tmp_path, laterality=list("LRLR")))
    assert found == (
        (
            "column laterality: it may say which side an image shows. If a label depends on "
            "the side, "
            "set augment.flip=none."
        ),
    )
