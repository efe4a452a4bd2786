from __future__ import annotations

import copy

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.training.reuse import compare_stages, distances, linear_cka, reset_robustness
from medtransfer.training.timing import make_engine
from sklearn.metrics import roc_auc_score

ENGINE = make_engine("cpu", "fp32")


def images(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 48, 48, generator=generator)
    targets = torch.arange(count).remainder(2).float()[:, None]
    present, rows = torch.ones(count, 1, dtype=torch.bool), torch.arange(count)
    return [{"features": {"image": x}, "present": present, "targets": targets, "rows": rows}]


def test_cka_is_one_for_rotations_and_none_for_noise():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, 8)) @ np.diag(range(1, 9))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert linear_cka(a, a) == pytest.approx(1)
    assert linear_cka(a, 7 * a @ rotation + 3) == pytest.approx(1)
    # Wide noise looks alike to the biased estimate; the debiased one is 0 on the average.
    found = [linear_cka(rng.normal(size=(60, 500)), rng.normal(size=(60, 500))) for _ in range(20)]
    assert abs(np.mean(found)) < 0.05
    assert np.isnan(linear_cka(a, np.ones_like(a)))
    assert np.isnan(linear_cka(a[:3], a[:3]))


def test_cka_equals_the_sum_over_quadruples():
    """Unbiased HSIC (Song et al. 2012, equation 4) from its definition over all ordered quadruples
    of seven images.
    """
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    first, second = a @ a.T, b @ b.T

    def hsic(k, m):
        n, terms = len(k), []
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            terms.append(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        return np.mean(terms)

    expected = hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))
    assert linear_cka(a, b) == pytest.approx(expected, abs=1e-10)


def test_distances_are_shares_of_the_length():
    before = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet")
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.stage_parameters(4):
            parameter.mul_(1.25)
    moved = distances(before, after)
    assert moved[4] == pytest.approx(0.25, rel=1e-5)
    assert [i for i, way in enumerate(moved) if way] == [4]
    likeness = compare_stages(before, after, images(), ENGINE)
    assert likeness[3] == pytest.approx(1, abs=1e-6)
    assert likeness[4] < 1 - 1e-4


def test_a_stage_that_learnt_cannot_be_set_back():
    """Before: a network that sees nothing in its last stage. After: one whose last stage does."""
    after = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet").eval()
    task = mt.Classification(("y",))
    head = task.make_head(after)
    batch = images()[0]
    with torch.inference_mode():
        pooled = (
            after({"image": batch["features"]["image"]}, head.taps)[head.taps[0]]
            .mean((2, 3))
            .numpy()
        )
    labels = batch["targets"][:, 0].numpy()
    direction = np.linalg.lstsq(pooled - pooled.mean(0), labels - 0.5, rcond=None)[0]
    with torch.no_grad():
        head.linear.weight[0] = torch.from_numpy(direction).float()
    before = copy.deepcopy(after)
    with torch.no_grad():
        for parameter in before.stage_parameters(17):
            parameter.zero_()
    trained, reset = reset_robustness(before, after, head, task, [batch], ENGINE)
    assert trained == pytest.approx(roc_auc_score(labels, pooled @ direction))
    assert trained > 0.95
    assert reset[:17] == [trained] * 17
    assert reset[17] == 0.5  # without its last stage the network says the same of every image
    # What is measured leaves the networks as they were.
    assert distances(after, copy.deepcopy(after)) == [0.0] * 18
