"""Frozen, truncated and copied backbones."""

from __future__ import annotations

import copy

import medtransfer as mt
import pytest
import torch
from medtransfer.errors import WeightsError


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


def test_a_truncated_chain_is_the_chain_up_to_there():
    net = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet").eval()
    whole = copy.deepcopy(net)
    net.truncate(10)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(
            net({"image": x}, net.names[-1:])[net.names[-1]],
            whole({"image": x}, net.names[-1:])[net.names[-1]],
        )
    assert len(net.stages) == 8
    assert set(net.state_dict()) == set(whole.state_dict())
    net.freeze(2)
    net.train()
    trained = {name for name, p in net.network.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith(("blocks.1", "blocks.2", "blocks.3")) for name in trained)
    assert not any(m.training for m in net.network.blocks[6][0].modules())
    with pytest.raises(WeightsError, match="8 stages; 8 cannot be dropped"):
        net.truncate(8)
