from __future__ import annotations

import copy

import medtransfer as mt
import pytest
import torch
from medtransfer.models.heads.linear import LinearHead
from medtransfer.training.averages import Anchor, Averages, adapt_norms, choose_mixture, copy_state
from medtransfer.training.timing import make_engine
from torch import nn
from torch.optim.swa_utils import AveragedModel

ENGINE = make_engine("cpu", "fp32")


def batches(count=3, size=4):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "features": {"image": 3 * torch.randn(size, 3, 48, 48, generator=generator) + 1},
            "present": torch.ones(size, 1, dtype=torch.bool),
            "targets": torch.zeros(size, 1),
        }
        for _ in range(count)
    ]


def test_adapted_statistics_are_those_of_the_images():
    net = mt.load_backbone("resnet18", seed=3)
    assert adapt_norms(net, batches(), ENGINE)
    norm = net.network.bn1
    with torch.no_grad():
        outputs = [net.network.conv1(batch["features"]["image"]) for batch in batches()]
    means = torch.stack([x.mean((0, 2, 3)) for x in outputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in outputs]).mean(0)
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert torch.allclose(norm.running_var, variances, rtol=1e-4)
    assert norm.momentum == 0.1
    assert not net.training
    weights = {
        key: value
        for key, value in net.state_dict().items()
        if "running" not in key and "tracked" not in key
    }
    fresh = mt.load_backbone("resnet18", seed=3).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in weights.items())


def test_a_network_without_batch_norm_is_left_alone():
    net = mt.load_backbone("vit_tiny_patch16_224", size=48)
    before = copy_state(net)[0]
    assert not adapt_norms(net, batches(1), ENGINE)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_pull_is_the_gradient_of_the_squared_distance():
    net = mt.load_backbone("resnet18", seed=3)
    net.freeze(7)
    anchor = Anchor(net)
    frozen, trained, resting = (
        net.network.conv1.weight,
        net.network.layer4[1].conv2.weight,
        net.network.layer4[0].conv1.weight,
    )
    start = trained.detach().clone()
    with torch.no_grad():
        frozen.add_(1.0)
        trained.add_(torch.randn(trained.shape, generator=torch.Generator().manual_seed(0)))
        resting.add_(1.0)
    given = torch.randn(trained.shape, generator=torch.Generator().manual_seed(1))
    trained.grad = given.clone()
    anchor.pull(0.1)
    found = trained.grad.clone()
    trained.grad = given.clone()
    (0.5 * 0.1 * (trained - start).square().sum()).backward()
    assert torch.allclose(found, trained.grad, atol=1e-6)
    assert frozen.grad is resting.grad is None  # what does not train now is not pulled


def test_averages_follow_their_definition_and_that_of_torch():
    """The decay warms up; torch's own average, with the same decay, is the same."""
    net, head = mt.load_backbone("resnet18", seed=3), nn.Linear(2, 1)
    averages = Averages(net, head)
    both = nn.ModuleList([net, head])
    reference = AveragedModel(
        both,
        multi_avg_fn=lambda means, now, n: torch._foreach_lerp_(means, now, 1 - decays[int(n) - 1]),
    )
    reference.n_averaged += 1  # which would copy the first weights
    decays = [min(0.95, (1 + n) / (10 + n)) for n in range(1, 301)]
    assert (decays[0], decays[-1]) == (2 / 11, 0.95)
    expected = start = head.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        with torch.no_grad():
            head.weight.add_(1.0)
            net.network.layer4[1].conv2.weight.add_(
                torch.randn(net.network.layer4[1].conv2.weight.shape, generator=generator)
            )
            net.network.layer4[1].bn2.num_batches_tracked.add_(7)
        averages.update(step)
        reference.update_parameters(both)
        expected = decays[step - 1] * expected + (1 - decays[step - 1]) * (start + step)
    assert torch.allclose(averages.head.weight, expected, atol=1e-6)
    for ours, torchs in zip(
        averages.backbone.parameters(), reference.module[0].parameters(), strict=True
    ):
        assert torch.allclose(ours, torchs, atol=1e-6)


def test_averaged_weights_have_statistics_of_their_own():
    """Those that the images give the averaged weights, not a mean of statistics; what rests keeps
    its own.
    """
    net, head = (
        mt.load_backbone("resnet18", seed=3),
        LinearHead(mt.load_backbone("resnet18").stages[-1], 1),
    )
    net.freeze(2)
    averages = Averages(net, head)
    with torch.no_grad():
        net.network.layer1[0].conv1.weight.mul_(3.0)
        net.network.layer4[1].bn2.running_mean.add_(5.0)
    averages.update(1)
    expected = copy.deepcopy(averages.backbone)
    adapt_norms(expected, batches(), ENGINE, expected.moving_norms())
    averages.refresh(batches(), ENGINE)
    frozen = mt.load_backbone("resnet18", seed=3).network
    assert torch.equal(averages.backbone.network.bn1.running_mean, frozen.bn1.running_mean)
    for ours, theirs in zip(averages.backbone.buffers(), expected.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.allclose(
        averages.backbone.network.layer4[1].bn2.running_mean, net.network.layer4[1].bn2.running_mean
    )


def test_norms_that_keep_their_statistics_are_left_alone():
    net, head = (
        mt.load_backbone("resnet18", seed=3),
        LinearHead(mt.load_backbone("resnet18").stages[-1], 1),
    )
    net.freeze(2, "eval")
    assert net.moving_norms() == []
    averages = Averages(net, head)
    before = copy_state(averages.backbone)[0]
    averages.refresh(batches(), ENGINE)
    assert all(
        torch.equal(value, before[key]) for key, value in averages.backbone.state_dict().items()
    )


def test_what_rests_is_not_averaged():
    net, head = mt.load_backbone("resnet18", seed=3), nn.Linear(2, 1)
    net.freeze(8)
    averages = Averages(net, head)
    with torch.no_grad():
        net.network.conv1.weight.add_(1.0)
        net.network.layer4[1].conv2.weight.add_(1.0)
    averages.update(1)
    fresh = mt.load_backbone("resnet18", seed=3).network
    assert torch.equal(averages.backbone.network.conv1.weight, fresh.conv1.weight)
    assert not torch.equal(
        averages.backbone.network.layer4[1].conv2.weight, fresh.layer4[1].conv2.weight
    )


@pytest.mark.parametrize(("goal", "share"), [(0.0, 0.0), (0.6, 0.5), (1.0, 1.0), (5.0, 1.0)])
def test_the_mixture_with_the_lowest_loss_is_kept(goal, share):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    start = copy_state(layer)
    nn.init.ones_(layer.weight)
    end = copy_state(layer)
    found = choose_mixture(start, end, [layer], lambda: abs(layer.weight.item() - goal))
    assert found == share
    assert layer.weight.item() == pytest.approx(share)


def test_of_equal_mixtures_the_trained_one_is_kept():
    layer = nn.Linear(1, 1)
    end = copy_state(layer)
    assert choose_mixture(copy.deepcopy(end), end, [layer], lambda: 0.5) == 1.0


def test_statistics_of_volumes_come_from_the_slices_that_are_there():
    net, alike = mt.load_backbone("resnet18", seed=3), mt.load_backbone("resnet18", seed=3)
    slices = torch.randn(1, 6, 3, 48, 48)
    present = torch.tensor([[True, True, True, True, False, False]])
    volume = {"features": {"image": slices}, "present": present, "targets": torch.zeros(1, 1)}
    assert adapt_norms(net, [volume], ENGINE)
    planes = {
        "features": {"image": slices[0, :4]},
        "present": torch.ones(4, 1, dtype=torch.bool),
        "targets": torch.zeros(4, 1),
    }
    assert adapt_norms(alike, [planes], ENGINE)
    assert torch.equal(
        net.network.layer4[1].bn2.running_mean, alike.network.layer4[1].bn2.running_mean
    )


def test_statistics_stay_where_there_is_nothing_to_take_them_from():
    net = mt.load_backbone("resnet18", seed=3)
    before = copy_state(net)[0]
    assert not adapt_norms(net, batches(2, 1), ENGINE)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_where_nothing_trains_nothing_is_pulled():
    net = mt.load_backbone("resnet18", seed=3)
    net.freeze(9)
    Anchor(net).pull(0.1)
    assert all(parameter.grad is None for parameter in net.parameters())
