"""Trained weights are told from random ones."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from medtransfer.models.chain.backbone import Recipe
from medtransfer.models.weights.files import read_tensors
from medtransfer.models.weights.locate import locate
from medtransfer.models.weights.publishers import _from_lite
from skimage.transform import resize

pytestmark = pytest.mark.slow


LITE = "tf_efficientnet_lite0"


def test_a_cat_is_a_cat():
    """The embedded weights, in their own recipe and with their own classifier, know scikit-image's
    pictures.
    """
    net = mt.load_backbone(LITE, weights="imagenet").eval()
    tensors = _from_lite(read_tensors(locate(LITE, "imagenet").path), net.network)
    found = {}
    for name in ("chelsea", "coffee", "rocket"):
        picture = resize(getattr(skimage.data, name)(), (224, 224), anti_aliasing=True)
        x = torch.from_numpy(np.moveaxis(picture, -1, 0)).float()[None]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (net.recipe.mean, net.recipe.std))
        with torch.inference_mode():
            features = net({"image": (x - mean) / std}, [net.names[-1]])[net.names[-1]].mean((2, 3))
        logits = features @ tensors["classifier.weight"].T + tensors["classifier.bias"]
        found[name] = logits.topk(3).indices[0].tolist()
    assert {281, 282, 283, 284, 285} & set(
        found["chelsea"][:1]
    )  # tabby, tiger, Persian, Siamese, Egyptian cat
    assert {504, 967} & set(found["coffee"])  # coffee mug, espresso
    assert {657, 744} & set(found["rocket"])  # missile, projectile


@pytest.mark.parametrize(("number", "digest"), [(0, "57934424"), (1, "77cc7160"), (2, "9656183e")])
def test_the_embedded_files_know_the_pictures(number, digest):
    net = mt.load_backbone(f"tf_efficientnet_lite{number}", weights="imagenet")
    assert net.weights.digest.startswith(digest)
    assert net.weights.proof["known_pictures"] == net.weights.proof["pictures"] == 3
    assert net.weights.trained
    assert net.recipe.mean == net.recipe.std == (0.5, 0.5, 0.5)


def test_without_its_classifier_the_features_are_proof_enough(tmp_path):
    whole = mt.load_backbone(LITE, weights="imagenet").network.state_dict()
    safetensors.torch.save_file(whole, tmp_path / "encoder.safetensors")
    net = mt.load_backbone(
        LITE,
        weights=f"file:{tmp_path / 'encoder.safetensors'}",
        recipe=Recipe((0.5,) * 3, (0.5,) * 3, 224),
    )
    assert net.weights.trained
    assert net.weights.proof["rank"] > 3 * net.weights.proof["rank_random"]
    # The same numbers in another order: every norm has moved, and nothing is known.
    shuffled = {k: v.flatten()[torch.randperm(v.numel())].view(v.shape) for k, v in whole.items()}
    safetensors.torch.save_file(shuffled, tmp_path / "shuffled.safetensors")
    net = mt.load_backbone(LITE, weights=f"file:{tmp_path / 'shuffled.safetensors'}")
    assert net.weights.proof["moved"] > 0.9
    assert not net.weights.trained
    assert "effective rank" in net.weights.proof["sentence"]


def test_trained_means_learnt(tmp_path):
    """Statistics of batch norm move by looking at images; a classifier that knows nothing is no
    proof of training.
    """
    torch.manual_seed(0)
    warmed = timm.create_model("densenet121", num_classes=0)
    with torch.no_grad():
        for _ in range(4):
            warmed.train()(torch.randn(4, 3, 64, 64))
    torch.save(warmed.state_dict(), tmp_path / "warmed.pth")
    assert not mt.load_backbone(
        "densenet121", weights=f"file:{tmp_path / 'warmed.pth'}"
    ).weights.trained
    lite = mt.load_backbone(LITE, weights="imagenet").network.state_dict()
    lite |= {"classifier.weight": torch.randn(1000, 1280), "classifier.bias": torch.randn(1000)}
    torch.save(lite, tmp_path / "w.pth")
    net = mt.load_backbone(LITE, weights=f"file:{tmp_path / 'w.pth'}")
    assert (
        net.weights.proof["sentence"]
        == f"its classifier knows {net.weights.proof['known_pictures']} of 3 test pictures"
    )
    assert not net.weights.trained
    huge = {
        key: value * 1e30 if key == "conv_stem.weight" else value
        for key, value in lite.items()
        if "classifier" not in key
    }
    torch.save(
        {key: -value if key == "bn1.running_var" else value for key, value in huge.items()},
        tmp_path / "huge.pth",
    )
    net = mt.load_backbone(LITE, weights=f"file:{tmp_path / 'huge.pth'}")
    assert (net.weights.trained, net.weights.proof["sentence"]) == (
        False,
        "the features of test pictures are not finite",
    )


@pytest.mark.parametrize("size", [32, 96, 300])
def test_trained_weights_are_recognised_whatever_the_size_of_the_study(size):
    net = mt.load_backbone(LITE, weights="imagenet", size=size)
    assert net.weights.proof["known_pictures"] == 3
    assert net.weights.trained
    odd = mt.load_backbone(LITE, weights="imagenet", size=size, recipe=Recipe((0.1,), (0.9,), 224))
    assert odd.weights.trained
