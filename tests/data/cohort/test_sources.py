"""Which class counts as 1: by name, never by order; and a second cohort whose names are its own."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.data.cohort.classes import guess_positive
from medtransfer.data.cohort.sources import open_cohort, open_second
from medtransfer.errors import CohortError
from PIL import Image

STUDY = {"label": "malignant", "classes": ["benign", "malignant"], "meaning": "malignant"}


def folders(root, *names, images=3):
    """Class folders; the grey of an image tells its class."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(
                rng.integers(40 * number, 40 * number + 30, (16, 16), dtype=np.uint8)
            ).save(root / name / f"{i}.png")
    return root


def positives(cohort):
    return {
        image.split("/")[0]
        for image in cohort.images.loc[cohort.images[cohort.labels[0]] == 1, "image"]
    }


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        (("benign", "malignant"), "malignant"),
        (("malignant", "benign"), "malignant"),
        (("Cancer", "Normal"), "Cancer"),
        (("no", "yes"), "yes"),
        (("NEGATIVE", "POSITIVE"), "POSITIVE"),
        (("normal", "tumor"), "tumor"),
        (("tumor", "healthy"), "tumor"),
        (("a", "b"), None),
        (("benign", "normal"), None),
        (("malignant", "tumour"), None),
        (("malignant", "other"), None),
        (("0", "1"), None),
    ],
)
def test_words_that_cannot_be_mistaken_name_the_positive_class(tmp_path, names, positive):
    assert guess_positive(names) == positive
    root = folders(tmp_path, *names)
    if positive is None:
        with pytest.raises(CohortError, match="which of .* counts as 1"):
            mt.Cohort.from_folders(root, list(names))
        # To be looked at, they need no positive class: each is a label, and the check asks which
        # counts as 1.
        cohort = open_cohort(root)
        assert cohort.labels == tuple(sorted(names))
        checked = mt.audit(cohort)
        assert checked.actions[0].startswith(
            f"which of {' and '.join(sorted(names))} counts as 1 is not known: name it (--positive "
        )
        assert "1 means" not in str(checked)
        assert {shortcut.label for shortcut in checked.shortcuts} <= {min(names)}
    for order in (names, names[::-1]):
        cohort = (
            mt.Cohort.from_folders(root, list(order), positive if positive is None else None)
            if positive
            else mt.Cohort.from_folders(root, list(order), names[0])
        )
        assert positives(cohort) == {positive or names[0]}
        assert cohort.meaning == {cohort.labels[0]: positive or names[0]}


def test_the_same_folders_in_another_order_mean_the_same(tmp_path):
    root = folders(tmp_path / "second", "malignant", "benign")
    cohort = open_second(root, **STUDY)
    assert positives(cohort) == {"malignant"}
    assert cohort.labels == ("malignant",)
    assert positives(open_second(root, **STUDY, positive="malignant")) == {"malignant"}


def test_folders_beside_those_of_the_study_are_left_out(tmp_path):
    root = folders(tmp_path / "second", "benign", "malignant", "normal")
    assert {image.split("/")[0] for image in open_second(root, **STUDY).images["image"]} == {
        "benign",
        "malignant",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("Benign", "Malignant"),
            "Is 'Benign' the study's 'benign'\\? Is 'Malignant' the study's 'malignant'\\?",
        ),
        (("benign", "malignent"), "Is 'malignent' the study's 'malignant'\\?"),
        (
            ("normal", "tumour"),
            "holds the classes normal, tumour, the study was trained on benign and malignant",
        ),
        (("a", "b"), "Classes are matched by name"),
        (("benign",), "holds no two class folders"),
    ],
)
def test_other_names_are_refused_and_asked_about(tmp_path, names, message):
    root = folders(tmp_path / "second", *names)
    with pytest.raises(CohortError, match=message):
        open_second(root, **STUDY)


def test_names_said_aloud_are_believed(tmp_path):
    root = folders(tmp_path / "second", "Benign", "Malignant")
    cohort = open_second(root, **STUDY, positive="Malignant")
    assert (positives(cohort), cohort.labels) == ({"Malignant"}, ("malignant",))
    with pytest.raises(CohortError, match="no class folder cancer"):
        open_second(root, **STUDY, positive="cancer")
    three = folders(tmp_path / "third", "cancer", "cyst", "normal")
    with pytest.raises(
        CohortError, match="cancer counts as 1, and which of cyst, normal counts as 0"
    ):
        open_second(three, **STUDY, positive="cancer")


@pytest.mark.parametrize("known", [STUDY, {**STUDY, "classes": ()}])
def test_what_the_study_counts_as_0_is_not_believed_to_be_1(tmp_path, known):
    with pytest.raises(
        CohortError,
        match="benign was to count as 1, but in the study 1 means malignant, which is the "
        "opposite of it",
    ):
        open_second(folders(tmp_path / "second", "benign", "malignant"), **known, positive="benign")
    with pytest.raises(
        CohortError, match="in the study malignant counts as 1, not cyst. Leave --positive out"
    ):
        open_second(folders(tmp_path / "third", "cyst", "malignant"), **known, positive="cyst")


def manifest(root, **columns):
    folders(root, "images", images=4)
    table = pd.DataFrame(
        {"image": [f"images/{i}.png" for i in range(4)], "patient": list("PQRS"), **columns}
    )
    table.to_csv(root / "m.csv", index=False)
    return root / "m.csv"


def test_manifests_are_matched_by_the_name_of_the_column(tmp_path):
    numbers = open_second(manifest(tmp_path / "a", malignant=[0, 1, 1, 0]), **STUDY)
    assert numbers.images["malignant"].tolist() == [0, 1, 1, 0]
    with pytest.raises(
        CohortError, match="no column malignant, which is the study's label. Columns here: lesion"
    ):
        open_second(manifest(tmp_path / "b", lesion=[0, 1, 1, 0]), **STUDY)
    said = open_second(tmp_path / "b" / "m.csv", **STUDY, labels=["lesion"])
    assert said.labels == ("malignant",)
    with pytest.raises(
        CohortError,
        match="benign was to count as 1, but in the study 1 means malignant, which is the opposite",
    ):
        open_second(manifest(tmp_path / "e", benign=[0, 1, 1, 0]), **STUDY, labels=["benign"])
    words = open_second(
        manifest(tmp_path / "c", malignant=["malignant", "benign", "benign", "malignant"]), **STUDY
    )
    assert words.images["malignant"].tolist() == [1, 0, 0, 1]
    with pytest.raises(CohortError, match="Is 'Malignant' the study's 'malignant'"):
        open_second(
            manifest(tmp_path / "d", malignant=["Malignant", "benign", "benign", "Malignant"]),
            **STUDY,
        )
    believed = open_second(tmp_path / "d" / "m.csv", **STUDY, positive="Malignant")
    assert believed.images["malignant"].tolist() == [1, 0, 0, 1]


DISEASE = {"label": "disease", "classes": ("control", "disease"), "meaning": "disease"}


@pytest.mark.parametrize("name", ["control", "Controls", " CONTROL", "no disease", "non-disease"])
def test_a_class_that_counts_as_0_in_the_study_counts_as_1_nowhere(tmp_path, name):
    said = "was to count as 1, but in the study"
    with pytest.raises(CohortError, match=said):
        open_second(
            manifest(tmp_path / "numbers", **{name: [0, 1, 1, 0]}), **DISEASE, labels=[name]
        )
    with pytest.raises(CohortError, match=said):
        open_second(
            manifest(tmp_path / "words", disease=[name, "disease", "disease", name]),
            **DISEASE,
            positive=name,
        )
    for second in ("disease", "sick"):
        with pytest.raises(CohortError, match=said):
            open_second(folders(tmp_path / second, name, second), **DISEASE, positive=name)


def test_another_name_of_what_counts_as_1_is_believed(tmp_path):
    known = {"label": "grade2", "classes": ("grade1", "grade2"), "meaning": "grade2"}
    assert positives(
        open_second(folders(tmp_path / "a", "Grade 1", "Grade 2"), **known, positive="Grade 2")
    ) == {"Grade 2"}
    with pytest.raises(CohortError, match="in the study grade1 counts as 0, and 1 means grade2"):
        open_second(tmp_path / "a", **known, positive="Grade 1")


def test_of_two_folders_that_are_only_looked_at_a_positive_one_can_be_named(tmp_path):
    root = folders(tmp_path / "x", "a", "b")
    assert open_cohort(root, positive="a").labels == ("a",)
    with pytest.raises(CohortError, match="holds no class folders"):
        open_cohort(root / "a", positive="a")
