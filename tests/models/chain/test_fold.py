"""Folded batch norms leave the function as it is."""

from __future__ import annotations

import medtransfer as mt
import pytest
import torch
from medtransfer.models.chain.fold import fold_norms
from torch import nn

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def settled(name, size):
    """A network whose statistics are not those it was made with."""
    net = mt.load_backbone(name, seed=1, size=size if name.startswith("vit") else None)
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "shape", "left"),
    [
        ("resnet18", (3, 64, 64), 0),
        ("tf_efficientnet_lite0", (3, 64, 64), 0),
        ("monai_resnet10", (3, 16, 32, 32), 0),
        (
            "densenet121",
            (3, 64, 64),
            62,
        ),  # its norms come before the convolutions, but for the second in every layer
        ("vit_tiny_patch16_224", (3, 64, 64), 0),
    ],
)
def test_a_folded_network_is_the_same_function(name, shape, left):
    net = settled(name, 64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    folded = fold_norms(net, len(net.stages), image[:1])
    with torch.inference_mode():
        ours, theirs = (network({"image": image}, net.names) for network in (folded, net))
    for stage in net.names:
        scale = theirs[stage].abs().max()
        assert torch.allclose(ours[stage], theirs[stage], rtol=0, atol=1e-4 * float(scale)), stage
    assert sum(isinstance(module, NORMS) for module in folded.modules()) == left
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_only_the_stages_asked_for_are_folded():
    net = settled("resnet18", 64)
    folded = fold_norms(net, 5, torch.randn(1, 3, 64, 64))
    norms = [name for name, module in folded.network.named_modules() if isinstance(module, NORMS)]
    assert norms
    assert all(name.startswith(("layer3", "layer4")) for name in norms)


def test_a_network_that_would_not_be_the_same_is_left_alone(monkeypatch):
    from medtransfer.models.chain import fold

    net = settled("resnet18", 64)
    monkeypatch.setattr(fold, "_TOLERANCE", 1e-12)
    folded = fold_norms(net, 9, torch.randn(1, 3, 64, 64))
    assert sum(isinstance(module, NORMS) for module in folded.modules()) == 20
