"""Where weights come from, and what is recorded of that."""

from __future__ import annotations

import gzip
import pickle

import medtransfer as mt
import pytest
import safetensors.torch
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.catalog.measured import describe_backbones
from medtransfer.models.chain.backbone import Recipe
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.weights.files import digest_of
from medtransfer.study.run import describe_backbone
from medtransfer.training.checkpoint import save_weights

from weight_files import A, load, saved

pytestmark = pytest.mark.usefixtures("unproved")


def test_a_model_trained_here_is_known_under_any_name(tmp_path):
    """Else its images could be tested with it."""
    net = load(saved(A, tmp_path / "w.pth"))
    save_weights(
        tmp_path / "weights.safetensors",
        net,
        LinearHead(net.stages[-1], 1),
        {**describe_backbone(net), "tap": "x"},
    )
    data = (tmp_path / "weights.safetensors").read_bytes()
    for name, content in (("renamed.pth", data), ("packed.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="is a model trained here. Give weights: study:"):
            load(tmp_path / name)


LITE = "tf_efficientnet_lite0"


def test_embedded_weights_are_recorded_with_digest_and_recipe():
    net = mt.load_backbone(LITE, weights="imagenet")
    assert net.weights.digest.startswith("57934424")
    assert net.weights.unused == ("classifier.bias", "classifier.weight")
    assert net.recipe.mean == net.recipe.std == (0.5, 0.5, 0.5)
    assert mt.load_backbone(LITE).recipe == net.recipe  # the scratch arm sees the same input
    assert (
        mt.load_backbone(LITE).weights.source,
        mt.load_backbone(LITE, weights="none").weights.source,
    ) == ("none", "none")


@pytest.fixture(scope="module")
def resnet():
    return timm.create_model("resnet18", num_classes=7).state_dict()


class Bomb:
    def __reduce__(self):
        return (print, ("code from a weights file has run",))


def test_code_in_a_file_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"a": Bomb()}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="refused|not a readable"):
            mt.load_backbone("resnet18", weights=f"file:{tmp_path / name}")
    assert "has run" not in capsys.readouterr().out


def test_missing_damaged_and_unknown_sources(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        mt.load_backbone("resnet18", weights=f"file:{tmp_path / 'none.pth'}")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"garbage")
        with pytest.raises(WeightsError, match="not a readable|refused"):
            mt.load_backbone("resnet18", weights=f"file:{tmp_path / name}")
    with pytest.raises(
        WeightsError, match="unknown weights 'imagnet': use imagenet, timm:TAG, radimagenet"
    ):
        mt.load_backbone("resnet18", weights="imagnet")


def test_a_file_named_as_another_network_is_refused(tmp_path):
    """They differ in padding alone, and fit each other by name and shape."""
    torch.save(
        timm.create_model("tf_efficientnet_b0").state_dict(), tmp_path / "tf_efficientnet_b0_ns.pth"
    )
    with pytest.raises(
        WeightsError, match="is named as the weights of tf_efficientnet_b0, not of efficientnet_b0"
    ):
        mt.load_backbone(
            "efficientnet_b0", weights=f"file:{tmp_path / 'tf_efficientnet_b0_ns.pth'}"
        )


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>Quota exceeded", b"\x80\x02garbage", bytes(100)]
)
def test_what_is_no_file_of_weights_is_said_to_be_none(tmp_path, content):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable weights file .*Download it again"):
            mt.load_backbone("resnet18", weights=f"file:{tmp_path / name}")


def test_recipes_say_where_they_are_from(tmp_path, resnet):
    torch.save(resnet, tmp_path / "w.pth")
    net = mt.load_backbone("resnet18", weights=f"file:{tmp_path / 'w.pth'}")
    assert net.weights.recipe_from == "assumed, as published with timm's weights of this network"
    net = mt.load_backbone(
        "resnet18", weights=f"file:{tmp_path / 'w.pth'}", recipe=Recipe((0.5,), (0.25,), 224)
    )
    assert (net.weights.recipe_from, net.recipe.std) == ("set by hand", (0.25,) * 3)
    with pytest.raises(WeightsError, match="2 means and 2 deviations for 3 channels"):
        mt.load_backbone("resnet18", recipe=Recipe((0.1, 0.9), (0.2, 0.2), 224))
    assert (
        mt.load_backbone(LITE, weights="imagenet").weights.recipe_from
        == "published with the weights"
    )


def test_other_weights_of_timm_and_their_recipe():
    with pytest.raises(
        WeightsError, match=r"timm publishes no weights 'nope' for resnet18. There are: a1_in1k, "
    ):
        mt.load_backbone("resnet18", weights="timm:nope")
    with pytest.raises(
        WeightsError,
        match=r"no ImageNet weights are published for vit_small_patch14_dinov2. There are: "
        r"timm:lvd142m",
    ):
        mt.load_backbone("vit_small_patch14_dinov2", weights="imagenet")
    with pytest.raises(
        WeightsError, match=r"no ImageNet weights are published for seresnet18\. Choose"
    ):
        mt.load_backbone("seresnet18", weights="imagenet")


def test_the_same_file_under_a_hubs_name_is_found(tmp_path, monkeypatch):
    """What was brought by hand is used without a network, and its recipe is that of the tag."""
    monkeypatch.setenv("MEDTRANSFER_WEIGHTS", str(tmp_path))
    safetensors.torch.save_file(
        timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.a2_in1k.safetensors"
    )
    net = mt.load_backbone("resnet18", weights="timm:a2_in1k")
    assert net.weights.origin == "timm/resnet18.a2_in1k/resnet18.a2_in1k.safetensors"
    assert net.recipe.mean == (0.485, 0.456, 0.406)
    # A planar file serves the network of volumes.
    solid = mt.load_backbone("monai_resnet18", weights="timm:a2_in1k")
    assert solid.weights.changes == ("planar kernels spread over the slices",)
    assert solid.weights.preparations == ("first and last slice continued at the border",)
    (listed,) = (row for row in describe_backbones("resnet18") if row["name"] == "resnet18")
    assert listed["offline"] == ["timm:a2_in1k"]


def test_a_digest_in_a_name_is_checked(tmp_path, resnet):
    torch.save(resnet, tmp_path / "w.pth")
    digest = digest_of(tmp_path / "w.pth")
    right, wrong = tmp_path / f"resnet18-{digest[:8]}.pth", tmp_path / "resnet18-0123abcd.pth"
    for path in (right, wrong):
        path.write_bytes((tmp_path / "w.pth").read_bytes())
    assert mt.load_backbone("resnet18", weights=f"file:{right}").weights.digest == digest
    with pytest.raises(
        WeightsError, match="damaged or changed: its SHA-256 should start with 0123abcd"
    ):
        mt.load_backbone("resnet18", weights=f"file:{wrong}")
