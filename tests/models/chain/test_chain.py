"""The chain of stages is the network."""

from __future__ import annotations

import copy

import medtransfer as mt
import pytest
import torch
from medtransfer.models.chain.chain import mean_over_space

# One of every family that must have an exact chain, the smallest, with the number of its stages.
EXACT = {
    "resnet18": 9,
    "resnext50_32x4d": 17,
    "seresnet18": 9,
    "vgg11": 5,
    "vgg11_bn": 5,
    "inception_v3": 16,
    "inception_resnet_v2": 49,
    "densenet121": 6,
    "efficientnet_b0": 18,
    "tf_efficientnetv2_b0": 23,
    "tf_efficientnet_lite0": 18,
    "mobilenetv2_100": 19,
    "mobilenetv3_small_100": 14,
    "mobilenetv4_conv_small": 19,
    "convnext_atto": 15,
    "convnextv2_atto": 15,
    "regnetx_002": 15,
    "regnety_002": 15,
    "vit_tiny_patch16_224": 15,
    "deit_tiny_patch16_224": 15,
    "vit_small_patch14_dinov2": 15,
    "swin_tiny_patch4_window7_224": 17,
    "swinv2_tiny_window8_256": 17,
    "monai_resnet10": 5,
    "monai_resnet50": 17,
    "monai_densenet121": 60,
}


# Sides of the images that an architecture was built for; 518 pixels would take a minute. All others
# take any side.
FIXED = {
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "vit_small_patch14_dinov2": 112,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
}


SIDE = 128


# Of each kind of layout one.
QUICK = {
    "resnet18",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "monai_resnet10",
}


# Each is built once, in one process.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name,
            marks=[pytest.mark.xdist_group(name), *([] if name in QUICK else [pytest.mark.slow])],
        )
        for name in EXACT
    ],
)
def backbone(request):
    return mt.load_backbone(request.param, seed=3, size=FIXED.get(request.param, SIDE))


def image(backbone, seed=1):
    side = FIXED.get(backbone.name, SIDE)
    space = (side, side) if backbone.ndim == 2 else (20, 48, 48)
    return torch.randn(2, 3, *space, generator=torch.Generator().manual_seed(seed))


def pooled_by_the_network(backbone, features):
    return backbone.network.forward_head(features, pre_logits=True)


def test_the_chain_is_the_network_bit_for_bit(backbone):
    assert backbone.exact
    assert len(backbone.stages) == EXACT[backbone.name]
    backbone.eval()
    x = image(backbone)
    trunk = [name for name in backbone.names if name != "neck"]
    with torch.inference_mode():
        taps = backbone({"image": x}, [trunk[-1], backbone.names[-1]])
        expected = backbone.network.forward_features(x)
        assert torch.equal(taps[trunk[-1]], expected)
        if "neck" in backbone.names:
            assert torch.equal(taps["neck"], pooled_by_the_network(backbone, expected))


def test_the_chain_is_the_network_in_training_too(backbone):
    """Batch statistics are used and moved, random depths drawn, as in the network itself; and
    gradients are the same.
    """
    x = image(backbone)
    found = []
    for way in ("chain", "network"):
        twin = copy.deepcopy(backbone).train()
        torch.manual_seed(5)
        if way == "chain":
            out = twin({"image": x}, [twin.names[-1]])[twin.names[-1]]
        else:
            out = twin.network.forward_features(x)
            out = pooled_by_the_network(twin, out) if "neck" in twin.names else out
        out.square().mean().backward()
        gradients = [None if p.grad is None else p.grad for p in twin.network.parameters()]
        found.append(
            (
                out.detach(),
                [g for g in gradients if g is not None],
                dict(twin.network.named_buffers()),
            )
        )
        # Nothing in the network lies idle: what no stage runs was taken out.
        assert all(g is not None for g in gradients)
    assert torch.equal(found[0][0], found[1][0])
    assert len(found[0][1]) > 5
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert all(torch.equal(value, found[1][2][key]) for key, value in found[0][2].items())


def test_prefix_and_suffix_at_every_cut_equal_the_whole(backbone):
    backbone.eval()
    x = image(backbone)[:1]
    last = backbone.names[-1]
    with torch.inference_mode():
        whole = backbone({"image": x}, backbone.names)
        assert list(whole) == backbone.names
        # From each cut one stage on, which proves every suffix by induction; some suffixes as a
        # whole too.
        for cut, following in zip(backbone.names, backbone.names[1:], strict=False):
            assert torch.equal(
                backbone({cut: whole[cut]}, [following])[following], whole[following]
            )
        for cut in (backbone.names[0], backbone.names[len(backbone.names) // 2]):
            assert torch.equal(backbone({cut: whole[cut]}, [last])[last], whole[last])


def test_taps_have_the_stated_channels_and_reductions(backbone):
    backbone.eval()
    x = image(backbone)[:1]
    with torch.inference_mode():
        taps = backbone({"image": x}, backbone.names)
    for stage in backbone.stages:
        tap = taps[stage.name]
        assert mean_over_space(tap, stage.layout).shape == (1, stage.channels)
        if stage.layout in {"NCHW", "NCDHW", "NHWC"}:
            side = tap.shape[2] if stage.layout == "NHWC" else tap.shape[-1]
            # Unpadded convolutions lose a rim of a few pixels.
            assert abs(x.shape[-1] / stage.reduction - side) <= 3
        else:
            assert stage.reduction == 1


def test_every_parameter_belongs_to_one_stage(backbone):
    counted = sum(
        p.numel() for i in range(len(backbone.stages)) for p in backbone.stage_parameters(i)
    )
    assert counted == sum(p.numel() for p in backbone.parameters())


def test_an_architecture_without_a_chain_becomes_one_stage():
    net = mt.load_backbone("hrnet_w18_small", size=64)
    assert not net.exact
    assert net.names == ["whole"]
    net.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(net({"image": x}, ["whole"])["whole"], net.network.forward_features(x))
    net.freeze(1)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(
        m.training for m in net.train().network.modules() if list(m.parameters(recurse=False))
    )
