from __future__ import annotations

from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.training.precision import compare_with_fp32, same_answers
from medtransfer.training.timing import make_engine


def batches(one_class=False, boxes=False):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 48, 48, generator=generator)
    targets = torch.zeros(16, 1) if one_class else (torch.arange(16) % 2).float()[:, None]
    return [
        {
            "features": {"image": images[at : at + 8]},
            "present": torch.ones(8, 1, dtype=torch.bool),
            "targets": torch.zeros(8, 1, 4) if boxes else targets[at : at + 8],
            "rows": torch.arange(at, at + 8),
        }
        for at in (0, 8)
    ]


@pytest.fixture(scope="module")
def net():
    return mt.load_backbone("resnet18", seed=3)


def test_the_same_precision_changes_nothing(net):
    found = compare_with_fp32(net, net.names, batches(), make_engine("cpu", "fp32"))
    assert found == {"features": 0.0, "logits": 0.0}
    assert same_answers(found)


def test_what_bf16_changes_is_small_and_seen(net):
    found = compare_with_fp32(net, net.names, batches(), make_engine("cpu", "bf16"))
    assert 1e-4 < found["features"] < 0.1
    assert 1e-4 < found["logits"] < 0.1


def test_a_change_is_measured_against_the_spread(net, monkeypatch):
    """Features that are moved by a tenth of their deviation are so by 0.1."""
    from medtransfer.training import precision

    real, rng = precision.features_by_stage, np.random.default_rng(0)

    def moved(backbone, given, engine):
        found = real(backbone, given, replace(engine, precision="fp32"))
        if engine.precision == "fp32":
            return found
        return {
            k: replace(
                v, values=v.values + 0.2 * v.values.std(0) * rng.choice([-1, 1], v.values.shape)
            )
            for k, v in found.items()
        }

    monkeypatch.setattr(precision, "features_by_stage", moved)
    found = compare_with_fp32(net, net.names[-1:], batches(), make_engine("cpu", "bf16"))
    assert found["features"] == pytest.approx(0.2, rel=1e-3)
    assert not same_answers(found)


def test_without_two_classes_features_alone_are_compared(net):
    for given in (batches(one_class=True), batches(boxes=True)):
        assert set(compare_with_fp32(net, net.names[-1:], given, make_engine("cpu", "bf16"))) == {
            "features"
        }
    assert same_answers({"features": 0.09})
    assert not same_answers({"features": 0.11})
    assert not same_answers({"features": 0.01, "logits": 0.06})
