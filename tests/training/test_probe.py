"""The convex head, its penalty, and the simpler heads it is compared with."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import torch
from medtransfer.models.chain.chain import Stage
from medtransfer.models.heads.linear import LinearHead
from medtransfer.training.probe import (
    Features,
    Labelled,
    choose_penalty,
    compare_heads,
    features_by_stage,
    fit_head,
    inner_folds,
    pooled_features,
)
from medtransfer.training.timing import make_engine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold


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


LABELS = np.arange(60) % 2


UNITS = np.arange(60) // 2 * 2 + LABELS  # one image each


def test_inner_folds_keep_patients_together_and_are_repeated():
    units = np.repeat(np.arange(20), 3)
    labels = np.repeat(np.arange(20) % 2, 3)
    folds = list(inner_folds(labels, units, 5, 2))
    assert len(folds) == 10
    for train, held in folds:
        assert not set(units[train]) & set(units[held])
    assert sorted(np.concatenate([held for _, held in folds[:5]]).tolist()) == list(range(60))
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=1)
    assert np.array_equal(folds[5][1], next(splitter.split(labels, labels, units))[1])
    assert list(inner_folds(labels[:6], units[:6], 5, 2)) == []


def test_the_penalty_follows_the_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 40))
    signal = noise.copy()
    signal[:, 0] += 4.0 * LABELS
    strong, _ = choose_penalty(Labelled(noise, LABELS, UNITS))
    weak, loss = choose_penalty(Labelled(signal, LABELS, UNITS))
    assert strong < weak
    assert loss < 0.5
    alone, missing = choose_penalty(Labelled(noise, LABELS, UNITS).take(np.arange(3)))
    assert alone == 1e-3
    assert np.isnan(missing)


def test_simple_heads_check_the_convex_one():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 5))
    values[:, 0] += 3.0 * LABELS
    aucs = compare_heads(Labelled(values, LABELS, UNITS))
    assert set(aucs) == {"logistic", "prototype", "neighbours"}
    assert all(auc > 0.85 for auc in aucs.values())
    chance = compare_heads(Labelled(rng.normal(size=(60, 5)), LABELS, UNITS))
    assert all(abs(auc - 0.5) < 0.25 for auc in chance.values())
    assert compare_heads(Labelled(values, LABELS, UNITS).take(np.arange(2))) == {}
