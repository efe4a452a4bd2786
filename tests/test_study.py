"""The whole path through the real command line, on small cohorts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import medtransfer as mt
import numpy as np
import pandas as pd
import pydicom
import pytest
import safetensors.numpy
import torch
import yaml
from medtransfer.cli import app
from medtransfer.config import make_config
from medtransfer.data.dicom_write import write_grey_dicom
from medtransfer.errors import CohortError, StudyError, WeightsError
from medtransfer.models.freeze import PlainCounts
from typer.testing import CliRunner

RUNNER = CliRunner()
LITE = "tf_efficientnet_lite0"
SETTINGS = {
    "image": {"size": 32},
    "protocol": {"folds": 2, "seeds": [0]},
    "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
    "evaluate": {"bootstrap": 100},
}
ARMS = {"imagenet": mt.Arm(LITE, "imagenet"), "scratch": mt.Arm(LITE)}


def write_config(folder: Path, manifest: Path, **changes) -> Path:
    values = {
        "cohort": {"manifest": str(manifest), "root": str(manifest.parent), "labels": ["malignant"]},
        "arms": {"imagenet": {"backbone": LITE, "weights": "imagenet"}, "scratch": {"backbone": LITE, "weights": "none"}},
        **SETTINGS,
        **changes,
    }
    path = folder / "study.config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: object):
    return RUNNER.invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study, made through the command line. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("study")
    mt.write_phantom(folder / "cohort", 30, seed=2)
    config = write_config(folder, folder / "cohort" / "manifest.csv")
    result = run("compare", config, "--output", folder / "out")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def fresh(study, tmp_path):
    shutil.copytree(study, tmp_path / "s")
    return tmp_path / "s"


def test_the_folder_is_the_record(study):
    out = study / "out"
    files = {"study.yaml", "environment.json", "cohort.csv", "audit.json", "plan.json", "predictions.csv", "report.json", "report.html"}
    assert {path.name for path in out.iterdir()} == {*files, "reuse.json", "gallery.json", "runs", "figures", "tables"}
    for arm in ("imagenet", "scratch"):
        for fold in (0, 1):
            run_folder = out / "runs" / arm / f"fold-{fold}" / "seed-0"
            assert {p.name for p in run_folder.iterdir()} == {"run.json", "metrics.jsonl", "weights.safetensors", "predictions.csv"}
    table = pd.read_csv(out / "predictions.csv")
    schema = ["arm", "seed", "fold", "part", "image", "patient", "label", "target", "probability", "logit"]
    assert table.columns.tolist() == [*schema, "typical"]
    cohort = pd.read_csv(out / "cohort.csv")
    assert {"image", "patient", "site", "malignant", "fold_0", "fold_1", "file_digest"} <= set(cohort.columns)
    test = table[(table["part"] == "test") & (table["arm"] == "imagenet")]
    assert sorted(test["image"]) == sorted(cohort["image"])
    assert (test.merge(cohort, on="image")["target"] == test.merge(cohort, on="image")["malignant"]).all()
    environment = json.loads((out / "environment.json").read_text())
    assert environment["arms"]["imagenet"]["weights"]["digest"].startswith("57934424")
    plan = json.loads((out / "plan.json").read_text())["arms"]
    assert plan["scratch"]["strategy"] == "scratch"
    assert len(plan["imagenet"]["reason"]) > 20


def test_no_path_of_the_machine_is_in_the_record(study):
    for name in ("cohort.csv", "audit.json", "plan.json", "environment.json", "predictions.csv", "report.json"):
        assert str(study) not in (study / "out" / name).read_text(), name


def test_both_arms_get_the_same_patients_and_steps(study):
    runs = {arm: json.loads((study / "out" / "runs" / arm / "fold-0" / "seed-0" / "run.json").read_text()) for arm in ARMS}
    assert runs["imagenet"]["images"] == runs["scratch"]["images"]
    table = pd.read_csv(study / "out" / "predictions.csv")
    keys = ["seed", "fold", "part", "image", "patient", "target"]
    parts = [table[table["arm"] == arm][keys].reset_index(drop=True) for arm in ARMS]
    assert parts[0].equals(parts[1])


def test_evaluate_reproduces_every_number_without_torch(study, tmp_path):
    code = (
        "import sys; from medtransfer.cli import main; sys.argv = ['medtransfer', 'evaluate', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as e: code = e.code\n"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else code)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(study / "out" / "predictions.csv"),
        "--output",
        str(tmp_path / "again"),
        "--bootstrap",
        "100",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again" / "report.json").read_bytes() == (study / "out" / "report.json").read_bytes()
    assert (tmp_path / "again" / "report.html").is_file()


def test_the_same_study_again_gives_identical_predictions(study, tmp_path):
    result = run("compare", study / "study.config.yaml", "--output", tmp_path / "again")
    assert result.exit_code == 0
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (study / "out" / "predictions.csv").read_bytes()


def test_an_interrupted_study_is_continued(fresh, study):
    out = fresh / "out"
    undone = out / "runs" / "scratch" / "fold-1" / "seed-0" / "run.json"
    undone.unlink()
    (out / "predictions.csv").unlink()
    kept = out / "runs" / "imagenet" / "fold-0" / "seed-0" / "weights.safetensors"
    stamp = kept.stat().st_mtime_ns
    result = run("compare", study / "study.config.yaml", "--output", out)
    assert result.exit_code == 0, result.output
    assert kept.stat().st_mtime_ns == stamp
    assert undone.is_file()
    assert (out / "predictions.csv").read_bytes() == (study / "out" / "predictions.csv").read_bytes()


def test_an_arm_with_a_larger_budget_is_added_to_a_finished_study(fresh):
    out = fresh / "out"
    record = {arm: (out / "runs" / arm / "fold-1" / "seed-0" / "run.json") for arm in (*ARMS, "longer")}
    stamps = {arm: record[arm].stat().st_mtime_ns for arm in ARMS}
    before = pd.read_csv(out / "predictions.csv")
    longer = f"arms.longer={{backbone: {LITE}, weights: none, budget: 3}}"
    result = run("compare", fresh / "study.config.yaml", longer, "--output", out)
    assert result.exit_code == 0, result.output
    assert stamps == {arm: record[arm].stat().st_mtime_ns for arm in ARMS}
    runs = {arm: json.loads(path.read_text()) for arm, path in record.items()}
    assert runs["longer"]["budget"]["steps"] == 3 * runs["scratch"]["budget"]["steps"] > 0
    assert (runs["longer"]["epochs"], runs["scratch"]["epochs"]) == (3, 1)
    after = pd.read_csv(out / "predictions.csv")
    assert after[after["arm"] != "longer"].reset_index(drop=True).equals(before)
    pairs = {(pair["a"], pair["b"]) for pair in json.loads((out / "report.json").read_text())["comparisons"]}
    assert pairs == {("imagenet", "scratch"), ("imagenet", "longer"), ("scratch", "longer")}
    page = (out / "report.html").read_text()
    assert page.count("number of optimiser steps (longer: 3 times as many)") == 2
    assert "Of these, longer was added when the others had been evaluated." in page
    # A third call knows that still. Runs that something decides otherwise are done again, which is said.
    again = json.loads(record["longer"].read_text())
    record["longer"].write_text(json.dumps({**again, "key": "of other code"}))
    result = run("compare", fresh / "study.config.yaml", longer, "--output", out)
    assert result.exit_code == 0
    assert "1 finished runs were made with another plan, code, library or device, and are done again" in result.output
    assert json.loads((out / "environment.json").read_text())["added_later"] == ["longer"]
    assert json.loads(record["longer"].read_text())["key"] == again["key"]
    # An arm with a finished run stays; one without can be given up again.
    assert run("compare", fresh / "study.config.yaml", "--output", out).exit_code == 2
    shutil.rmtree(out / "runs" / "longer")
    assert run("compare", fresh / "study.config.yaml", "--output", out).exit_code == 0
    assert json.loads((out / "environment.json").read_text())["added_later"] == []


def test_an_added_arm_trains_in_the_precision_of_those_before_it(tmp_path):
    """Measured anew, another one might be chosen, and finished runs of the architecture be done again."""
    from medtransfer.machine import choose_engines

    nets = {"imagenet": mt.load_backbone(LITE), "scratch": mt.load_backbone(LITE)}
    plan = mt.plan_freeze(PlainCounts({"0": 200, "1": 200}, "near"), nets["imagenet"], transfer=True)
    train = {"device": "cpu", "batch_size": 2}
    config = make_config(
        {
            "cohort": {"manifest": "m.csv", "labels": ["y"]},
            "arms": {arm: {"backbone": LITE} for arm in nets},
            "image": {"size": 32},
            "train": train,
        }
    )
    plans = {"imagenet": plan, "scratch": replace(plan, frozen_stages=0)}
    prepared = SimpleNamespace(config=config, backbones=nets, plans=plans, split=range(3))
    stored = {"imagenet": {"device": "cpu", "precision": "bf16", "layout": "contiguous"}}
    (tmp_path / "environment.json").write_text(json.dumps({"arms": stored}))
    engines = choose_engines(prepared, tmp_path)
    assert {(engine.precision, engine.layout) for engine in engines.values()} == {("bf16", "contiguous")}


def test_what_a_gpu_was_given_does_not_bind_a_processor(tmp_path):
    from medtransfer.record import recorded_engine

    stored = {"a": {"device": "cuda:0", "precision": "fp16", "layout": "contiguous", "compiled": True}}
    (tmp_path / "environment.json").write_text(json.dumps({"arms": stored}))
    assert recorded_engine(tmp_path, "a", "cpu") == {}
    assert recorded_engine(tmp_path, "a", "cuda") == recorded_engine(tmp_path, "a") == stored["a"]


def test_budgets_are_told_as_they_were_spent():
    from medtransfer.report.methods import describe_budgets

    study = {"arms": {"a": {}, "b": {"budget": 1.5}, "probe": {"budget": 5}}}
    plans = {"a": {"steps": 50}, "b": {"steps": 80}, "probe": {"steps": 0}}
    assert describe_budgets(study, plans) == "number of optimiser steps (b: 1.6 times as many)"
    assert describe_budgets({"arms": {"a": {}}}, {"a": {"steps": 50}}) == "number of optimiser steps"
    assert describe_budgets({"arms": {"b": {"budget": 3}}}, {"b": {"steps": 1500}}) == "number of optimiser steps (b: 1,500)"


def test_budgets_are_times_that_of_the_study():
    from medtransfer.config import make_config
    from medtransfer.models.freeze import PlainCounts, plan_freeze
    from medtransfer.prepare import share_steps, train_of

    arms = {
        "probe": {"backbone": LITE, "weights": "imagenet", "budget": 5},
        "scratch": {"backbone": LITE},
        "longer": {"backbone": LITE, "budget": 2.5},
    }
    nets = {name: mt.load_backbone(LITE, arm.get("weights")) for name, arm in arms.items()}
    plans = {name: plan_freeze(PlainCounts({"0": 6, "1": 6}, "far"), net) for name, net in nets.items()}
    planned = plans["scratch"].steps
    assert planned > 0
    assert plans["probe"].strategy == "linear_probe"
    section = {"manifest": "m.csv", "labels": ["y"]}
    for train, curve, draws, steps, epochs in (
        ({}, {}, False, planned, None),
        ({"epochs": 4}, {}, False, 4 * 7, 4),
        ({"epochs": 4}, {"sizes": [5], "steps": 30}, False, 4 * 7, 4),
        ({"epochs": 4}, {"sizes": [5], "steps": 30}, True, planned, None),
    ):
        config = make_config({"cohort": section, "arms": arms, "train": train, "learning_curve": curve})
        shared = share_steps(plans, config, 7, draws)
        assert [shared[name].steps for name in arms] == [0, steps, round(2.5 * steps)]
        assert "2.5 times" in shared["longer"].reason
        assert shared["scratch"].reason == plans["scratch"].reason
        assert train_of(config, "scratch", draws).epochs == epochs
        assert train_of(config, "longer", draws).epochs == (None if epochs is None else 10)


def test_interruption_exits_130_and_says_how_to_go_on(fresh, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("medtransfer.runs.train_network", interrupt)
    result = run("compare", fresh / "study.config.yaml", "--output", fresh / "new")
    assert result.exit_code == 130
    assert "Run the same command again" in result.output


def test_a_plan_edited_by_hand_is_honoured(fresh):
    plan = fresh / "edited" / "plan.json"
    plan.parent.mkdir()
    content = json.loads((fresh / "out" / "plan.json").read_text())
    content["arms"]["imagenet"]["frozen_stages"] = 16
    plan.write_text(json.dumps(content))
    result = run("compare", fresh / "study.config.yaml", "--output", fresh / "edited")
    assert result.exit_code == 0, result.output
    assert (
        json.loads((fresh / "edited" / "runs" / "imagenet" / "fold-0" / "seed-0" / "run.json").read_text())["plan"]["frozen_stages"] == 16
    )
    followed = json.loads(plan.read_text())["arms"]["imagenet"]
    assert followed["trainable_fraction"] < 0.5
    assert "Set by hand: frozen_stages 16" in followed["reason"]
    again = run("compare", fresh / "study.config.yaml", "--output", fresh / "edited")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arm", "field", "value", "message"),
    [
        ("imagenet", "frozen_stages", 99, "frozen_stages is 99; expected a whole number from 0 to 18"),
        ("imagenet", "head_lr", "fast", "head_lr is 'fast'"),
        ("imagenet", "norm_policy", "freeze", "expected train or eval"),
        ("imagenet", "steps", 5, "Set train.epochs, or arms.imagenet.budget, instead"),
        ("imagenet", "speed", 5, "unknown field speed"),
        ("scratch", "frozen_stages", 3, "trains everything"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(study, tmp_path, arm, field, value, message):
    content = json.loads((study / "out" / "plan.json").read_text())
    content["arms"][arm][field] = value
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text(json.dumps(content))
    result = run("compare", study / "study.config.yaml", "--output", tmp_path / "out")
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]


def test_another_study_in_the_folder_is_refused(study, tmp_path):
    result = run("compare", study / "study.config.yaml", "image.size=48", "--output", study / "out")
    assert result.exit_code == 2
    assert "holds a study with other settings" in result.output
    assert "image.size: 32 there, 48 here" in result.output
    for change, said in (
        ("arms.scratch.budget=2", "arms.scratch.budget: 1.0 there, 2.0 here"),
        ("arms={scratch: {backbone: tf_efficientnet_lite0}}", "arms: imagenet, scratch there, scratch here"),
    ):
        result = run("compare", study / "study.config.yaml", change, "--output", study / "out")
        assert (result.exit_code, said in result.output) == (2, True), result.output
    (tmp_path / "note.txt").write_text("mine")
    result = run("compare", study / "study.config.yaml", "--output", tmp_path)
    assert (result.exit_code, "is not empty and holds no study" in result.output) == (2, True)
    result = run("evaluate", study / "out" / "predictions.csv", "--output", study / "out", "--bootstrap", "100")
    assert (result.exit_code, "would be overwritten" in result.output) == (2, True)


BAD = {
    "missing image": (lambda f, t: t.assign(image=["gone.dcm", *t["image"][1:]]), [], "row 2: no file"),
    "one class": (lambda f, t: t.assign(malignant=1), [], "Both classes are needed"),
    "leak": (lambda f, t: t.assign(split=["train", "test"] * (len(t) // 2) + ["train"] * (len(t) % 2)), [], "not disjoint by patient"),
    "duplicate": (lambda f, t: pd.concat([t, t.iloc[:1]]), [], "is already in row 2"),
    "nan label": (lambda f, t: t.assign(malignant=[np.nan, *t["malignant"][1:]]), [], "row 2: label malignant is empty"),
    "one patient": (lambda f, t: t.assign(patient="P"), [], "too few for 2 folds"),
    "unknown key": (lambda f, t: t, ["image.sise=3"], "did you mean size"),
    "unknown backbone": (lambda f, t: t, ["arms.imagenet.backbone=resnet81"], "unknown backbone 'resnet81'"),
    "unknown weights": (lambda f, t: t, ["arms.imagenet.weights=imagnet"], "use imagenet, timm:TAG, radimagenet"),
    "two labels": (lambda f, t: t.assign(b=t["malignant"]), ["cohort.labels=[malignant, b]"], "one label is studied at a time"),
    "no manifest": (lambda f, t: t, ["cohort.manifest=none.csv"], "no such file"),
    "too many folds": (lambda f, t: t, ["protocol.folds=20"], "Set protocol.folds to at most"),
    "fixed size": (
        lambda f, t: t,
        ["arms.imagenet.backbone=inception_v3", "arms.imagenet.weights=none"],
        "made for images of 299 pixels",
    ),
    "fp16": (lambda f, t: t, ["train.precision=fp16", "train.device=cpu"], "needs a CUDA device"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_exits_2_with_place_and_remedy_and_writes_nothing(study, tmp_path, name):
    change, overrides, message = BAD[name]
    change(study, pd.read_csv(study / "cohort" / "manifest.csv")).to_csv(tmp_path / "m.csv", index=False)
    manifest = [] if any(o.startswith("cohort.manifest") for o in overrides) else [f"cohort.manifest={tmp_path / 'm.csv'}"]
    result = run("compare", study / "study.config.yaml", *manifest, *overrides, "--output", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_stops_the_study_unless_it_may_be_left_out(fresh, tmp_path):
    names = pd.read_csv(fresh / "cohort" / "manifest.csv")["image"]
    (fresh / "cohort" / names[0]).write_bytes(b"damaged")
    arguments = [fresh / "study.config.yaml", f"cohort.manifest={fresh / 'cohort' / 'manifest.csv'}", f"cohort.root={fresh / 'cohort'}"]
    result = run("compare", *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert names[0] in result.output
    assert "cohort.skip_unreadable=true" in result.output
    assert not (tmp_path / "out").exists()
    result = run("compare", *arguments, "cohort.skip_unreadable=true", "--output", tmp_path / "out")
    assert result.exit_code == 3, result.output
    flow = json.loads((tmp_path / "out" / "audit.json").read_text())["flow"]
    assert (flow["images"], flow["used"]) == (len(names), len(names) - 1)
    assert flow["left_out"][0][0] == names[0]
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (audit["images"], audit["readable"], audit["unreadable"][0]["image"]) == (len(names), len(names) - 1, names[0])
    assert names[0] in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_that_cannot_be_written_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setattr("medtransfer.record.os.access", lambda _path, mode, **_: mode != os.W_OK)
    result = run("compare", study / "study.config.yaml", "--output", tmp_path / "out")
    assert (result.exit_code, "cannot be written" in result.output) == (2, True)


def test_class_folders_of_pngs_with_two_seeds(tmp_path, write_png):
    rng = np.random.default_rng(0)
    for i in range(24):
        array = rng.integers(0, 120, (40, 30)).astype(np.uint8)
        array[10:20, 5:25] += np.uint8(100 * (i % 2))
        write_png(f"data/{'malignant' if i % 2 else 'benign'}/{i}.png", array)
    cohort = mt.Cohort.from_folders(tmp_path / "data", ["benign", "malignant"], "malignant")
    settings = {**SETTINGS, "protocol": {"folds": 2, "seeds": [3, 4]}}
    report = mt.compare(cohort, ARMS, tmp_path / "out", quiet=True, **settings)
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
        mt.compare(cohort, ARMS, tmp_path / "out", quiet=True, **{**settings, "image": {"size": 48}})


def test_an_official_split_makes_one_fold(fresh):
    manifest = fresh / "cohort" / "manifest.csv"
    table = pd.read_csv(manifest)
    number = table["patient"].str[1:].astype(int)
    table["split"] = np.where(number % 3 == 0, "test", "train")
    table.to_csv(manifest, index=False)
    cohort = mt.Cohort.from_csv(manifest, fresh / "cohort", ["malignant"])
    mt.compare(cohort, ARMS, fresh / "official", quiet=True, **SETTINGS)
    predictions = mt.read_predictions(fresh / "official" / "predictions.csv")
    assert set(predictions["fold"]) == {0}
    tested = set(predictions.loc[predictions["part"] == "test", "image"])
    assert tested == set(table.loc[table["split"] == "test", "image"])
    assert "own split was used" in (fresh / "official" / "report.html").read_text()


def test_fit_refuses_what_it_cannot_read(fresh):
    cohort = mt.Cohort.from_csv(fresh / "cohort" / "manifest.csv", fresh / "cohort", ["malignant"])
    Path(cohort.images["path"][3]).write_bytes(b"")
    net = mt.load_backbone(LITE)
    plan = mt.plan_freeze(mt.Cohort.fingerprint(cohort), net)
    with pytest.raises(CohortError, match="1 of .* images cannot be read"):
        mt.fit(cohort, mt.split_cohort(cohort, 2).fold(0), mt.Classification(cohort.labels), net, plan, fresh / "x", size=32)


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
    settings = {**SETTINGS, "protocol": {"folds": 2, "seeds": [0], "group": "cluster"}}
    mt.compare(cohort, ARMS, tmp_path / "out", quiet=True, **settings)
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


SECRETS = {"PatientName": "Doe^Jane", "PatientBirthDate": "19700101", "PatientID": "MRN-4711", "StudyInstanceUID": "1.2.840.99.4711"}


@pytest.fixture
def dicom_folders(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "data" / ("malignant" if i % 4 > 1 else "benign") / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4000, (40, 40)).astype(np.uint16)
        write_grey_dicom(path, pixels, patient="", number=i, spacing=(0.5, 0.5), bits=12, photometric="MONOCHROME2", slope=1, intercept=0)
        dataset = pydicom.dcmread(path)
        for keyword, value in SECRETS.items():
            setattr(dataset, keyword, f"{value}{i // 2:02d}" if keyword == "PatientID" else value)
        dataset.save_as(path)
    return tmp_path / "data"


def test_patients_of_dicom_headers_are_hashed_with_the_salt_of_the_study(dicom_folders, tmp_path):
    config = write_config(tmp_path, tmp_path / "none.csv", cohort={"root": str(dicom_folders), "classes": ["benign", "malignant"]})
    first = run("compare", config, "image.spacing=0.75", "image.size=64", "--output", tmp_path / "out")
    assert first.exit_code == 0, first.output
    table = pd.read_csv(tmp_path / "out" / "cohort.csv")
    assert table["patient"].nunique() == 12
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) > 10
    for path in written:
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path
    assert not any(secret in first.output for secret in SECRETS.values())
    # The study knows its patients again, and its finished runs.
    again = run("compare", config, "image.spacing=0.75", "image.size=64", "--output", tmp_path / "out")
    assert again.exit_code == 0
    assert "run 1 of" not in again.output
    assert pd.read_csv(tmp_path / "out" / "cohort.csv").equals(table)
    cohort = mt.Cohort.from_folders(dicom_folders)
    other = {"image": {"size": 64, "spacing": 0.75}}
    mt.compare(cohort, ARMS, tmp_path / "api", quiet=True, **{**SETTINGS, **other})
    salted = pd.read_csv(tmp_path / "api" / "cohort.csv")
    mt.compare(mt.Cohort.from_folders(dicom_folders), ARMS, tmp_path / "api", quiet=True, **{**SETTINGS, **other})
    assert pd.read_csv(tmp_path / "api" / "cohort.csv").equals(salted)
    assert set(salted["patient"]).isdisjoint(table["patient"])
    # A cohort that was cut down by hand stays cut down, and is another study.
    cut = mt.Cohort.from_folders(dicom_folders)
    with pytest.raises(StudyError, match="other settings|other images"):
        mt.compare(cut.without(cut.images["image"][:2].tolist()), ARMS, tmp_path / "out", quiet=True, **{**SETTINGS, **other})


def test_check_tells_nothing_that_identifies(dicom_folders, tmp_path):
    result = run("check", dicom_folders, "--output", tmp_path / "checked")
    told = result.output + "".join(p.read_text() for p in (tmp_path / "checked").iterdir())
    assert "24 images found, 24 readable; 12 patients" in result.output
    assert not any(secret in told for secret in SECRETS.values())
    assert "4711" not in told


def test_images_that_do_not_fit_their_spacing_stop_the_study(dicom_folders, tmp_path):
    config = write_config(tmp_path, tmp_path / "none.csv", cohort={"root": str(dicom_folders), "classes": ["benign", "malignant"]})
    result = run("compare", config, "image.spacing=0.1", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "has 200 x 200 pixels at image.spacing, more than image.size 32 x 32" in result.output
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Lesions in three dimensions, as DICOM series and as NIfTI files."""
    folder = tmp_path_factory.mktemp("volumes")
    manifest = mt.write_phantom(folder / "cohort", 24, seed=3, volumes=True)
    images = pd.read_csv(manifest)["image"]
    assert 4 < images.str.endswith(".nii.gz").sum() < 20
    return manifest


def volume_config(tmp_path, volumes, **arms):
    values = {"backbone": LITE, "weights": "imagenet"}
    return write_config(
        tmp_path,
        volumes,
        image={"size": 32, "slices": 10},
        arms={"imagenet": values | arms.pop("imagenet", {}), "scratch": {"backbone": LITE, **arms.pop("scratch", {})}},
        train={"epochs": 1, "batch_size": 4, "precision": "fp32"},
    )


@pytest.mark.parametrize("backbone", [LITE, "monai_resnet10"])
def test_volumes_by_slices_and_as_a_whole_with_one_line_changed(tmp_path, volumes, backbone):
    config = volume_config(tmp_path, volumes)
    result = run("compare", config, f"arms.scratch.backbone={backbone}", "plan.strategy=lp_ft", "--output", tmp_path / "out", "-q")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    table = pd.read_csv(out / "predictions.csv")
    assert table.groupby("arm")["patient"].nunique().to_dict() == {"imagenet": 24, "scratch": 24}
    assert table["probability"].between(0, 1).all()
    environment = json.loads((out / "environment.json").read_text())["arms"]
    assert environment["imagenet"]["slices"] == "up to 10 axial slices; pooled by attention"
    seen = "as one volume" if backbone != LITE else "pooled by attention"
    assert seen in environment["scratch"]["slices"]
    assert "pooled by attention" in (out / "report.html").read_text()
    weights = safetensors.numpy.load_file(out / "runs" / "scratch" / "fold-0" / "seed-0" / "weights.safetensors")
    if backbone == LITE:  # what tells the slices apart has been learnt
        assert np.abs(weights["head.scores.weight"]).max() > 0
    else:
        assert "head.scores.weight" not in weights


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"slab": 3, "pooling": "max"}, "with neighbours (3 as channels); pooled by max"),
        ({"slab": 5, "pooling": "mean"}, "with neighbours (5 as channels); pooled by mean"),
        ({"channels": 1, "recipe": {"mean": 0.4, "std": 0.3}}, "pooled by attention"),
    ],
)
def test_slabs_channels_and_recipes(tmp_path, volumes, change, seen):
    config = volume_config(tmp_path, volumes, imagenet=change)
    result = run("compare", config, "plan.strategy=linear_probe", "image.slice_spacing=10", "--output", tmp_path / "out", "-q")
    assert result.exit_code == 0, result.output
    arm = json.loads((tmp_path / "out" / "environment.json").read_text())["arms"]["imagenet"]
    assert arm["slices"].startswith("up to 10 axial slices, 10 mm apart")
    assert seen in arm["slices"]
    channels = change.get("channels", change.get("slab"))
    assert len(arm["recipe"]["mean"]) == channels
    assert arm["recipe"]["mean"][0] == change.get("recipe", {"mean": 0.5})["mean"]
    assert arm["weights"]["changes"] == ([] if channels == 3 else [arm["weights"]["changes"][0]])


def test_networks_and_images_that_do_not_fit_are_refused(study, volumes, tmp_path):
    planes = write_config(tmp_path, study / "cohort" / "manifest.csv")
    for source, setting, message in (
        (planes, "arms.scratch.backbone=monai_resnet18", "monai_resnet18 takes volumes, and these images are planes"),
        (planes, "arms.imagenet.slab=3", "arms.imagenet.slab is 3, but these images are planes"),
        (planes, "arms.imagenet.slab=2", "slab is an odd number of slices"),
        (planes, "arms.imagenet.recipe={mean: 0.5, std: 0}", "std is above 0"),
        (planes, "image.plane=oblique", "image.plane"),
    ):
        result = run("compare", source, setting, "--output", tmp_path / "o", "-q")
        assert (result.exit_code, message in result.output) == (2, True), result.output
    solid = volume_config(tmp_path, volumes, scratch={"backbone": "monai_resnet10", "slab": 3})
    result = run("compare", solid, "--output", tmp_path / "o", "-q")
    assert (result.exit_code, "monai_resnet10 sees whole volumes" in result.output) == (2, True), result.output
    result = run("compare", volume_config(tmp_path, volumes), "image.slice_spacing=2", "--output", tmp_path / "o", "-q")
    assert (result.exit_code, "slices 2 mm apart, more than image.slices 10" in result.output) == (2, True), result.output
    assert not (tmp_path / "o").exists()


def test_a_model_trained_here_is_a_source_of_weights(study, tmp_path):
    """ImageNet, then this study, then another cohort; never the same images."""
    folder = study / "out" / "runs" / "imagenet" / "fold-0" / "seed-0"
    net = mt.load_backbone(LITE, weights=f"study:{folder}")
    tensors = safetensors.numpy.load_file(folder / "weights.safetensors")
    for key, value in net.network.state_dict().items():
        assert np.array_equal(value.numpy(), tensors[f"backbone.network.{key}"])
    assert net.weights.trained
    assert net.recipe.mean == (0.5, 0.5, 0.5)
    assert net.weights.origin.startswith("runs/imagenet/fold-0/seed-0/weights.safetensors, trained from imagenet 57934424")
    assert set(net.weights.unused) == {"head.linear.bias", "head.linear.weight"}
    with pytest.raises(WeightsError, match="holds 4 trained models. Name the folder of one, such as study:"):
        mt.load_backbone(LITE, weights=f"study:{study / 'out'}")
    with pytest.raises(WeightsError, match="holds no trained model"):
        mt.load_backbone(LITE, weights=f"study:{tmp_path}")
    with pytest.raises(WeightsError, match=f"is a {LITE}, not a resnet18"):
        mt.load_backbone("resnet18", weights=f"study:{folder}")
    same = write_config(tmp_path, study / "cohort" / "manifest.csv")
    result = run("compare", same, f"arms.imagenet.weights=study:{folder}", "--output", tmp_path / "o", "-q")
    assert result.exit_code == 2
    assert "images of" in result.output and "belong to the study in" in result.output, result.output
    mt.write_phantom(tmp_path / "other", 30, seed=9)
    other = write_config(tmp_path, tmp_path / "other" / "manifest.csv")
    result = run("compare", other, f"arms.imagenet.weights=study:{folder}", "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output
    # Both phantoms call their patients P0000 and so on.
    assert "patient ids occur here and in the study in" in result.output
    # A third study, from the second: the images of the first are known still.
    third = f"arms.imagenet.weights=study:{tmp_path / 'o' / 'runs' / 'imagenet' / 'fold-0' / 'seed-0'}"
    result = run("compare", same, third, "--output", tmp_path / "q", "-q")
    assert (result.exit_code, "belong to the study in" in result.output) == (2, True), result.output
    # The same pixels in files that were written anew.
    for path in (tmp_path / "other").rglob("*.dcm"):
        path.unlink()
    shutil.copytree(study / "cohort" / "images", tmp_path / "other" / "images", dirs_exist_ok=True)
    shutil.copy(study / "cohort" / "manifest.csv", tmp_path / "other" / "manifest.csv")
    for path in (tmp_path / "other").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "other"
        dataset.save_as(path)
    result = run("compare", other, f"arms.imagenet.weights=study:{folder}", "--output", tmp_path / "r", "-q")
    assert (result.exit_code, "belong to the study in" in result.output) == (2, True), result.output
    shutil.copytree(folder, tmp_path / "alone")
    result = run("compare", other, f"arms.imagenet.weights=study:{tmp_path / 'alone'}", "--output", tmp_path / "p", "-q")
    assert (result.exit_code, "belongs to no study with a cohort.csv" in result.output) == (2, True), result.output


def test_random_weights_are_never_frozen(study, tmp_path):
    torch.save(mt.load_backbone(LITE, seed=5).network.state_dict(), tmp_path / "untrained.pth")
    config = write_config(tmp_path, study / "cohort" / "manifest.csv")
    weights = f"arms.imagenet.weights=file:{tmp_path / 'untrained.pth'}"
    result = run("compare", config, weights, "--output", tmp_path / "o", "-q")
    assert (result.exit_code, "do not look like trained weights" in result.output) == (2, True), result.output
    result = run("compare", config, weights, "plan.frozen_stages=0", "--output", tmp_path / "o", "-q")
    assert result.exit_code == 0, result.output
    assert "do not look like trained ones" in (tmp_path / "o" / "report.html").read_text()
    cohort = mt.Cohort.from_csv(study / "cohort" / "manifest.csv", study / "cohort", ["malignant"])
    net = mt.load_backbone(LITE)
    plan = mt.plan_freeze(cohort.fingerprint(), mt.load_backbone(LITE, weights="imagenet"))
    with pytest.raises(WeightsError, match="stages are to be frozen"):
        mt.fit(cohort, mt.split_cohort(cohort, folds=2).fold(0), mt.Classification(("malignant",)), net, plan, tmp_path / "run")


def test_a_search_and_a_learning_curve_from_end_to_end(tmp_path, monkeypatch):
    for name, value in {"_FOLDS": 3, "_REPEATS": 1, "_INNER": 2, "_FEWEST_STEPS": 2}.items():
        monkeypatch.setattr(f"medtransfer.training.depth.{name}", value)  # the path is the same, and takes seconds
    mt.write_phantom(tmp_path / "cohort", 40, seed=2)
    config = write_config(
        tmp_path,
        tmp_path / "cohort" / "manifest.csv",
        plan={"search": True},
        learning_curve={"sizes": [5, 2, 3], "episodes": 1},
        arms={"imagenet": {"backbone": LITE, "weights": "imagenet", "plan": {"read": "last", "frozen_stages": 15}}},
    )
    out = tmp_path / "out"
    result = run("compare", config, "--output", out)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "predictions.csv", dtype={"image": str})
    # Nested: the search never saw a test patient, as its key holds the rows of train and tune alone.
    for fold in (0, 1):
        found = json.loads((out / "runs" / "imagenet" / f"fold-{fold}" / "depth.json").read_text())
        assert len(found["probes"]) == 18
        assert 1 <= len(found["trials"]) <= 3
        assert found["trials"][0]["frozen_stages"] == 15
        plan = json.loads((out / "runs" / "imagenet" / f"fold-{fold}" / "seed-0" / "run.json").read_text())["plan"]
        chosen = found["trials"][found["chosen"]]
        assert (plan["frozen_stages"], plan["dropped_stages"]) == (chosen["frozen_stages"], chosen["dropped_stages"])
        assert found["reason"] in plan["reason"]
    sizes = sorted(set(table["size"]))
    assert sizes == [0, 2, 3, 5]
    small = table[table["size"] == 2]
    assert len(small) == small["image"].nunique() == (table["size"].eq(0) & table["part"].eq("test")).sum()
    report = json.loads((out / "report.json").read_text())
    assert [(row["size"], row["extrapolated"]) for row in report["learning_curve"]] == [(2, 0), (3, 0), (5, 0), (10, 1), (20, 1)]
    assert any(sentence.startswith("Learning curve of imagenet") for sentence in report["growth"])
    page = (out / "report.html").read_text()
    for part in ("Search for the depth", "<h2>Learning curve</h2>", "no measure of performance"):
        assert part in page
    again = mt.evaluate(out / "predictions.csv", report["bootstrap"], report["seed"]).to_dict()
    assert again["learning_curve"] == report["learning_curve"]
    # A second time nothing is trained: the search and the draws are taken as they are.
    stamps = {path: path.stat().st_mtime_ns for path in [*out.glob("**/run.json"), *out.glob("**/depth.json")]}
    assert len(stamps) == 2 + 2 + 6
    assert run("compare", config, "--output", out).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    too_many = run("compare", config, "learning_curve=[500]", "--output", tmp_path / "other")
    assert too_many.exit_code == 2
    assert "500 patients per class are asked for" in too_many.output
    assert not (tmp_path / "other").exists()
