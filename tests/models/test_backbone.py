from __future__ import annotations

import copy

import medtransfer as mt
import pytest
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.chain.chain import Stage, mean_over_space
from medtransfer.models.heads.linear import LinearHead

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
    side = (
        backbone.recipe.size
        if backbone.name == "crossvit_tiny_240"
        else FIXED.get(backbone.name, SIDE)
    )
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


def test_features_at_several_resolutions_are_pooled_as_in_training():
    net = mt.load_backbone("crossvit_tiny_240").eval()
    assert (net.names, net.stages[0].layout) == (["whole"], "NC")
    x = image(net)
    with torch.inference_mode():
        whole = net({"image": x}, ["whole"])["whole"]
        assert torch.equal(
            whole, net.network.forward_head(net.network.forward_features(x), pre_logits=True)
        )


def test_frozen_is_frozen_parameters_and_buffers():
    net = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet")
    net.freeze(7)
    before = copy.deepcopy(net.state_dict())
    frozen = {
        f"network.{name}"
        for i in range(7)
        for op in net.stages[i].operations
        for name in net.network.state_dict()
        if name.startswith(f"{op}.")
    }
    assert len(frozen) > 50
    # Weight decay and momentum move parameters without gradients too, if they are given to the
    # optimiser.
    optimiser = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5
    )
    net.train()
    for _ in range(2):
        out = net({"image": torch.randn(4, 3, 64, 64)}, [net.names[-1]])[net.names[-1]]
        out.square().mean().backward()
        optimiser.step()
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    moved = [
        key for key in before if key not in frozen and not torch.equal(before[key], after[key])
    ]
    assert len(moved) == len(before) - len(frozen)


def test_train_mode_leaves_frozen_stages_in_eval_mode():
    net = mt.load_backbone("resnet18")
    net.freeze(3)
    net.eval()
    net.train()
    assert not net.network.bn1.training
    assert not net.network.layer1[1].bn2.training
    assert net.network.layer2[0].bn1.training
    net.freeze(3, norm_policy="eval")
    assert not net.network.layer4[1].bn2.training
    net.freeze(0)
    assert all(p.requires_grad for p in net.parameters())
    assert net.network.bn1.training


def test_gradients_stop_at_the_cut():
    net = mt.load_backbone("resnet18")
    net.freeze(5)
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    net({"image": x}, [net.names[-1]])[net.names[-1]].mean().backward()
    assert x.grad is None
    assert net.network.layer2[0].conv1.weight.grad is None
    assert net.network.layer4[0].conv1.weight.grad is not None


def test_a_copy_is_independent():
    net = mt.load_backbone("resnet18")
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.network.conv1.weight.zero_()
    x = torch.randn(1, 3, 64, 64)
    net.eval(), twin.eval()
    assert not torch.equal(
        net({"image": x}, ["stem"])["stem"], twin({"image": x}, ["stem"])["stem"]
    )


def test_wrong_names_are_refused():
    net = mt.load_backbone("resnet18")
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(WeightsError, match="no stage layer9"):
        net({"image": x}, ["layer9"])
    with pytest.raises(WeightsError, match="before layer2.0"):
        net({"layer2.0": x}, ["stem"])
    with pytest.raises(WeightsError, match="9 stages; 10 cannot be frozen"):
        net.freeze(10)


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = (
        mt.load_backbone("resnet18", seed=s).network.conv1.weight for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    mt.load_backbone("resnet18", seed=5)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_backbone_suggests_a_name():
    with pytest.raises(WeightsError, match="unknown backbone 'resnet81'.*Did you mean .*resnet"):
        mt.load_backbone("resnet81")
    assert "resnet18" in mt.list_backbones("resnet1*")
    assert len(mt.list_backbones()) == len(timm.list_models()) + 5
    assert mt.list_backbones("monai_*")[:2] == ["monai_resnet10", "monai_resnet18"]


def head_on(layout, pooling="mean", channels=5, outputs=2):
    return LinearHead(Stage("x", (), channels, 1, layout, ()), outputs, pooling)


def test_linear_head_starts_at_zero_and_reads_its_tap():
    head = head_on("NCHW")
    features = {"x": torch.randn(3, 5, 4, 4), "y": torch.randn(1)}
    assert head(features).abs().max() == 0
    torch.nn.init.ones_(head.linear.weight)
    assert torch.allclose(head(features)[:, 0], features["x"].mean((2, 3)).sum(1), atol=1e-6)


def test_slices_run_through_the_chain_one_by_one():
    net = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet").eval()
    x = torch.randn(2, 5, 3, 64, 64)
    middle = "blocks.2.0"
    with torch.inference_mode():
        taps = net({"image": x}, [middle, net.names[-1]])
        for number in range(5):
            alone = net({"image": x[:, number]}, [middle, net.names[-1]])
            for name, tap in taps.items():
                assert torch.allclose(tap[:, number], alone[name], atol=1e-5)
        # A cached prefix of slices is continued as a prefix of images is.
        assert torch.equal(
            net({middle: taps[middle]}, [net.names[-1]])[net.names[-1]], taps[net.names[-1]]
        )


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
