"""What a plan trains, stage by stage."""

from __future__ import annotations

import copy

import medtransfer as mt
import pytest
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.plan import (
    describe_stages,
    refuse_random_prefix,
    trained_sizes,
)

from plans import plan


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


def test_the_plan_stage_by_stage(resnet):
    chosen = plan(resnet, frozen_stages=4, dropped_stages=2)
    rows = describe_stages(resnet, chosen, measure_stages(resnet, 64))
    assert [row["trained"] for row in rows] == ["frozen"] * 4 + ["trained"] * 3 + ["dropped"] * 2
    assert rows[6]["learning_rate"] == chosen.backbone_lr
    assert rows[4]["learning_rate"] == pytest.approx(chosen.backbone_lr * chosen.stage_decay**2)
    assert rows[0]["learning_rate"] == 0


def test_random_weights_are_not_frozen(lite, tmp_path):
    """Neither those of no file, nor those of a file that was never trained."""
    frozen = plan(lite, 100)
    with pytest.raises(
        WeightsError, match="7 stages are to be frozen, but these do not look like trained weights"
    ):
        refuse_random_prefix(lite, frozen)
    path = tmp_path / "untrained.pth"
    torch.save(mt.load_backbone("tf_efficientnet_lite0", seed=4).network.state_dict(), path)
    untrained = mt.load_backbone("tf_efficientnet_lite0", weights=f"file:{path}")
    assert untrained.weights.proof["moved"] == 0
    with pytest.raises(
        WeightsError,
        match=r"file:.*100 % of the norms and biases are as a random initialisation leaves them",
    ):
        refuse_random_prefix(untrained, frozen)
    refuse_random_prefix(untrained, plan(lite, 20_000))
    refuse_random_prefix(mt.load_backbone("tf_efficientnet_lite0", weights="imagenet"), frozen)


def test_words_decide_nothing(lite):
    assert "reason" not in plan(lite, 100).decisive()
    assert plan(lite, 100).decisive().items() <= plan(lite, 100).to_dict().items()
