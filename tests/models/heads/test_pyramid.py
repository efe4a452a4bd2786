"""The pyramid stands on any chain, for planes, slices and volumes; anchors lie where they
should.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.heads.pyramid import (
    DetectionHead,
    choose_levels,
    decode_boxes,
    giou,
)
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_pair_giou

ANCHORS = np.full((3, 2, 2), 20.0) * np.array([1, 2, 4])[:, None, None]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "tf_efficientnet_lite0",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "vit_tiny_patch16_224",
    ],
)
def test_any_chain_carries_a_pyramid(name):
    size = 224 if "224" in name else 96
    net = load_backbone(name, size=size).eval()
    levels = choose_levels(net, 8)
    assert len(levels) == 3
    head = DetectionHead(levels, (size, size), ANCHORS).eval()
    out = head(net({"image": torch.randn(2, 3, size, size)}, head.taps))
    count = len(out["anchors"])
    assert out["logits"].shape == (2, count, 1)
    assert out["moves"].shape == (2, count, 4)
    assert count == 2 * sum(out["places"])
    assert out["places"] == sorted(out["places"], reverse=True)


def test_the_finest_level_follows_the_stride_asked_for():
    net = load_backbone("tf_efficientnet_lite0")
    assert [stage.reduction for stage in choose_levels(net, 8)] == [8, 16, 32]
    assert [stage.reduction for stage in choose_levels(net, 4)] == [4, 8, 16]
    # A plain transformer has one size alone: coarser levels are made of it.
    plain = choose_levels(load_backbone("vit_tiny_patch16_224"), 8)
    assert len({stage.name for stage in plain}) == 1


def test_slices_of_a_volume_are_stacked_again():
    """What lies on one slice shows in the maps of that slice and its neighbours alone, as far as
    the convolutions reach.
    """
    net = load_backbone("tf_efficientnet_lite0").eval()
    head = DetectionHead(choose_levels(net, 8), (12, 64, 64), np.full((3, 1, 3), 8.0)).eval()
    volume = torch.zeros(1, 12, 3, 64, 64)
    with torch.no_grad():
        empty = head(net({"image": volume}, head.taps))
        volume[:, 5] = torch.randn(3, 64, 64)
        out = head(net({"image": volume}, head.taps))
    assert empty["places"] == [12 * 64, 12 * 16, 12 * 4]
    finest = slice(0, 12 * 64)
    moved = (out["logits"] - empty["logits"])[0, finest, 0].view(12, -1).abs().amax(1)
    assert 4 <= int(moved.argmax()) <= 6
    # Norms over groups see all slices; what is near sees much more.
    assert moved[5] > 5 * moved[11]


def test_networks_of_volumes():
    net = load_backbone("monai_resnet10", channels=1).eval()
    head = DetectionHead(choose_levels(net, 8), (16, 64, 64), np.full((3, 2, 3), 10.0)).eval()
    out = head(net({"image": torch.randn(1, 1, 16, 64, 64)}, head.taps))
    assert out["places"] == [2 * 8 * 8, 1 * 4 * 4, 1 * 2 * 2]
    assert out["moves"].shape[-1] == 6


def test_anchors_stand_about_the_middle_of_every_position():
    net = load_backbone("resnet18")
    head = DetectionHead(
        choose_levels(net, 8), (64, 96), np.array([[[10.0, 20.0]], [[30, 30]], [[60, 60]]])
    )
    boxes = head.place_anchors([(8, 12), (4, 6), (2, 3)])
    assert len(boxes) == 96 + 24 + 6
    assert boxes[0].tolist() == [4 - 5, 4 - 10, 4 + 5, 4 + 10]
    assert boxes[13].tolist() == [12 - 5, 12 - 10, 12 + 5, 12 + 10]  # second row, second column
    assert boxes[-1].tolist() == [48 - 30, 80 - 30, 48 + 30, 80 + 30]


def test_logits_belong_to_their_anchor():
    """A gradient of one anchor's logit points to the place of the map where it stands."""
    net = load_backbone("resnet18").eval()
    head = DetectionHead(choose_levels(net, 8), (64, 64), ANCHORS).eval()
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    features = {
        name: x.detach().requires_grad_() for name, x in net({"image": image}, head.taps).items()
    }
    out = head(features)
    place = 2 * (3 * 8 + 6)  # row 3, column 6 of the finest map, first shape
    out["logits"][0, place, 0].backward()
    grad = features[head.levels[0]].grad[0].square().sum(0)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    # Near the border what lies beyond it is missing.
    assert float((grad * rows).sum() / grad.sum()) == pytest.approx(3, abs=0.8)
    assert float((grad * columns).sum() / grad.sum()) == pytest.approx(6, abs=0.8)
    middle = (out["anchors"][place, :2] + out["anchors"][place, 2:]) / 2
    assert middle.tolist() == [28.0, 52.0]


def random_boxes(axes, *shape):
    rng = np.random.default_rng(0)
    low = torch.tensor(rng.uniform(0, 50, (*shape, axes)), dtype=torch.float32)
    sides = torch.tensor(rng.uniform(1, 40, low.shape), dtype=torch.float32)
    return torch.cat([low, low + sides], -1)


@pytest.mark.parametrize("axes", [2, 3])
def test_giou_is_that_of_monai(axes):
    boxes = random_boxes(axes, 2, 40)
    assert torch.allclose(giou(*boxes), box_pair_giou(*boxes), atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
def test_decoded_boxes_and_their_gradients_are_those_of_monai(axes):
    anchors, moves = random_boxes(axes, 300), torch.randn(300, 2 * axes)
    moves[:5] = 9.0  # beyond the most that a box may grow
    coder = BoxCoder((1.0,) * (2 * axes))
    ours, theirs = moves.clone().requires_grad_(), moves.clone().requires_grad_()
    boxes, expected = decode_boxes(anchors, ours), coder.decode_single(theirs, anchors)
    assert torch.equal(boxes, expected)
    boxes.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_moves_by_hand():
    anchor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    moved = decode_boxes(anchor, torch.tensor([[0.5, -0.25, 0.0, np.log(2.0)]]))
    assert moved[0].tolist() == pytest.approx([20, -10, 40, 70])
    assert torch.isfinite(decode_boxes(anchor, torch.full((1, 4), 1e4))).all()


def test_a_network_that_pools_has_no_boxes():
    net = load_backbone("features")
    with pytest.raises(WeightsError, match="no stage has an activation in space"):
        choose_levels(net, 8)
