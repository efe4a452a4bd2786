"""What does not fit is refused with its place and the remedy, before anything is written."""

from __future__ import annotations

import json
import os

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.config.study_config import load_config
from medtransfer.errors import CohortError, ConfigError, MedTransferError, StudyError
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.planning import write_plans

from networks import SMALL
from studies import ARMS, invoke, prepare_study, write_config


@pytest.fixture
def finished(studies):
    return studies.finished(studies.cohort())


# One case for each way to exit 2 through the command line; below, what is refused is asked of what
# refuses it.


def test_what_does_not_fit_exits_2_in_one_message_and_writes_nothing(finished, tmp_path):
    table = pd.read_csv(finished.manifest)
    table.assign(split=(["train", "test"] * len(table))[: len(table)]).to_csv(
        tmp_path / "leak.csv", index=False
    )
    for overrides, message in (
        (["image.sise=3"], "did you mean size"),  # the configuration
        (["cohort.manifest=none.csv"], "no such file"),  # the cohort
        (["arms.imagenet.weights=imagnet"], "use imagenet, timm:TAG, radimagenet"),  # the weights
        (["protocol.folds=20"], "Set protocol.folds to at most"),  # the split
        ([f"cohort.manifest={tmp_path / 'leak.csv'}"], "not disjoint by patient"),  # a leak
        (["task=detection"], "cohort.boxes: detection needs lesion boxes"),  # the task
        (["image.spacing=0.01"], "more than image.size 32 x 32"),  # the images
        (["train.precision=fp16", "train.device=cpu"], "needs a CUDA device"),  # the machine
    ):
        result = invoke("compare", finished.config, *overrides, "--output", tmp_path / "out")
        assert (result.exit_code, message in result.output) == (2, True), result.output
        assert "Traceback" not in result.output
        assert not (tmp_path / "out").exists()


BAD = {
    "missing image": (
        lambda t: t.assign(image=["gone.dcm", *t["image"][1:]]),
        [],
        "row 2: no file",
    ),
    "one class": (lambda t: t.assign(malignant=1), [], "Both classes are needed"),
    "leak": (
        lambda t: t.assign(split=["train", "test"] * (len(t) // 2) + ["train"] * (len(t) % 2)),
        [],
        "not disjoint by patient",
    ),
    "duplicate": (lambda t: pd.concat([t, t.iloc[:1]]), [], "is already in row 2"),
    "nan label": (
        lambda t: t.assign(malignant=[np.nan, *t["malignant"][1:]]),
        [],
        "row 2: label malignant is empty",
    ),
    "one patient": (lambda t: t.assign(patient="P"), [], "too few for 2 folds"),
    "unknown backbone": (
        lambda t: t,
        ["arms.scratch.backbone=resnet81"],
        "unknown backbone 'resnet81'",
    ),
    "unknown weights": (
        lambda t: t,
        ["arms.scratch.weights=imagnet"],
        "use imagenet, timm:TAG, radimagenet",
    ),
    "two labels": (
        lambda t: t.assign(b=t["malignant"]),
        ["cohort.labels=[malignant, b]"],
        "one label is studied at a time",
    ),
    "fixed size": (
        lambda t: t,
        ["arms.scratch.backbone=inception_v3"],
        "made for images of 299 pixels",
    ),
    "spacing": (
        lambda t: t,
        ["image.spacing=0.01"],
        "pixels at image.spacing, more than image.size 32 x 32",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_place_and_remedy(studies, tmp_path, name):
    change, overrides, message = BAD[name]
    manifest = studies.cohort()
    change(pd.read_csv(manifest)).to_csv(tmp_path / "m.csv", index=False)
    config = write_config(tmp_path, tmp_path / "m.csv", arms={"scratch": {"backbone": SMALL}})
    settings = [f"cohort.root={manifest.parent}", *overrides]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MedTransferError) as refused:
        prepare_study(config, *settings, output=tmp_path / "out")
    assert message in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def planned(studies, tmp_path_factory):
    """A configuration, and the plans that it gives."""
    config = write_config(tmp_path_factory.mktemp("planned"), studies.cohort())
    return config, prepare_study(config).plans


def edit(planned, folder, arm, field, value):
    config, plans = planned
    folder.mkdir()
    write_plans(plans, folder / "plan.json")
    content = json.loads((folder / "plan.json").read_text())
    content["arms"][arm][field] = value
    (folder / "plan.json").write_text(json.dumps(content))
    return config


@pytest.mark.parametrize(
    ("arm", "field", "value", "message"),
    [
        (
            "imagenet",
            "frozen_stages",
            99,
            "frozen_stages is 99; expected a whole number from 0 to 18",
        ),
        ("imagenet", "head_lr", "fast", "head_lr is 'fast'"),
        ("imagenet", "norm_policy", "freeze", "expected train or eval"),
        ("scratch", "steps", 5, "Set train.epochs, or arms.scratch.budget, instead"),
        ("scratch", "level", False, "Set arms.scratch.budget (level, or 1) instead"),
        ("imagenet", "speed", 5, "unknown field speed"),
        ("scratch", "frozen_stages", 3, "trains everything"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(planned, tmp_path, arm, field, value, message):
    config = edit(planned, tmp_path / "out", arm, field, value)
    with pytest.raises(ConfigError) as refused:
        prepare_study(config, output=tmp_path / "out")
    assert message in str(refused.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]


def test_an_edit_that_does_not_fit_exits_2_and_leaves_the_plan(planned, tmp_path):
    config = edit(planned, tmp_path / "out", "imagenet", "speed", 5)
    result = invoke("compare", config, "--output", tmp_path / "out")
    assert (result.exit_code, "unknown field speed" in result.output) == (2, True), result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("image.size=48", "image.size: 32 there, 48 here"),
        ("arms.scratch.budget=2", "arms.scratch.budget: None there, 2.0 here"),
        (f"arms={{scratch: {{backbone: {SMALL}}}}}", "arms: imagenet, scratch there, scratch here"),
    ],
)
def test_another_study_in_the_folder_is_refused_with_what_differs(finished, setting, message):
    with pytest.raises(StudyError, match="holds a study with other settings") as refused:
        StudyFolder(finished.out).refuse_other(load_config(finished.config, [setting]))
    assert message in str(refused.value)


def test_a_study_is_known_again_whatever_is_shown_of_it(finished):
    """Neither what is looked for nor what is shown makes another study; a first edition named
    neither.
    """
    shown = ["report.gallery=true", "audit.shortcuts=true", "report.figures=pdf"]
    StudyFolder(finished.out).refuse_other(load_config(finished.config, shown))


def test_folders_that_hold_something_else_are_left_alone(finished, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for arguments, message in (
        (
            ["compare", finished.config, "image.size=48", "--output", finished.out],
            "holds a study with other settings",
        ),
        (["compare", finished.config, "--output", tmp_path], "is not empty and holds no study"),
        (
            [
                "evaluate",
                finished.out / "predictions.csv",
                "--output",
                finished.out,
                "--bootstrap",
                "100",
            ],
            "would be overwritten",
        ),
        (["compare", finished.config, "--output", tmp_path / "note.txt"], "is a file"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, message in result.output) == (2, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_folder_that_cannot_be_written_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("medtransfer.files.os.access", lambda _path, mode: not mode & os.W_OK)
    result = invoke("compare", finished.config, "--output", tmp_path / "out")
    assert (result.exit_code, "cannot be written" in result.output) == (2, True)


def test_an_unreadable_image_stops_the_study_unless_it_may_be_left_out(studies, tmp_path):
    manifest = studies.cohort()
    names = pd.read_csv(manifest)["image"]
    for name in names:
        (tmp_path / "cohort" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cohort" / name).symlink_to(manifest.parent / name)
    (tmp_path / "cohort" / names[0]).unlink()
    (tmp_path / "cohort" / names[0]).write_bytes(b"damaged")
    config = write_config(tmp_path, manifest, arms={"formulas": {"kind": "features"}})
    settings = [f"cohort.root={tmp_path / 'cohort'}"]
    result = invoke("compare", config, *settings, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "lies outside of" in result.output  # links lead out of the root
    settings.append("cohort.outside=true")
    result = invoke("compare", config, *settings, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert names[0] in result.output
    assert "cohort.skip_unreadable=true" in result.output
    assert not (tmp_path / "out").exists()
    result = invoke(
        "compare", config, *settings, "cohort.skip_unreadable=true", "--output", tmp_path / "out"
    )
    assert result.exit_code == 3, result.output
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (audit["flow"]["images"], audit["flow"]["used"]) == (len(names), len(names) - 1)
    assert audit["flow"]["left_out"][0][0] == names[0]
    assert (audit["images"], audit["readable"], audit["unreadable"][0]["image"]) == (
        len(names),
        len(names) - 1,
        names[0],
    )
    assert names[0] in (tmp_path / "out" / "report.html").read_text()


def test_fit_refuses_what_it_cannot_read(studies, tmp_path):
    manifest = studies.cohort()
    cohort = mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])
    (tmp_path / "damaged.dcm").write_bytes(b"")
    cohort.images.loc[3, "path"] = str(tmp_path / "damaged.dcm")
    net = mt.load_backbone(SMALL)
    plan = mt.plan_freeze(
        mt.fingerprint(mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])), net
    )
    with pytest.raises(CohortError, match="1 of .* images cannot be read"):
        mt.fit(
            cohort,
            mt.split_cohort(cohort, 2).fold(0),
            mt.Classification(cohort.labels),
            net,
            plan,
            tmp_path / "x",
            image=mt.ImageSettings(size=32),
        )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "arms.scratch.backbone=monai_resnet18",
            "monai_resnet18 takes volumes, and these images are planes",
        ),
        ("arms.imagenet.slab=3", "arms.imagenet.slab is 3, but these images are planes"),
        ("arms.imagenet.slab=2", "slab is an odd number of slices"),
        ("arms.imagenet.recipe={mean: 0.5, std: 0}", "std is above 0"),
        ("image.plane=oblique", "image.plane"),
        ("report.figures=[gif]", "report.figures"),
    ],
)
def test_what_does_not_fit_planes_is_refused(studies, tmp_path, setting, message):
    with pytest.raises(ConfigError) as refused:
        prepare_study(write_config(tmp_path, studies.cohort(), arms=ARMS), setting)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("scratch", "settings", "message"),
    [
        ({"backbone": "monai_resnet10", "slab": 3}, [], "monai_resnet10 sees whole volumes"),
        (
            {"backbone": SMALL},
            ["image.slice_spacing=2"],
            "slices 2 mm apart, more than image.slices 10",
        ),
    ],
)
def test_what_does_not_fit_volumes_is_refused(studies, tmp_path, scratch, settings, message):
    manifest = studies.cohort(24, 3, volumes=True)
    config = write_config(
        tmp_path, manifest, image={"size": 32, "slices": 10}, arms={"scratch": scratch}
    )
    with pytest.raises(MedTransferError) as refused:
        prepare_study(config, *settings)
    assert message in str(refused.value)
