"""The table of measured networks."""

from __future__ import annotations

import medtransfer as mt
import pytest
from medtransfer.models.catalog.measured import Cost, read_table


def test_the_table_is_of_networks_that_exist_and_says_what_they_are():
    table = read_table()
    assert len(table) > 20
    assert {"resnet18", "tf_efficientnet_lite0", "monai_resnet18"} <= set(table)
    assert set(table) <= set(mt.list_backbones())
    assert table["resnet18"].speed == pytest.approx(1.0, abs=0.3)  # against itself
    for name in ("resnet18", "tf_efficientnet_lite0", "monai_resnet18"):
        net = mt.load_backbone(name)
        assert (table[name].stages, table[name].exact, table[name].size) == (
            len(net.stages),
            net.exact,
            net.recipe.size,
        )
        assert table[name].parameters == pytest.approx(
            sum(p.numel() for p in net.parameters()) / 1e6, abs=0.01
        )


@pytest.mark.parametrize(
    ("speed", "name"), [(2.0, "fast"), (0.5, "fast"), (0.3, "medium"), (0.1, "slow")]
)
def test_speed_in_words(speed, name):
    assert Cost(1.0, 1, True, 224, 1.0, speed).speed_class == name
