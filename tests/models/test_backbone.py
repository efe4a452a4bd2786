from __future__ import annotations

import copy

import medtransfer as mt
import pytest
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.heads import LinearHead, pool

EXACT = [
    "tf_efficientnet_lite0",
    "resnet18",
    "densenet121",
    "convnext_atto",
    "regnetx_002",
    "vit_tiny_patch16_224",
    "vgg11_bn",
    "inception_v3",
]


@pytest.fixture(scope="module", params=EXACT)
def backbone(request):
    return mt.load_backbone(request.param, seed=3)


def image(backbone, seed=1):
    size = backbone.recipe.size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_chain_is_the_network_bit_for_bit(backbone):
    assert backbone.exact
    assert len(backbone.stages) > 3
    backbone.eval()
    x = image(backbone)
    last = backbone.names[-1]
    with torch.inference_mode():
        expected = backbone.network.forward_features(x)
        assert torch.equal(backbone({"image": x}, [last])[last], expected)


def test_prefix_and_suffix_at_a_cut_equal_the_whole(backbone):
    backbone.eval()
    x = image(backbone)
    last = backbone.names[-1]
    with torch.inference_mode():
        whole = backbone({"image": x}, backbone.names)
        for cut in (backbone.names[0], backbone.names[len(backbone.names) // 2], backbone.names[-2]):
            assert torch.equal(backbone({cut: whole[cut]}, [last])[last], whole[last])


def test_taps_have_the_stated_channels_and_reductions(backbone):
    backbone.eval()
    x = image(backbone)
    with torch.inference_mode():
        taps = backbone({"image": x}, backbone.names)
    assert list(taps) == backbone.names
    for stage in backbone.stages:
        tap = taps[stage.name]
        assert pool(tap, backbone.layout).shape == (2, stage.channels)
        if backbone.layout == "NCHW":
            assert 2 ** round(torch.log2(torch.tensor(x.shape[-1] / tap.shape[-1])).item()) == stage.reduction


def test_every_parameter_belongs_to_one_stage(backbone):
    counted = sum(p.numel() for i in range(len(backbone.stages)) for p in backbone.stage_parameters(i))
    assert counted == sum(p.numel() for p in backbone.parameters())


def test_an_architecture_without_a_chain_becomes_one_stage():
    ghost = mt.load_backbone("ghostnet_100")
    assert not ghost.exact
    assert ghost.names == ["whole"]
    ghost.eval()
    x = image(ghost)
    with torch.inference_mode():
        assert torch.equal(ghost({"image": x}, ["whole"])["whole"], ghost.network.forward_features(x))
    ghost.freeze(1)
    assert not any(p.requires_grad for p in ghost.parameters())
    assert not any(m.training for m in ghost.train().network.modules() if list(m.parameters(recurse=False)))


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
    # Weight decay and momentum move parameters without gradients too, if they are given to the optimiser.
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    net.train()
    for _ in range(2):
        out = net({"image": torch.randn(4, 3, 64, 64)}, [net.names[-1]])[net.names[-1]]
        out.square().mean().backward()
        optimiser.step()
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    moved = [key for key in before if key not in frozen and not torch.equal(before[key], after[key])]
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
    assert not torch.equal(net({"image": x}, ["stem"])["stem"], twin({"image": x}, ["stem"])["stem"])


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
    first, again, other = (mt.load_backbone("resnet18", seed=s).network.conv1.weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    mt.load_backbone("resnet18", seed=5)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_backbone_suggests_a_name():
    with pytest.raises(WeightsError, match="unknown backbone 'resnet81'.*Did you mean .*resnet"):
        mt.load_backbone("resnet81")
    assert "resnet18" in mt.list_backbones("resnet1*")
    assert len(mt.list_backbones()) == len(timm.list_models())


def test_linear_head_starts_at_zero_and_reads_its_tap():
    head = LinearHead("x", 5, 2, "NCHW")
    features = {"x": torch.randn(3, 5, 4, 4), "y": torch.randn(1)}
    assert head(features).abs().max() == 0
    torch.nn.init.ones_(head.linear.weight)
    assert torch.allclose(head(features)[:, 0], features["x"].mean((2, 3)).sum(1), atol=1e-6)
