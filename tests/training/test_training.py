from __future__ import annotations

import copy
import json
from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import ConfigError, WeightsError
from medtransfer.models.chain.chain import Stage
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import device as engines
from medtransfer.training import loop, probe
from medtransfer.training.checkpoint import load_weights, save_weights
from medtransfer.training.device import make_engine
from medtransfer.training.probe import Features, features_by_stage, fit_head, pooled_features
from medtransfer.training.settings import TrainSettings
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from networks import SMALL, as_if_pretrained

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
    run = mt.fit(
        cohort,
        mt.split_cohort(cohort, 2).fold(0),
        mt.Classification(cohort.labels),
        net,
        plan,
        tmp_path / name,
        seed=seed,
        size=32,
        train=TrainSettings(epochs=epochs, batch_size=batch_size, precision=precision),
    )
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
        run = mt.fit(own, fold, task, net, plan, tmp_path / str(number), size=32, train=section)
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
    fold = mt.split_cohort(cohort, 2).fold(0)
    run = mt.fit(
        cohort,
        fold,
        mt.Classification(cohort.labels),
        net,
        plan,
        tmp_path / "r",
        size=32,
        train=section,
    )
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


def test_the_convex_head_is_scikit_learns_solution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)) * [1, 10, 0.1, 1, 1, 0] + [0, 5, 0, 0, 0, 3]
    y = (x[:, 0] + rng.normal(size=80) > 0).astype(float)[:, None]
    head = LinearHead(Stage("x", (), 6, 1, "NCHW", ()), 1)
    chosen = fit_head(head, Features(x[:60], y[:60], np.arange(60)), np.arange(60), (2.0,))
    scale = np.where(x[:60].std(0) < 1e-8, 1, x[:60].std(0))
    standard = (x - x[:60].mean(0)) / scale
    model = LogisticRegression(
        C=chosen["penalty"][0], max_iter=10_000, tol=1e-8, class_weight={0: 1, 1: 2}
    ).fit(standard[:60], y[:60, 0])
    with torch.inference_mode():
        logits = head({"x": torch.from_numpy(x).float()[:, :, None, None]})[:, 0].numpy()
    assert np.allclose(logits, model.decision_function(standard), atol=1e-4)


def test_pooled_features_follow_the_order_of_the_batches():
    net = mt.load_backbone("resnet18")
    engine = make_engine("cpu", "fp32")
    images = torch.randn(5, 3, 32, 32)
    batches = [
        {
            "features": {"image": images[i : i + 2]},
            "present": torch.ones(len(images[i : i + 2]), 1, dtype=torch.bool),
            "targets": torch.full((len(images[i : i + 2]), 1), float(i)),
            "rows": torch.arange(i, i + len(images[i : i + 2])),
        }
        for i in (0, 2, 4)
    ]
    found = pooled_features(net, LinearHead(net.stages[-1], 1), batches, engine)
    net.eval()
    with torch.inference_mode():
        expected = net({"image": images}, ["layer4.1"])["layer4.1"].mean((2, 3))
    assert np.allclose(found.values, expected.numpy(), atol=1e-5)
    assert found.targets[:, 0].tolist() == [0, 0, 2, 2, 4]
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    with torch.inference_mode():
        both = net({"image": images}, ["stem", "layer4.1"])
    stages = features_by_stage(net, batches, engine)
    assert list(stages) == net.names
    for name, activation in both.items():
        assert np.allclose(stages[name].values, activation.mean((2, 3)).numpy(), atol=1e-5)


def test_weights_make_a_round_trip(tmp_path):
    net = mt.load_backbone("resnet18", seed=1)
    head = LinearHead(net.stages[-1], 1, "attention")
    torch.nn.init.normal_(head.linear.weight)
    save_weights(tmp_path / "w.safetensors", net, head, {"backbone": "resnet18"})
    other, other_head = (
        mt.load_backbone("resnet18", seed=2),
        LinearHead(net.stages[-1], 1, "attention"),
    )
    load_weights(tmp_path / "w.safetensors", other, other_head)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    assert torch.equal(head.linear.weight, other_head.linear.weight)
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(tmp_path / "w.safetensors", mt.load_backbone("resnet34"), other_head)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_what_the_machine_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        make_engine("cuda")
    with pytest.raises(ConfigError, match="fp16, which needs a CUDA device"):
        make_engine("cpu", "fp16")


def test_precision_is_measured_and_leaves_the_network_alone():
    net = mt.load_backbone("resnet18")
    before = copy.deepcopy(net.state_dict())
    engine = make_engine("cpu", "auto", net, torch.randn(4, 3, 64, 64))
    candidates = {
        f"{precision} {layout}"
        for precision in ("fp32", "bf16")
        for layout in ("contiguous", "channels_last")
    }
    assert set(engine.seconds) == candidates
    best = min(engine.seconds, key=engine.seconds.__getitem__)
    chosen = f"{engine.precision} {engine.layout}"
    assert chosen == best or (
        engine.precision == "fp32" and engine.seconds[chosen] <= 1.05 * engine.seconds[best]
    )
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert make_engine("cpu").precision == "fp32"


def test_what_was_measured_is_known_the_next_time(tmp_path, monkeypatch):
    net, image, memory = (
        mt.load_backbone("resnet18"),
        torch.zeros(2, 3, 32, 32),
        tmp_path / "engines.json",
    )
    first = make_engine("cpu", "auto", net, image, memory=memory)
    monkeypatch.setattr(engines, "_time_steps", lambda *_: pytest.fail("measured again"))
    assert make_engine("cpu", "auto", net, image, memory=memory) == first
    memory.write_text("half a fi")
    with pytest.raises(pytest.fail.Exception):
        make_engine("cpu", "auto", net, image, memory=memory)
    by_hand = make_engine("cpu", "bf16", net, image, "contiguous", memory)
    assert (by_hand.precision, by_hand.layout, by_hand.seconds) == ("bf16", "contiguous", {})


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        (
            {
                "fp32 contiguous": 1.0,
                "fp32 channels_last": 0.9,
                "bf16 contiguous": 0.5,
                "bf16 channels_last": 0.6,
            },
            ("bf16", "contiguous"),
        ),
        (
            {
                "fp32 contiguous": 1.0,
                "fp32 channels_last": 0.9,
                "bf16 contiguous": 0.88,
                "bf16 channels_last": 2.0,
            },
            ("fp32", "channels_last"),
        ),
        ({"fp32 contiguous": 1.0, "bf16 contiguous": 3.0}, ("fp32", "contiguous")),
    ],
)
def test_the_fastest_is_chosen_and_of_near_ties_float32(seconds, chosen):
    assert engines._fastest([tuple(name.split()) for name in seconds], seconds) == chosen
