"""Costs of stages against published counts."""

from __future__ import annotations

import medtransfer as mt
import pytest
from medtransfer.models.chain.costs import measure_stages


@pytest.fixture(scope="module")
def resnet():
    return mt.load_backbone("resnet18")


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
