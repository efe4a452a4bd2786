"""What a study leaves in its folder, and what can be had from it again."""

from __future__ import annotations

import json
import subprocess
import sys

import medtransfer as mt
import numpy as np
import pandas as pd
import pydicom
import pytest
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.errors import StudyError
from medtransfer.progress import Reporter
from medtransfer.records.study_folder import StudyFolder
from medtransfer.report.build import build_report
from medtransfer.study.analysis.reuse import flag_negative_transfer, write_reuse
from medtransfer.study.planning import write_plans
from medtransfer.study.recorded import Recorded

from networks import SMALL
from studies import FULL, SETTINGS, TWINS, changed, invoke, prepare_study, read_run, write_config

# Measured by formula: no network is trained where it does not matter which one.
FORMULAS = {"formulas": mt.Arm("features")}


@pytest.fixture
def study(studies):
    return studies.classification()


@pytest.mark.xdist_group("classification")
def test_the_folder_is_the_record(study):
    out = study.out
    for arm in TWINS:
        for fold in (0, 1):
            run_folder = out / "runs" / arm / f"fold-{fold}" / "seed-0"
            more = {"at-budget"} if arm == "scratch" else set()
            assert {p.name for p in run_folder.iterdir()} == {
                "run.json",
                "model.json",
                "metrics.jsonl",
                "weights.safetensors",
                "typicality.safetensors",
                "predictions.csv",
            } | more
    table = pd.read_csv(out / "predictions.csv")
    schema = [
        "arm",
        "seed",
        "fold",
        "part",
        "image",
        "patient",
        "label",
        "target",
        "probability",
        "logit",
    ]
    assert table.columns.tolist() == [*schema, "typical", "budget"]
    assert table.groupby("arm")["budget"].unique().map(list).to_dict() == {
        "imagenet": [np.nan],
        "scratch": ["level", "same"],
    }
    cohort = pd.read_csv(out / "cohort.csv")
    assert {"image", "patient", "site", "malignant", "fold_0", "fold_1", "file_digest"} <= set(
        cohort.columns
    )
    test = table[(table["part"] == "test") & (table["arm"] == "imagenet")]
    assert sorted(test["image"]) == sorted(cohort["image"])
    assert (
        test.merge(cohort, on="image")["target"] == test.merge(cohort, on="image")["malignant"]
    ).all()
    environment = json.loads((out / "environment.json").read_text())
    assert environment["arms"]["imagenet"]["weights"]["digest"].startswith("57934424")
    plan = json.loads((out / "plan.json").read_text())["arms"]
    assert plan["scratch"]["strategy"] == "scratch"
    assert len(plan["imagenet"]["reason"]) > 20


@pytest.mark.xdist_group("classification")
def test_no_path_of_the_machine_is_in_the_record(study):
    for name in (
        "cohort.csv",
        "audit.json",
        "plan.json",
        "environment.json",
        "predictions.csv",
        "report.json",
    ):
        text = (study.out / name).read_text()
        assert str(study.folder) not in text, name
        assert str(study.manifest.parent) not in text, name


@pytest.mark.xdist_group("classification")
def test_both_arms_get_the_same_patients_and_steps(study):
    runs = {arm: read_run(study.out, arm) for arm in TWINS}
    assert runs["imagenet"]["images"] == runs["scratch"]["images"]
    assert runs["imagenet"]["budget"]["steps"] == runs["scratch"]["budget"]["steps"] > 0
    table = pd.read_csv(study.out / "predictions.csv").fillna({"budget": ""})
    keys = ["seed", "fold", "part", "image", "patient", "target"]
    parts = [of[keys].reset_index(drop=True) for _, of in table.groupby(["arm", "budget"])]
    assert len(parts) == 3
    assert all(part.equals(parts[0]) for part in parts)


@pytest.mark.xdist_group("classification")
def test_evaluate_reproduces_every_number_without_torch(study, tmp_path):
    code = (
        "import sys; from medtransfer.cli.app import main; sys.argv = ['medtransfer', 'evaluate', "
        "*sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as e: code = e.code\n"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else code)"
    )
    arguments = [
        str(study.out / "predictions.csv"),
        "--output",
        str(tmp_path / "again"),
        "--bootstrap",
        "100",
    ]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    again, own = (
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "again", study.out)
    )
    # What 1 means and how training ended are facts of the study, and no numbers.
    assert {key: own.pop(key) for key in ("meaning", "unfinished", "spent")}["meaning"] == {
        "malignant": "malignant"
    }
    assert again == own
    assert (tmp_path / "again" / "report.html").is_file()
    kinds = {path.suffix for path in (tmp_path / "again" / "figures").iterdir()}
    assert kinds == {".svg", ".pdf", ".png"}


@pytest.mark.xdist_group("classification")
def test_the_same_study_again_gives_identical_predictions_however_much_is_shown(study, tmp_path):
    settings = ["audit.shortcuts=false", "report={figures: [], gallery: false, reuse: false}"]
    result = invoke("compare", study.config, *settings, "--output", tmp_path / "again")
    assert result.exit_code == 0
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (
        study.out / "predictions.csv"
    ).read_bytes()
    assert (tmp_path / "again" / "report.json").read_bytes() == (
        study.out / "report.json"
    ).read_bytes()


def test_class_folders_of_pngs_with_two_seeds(tmp_path, write_png):
    rng = np.random.default_rng(0)
    for i in range(24):
        array = rng.integers(0, 120, (40, 30)).astype(np.uint8)
        array[10:20, 5:25] += np.uint8(100 * (i % 2))
        write_png(f"data/{'malignant' if i % 2 else 'benign'}/{i}.png", array)
    cohort = mt.Cohort.from_folders(tmp_path / "data", ["benign", "malignant"], "malignant")
    settings = changed(SETTINGS, protocol={"seeds": [3, 4]})
    arms = {"small": mt.Arm(SMALL), **FORMULAS}
    report = mt.compare(cohort, arms, tmp_path / "out", quiet=True, **settings)
    table = mt.read_predictions(tmp_path / "out" / "predictions.csv")
    assert set(table["seed"]) == {3, 4}
    assert report.to_dict()["images"] == 24
    assert report.page == tmp_path / "out" / "report.html"
    page = report.page.read_text()
    assert "no patient ids" in page
    assert "Images were divided into 2 folds, stratified by label" in page
    assert "The source names no patients" in page
    assert "2 random seeds" in page
    assert "hashed with a salt" not in page
    assert "<table" in report._repr_html_()
    with pytest.raises(StudyError, match="other settings"):
        mt.compare(
            cohort, arms, tmp_path / "out", quiet=True, **changed(settings, image={"size": 48})
        )


def test_an_official_split_makes_one_fold(studies, tmp_path):
    manifest = studies.cohort()
    table = pd.read_csv(manifest)
    number = table["patient"].str[1:].astype(int)
    table["split"] = np.where(number % 3 == 0, "test", "train")
    table.to_csv(tmp_path / "manifest.csv", index=False)
    cohort = mt.Cohort.from_csv(tmp_path / "manifest.csv", manifest.parent, ["malignant"])
    mt.compare(cohort, FORMULAS, tmp_path / "official", quiet=True, **SETTINGS)
    predictions = mt.read_predictions(tmp_path / "official" / "predictions.csv")
    assert set(predictions["fold"]) == {0}
    tested = set(predictions.loc[predictions["part"] == "test", "image"])
    assert tested == set(table.loc[table["split"] == "test", "image"])
    assert "own split was used" in (tmp_path / "official" / "report.html").read_text()


def test_near_duplicates_are_kept_on_one_side(tmp_path, write_png):
    rng = np.random.default_rng(0)
    for i in range(30):
        array = np.kron(rng.integers(0, 120, (10, 10)), np.ones((4, 4))).astype(np.uint8)
        array[10:20, 5:25] += np.uint8(100 * (i % 2))
        folder = f"data/{'malignant' if i % 2 else 'benign'}"
        write_png(f"{folder}/{i:02d}.png", array)
        if i % 3 == 0:
            write_png(f"{folder}/{i:02d}-again.png", array[:, ::-1] // 2 + 30)
    cohort = mt.Cohort.from_folders(tmp_path / "data")
    arms = {**FORMULAS, "again": mt.Arm("features")}
    mt.compare(
        cohort,
        arms,
        tmp_path / "out",
        quiet=True,
        **changed(SETTINGS, protocol={"group": "cluster"}),
    )
    table = mt.read_predictions(tmp_path / "out" / "predictions.csv")
    unit = dict(zip(table["image"], table["patient"], strict=True))
    assert unit["benign/00.png"] == unit["benign/00-again.png"]
    assert table.groupby(["arm", "patient", "fold"])["part"].nunique().max() == 1
    listed = pd.read_csv(tmp_path / "out" / "cohort.csv")
    assert listed["group"].nunique() == 30
    assert listed["patient"].nunique() == 40
    page = (tmp_path / "out" / "report.html").read_text()
    assert "10 pairs of near-duplicates in 10 clusters" in page
    assert "protocol.group=cluster" not in page


SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19700101",
    "PatientID": "MRN-4711",
    "StudyInstanceUID": "1.2.840.99.4711",
}


@pytest.fixture
def dicom_folders(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "data" / ("malignant" if i % 4 > 1 else "benign") / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4000, (40, 40)).astype(np.uint16)
        write_grey_dicom(
            path,
            pixels,
            patient="",
            number=i,
            spacing=(0.5, 0.5),
            encoding=GreyEncoding(),
        )
        dataset = pydicom.dcmread(path)
        for keyword, value in SECRETS.items():
            setattr(dataset, keyword, f"{value}{i // 2:02d}" if keyword == "PatientID" else value)
        dataset.save_as(path)
    return tmp_path / "data"


def test_patients_of_dicom_headers_are_hashed_with_the_salt_of_the_study(dicom_folders, tmp_path):
    image = {"size": 64, "spacing": 0.75}
    sections = {
        "cohort": {"root": str(dicom_folders), "classes": ["benign", "malignant"]},
        "image": image,
    }
    # One whole report of a network and of formulas: weights, curves, pictures and page are searched
    # for what was in the headers.
    shown = {"arms": {"small": {"backbone": SMALL}, "formulas": {"kind": "features"}}, **FULL}
    config = write_config(tmp_path, tmp_path / "none.csv", **sections, **shown)
    first = invoke("compare", config, "--output", tmp_path / "out")
    assert first.exit_code == 0, first.output
    table = pd.read_csv(tmp_path / "out" / "cohort.csv")
    assert table["patient"].nunique() == 12
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) > 10
    assert {"weights.safetensors", "gallery.json", "metrics.jsonl", "report.html"} <= {
        path.name for path in written
    }
    for path in written:
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path
    assert not any(secret in first.output for secret in SECRETS.values())
    # The study knows its patients again, and its finished runs.
    again = invoke("compare", config, "--output", tmp_path / "out")
    assert again.exit_code == 0
    assert "run 1 of" not in again.output
    assert pd.read_csv(tmp_path / "out" / "cohort.csv").equals(table)
    cohort, settings = mt.Cohort.from_folders(dicom_folders), {**SETTINGS, "image": image}
    mt.compare(cohort, FORMULAS, tmp_path / "api", quiet=True, **settings)
    salted = pd.read_csv(tmp_path / "api" / "cohort.csv")
    mt.compare(
        mt.Cohort.from_folders(dicom_folders), FORMULAS, tmp_path / "api", quiet=True, **settings
    )
    assert pd.read_csv(tmp_path / "api" / "cohort.csv").equals(salted)
    assert set(salted["patient"]).isdisjoint(table["patient"])
    # Nor is a folder that was made by the command line the same study for Python, where its source
    # says other things.
    with pytest.raises(StudyError, match="other settings|other images"):
        mt.compare(
            mt.Cohort.from_folders(dicom_folders),
            FORMULAS,
            tmp_path / "out",
            quiet=True,
            **settings,
        )


def test_check_tells_nothing_that_identifies(dicom_folders, tmp_path):
    result = invoke("check", dicom_folders, "--output", tmp_path / "checked")
    told = result.output + "".join(p.read_text() for p in (tmp_path / "checked").iterdir())
    assert "24 images found, 24 readable; 12 patients" in result.output
    assert not any(secret in told for secret in SECRETS.values())
    assert "4711" not in told


@pytest.mark.xdist_group("classification")
def test_a_report_shows_more_or_less_of_a_finished_study_and_trains_nothing(study, tmp_path):
    copied = study.copy(tmp_path / "s")
    out = copied.out
    numbers = {
        name: (out / name).read_bytes()
        for name in ("predictions.csv", "report.json", "plan.json", "environment.json")
    }
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*") if path.is_file()}
    (out / "figures" / "mine.txt").write_text("not the report's")
    reuse = (out / "reuse.json").read_bytes()
    less = [
        "audit.shortcuts=false",
        "report.figures=[]",
        "report.gallery=false",
        "report.reuse=false",
    ]
    result = invoke("compare", copied.config, *less, "--output", out, "--report-only")
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert "data:image" not in page
    assert not (out / "gallery.json").exists()
    assert [path.name for path in (out / "figures").iterdir()] == ["mine.txt"]
    assert (out / "reuse.json").read_bytes() == reuse  # measured already
    shown_as_figure = "figures (report.figures), among them what was reused, which reuse.json holds"
    left_out = f"Left out on request: {shown_as_figure}; pictures of test images (report.gallery)."
    assert left_out in page
    # The audit was made of the pixels, which a report does without: it stands as it was recorded.
    assert "Shortcuts were not looked for" not in page
    assert (out / "audit.json").read_bytes() == (study.out / "audit.json").read_bytes()
    assert "figures: []" in (out / "study.yaml").read_text()
    # And back: as if it had never been asked for less; another format beside.
    more = ["report.figures=[png,svg]"]
    assert invoke("compare", copied.config, *more, "--output", out, "--report-only").exit_code == 0
    assert {path.suffix for path in (out / "figures").iterdir()} == {".svg", ".png", ".txt"}
    assert (out / "gallery.json").read_bytes() == (study.out / "gallery.json").read_bytes()
    assert (out / "audit.json").read_bytes() == (study.out / "audit.json").read_bytes()
    again, before = (folder.joinpath("report.html").read_text() for folder in (out, study.out))
    assert "Left out on request" not in again
    assert again.count("data:image") == before.count("data:image")
    assert {name: (out / name).read_bytes() for name in numbers} == numbers
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize("measured", [True, False])
def test_negative_transfer_is_flagged_whether_or_not_reuse_is_measured(studies, tmp_path, measured):
    """It follows from the comparisons; planted ones here."""
    arms = {
        "deep": {**TWINS["imagenet"], "plan": {"frozen_stages": 16}},
        "planned": {**TWINS["imagenet"], "plan": {"frozen_stages": 3}},
        "scratch": TWINS["scratch"],
    }
    config = write_config(tmp_path, studies.cohort(), arms=arms, plan={"strategy": "lp_ft"})
    settled = prepare_study(config, f"report.reuse={measured}".lower())
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    write_plans(settled.plans, folder.plan)
    recorded = Recorded(folder, settled.config)
    worse = {"estimate": -0.2, "low": -0.3, "high": -0.1, "p_holm": 0.003}
    comparisons = [
        {"a": "deep", "b": "planned", "delta_auc": worse},
        {"a": "planned", "b": "scratch", "delta_auc": worse},
        {
            "a": "deep",
            "b": "scratch",
            "delta_auc": {"estimate": -0.1, "low": -0.2, "high": 0.1, "p_holm": 0.3},
        },  # may be chance
        # Among so many comparisons this may be chance too, as the verdict on it says.
        {
            "a": "deep",
            "b": "scratch",
            "delta_auc": {"estimate": -0.1, "low": -0.2, "high": -0.01, "p_holm": 0.08},
        },
    ]
    by = "is lower by 0.200 (0.100 to 0.300) than that of"
    said = [
        f"Frozen too deep: the AUC of deep, 16 stages frozen, {by} planned with 3.",
        f"Negative transfer: the AUC of planned, which is pretrained, {by} scratch, from scratch.",
    ]
    assert flag_negative_transfer(recorded, comparisons) == said
    if not measured:
        write_reuse(recorded, comparisons, Reporter(quiet=True))
        assert folder.read(folder.reuse) == {"flags": said}


def test_a_lean_study_says_on_its_page_what_was_left_out(studies):
    study = studies.finished(studies.cohort())
    page = (study.out / "report.html").read_text()
    assert (
        "Left out on request: figures (report.figures); pictures of test images (report.gallery)"
        in page
    )
    fine_tuned = any(
        plan["strategy"] == "lp_ft"
        for plan in json.loads((study.out / "plan.json").read_text())["arms"].values()
    )
    assert ("what was reused of the pretrained weights (report.reuse)" in page) is fine_tuned
    assert "<img" not in page
    assert not (study.out / "figures").exists()


def test_figures_that_are_not_of_the_report_stay(scores, tmp_path):
    """In a folder for an evaluation, whatever lies there."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "training.png").write_text("mine")
    mt.evaluate(scores({"a": 1.0}), bootstrap=100).save(tmp_path / "report.json")
    build_report(tmp_path, ["svg"])
    assert (tmp_path / "figures" / "training.png").read_text() == "mine"
    assert (tmp_path / "figures" / "decisions-0.svg").is_file()


def test_a_report_that_cannot_be_written_leaves_the_record_as_it_was(studies, tmp_path):
    study = studies.finished(studies.cohort()).copy(tmp_path / "s")
    for path in study.out.glob("runs/scratch/*/*/run.json"):
        path.unlink()
    before = {path: path.read_bytes() for path in study.out.rglob("*") if path.is_file()}
    result = invoke(
        "compare",
        study.config,
        "report.gallery=true",
        "audit.shortcuts=true",
        "--output",
        study.out,
        "--report-only",
    )
    assert (result.exit_code, "nothing to compare" in result.output) == (2, True), result.output
    assert {path: path.read_bytes() for path in study.out.rglob("*") if path.is_file()} == before
