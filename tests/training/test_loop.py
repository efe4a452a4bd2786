"""What a training changes, what it leaves alone, and what it leaves behind."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import loop, probe
from medtransfer.training.settings import TrainSettings
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from networks import SMALL, as_if_pretrained, fit_first_fold

LITE = "tf_efficientnet_lite0"


@pytest.fixture
def cohort(manifest):
    path = manifest(patients=20, views=2)
    return mt.Cohort.from_csv(path, path.parent, ["malignant"])


def train(
    cohort,
    tmp_path,
    net=None,
    name="run",
    epochs=2,
    precision="fp32",
    seed=0,
    batch_size=8,
    **fixed,
):
    net = net or as_if_pretrained()
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net, **fixed)
    before = copy.deepcopy(net.state_dict())
    section = TrainSettings(epochs=epochs, batch_size=batch_size, precision=precision)
    run = fit_first_fold(cohort, net, plan, tmp_path / name, section, seed=seed)
    return run, net, before, plan


@pytest.mark.slow
def test_a_run_learns_and_leaves_its_record(cohort, tmp_path):
    run, net, _, _ = train(cohort, tmp_path, mt.load_backbone(LITE, "imagenet"))
    test = run.predictions[run.predictions["part"] == "test"]
    assert roc_auc_score(test["target"], test["probability"]) > 0.9
    assert set(run.predictions["part"]) == {"tune", "test"}
    assert len(test) == 20
    history = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [0, 1, 2]
    lowest = min(row["tune_loss"] for row in history)
    assert history[run.summary["best_epoch"]]["tune_loss"] <= lowest / (1 - loop.GAIN) + 2e-6
    assert not net.training


@pytest.mark.parametrize("views", [8, 0])
def test_frozen_stages_are_unchanged_after_training_parameters_and_buffers(
    cohort, tmp_path, monkeypatch, views
):
    """Whether their activations are kept, or they see every image anew."""
    monkeypatch.setattr(loop, "_ROUNDING", -10.0)  # the last epoch is kept, however good
    _, net, before, plan = train(cohort, tmp_path, norm_policy="train", views=views)
    assert 0 < plan.frozen_stages < len(net.stages)
    after = net.state_dict()
    frozen = [
        f"network.{op}." for stage in net.stages[: plan.frozen_stages] for op in stage.operations
    ]
    same = {key for key in before if torch.equal(before[key], after[key])}
    kept = {key for key in before if any(key.startswith(prefix) for prefix in frozen)}
    assert len(kept) > 20
    assert kept <= same
    assert len(set(before) - same) > 0


def test_norm_statistics_stay_under_policy_eval(cohort, tmp_path):
    _, net, before, _ = train(cohort, tmp_path, norm_policy="eval")
    after = net.state_dict()
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) == 30
    assert all(torch.equal(before[key], after[key]) for key in statistics)


def test_a_linear_probe_moves_nothing_but_the_head(cohort, tmp_path):
    run, net, before, _ = train(cohort, tmp_path, strategy="linear_probe")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert run.summary["epochs"] == 0
    assert run.predictions["logit"].std() > 0.1


def test_a_probe_is_tested_with_its_tune_patients_and_predicts_them_without(
    manifest, tmp_path, monkeypatch
):
    """It has no epoch to choose. The label of a tune patient moves what is said of all others, and
    not of himself.
    """
    path = manifest(patients=40, views=2)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    monkeypatch.setattr(probe, "choose_penalty", lambda *_, **__: (1e-2, 0.5))
    fold = mt.split_cohort(cohort, 2).fold(0)
    patient = cohort.images["patient"].iloc[fold.tune[0]]
    images = cohort.images.copy()
    images.loc[images["patient"] == patient, "malignant"] = (
        1 - images.loc[images["patient"] == patient, "malignant"]
    )
    logits = []
    for number, own in enumerate((cohort, replace(cohort, images=images))):
        net = mt.load_backbone("features")
        plan = mt.plan_freeze(
            PlainCounts({"0": 100, "1": 100}, "far"), net, transfer=True, strategy="linear_probe"
        )
        task, section = mt.Classification(cohort.labels), TrainSettings(precision="fp32")
        run = mt.fit(
            own,
            fold,
            task,
            net,
            plan,
            tmp_path / str(number),
            image=mt.ImageSettings(size=32),
            train=section,
        )
        assert (
            run.predictions["image"].tolist()
            == cohort.images["image"].iloc[np.r_[fold.tune, fold.test]].tolist()
        )
        logits.append(run.predictions.set_index("image")["logit"])
    moved = (logits[0] - logits[1]).abs()
    own = moved.index.isin(cohort.images.loc[cohort.images["patient"] == patient, "image"])
    assert own.sum() == 2
    assert moved[own].max() < 1e-6
    assert moved[~own].min() > 1e-6


def test_scratch_trains_all_and_is_never_left_untrained(cohort, tmp_path):
    run, net, before, _ = train(cohort, tmp_path, mt.load_backbone(SMALL))
    moved = [key for key, value in before.items() if not torch.equal(value, net.state_dict()[key])]
    assert len(moved) == len(before)
    assert run.summary["best_epoch"] >= 1
    assert run.summary["probe"] == {}


def test_the_best_weights_are_the_ones_that_predict(cohort, tmp_path):
    run, _, _, _ = train(cohort, tmp_path, epochs=3)
    history = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    tune = run.predictions[run.predictions["part"] == "tune"]
    loss = np.logaddexp(0, np.where(tune["target"] == 1, -tune["logit"], tune["logit"])).mean()
    assert loss == pytest.approx(history[run.summary["best_epoch"]]["tune_loss_raw"], abs=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_predictions(cohort, tmp_path):
    nets = [mt.load_backbone(SMALL, seed=seed) for seed in (0, 0, 1)]
    runs = [
        train(cohort, tmp_path, net, name=str(i), seed=seed)[0]
        for i, (net, seed) in enumerate(zip(nets, (0, 0, 1), strict=True))
    ]
    first, second, other = (run.predictions for run in runs)
    assert first.equals(second)
    assert not first.equals(other)


def test_patience_stops_early(cohort, tmp_path):
    net = as_if_pretrained()
    plan = mt.plan_freeze(
        PlainCounts({"0": 100, "1": 100}, "far"), net, backbone_lr=1e-12, head_lr=1e-12
    )
    section = TrainSettings(epochs=8, patience=2, batch_size=8, precision="fp32")
    run = fit_first_fold(cohort, net, plan, tmp_path / "r", section)
    assert run.summary["stopped_early"]
    assert run.summary["epochs"] <= 4


@pytest.mark.slow
def test_bf16_agrees_with_fp32(cohort, tmp_path):
    def predict(precision, strategy):
        name = f"{precision} {strategy}"
        return train(
            cohort,
            tmp_path,
            mt.load_backbone(LITE, "imagenet"),
            name,
            precision=precision,
            strategy=strategy,
        )[0].predictions["logit"]

    # A linear probe, which magnifies rounding, is in fp32 always.
    assert predict("fp32", "linear_probe").equals(predict("bf16", "linear_probe"))
    plain, reduced = (predict(precision, "lp_ft") for precision in ("fp32", "bf16"))
    # A steep head on a dozen images of 32 pixels magnifies rounding: a few scores move, most and
    # the order stay.
    difference = np.abs(plain - reduced) / plain.std()
    assert np.quantile(difference, 0.75) < 0.4
    assert spearmanr(plain, reduced).statistic > 0.9
    assert not plain.equals(reduced)
    assert reduced.nunique() > 0.9 * plain.nunique()  # logits are kept in float32: no ties
