from __future__ import annotations

import pickle

import medtransfer as mt
import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.weights import _embedded_file, _rename_lite, read_tensors
from skimage.transform import resize

LITE = "tf_efficientnet_lite0"


def test_a_cat_is_a_cat():
    """The embedded weights, in their own recipe and with their own classifier, know scikit-image's pictures."""
    net = mt.load_backbone(LITE, weights="imagenet").eval()
    tensors = _rename_lite(read_tensors(_embedded_file(LITE)), net.network)
    found = {}
    for name in ("chelsea", "coffee", "rocket"):
        picture = resize(getattr(skimage.data, name)(), (224, 224), anti_aliasing=True)
        x = torch.from_numpy(np.moveaxis(picture, -1, 0)).float()[None]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (net.recipe.mean, net.recipe.std))
        with torch.inference_mode():
            features = net({"image": (x - mean) / std}, [net.names[-1]])[net.names[-1]].mean((2, 3))
        logits = features @ tensors["classifier.weight"].T + tensors["classifier.bias"]
        found[name] = logits.topk(3).indices[0].tolist()
    assert {281, 282, 283, 284, 285} & set(found["chelsea"][:1])  # tabby, tiger, Persian, Siamese, Egyptian cat
    assert {504, 967} & set(found["coffee"])  # coffee mug, espresso
    assert {657, 744} & set(found["rocket"])  # missile, projectile


def test_embedded_weights_are_recorded_with_digest_and_recipe():
    net = mt.load_backbone(LITE, weights="imagenet")
    assert net.weights.digest.startswith("57934424")
    assert net.weights.unused == ("classifier.bias", "classifier.weight")
    assert net.recipe.mean == net.recipe.std == (0.5, 0.5, 0.5)
    assert mt.load_backbone(LITE).recipe == net.recipe  # the scratch arm sees the same input
    assert (mt.load_backbone(LITE).weights.source, mt.load_backbone(LITE, weights="none").weights.source) == ("none", "none")


@pytest.fixture(scope="module")
def resnet():
    return timm.create_model("resnet18", num_classes=7).state_dict()


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "wrapped"])
def test_a_file_fills_every_tensor(tmp_path, resnet, suffix):
    path = tmp_path / f"w.{'safetensors' if suffix == 'safetensors' else 'pth'}"
    if suffix == "safetensors":
        safetensors.torch.save_file(resnet, path)
    else:
        torch.save({"state_dict": resnet} if suffix == "wrapped" else resnet, path)
    net = mt.load_backbone("resnet18", weights=f"file:{path}")
    for key, value in net.network.state_dict().items():
        assert torch.equal(value, resnet[key]), key
    assert net.weights.unused == ("fc.bias", "fc.weight")
    assert net.weights.origin == path.name
    assert len(net.weights.digest) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "layer3" not in k}, r"layer3.0.bn1.bias: missing"),
        (lambda t: {k.replace("layer", "stage"): v for k, v in t.items()}, "cannot be filled; nothing was loaded"),
        (lambda t: {**t, "conv1.weight": t["conv1.weight"][:, :1]}, r"conv1.weight: shape \(64, 1, 7, 7\) in the file"),
        (lambda t: {**t, "conv1.weight": t["conv1.weight"] * float("nan")}, "conv1.weight: holds NaN"),
        (lambda t: {"a": 1}, "not a plain state_dict"),
        (lambda t: [1, 2], "not a plain state_dict"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, resnet, change, message):
    torch.save(change(dict(resnet)), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        mt.load_backbone("resnet18", weights=f"file:{tmp_path / 'w.pth'}")


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
    with pytest.raises(WeightsError, match="unknown weights 'imagnet': use imagenet, file:PATH or none"):
        mt.load_backbone("resnet18", weights="imagnet")


def test_without_a_network_the_message_says_what_to_bring(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm/resnet18.* cannot be reached.*file:PATH") as caught:
        mt.load_backbone("resnet18", weights="imagenet")
    assert LITE in str(caught.value)
    with pytest.raises(WeightsError, match="publishes no ImageNet weights"):
        mt.load_backbone("seresnet18", weights="imagenet")
