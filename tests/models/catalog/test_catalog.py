"""Names and sizes of backbones."""

from __future__ import annotations

import medtransfer as mt
import pytest
import timm
import torch
from medtransfer.errors import WeightsError


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


pytestmark = pytest.mark.slow


def test_a_size_that_an_architecture_cannot_take():
    with pytest.raises(
        WeightsError,
        match=r"inception_v3 cannot be run at size 40 .*It was made for images of 299 pixels",
    ):
        mt.load_backbone("inception_v3", size=40)
