"""A trained model opens from its folder alone, and predicts what its run predicted."""

from __future__ import annotations

import json
import shutil

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
import torch
from medtransfer.errors import ConfigError, ImageError, WeightsError

from damage import damage
from studies import SETTINGS, changed

pytestmark = pytest.mark.xdist_group("models")
COPIES = 600


@pytest.fixture(scope="module")
def study(studies):
    """Fine-tuned and from scratch, and a probe.

    Images of 64 pixels: where the last feature map is a single pixel, how a convolution rounds
    depends on the place of an image in its batch.
    """
    arms = {
        "imagenet": {"backbone": "tf_efficientnet_lite0", "weights": "imagenet"},
        "tuned": {
            "backbone": "tf_efficientnet_lite0",
            "weights": "imagenet",
            "plan": {"strategy": "lp_ft"},
        },
        "scratch": {"backbone": "tf_efficientnet_lite0", "budget": 1},
        "formulas": {"kind": "features"},
    }
    return studies.finished(studies.cohort(), arms=arms, **changed(SETTINGS, image={"size": 64}))


def moved(study, tmp_path, arm, fold=0):
    """A run folder copied away from its study, and the test rows that it left."""
    source = study.out / "runs" / arm / f"fold-{fold}" / "seed-0"
    shutil.copytree(source, tmp_path / "moved")
    rows = pd.read_csv(source / "predictions.csv")
    return tmp_path / "moved", rows[rows["part"] == "test"]


def paths(study, rows):
    return [str(study.manifest.parent / image) for image in rows["image"].unique()]


@pytest.mark.parametrize("arm", ["imagenet", "tuned", "scratch", "formulas"])
def test_a_moved_model_predicts_what_its_run_predicted_bit_for_bit(study, tmp_path, arm):
    folder, rows = moved(study, tmp_path, arm)
    table = mt.load_model(folder, "cpu").predict(paths(study, rows))
    assert (table["error"] == "").all()
    assert table["logit"].to_numpy().tolist() == rows["logit"].to_numpy().tolist()
    assert table["probability"].to_numpy() == pytest.approx(rows["probability"], abs=1e-15)
    assert table["typical"].to_numpy().tolist() == rows["typical"].to_numpy().tolist()


@pytest.mark.xdist_group("detection")
def test_a_detector_gives_the_candidates_of_its_run(studies, tmp_path):
    study = studies.detection()
    folder, rows = moved(study, tmp_path, "imagenet")
    candidates = pd.read_csv(folder / "candidates.csv")
    candidates = candidates[candidates["part"] == "test"]
    table = mt.load_model(folder, "cpu").predict(paths(study, rows))
    names = ["x0", "y0", "x1", "y1", "probability"]
    assert np.array_equal(table[names].to_numpy(), candidates[names].to_numpy())


@pytest.mark.xdist_group("volumes")
def test_volumes_are_predicted_slice_by_slice_and_whole(studies, tmp_path):
    study = studies.volumes()
    for arm in ("imagenet", "scratch"):
        folder, rows = moved(study, tmp_path / arm, arm)
        table = mt.load_model(folder, "cpu").predict(paths(study, rows))
        assert table["logit"].to_numpy().tolist() == rows["logit"].to_numpy().tolist()


def test_a_study_is_the_recalibrated_ensemble_of_its_best_pretrained_arm(study):
    ensemble = mt.load_model(study.out, "cpu")
    report = json.loads((study.out / "report.json").read_text())
    auc = {arm: report["arms"][arm]["auc"]["estimate"] for arm in ("imagenet", "tuned")}
    assert {model.description.arm for model in ensemble.models} == {max(auc, key=auc.get)}
    assert [model.description.fold for model in ensemble.models] == [0, 1]
    images = sorted((study.manifest.parent / "images").iterdir())[:6]
    table = ensemble.predict(images)
    each = [model.predict(images) for model in ensemble.models]
    assert table["probability"].to_numpy() == pytest.approx(
        np.mean([one["recalibrated"] for one in each], axis=0)
    )
    maps = report["arms"][ensemble.models[0].description.arm]["recalibrated"]
    decisions = ensemble.models[0].description.decisions["malignant"]["recalibration"]
    assert decisions["method"] == maps["method"]
    assert decisions["parameters"].items() <= maps["maps"][0].items()
    assert ((each[0]["recalibrated"] - each[0]["probability"]).abs() > 1e-6).any()


def test_one_bad_image_is_listed_and_the_others_are_predicted(study, tmp_path):
    folder, rows = moved(study, tmp_path, "imagenet")
    (tmp_path / "bad.png").write_bytes(b"no image")
    table = mt.load_model(folder).predict([*paths(study, rows)[:2], tmp_path / "bad.png"])
    assert table["error"].astype(bool).sum() == 1
    bad = table[table["error"] != ""].iloc[0]
    assert bad["image"].endswith("bad.png")
    assert np.isnan(bad["probability"])
    with pytest.raises(ImageError, match="no such file"):
        mt.load_model(folder).predict(tmp_path / "nowhere")


def test_what_is_missing_or_of_another_format_is_named(study, tmp_path):
    folder, _ = moved(study, tmp_path, "imagenet")
    for name in ("weights.safetensors", "typicality.safetensors", "model.json"):
        (folder / name).rename(folder / "away")
        with pytest.raises(WeightsError, match=f"{name}: is missing"):
            mt.load_model(folder)
        (folder / "away").rename(folder / name)
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(WeightsError, match=r"is of format 2, and this version .* reads format 1"):
        mt.load_model(folder)
    with pytest.raises(WeightsError, match="there is no trained model in"):
        mt.load_model(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json", "typicality.safetensors"])
def test_no_damaged_file_of_a_model_is_taken(study, tmp_path, name):
    folder, _ = moved(study, tmp_path, "scratch")
    content, rng = (folder / name).read_bytes(), np.random.default_rng(0)
    copies = COPIES if len(content) < 1_000_000 else COPIES // 10  # 13 MB, 600 in test_checkpoint
    for _ in range(copies):
        (folder / name).write_bytes(damage(content, rng))
        with pytest.raises(WeightsError, match=name):
            mt.TrainedModel.open(folder, "cpu")
    (folder / name).write_bytes(content)
    assert mt.TrainedModel.open(folder, "cpu").labels == ("malignant",)


def test_images_of_the_same_name_in_two_folders_are_told_apart(study, tmp_path):
    folder, rows = moved(study, tmp_path, "formulas")
    for name, path in zip("ab", paths(study, rows), strict=False):
        (tmp_path / name).mkdir()
        shutil.copy(path, tmp_path / name / "1.png")
    table = mt.load_model(folder, "cpu").predict([tmp_path / "a", tmp_path / "b"])
    assert table["image"].tolist() == [str(tmp_path / name / "1.png") for name in "ab"]
    assert table["logit"].tolist() == pytest.approx(rows["logit"].tolist()[:2], abs=1e-5)


def test_opening_a_model_draws_no_random_numbers_and_takes_no_other_device(study, tmp_path):
    folder, _ = moved(study, tmp_path, "scratch")
    state = torch.get_rng_state()
    mt.load_model(folder, "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        mt.load_model(folder, "tpu")
