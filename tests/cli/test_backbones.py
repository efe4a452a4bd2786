from __future__ import annotations

import json

import pytest

from studies import invoke


@pytest.mark.slow
def test_backbones_are_listed_with_their_costs_and_weights():
    assert "resnet18" in invoke("backbones", "resnet1*").output.split()
    rows = {
        row["name"]: row for row in json.loads(invoke("backbones", "*resnet1*", "--json").output)
    }
    assert rows["monai_resnet18"]["ndim"] == 3
    assert {"imagenet", "timm:a1_in1k"} <= set(rows["resnet18"]["weights"])
    assert rows["resnet18"]["offline"] == []
    (lite,) = json.loads(invoke("backbones", "tf_efficientnet_lite0", "--json").output)
    assert (lite["offline"], lite["input_size"]) == (["imagenet"], 224)
    here = invoke("backbones", "tf_*", "--offline").output
    assert "tf_efficientnet_lite0" in here
    assert "tf_efficientnet_b0" not in here
    (measured,) = json.loads(invoke("backbones", "resnet10t", "--measure", "--json").output)
    assert (measured["stages"], measured["exact"], measured["parameters"]) == (5, True, 4.92)
    assert measured["speed"] in {"fast", "medium"}
    assert 0.1 < measured["memory_gb"] < 2


def test_a_pattern_without_weights_here_is_refused():
    result = invoke("backbones", "resnet18", "--offline")
    assert result.exit_code == 2
    assert "no architecture matches 'resnet18' with weights on this machine" in result.output
