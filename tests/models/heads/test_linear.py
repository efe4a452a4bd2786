"""The linear head: what it reads, and how slices are pooled."""

from __future__ import annotations

import medtransfer as mt
import pytest
import torch
from medtransfer.models.chain.chain import Stage
from medtransfer.models.heads.linear import LinearHead


def test_features_at_several_resolutions_are_pooled_as_in_training():
    net = mt.load_backbone("crossvit_tiny_240").eval()
    assert (net.names, net.stages[0].layout) == (["whole"], "NC")
    x = torch.randn(2, 3, net.recipe.size, net.recipe.size)
    with torch.inference_mode():
        whole = net({"image": x}, ["whole"])["whole"]
        assert torch.equal(
            whole, net.network.forward_head(net.network.forward_features(x), pre_logits=True)
        )


def head_on(layout, pooling="mean", channels=5, outputs=2):
    return LinearHead(Stage("x", (), channels, 1, layout, ()), outputs, pooling)


def test_linear_head_starts_at_zero_and_reads_its_tap():
    head = head_on("NCHW")
    features = {"x": torch.randn(3, 5, 4, 4), "y": torch.randn(1)}
    assert head(features).abs().max() == 0
    torch.nn.init.ones_(head.linear.weight)
    assert torch.allclose(head(features)[:, 0], features["x"].mean((2, 3)).sum(1), atol=1e-6)


@pytest.mark.parametrize("pooling", ["attention", "mean", "max"])
def test_slices_are_pooled_and_padding_does_not_count(pooling):
    head = head_on("NCHW", pooling)
    torch.nn.init.normal_(head.linear.weight)
    x = torch.rand(2, 4, 5, 3, 3)
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = x.mean((3, 4))
    if pooling == "max":
        expected = torch.stack([expected[0].amax(0), expected[1, :2].amax(0)])
    else:  # attention starts as the mean
        expected = torch.stack([expected[0].mean(0), expected[1, :2].mean(0)])
    assert torch.allclose(head.pool({"x": x}, present), expected, atol=1e-6)
    changed = x.clone()
    changed[1, 2:] = 99.0
    assert torch.equal(head({"x": x}, present)[1], head({"x": changed}, present)[1])
    assert torch.isfinite(head({"x": x}, torch.zeros(2, 4, dtype=torch.bool))).all()
    # The order of slices tells nothing.
    assert torch.allclose(head({"x": x[:, [3, 1, 0, 2]]}), head({"x": x}), atol=1e-5)


def test_attention_learns_which_slice_matters():
    """The label is in one slice of eight, at a random place: the mean sees an eighth of it."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)

    def draw(count):
        x = torch.randn(count, 8, 16, generator=rng)
        y = torch.randint(0, 2, (count,), generator=rng).float()
        place = torch.randint(0, 8, (count,), generator=rng)
        x[torch.arange(count), place, 0] += 6.0
        x[torch.arange(count), place, 1] += 3.0 * (2 * y - 1)
        return x, y

    scores = {}
    for pooling in ("attention", "mean"):
        rng.manual_seed(1)
        head = head_on("NC", pooling, channels=16, outputs=1)
        optimiser = torch.optim.Adam(head.parameters(), 0.01)
        x, y = draw(512)
        for _ in range(150):
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(head({"x": x})[:, 0], y).backward()
            optimiser.step()
        x, y = draw(512)
        scores[pooling] = ((head({"x": x})[:, 0] > 0) == (y > 0)).float().mean().item()
    assert scores["attention"] > 0.9
    assert scores["mean"] < 0.8
