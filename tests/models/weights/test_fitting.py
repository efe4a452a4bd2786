"""Tensors of a file fit a network: numbers, channels, sizes, classifiers."""

from __future__ import annotations

import medtransfer as mt
import pytest
import safetensors.torch
import timm
import torch
from medtransfer.errors import WeightsError

from weight_files import FC, A, assert_holds, behind, load, saved

pytestmark = pytest.mark.usefixtures("unproved")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_is_converted(tmp_path, kind):
    tensors = {key: value.to(kind) for key, value in A.items()}  # the counts of batches too
    net = load(saved(tensors, tmp_path / "w.pth"))
    assert_holds(net, tensors)
    assert all(value.dtype == torch.float32 for value in net.network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            "quantised numbers of the kind torch.qint8",
        ),
        (lambda v: v.to_sparse(), r"a sparse tensor \(torch.sparse_coo"),
        (lambda v: v.to(torch.complex64), "numbers of the kind torch.complex64"),
        (lambda v: v.to(torch.int32), "numbers of the kind torch.int32"),
        (lambda v: v.to(torch.float8_e4m3fn), "numbers of the kind torch.float8_e4m3fn"),
        (lambda v: v.to("meta"), "a name and a shape without numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_other_numbers_are_named(tmp_path, change, message):
    key = "conv1.0.weight"
    path = saved(behind("module.", {**A, key: change(A[key])}), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=rf"{key}: {message}.* in the file, torch.float32 in the network"
    ):
        load(path)


def test_tied_and_strided_tensors_are_read(tmp_path):
    tensors = {
        key: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim > 1 else value
        for key, value in A.items()
    }
    tensors |= {
        "tied.weight": tensors["conv1.0.weight"],
        "bn1.weight": torch.ones(1).expand(A["bn1.weight"].shape),
    }
    net = load(saved(tensors, tmp_path / "w.pth"))
    assert_holds(net, tensors)
    assert net.weights.unused == (*FC, "tied.weight")


LITE = "tf_efficientnet_lite0"


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
