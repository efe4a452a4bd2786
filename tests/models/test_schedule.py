from __future__ import annotations

import copy
from dataclasses import replace

import medtransfer as mt
import pytest
import torch
from medtransfer.errors import ConfigError, WeightsError
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.plan.cache import CacheBudget, plan_cache
from medtransfer.models.plan.overrides import fix_plan
from medtransfer.models.plan.plan import (
    describe_stages,
    trained_sizes,
)
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.models.plan.schedule import CYCLES, frozen_at, parameter_groups, rate_at


@pytest.fixture(scope="module")
def resnet():
    return mt.load_backbone("resnet18")


def plan(backbone, smallest=100, domain="near", cache=None, **fixed):
    return mt.plan_freeze(
        PlainCounts({"0": 2 * smallest, "1": smallest}, domain),
        backbone,
        transfer=True,
        cache=cache,
        **fixed,
    )


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


def test_surgical_plans_train_the_first_stages_or_norms_alone(resnet):
    net = copy.deepcopy(resnet)
    first = plan(net, tuned="first", frozen_stages=6, norm_policy="train")
    net.freeze(first.frozen_stages, first.norm_policy, first.tuned)
    trained = {name for name, p in net.network.named_parameters() if p.requires_grad}
    assert all(name.startswith(("conv1", "bn1", "layer1.")) for name in trained)
    assert len(trained) > 10
    assert net.frozen == 0  # the gradient reaches the first stages through frozen ones
    net.train()
    assert not net.network.layer4[1].bn2.training
    assert net.network.bn1.training
    norms = plan(net, tuned="norms", frozen_stages=3)
    net.freeze(norms.frozen_stages, norms.norm_policy, norms.tuned)
    trained = {name for name, p in net.network.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * sum(
        isinstance(m, torch.nn.BatchNorm2d)
        for name, m in net.network.named_modules()
        if name.startswith(("layer2", "layer3", "layer4"))
    )
    assert norms.trainable_fraction < 0.001 < first.trainable_fraction
    for chosen in (first, norms):
        net.freeze(chosen.frozen_stages, chosen.norm_policy, chosen.tuned)
        counted = sum(size for _, size in trained_sizes(net, chosen))
        assert counted == sum(p.numel() for p in net.parameters() if p.requires_grad)


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


def test_dropped_stages_shift_what_can_be_frozen(resnet):
    cut = plan(resnet, dropped_stages=3)
    assert (cut.kept_stages, cut.strategy) == (6, "lp_ft")
    assert cut.frozen_stages < 6
    assert plan(resnet, dropped_stages=3, strategy="linear_probe").frozen_stages == 6
    with pytest.raises(ConfigError, match="frozen_stages is 7; 6 of 9 stages are left"):
        plan(resnet, dropped_stages=3, frozen_stages=7)
    with pytest.raises(ConfigError, match="from 0 to 8"):
        plan(resnet, dropped_stages=9)


def test_no_weight_decay_beside_l2_sp(resnet):
    net = copy.deepcopy(resnet)
    net.freeze(3)
    head = LinearHead(net.stages[-1], 1)
    for pull, decays in ((0.0, {0.0, 0.05}), (0.01, {0.0})):
        groups = parameter_groups(net, head, plan(net, l2_sp=pull, frozen_stages=3), 0.05)
        assert {group["weight_decay"] for group in groups if group["name"] != "head"} == decays


def test_costs_are_those_of_the_arithmetic(resnet):
    costs = measure_stages(resnet, 224)
    # 1.81 GMAC is the published count of ResNet-18 at 224 pixels.
    assert sum(cost.macs for cost in costs) == pytest.approx(1.81e9, rel=0.01)
    assert sum(cost.share for cost in costs) == pytest.approx(1)
    by_name = {cost.name: cost for cost in costs}
    assert by_name["layer2.1"].bytes == 128 * 28 * 28 * 4
    assert by_name["layer4.1"].pooled_bytes == 512 * 4
    through_layer2 = sum(cost.share for cost in costs[:5])
    assert through_layer2 == pytest.approx(0.55, abs=0.02)
    assert sum(cost.parameters for cost in costs) == sum(p.numel() for p in resnet.parameters())


def test_views_follow_the_budget(resnet):
    roomy = plan(resnet, read="last", frozen_stages=5, cache=CacheBudget(4, 128))
    assert (roomy.cache_cut, roomy.bytes_per_image, roomy.views) == (
        "layer2.1",
        128 * 16 * 16 * 4,
        8,
    )
    five = 6.5 * 300 * roomy.bytes_per_image / 2**30
    assert plan(resnet, read="last", frozen_stages=5, cache=CacheBudget(five, 128)).views == 5
    assert plan(resnet, frozen_stages=5, cache=CacheBudget(0, 128)).views == 0
    assert plan(resnet, frozen_stages=0).views == 0
    assert plan(resnet, tuned="first", frozen_stages=5).views == 0
    with pytest.raises(ConfigError, match=r"views is 9; 300 images of 0.1 MiB fit 5 times"):
        plan(resnet, read="last", frozen_stages=5, views=9, cache=CacheBudget(five, 128))
    with pytest.raises(ConfigError, match="no frozen prefix"):
        plan(resnet, frozen_stages=0, views=4)
    slices = plan(resnet, read="last", frozen_stages=5, cache=CacheBudget(4, 128, 24))
    assert slices.bytes_per_image == 24 * roomy.bytes_per_image


def test_a_head_on_all_stages_keeps_their_means_too(resnet):
    last, whole = (
        plan(resnet, read=read, frozen_stages=5, cache=CacheBudget(4, 128))
        for read in ("last", "all")
    )
    assert whole.bytes_per_image - last.bytes_per_image == 4 * (64 + 64 + 64 + 128)


def test_the_plan_stage_by_stage(resnet):
    chosen = plan(resnet, frozen_stages=4, dropped_stages=2)
    rows = describe_stages(resnet, chosen, measure_stages(resnet, 64))
    assert [row["trained"] for row in rows] == ["frozen"] * 4 + ["trained"] * 3 + ["dropped"] * 2
    assert rows[6]["learning_rate"] == chosen.backbone_lr
    assert rows[4]["learning_rate"] == pytest.approx(chosen.backbone_lr * chosen.stage_decay**2)
    assert rows[0]["learning_rate"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"dropout": 1.0},
        {"l2_sp": -0.1},
        {"mix": "yes"},
        {"read": "some"},
        {"views": 1.5},
        {"unfreeze": True},
        {"tuned": None, "x": 1},
    ],
)
def test_wrong_fields_are_refused(resnet, wrong):
    with pytest.raises(ConfigError, match="plan: "):
        plan(resnet, **wrong)


def test_scratch_takes_no_transfer_fields(resnet):
    scratch = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), resnet)
    assert scratch.strategy == "scratch"
    assert fix_plan(scratch, resnet, dropout=0.3).dropout == 0.3
    with pytest.raises(ConfigError, match="l2_sp cannot be set for an arm trained from scratch"):
        fix_plan(scratch, resnet, l2_sp=0.1)
    assert plan_cache(replace(scratch, views=0), resnet, 100, CacheBudget()).views == 0
