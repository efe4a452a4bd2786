"""What trains, and how fast, at which step."""

from __future__ import annotations

import copy

import medtransfer as mt
import pytest
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.plan.schedule import CYCLES, frozen_at, parameter_groups, rate_at

from plans import plan


def test_gradual_unfreezing_goes_from_the_top_and_ends_at_the_plan(resnet):
    gradual = plan(resnet, unfreeze="gradual", frozen_stages=4)
    depths = [frozen_at(gradual, step, 100) for step in range(101)]
    assert depths[0] == 8
    assert depths == sorted(depths, reverse=True)
    assert set(depths) == {8, 7, 6, 5, 4}
    assert depths[50] == 4
    assert {
        frozen_at(plan(resnet, frozen_stages=4, unfreeze="at_once"), step, 100)
        for step in range(101)
    } == {4}


def test_rates_warm_up_and_fall_to_zero():
    rates = [rate_at(step, [100]) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[-1] < 1e-3


def test_cycles_begin_again_and_the_first_is_the_budget_alone():
    ends = [cycle * 100 for cycle in CYCLES]
    rates = [rate_at(step, ends) for step in range(400)]
    assert rates[:100] == [rate_at(step, [100]) for step in range(100)]
    assert rates[100:200] == rates[:100]
    assert rates[200:] == [rate_at(step, [200]) for step in range(200)]
    assert rate_at(400, ends) < 1e-9  # of a look beyond the end


def test_no_weight_decay_beside_l2_sp(resnet):
    net = copy.deepcopy(resnet)
    net.freeze(3)
    head = LinearHead(net.stages[-1], 1)
    for pull, decays in ((0.0, {0.0, 0.05}), (0.01, {0.0})):
        groups = parameter_groups(net, head, plan(net, l2_sp=pull, frozen_stages=3), 0.05)
        assert {group["weight_decay"] for group in groups if group["name"] != "head"} == decays


def test_groups_cover_what_trains_once_with_decaying_rates():
    net = mt.load_backbone("tf_efficientnet_lite0")
    found = plan(net, 100, "far", l2_sp=0.0)
    net.freeze(found.frozen_stages)
    head = LinearHead(net.stages[-1], 1)
    groups = parameter_groups(net, head, found, 0.05)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {
        id(p) for p in [*net.parameters(), *head.parameters()] if p.requires_grad
    }
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head"] == found.head_lr
    assert rates["conv_head"] == found.backbone_lr
    assert rates["blocks.6.0"] == pytest.approx(found.backbone_lr * found.stage_decay)
    assert all((group["weight_decay"] > 0) == (group["params"][0].ndim > 1) for group in groups)
