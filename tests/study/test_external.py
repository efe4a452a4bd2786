"""Features as an arm, a second cohort, leaving one site out, subgroups: through a small study."""

from __future__ import annotations

import html
import json
import re
import shutil

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
import yaml
from medtransfer.config.study_config import make_config
from medtransfer.errors import CohortError, ConfigError, LeakageError, StudyError
from PIL import Image

from studies import LEAN, invoke

pytestmark = pytest.mark.xdist_group("external")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three arms on a phantom cohort with sites, and its folder."""
    folder = tmp_path_factory.mktemp("external")
    mt.write_phantom(folder / "first", 45)
    table = pd.read_csv(folder / "first" / "manifest.csv")
    patients = table["patient"].unique()
    table["site"] = table["patient"].map({p: "ABC"[i % 3] for i, p in enumerate(patients)})
    table["sex"] = table["patient"].map({p: "fm"[i % 2] for i, p in enumerate(patients)})
    table["name"] = "a name that must not be copied"
    table.to_csv(folder / "first" / "manifest.csv", index=False)
    cohort = mt.Cohort.from_csv(
        folder / "first" / "manifest.csv", folder / "first", ["malignant"], columns=["site", "sex"]
    )
    arms = {"imagenet": mt.Arm("tf_efficientnet_lite0", "imagenet"), "formulas": mt.Arm("features")}
    mt.compare(
        cohort,
        arms,
        folder / "study",
        quiet=True,
        image={"size": 48},
        protocol={"leave_out": "site"},
        plan={"strategy": "linear_probe"},
        train={"precision": "fp32", "layout": "channels_last"},
        evaluate={"bootstrap": 100, "subgroups": ["sex"]},
        audit=LEAN["audit"],
        report={**LEAN["report"], "gallery": True},
    )
    return folder


def test_each_site_is_tested_by_models_of_the_others(study):
    table = pd.read_csv(study / "study" / "cohort.csv")
    assert {c for c in table.columns if c.startswith("fold_")} == {"fold_0", "fold_1", "fold_2"}
    for index, site in enumerate("ABC"):
        assert ((table[f"fold_{index}"] == "test") == (table["site"] == site)).all()
    report = json.loads((study / "study" / "report.json").read_text())
    assert [row["fold"] for row in report["arms"]["imagenet"]["auc"]["by_fold"]] == [0, 1, 2]
    page = (study / "study" / "report.html").read_text()
    assert "Every site was tested once by models trained on the others" in page


def test_only_columns_asked_for_are_copied(study):
    for path in (study / "study").rglob("*"):
        if path.is_file() and path.suffix in {".csv", ".json", ".yaml", ".html"}:
            assert "must not be copied" not in path.read_text(encoding="utf-8"), path
    predictions = pd.read_csv(study / "study" / "predictions.csv")
    assert set(predictions["sex"]) == {"f", "m"}
    groups = json.loads((study / "study" / "report.json").read_text())["subgroups"]
    assert [row["group"] for row in groups] == ["f", "m"]


def test_formulas_are_an_arm_like_any_other(study):
    run = json.loads(
        (study / "study" / "runs" / "formulas" / "fold-0" / "seed-0" / "run.json").read_text()
    )
    assert run["plan"]["strategy"] == "linear_probe"
    assert "Features by formula" in run["plan"]["reason"]
    report = json.loads((study / "study" / "report.json").read_text())
    assert 0.3 < report["arms"]["formulas"]["auc"]["estimate"] < 1
    typical = pd.read_csv(study / "study" / "predictions.csv")["typical"]
    assert typical.between(0, 1).all()
    # Their tune parts are too small to say which image is unlike the others.
    assert report["arms"]["formulas"]["outliers"]["flagged"]["reason"].startswith(
        "cannot be told, as a model has"
    )


def test_methods_and_checklists_tell_of_probes_what_was_done(study):
    page = html.unescape((study / "study" / "report.html").read_text())
    for said in (
        "features by formula under a linear head",
        "all stages frozen under a linear head",
        "Linear heads are L2-penalised",
    ):
        assert said in page
    assert "optimiser steps" not in page
    assert "the epoch was chosen" not in page
    assert "Every model was trained once, from one random seed" in page
    assert (
        "with the variance between seeds"
        not in page.split("Methods, to paste")[1].split("References")[0]
    )


def test_failures_are_shown_with_their_pictures(study):
    gallery = json.loads((study / "study" / "gallery.json").read_text())
    shown = [
        row
        for arm in gallery["arms"]
        for kind in ("false_positives", "false_negatives")
        for row in arm[kind]
    ]
    assert shown
    assert all(row["picture"].startswith("data:image/png;base64,") for row in shown)
    for arm in gallery["arms"]:
        assert all(row["probability"] >= 0.5 for row in arm["false_positives"])
        assert all(row["probability"] < 0.5 for row in arm["false_negatives"])


def test_a_second_cohort_meets_the_models_as_they_are(study):
    mt.write_phantom(study / "second", 40, seed=9)
    manifest = study / "second" / "manifest.csv"
    outcome = invoke(
        "evaluate",
        study / "study",
        "margin=0.2",
        "subgroups=[]",
        "--on",
        manifest,
        "-o",
        study / "outside",
    )
    assert outcome.exit_code == 0, outcome.output
    table = pd.read_csv(study / "outside" / "predictions.csv")
    test, tune = table[table["part"] == "test"], table[table["part"] == "tune"]
    assert set(test.groupby(["arm", "seed"])["image"].nunique()) == {len(pd.read_csv(manifest))}
    assert set(test["seed"]) == {0, 1, 2}  # a model of every fold
    assert tune["patient"].str.startswith("development: ").all()
    report = json.loads((study / "outside" / "report.json").read_text())
    assert report["comparisons"][0]["non_inferiority"]["margin"] == 0.2
    assert report["arms"]["imagenet"]["recalibrated"] is not None
    assert report["shift"]["sentence"].startswith("Of the images, ")
    page = html.unescape((study / "outside" / "report.html").read_text())
    assert "The second cohort" in page
    assert f"tested as they are on a second cohort of {report['images']} {report['unit']}s" in page
    assert "figures are means over the models, and intervals are over its patients alone" in page
    assert report["comparisons"][0]["delta_auc"]["covers"] == "models"
    assert report["comparisons"][0]["verdict"].split(" ")[0] in {"As", "Cannot"}
    assert len(report["arms"]["imagenet"]["auc"]["by_model"]) == 3
    assert "1 means malignant" in page
    assert "randomness of training" not in page
    internal, external = (
        re.search(rf"{kind} testing</td><td>(.*?)</td>", page).group(1)
        for kind in ("Internal", "External")
    )
    assert (internal, external.startswith("imagenet: AUC")) == (
        "TO BE WRITTEN BY THE AUTHORS",
        True,
    )


def test_a_model_predicts_outside_what_it_predicted_inside(study, monkeypatch):
    """The same images through the stored weights give the logits of the study."""
    from medtransfer.study import external

    monkeypatch.setattr(external, "_refuse_images_seen", lambda *_: None)
    cohort = mt.Cohort.from_csv(
        study / "first" / "manifest.csv", study / "first", ["malignant"], columns=["sex"]
    )
    mt.validate(study / "study", cohort, study / "again", quiet=True, bootstrap=100)
    inside, outside = (pd.read_csv(study / name / "predictions.csv") for name in ("study", "again"))
    inside = inside[(inside["part"] == "test")].assign(model=inside["fold"])
    outside = outside[(outside["part"] == "test")].assign(model=outside["seed"])
    merged = inside.merge(outside, on=["arm", "model", "image"], suffixes=("", "_again"))
    assert len(merged) == len(inside)
    assert np.abs(merged["logit"] - merged["logit_again"]).max() < 2e-3


def test_of_an_unfinished_study_the_models_that_were_compared_meet_the_second_cohort(
    study, tmp_path
):
    """Without a run, the models of the arms must not be paired by their order; an arm added later
    has none yet.
    """
    part = tmp_path / "part"
    shutil.copytree(study / "study", part)
    shutil.rmtree(part / "runs" / "formulas" / "fold-1")
    table = pd.read_csv(part / "predictions.csv")
    table[table["fold"] != 1].to_csv(part / "predictions.csv", index=False)
    settings = yaml.safe_load((part / "study.yaml").read_text())
    settings["arms"]["later"] = settings["arms"]["imagenet"]
    (part / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    mt.write_phantom(tmp_path / "second", 30, seed=9)
    cohort = mt.Cohort.from_csv(
        tmp_path / "second" / "manifest.csv", tmp_path / "second", ["malignant"]
    )
    report = mt.validate(part, cohort, tmp_path / "out", quiet=True, bootstrap=100, subgroups=[])
    assert "External validation of the 2 models of each arm" in report.data["warnings"][0]
    assert report.data["warnings"][1] == "Arm later is left out: the study has not compared it yet."
    outside = pd.read_csv(tmp_path / "out" / "predictions.csv")
    outside = outside[outside["part"] == "tune"]
    for number, fold in enumerate((0, 2)):
        for arm in ("imagenet", "formulas"):
            there = table[
                (table["arm"] == arm) & (table["fold"] == fold) & (table["part"] == "tune")
            ]
            here = outside[(outside["arm"] == arm) & (outside["seed"] == number)]
            assert here["logit"].tolist() == pytest.approx(there["logit"].tolist())
    (part / "runs" / "imagenet" / "fold-2" / "seed-0" / "weights.safetensors").unlink()
    with pytest.raises(
        StudyError,
        match=r"weights\.safetensors: cannot be read .* Run the study again",
    ):
        mt.validate(part, cohort, tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()


def test_what_the_models_have_seen_is_refused(study, tmp_path):
    cohort = mt.Cohort.from_csv(study / "first" / "manifest.csv", study / "first", ["malignant"])
    with pytest.raises(LeakageError, match="Its models know them"):
        mt.validate(study / "study", cohort, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(StudyError, match="holds no study"):
        mt.validate(tmp_path, cohort, tmp_path / "out", quiet=True)
    with pytest.raises(StudyError, match="holds a study"):
        mt.validate(study / "study", cohort, study / "study", quiet=True)
    outcome = invoke("evaluate", study / "study", "--on", study / "first" / "manifest.csv")
    assert outcome.exit_code == 2
    assert "name their folder with --output" in outcome.output


def test_columns_and_sites_that_are_not_there_are_told(manifest, tmp_path):
    cohort = mt.Cohort.from_csv(manifest(), tmp_path, ["malignant"])
    with pytest.raises(CohortError, match="no column 'site'"):
        mt.split_cohort(cohort, leave_out="site")
    arms = {"a": mt.Arm("features")}
    with pytest.raises(ConfigError, match="has no column scanner"):
        mt.compare(cohort, arms, tmp_path / "s", quiet=True, evaluate={"subgroups": ["scanner"]})
    with pytest.raises(CohortError, match="no column scanner"):
        mt.Cohort.from_csv(tmp_path / "manifest.csv", tmp_path, ["malignant"], columns=["scanner"])
    lonely = mt.Cohort.from_csv(manifest(site=["A"] * 24), tmp_path, ["malignant"])
    with pytest.raises(CohortError, match="has 1 different values"):
        mt.split_cohort(lonely, leave_out="site")
    shared = mt.Cohort.from_csv(manifest(site=["A", "B"] * 12), tmp_path, ["malignant"])
    with pytest.raises(LeakageError, match="not disjoint by patient"):
        mt.split_cohort(shared, leave_out="site")


def test_formulas_take_no_weights():
    with pytest.raises(ConfigError, match="kind: features takes no weights"):
        make_config(
            {
                "cohort": {"classes": ["a", "b"]},
                "arms": {"x": {"kind": "features", "weights": "imagenet"}},
            }
        )
    with pytest.raises(mt.MedTransferError, match="have no weights"):
        mt.load_backbone("features", "imagenet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Formulas on folders of two classes, of which the first by the alphabet is the positive one;
    and a second cohort of the same kind.
    """
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)

    def write(where, names, images):
        for name, bright in names:
            (where / name).mkdir(parents=True)
            for i in range(images):
                spot = 60.0 * bright * (np.hypot(*(np.indices((48, 48)) - 24)) < 9)
                pixels = (rng.normal(90, 18, (48, 48)) + spot).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(where / name / f"{i}.png")

    write(root / "first", [("cancer", 1), ("normal", 0)], 24)
    write(root / "second", [("cancer", 1), ("normal", 0)], 20)
    cohort = mt.Cohort.from_folders(root / "first", ["normal", "cancer"])
    assert cohort.labels == ("cancer",)
    mt.compare(
        cohort,
        {"formulas": mt.Arm("features")},
        root / "study",
        quiet=True,
        image={"size": 48},
        protocol={"folds": 2},
        evaluate={"bootstrap": 100},
        audit=LEAN["audit"],
        report=LEAN["report"],
    )
    return root


def renamed(root, tmp_path, names):
    second = tmp_path / "named"
    for old, new in names.items():
        shutil.copytree(root / "second" / old, second / new)
    return second


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ({"cancer": "cancer", "normal": "normal"}, []),
        ({"normal": "normal", "cancer": "cancer"}, ["--positive", "cancer"]),
        ({"cancer": "Cancer", "normal": "Normal"}, ["--positive", "Cancer"]),
        ({"cancer": "z_sick", "normal": "a_well"}, ["--positive", "z_sick"]),
    ],
    ids=["as in the study", "positive named", "another case, confirmed", "other names, said aloud"],
)
def test_classes_of_a_second_cohort_are_those_of_the_study(folders, tmp_path, names, options):
    second = renamed(folders, tmp_path, names)
    outcome = invoke(
        "evaluate", folders / "study", "--on", second, "-o", tmp_path / "out", *options
    )
    assert outcome.exit_code == 0, outcome.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["meaning"] == {"cancer": "cancer"}
    assert (
        report["arms"]["formulas"]["auc"]["estimate"] > 0.8
    )  # in the order of the alphabet it would be below 0.2
    assert "1 means cancer" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cancer": "Cancer", "normal": "Normal"}, "Is 'Cancer' the study's 'cancer'?"),
        ({"cancer": "cancr", "normal": "normal"}, "Is 'cancr' the study's 'cancer'?"),
        ({"cancer": "malignant", "normal": "benign"}, "the study was trained on normal and cancer"),
    ],
    ids=["another case", "misspelt", "other names"],
)
def test_classes_of_other_names_are_refused(folders, tmp_path, names, message):
    outcome = invoke(
        "evaluate",
        folders / "study",
        "--on",
        renamed(folders, tmp_path, names),
        "-o",
        tmp_path / "out",
    )
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.output.split())
    assert not (tmp_path / "out").exists()


def test_a_cohort_from_python_must_mean_the_same(folders, tmp_path):
    other = renamed(folders, tmp_path, {"cancer": "cancer", "normal": "benign"})
    cohort = mt.Cohort.from_folders(other)
    with pytest.raises(
        CohortError,
        match="holds the classes benign, cancer, the study was trained on normal and cancer",
    ):
        mt.validate(folders / "study", cohort, tmp_path / "out", quiet=True)
    reversed_ = mt.Cohort.from_folders(folders / "second", positive="normal")
    with pytest.raises(CohortError, match="Labels are matched by name"):
        mt.validate(folders / "study", reversed_, tmp_path / "out", quiet=True)
