"""Published formats, written from random weights: what is loaded must compute what the publisher's
network computes.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import h5py
import medtransfer as mt
import numpy as np
import pytest
import torch
import torchvision
from medtransfer.errors import WeightsError
from medtransfer.models.heads.linear import LinearHead
from medtransfer.study.run import describe_backbone
from medtransfer.training.checkpoint import save_weights
from torch import nn

# They share networks and Keras files.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("formats"),
    pytest.mark.usefixtures("unproved"),
]


def randomised(network: nn.Module) -> nn.Module:
    """Statistics and scales of every norm away from 1 and 0, so that a wrong place or epsilon
    shows.
    """
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
            ):
                value.data.uniform_(low, high, generator=generator)
            module.running_var.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@cache
def build(name: str) -> nn.Module:
    options = {"init_weights": True, "aux_logits": True} if name == "inception_v3" else {}
    torch.manual_seed(1)
    return randomised(getattr(torchvision.models, name)(weights=None, **options))


def trunk_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Last activation of a torchvision network, before its pooling, computed by its own modules."""
    found = {}
    if isinstance(network, torchvision.models.DenseNet):
        return torch.relu(network.features(x))
    if isinstance(network, torchvision.models.MobileNetV2):
        return network.features(x)
    if isinstance(network, torchvision.models.SwinTransformer):
        return network.norm(network.features(x))
    handle = network.avgpool.register_forward_pre_hook(
        lambda _, args: found.setdefault("x", args[0])
    )
    network(x)
    handle.remove()
    return found["x"]


TORCHVISION = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "vgg11_bn": "vgg11_bn",
    "inception_v3": "inception_v3",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b5": "efficientnet_b5",
    "efficientnet_v2_s": "efficientnetv2_s",
    "mobilenet_v2": "mobilenetv2_100",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
}


@pytest.mark.parametrize("theirs", TORCHVISION)
def test_torchvision_files_compute_what_torchvision_computes(tmp_path, theirs):
    network = build(theirs)
    tensors = {f"module.{key}": value for key, value in network.state_dict().items()}
    if theirs == "densenet121":  # as published
        tensors = {
            k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v
            for k, v in tensors.items()
        }
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    side = {"inception_v3": 139, "swin_t": 224, "swin_v2_t": 256}.get(theirs, 96)
    ours = mt.load_backbone(
        TORCHVISION[theirs], weights=f"file:{tmp_path / 'w.pth'}", size=side
    ).eval()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    last = [name for name in ours.names if name != "neck"][-1]
    with torch.inference_mode():
        expected, found = trunk_of(network, x), ours({"image": x}, [last])[last]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert any("classifier" in key or "fc" in key or "head" in key for key in ours.weights.unused)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("swin_t", "swin_tiny_patch4_window7_224"), ("swin_v2_t", "swinv2_tiny_window8_256")],
)
def test_torchvisions_swin_at_another_size(tmp_path, theirs, ours):
    torch.save(build(theirs).state_dict(), tmp_path / "w.pth")
    net = mt.load_backbone(ours, weights=f"file:{tmp_path / 'w.pth'}", size=128)
    assert net.exact


def test_mobilenets_of_other_widths_and_older_names(tmp_path):
    """Activations were once counted among the layers of a block: `conv.3` for `conv.1.0`."""
    network = randomised(torchvision.models.mobilenet_v2(weights=None, width_mult=0.5))
    older = {
        "conv.0.0": "conv.0",
        "conv.0.1": "conv.1",
        "conv.1.0": "conv.3",
        "conv.1.1": "conv.4",
        "conv.2": "conv.6",
        "conv.3": "conv.7",
    }
    first = {"conv.0.0": "conv.0", "conv.0.1": "conv.1", "conv.1": "conv.3", "conv.2": "conv.4"}
    tensors = {}
    for key, value in network.state_dict().items():
        names = first if key.startswith("features.1.") else older
        head, layer, tail = (
            key.partition(".conv.")[0],
            ".".join(key.split(".")[2:-1]),
            key.rpartition(".")[2],
        )
        tensors[f"{head}.{names[layer]}.{tail}" if layer in names else key] = value
    for number, content in enumerate((network.state_dict(), tensors)):
        torch.save(content, tmp_path / f"{number}.pth")
        ours = mt.load_backbone(
            "mobilenetv2_050", weights=f"file:{tmp_path / f'{number}.pth'}"
        ).eval()
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            expected, found = (
                network.features(x),
                ours({"image": x}, [ours.names[-1]])[ours.names[-1]],
            )
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(WeightsError, match="of mobilenetv2_100 cannot be filled"):
        mt.load_backbone("mobilenetv2_100", weights=f"file:{tmp_path / '0.pth'}")


def test_torchvisions_padding_is_not_tensorflows(tmp_path):
    torch.save(build("efficientnet_b0").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match="pads evenly; tf_efficientnet_b0 pads as TensorFlow does. Use efficientnet_b0",
    ):
        mt.load_backbone("tf_efficientnet_b0", weights=f"file:{tmp_path / 'w.pth'}")


def radimagenet_tensors(
    name: str, numbering: str = "with pools"
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    network = build(
        {"resnet50": "resnet50", "densenet121": "densenet121", "inception_v3": "inception_v3"}[name]
    )
    children = list(network.children())
    if name == "inception_v3":
        children = [
            c
            for c in children
            if type(c).__name__ not in {"AdaptiveAvgPool2d", "Dropout", "Linear"}
        ]
        if numbering == "without pools":
            children = [c for c in children if not isinstance(c, nn.MaxPool2d)]
        if numbering != "with auxiliary":
            children = [c for c in children if type(c).__name__ != "InceptionAux"]
    else:
        children = children[:-2] if name == "resnet50" else children[:-1]
    return network, {
        f"backbone.{key}": value for key, value in nn.Sequential(*children).state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "numbering"),
    [
        ("resnet50", ""),
        ("densenet121", ""),
        ("inception_v3", "with pools"),
        ("inception_v3", "without pools"),
        ("inception_v3", "with auxiliary"),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
def test_radimagenet_round_trip(tmp_path, monkeypatch, name, numbering, counted):
    network, tensors = radimagenet_tensors(name, numbering)
    if name == "resnet50" and counted:
        assert len(tensors) == 318
    if not counted:  # num_batches_tracked is not in every file
        tensors = {
            key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")
        }
    file = {
        "resnet50": "ResNet50.pt",
        "densenet121": "DenseNet121.pt",
        "inception_v3": "InceptionV3.pt",
    }[name]
    torch.save(tensors, tmp_path / file)
    ours = mt.load_backbone(name, weights=f"radimagenet:{tmp_path / file}", size=139).eval()
    assert ours.recipe.mean == ours.recipe.std == (0.5, 0.5, 0.5)
    assert ours.weights.origin == file
    assert len(ours.weights.digest) == 64
    assert bool(ours.weights.unused) == (numbering == "with auxiliary")
    x = torch.randn(2, 3, 139, 139, generator=torch.Generator().manual_seed(2))
    last = ours.names[-1]
    with torch.inference_mode():
        expected, found = trunk_of(network, x), ours({"image": x}, [last])[last]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    if not counted:
        return
    # Under the hub's name, in the folder for what was brought by hand.
    monkeypatch.setenv("MEDTRANSFER_WEIGHTS", str(tmp_path))
    again = mt.load_backbone(name, weights="radimagenet", size=139)
    assert again.weights.digest == ours.weights.digest
    assert again.weights.origin == f"Lab-Rasool/RadImageNet/{file}"


def test_radimagenet_into_the_wrong_network_is_refused(tmp_path):
    _, tensors = radimagenet_tensors("resnet50")
    torch.save(tensors, tmp_path / "ResNet50.pt")
    for name in ("densenet121", "inception_v3"):
        with pytest.raises(
            WeightsError,
            match=rf"of {name} cannot be filled; nothing was loaded(.|\n)*Check that it belongs",
        ):
            mt.load_backbone(name, weights=f"radimagenet:{tmp_path / 'ResNet50.pt'}")
    with pytest.raises(
        WeightsError,
        match="RadImageNet is published for resnet50, densenet121, inception_v3, not for resnet18",
    ):
        mt.load_backbone("resnet18", weights="radimagenet")
    with pytest.raises(
        WeightsError, match=r"terms of the RadImageNet project \(doi:10.1148/ryai.210315\)"
    ):
        mt.load_backbone("resnet50", weights="radimagenet")


def partial_inception(tensors):
    return {key: value for key, value in tensors.items() if not key.startswith("backbone.9.")}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "resnet50",
            lambda t: {k.replace("backbone.5.", "backbone.15."): v for k, v in t.items()},
            "layer2.0.bn1.bias: missing",
        ),
        (
            "resnet50",
            lambda t: {
                k: v * float("nan") if k == "backbone.0.weight" else v for k, v in t.items()
            },
            "holds NaN",
        ),
        ("inception_v3", partial_inception, "missing in the file"),
        ("densenet121", lambda t: dict(list(t.items())[:-4]), "features.norm5"),
    ],
)
def test_a_changed_file_is_refused_with_the_reason(tmp_path, name, change, message):
    _, tensors = radimagenet_tensors(name)
    torch.save(change(tensors), tmp_path / "changed.pt")
    with pytest.raises(WeightsError, match=message):
        mt.load_backbone(name, weights=f"radimagenet:{tmp_path / 'changed.pt'}")


def test_a_truncated_file_is_refused(tmp_path):
    _, tensors = radimagenet_tensors("resnet50")
    path = tmp_path / "ResNet50.pt"
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="not a readable weights file.*Download it again"):
        mt.load_backbone("resnet50", weights=f"radimagenet:{path}")


KERAS = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import h5py, keras, numpy as np
from keras.src.legacy.saving import legacy_h5_format
for name in ("ResNet50", "DenseNet121"):
    file = f"{sys.argv[1]}/RadImageNet-{name}_notop"
    rng = np.random.default_rng(4)
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(96, 96, 3))
    for layer in model.layers:
        values = layer.get_weights()
        if len(values) == 4:  # gamma, beta, mean, variance
            spans = ((0.5, 1.5), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5))
            layer.set_weights([rng.uniform(*span, v.shape) for span, v in zip(spans, values)])
        elif len(values) == 2:  # a bias that is not 0
            layer.set_weights([values[0], rng.uniform(-0.5, 0.5, values[1].shape)])
    with h5py.File(file + ".h5", "w") as stream:
        legacy_h5_format.save_weights_to_hdf5_group(stream, model)
    image = rng.normal(size=(2, 96, 96, 3)).astype("float32")
    np.savez(file + ".npz", image=image, features=np.asarray(model.predict(image, verbose=0)))
"""  # noqa: E501


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    command = [sys.executable, "-W", "ignore", "-c", KERAS, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(params=["ResNet50", "DenseNet121"])
def keras_file(request, keras_files) -> tuple[str, Path]:
    return request.param.lower(), keras_files / f"RadImageNet-{request.param}_notop"


def test_keras_files_compute_what_keras_computes(keras_file):
    name, stem = keras_file
    ours = mt.load_backbone(name, weights=f"radimagenet:{stem}.h5").eval()
    content = np.load(f"{stem}.npz")
    last = ours.names[-1]
    with torch.inference_mode():
        found = (
            ours({"image": torch.from_numpy(content["image"]).permute(0, 3, 1, 2)}, [last])[last]
            .permute(0, 2, 3, 1)
            .numpy()
        )
    assert found.shape == content["features"].shape
    assert np.abs(found - content["features"]).max() <= 1e-5 * np.abs(content["features"]).max()
    assert ours.weights.unused == ()
    assert ("biases folded into batch norm" in ours.weights.changes) == (name == "resnet50")
    assert ours.exact
    with pytest.raises(WeightsError, match="Keras files are read as RadImageNet's"):
        mt.load_backbone(name, weights=f"file:{stem}.h5")


def test_a_model_trained_from_a_keras_file_stays_as_keras_has_it(keras_file, tmp_path):
    """Strides and epsilon are of the network, not of its tensors: the next study in the sequence
    must have them too.
    """
    name, stem = keras_file
    first = mt.load_backbone(name, weights=f"radimagenet:{stem}.h5").eval()
    (tmp_path / "run").mkdir()
    save_weights(
        tmp_path / "run" / "weights.safetensors",
        first,
        LinearHead(first.stages[-1], 1),
        {**describe_backbone(first), "tap": "x"},
    )
    again = mt.load_backbone(name, weights=f"study:{tmp_path / 'run'}").eval()
    assert again.weights.preparations == first.weights.preparations
    assert again.recipe == first.recipe
    x = torch.randn(1, 3, 96, 96)
    last = first.names[-1]
    with torch.inference_mode():
        assert torch.equal(first({"image": x}, [last])[last], again({"image": x}, [last])[last])
    with pytest.raises(WeightsError, match="is a model trained here. Give weights: study:"):
        mt.load_backbone(name, weights=f"file:{tmp_path / 'run' / 'weights.safetensors'}")


def test_keras_2_names_its_groups_with_slashes(keras_file, tmp_path):
    """`conv1/conv/conv1/conv/kernel:0`: DenseNet as the published files have it."""
    name, stem = keras_file
    path = tmp_path / "old.h5"
    with h5py.File(f"{stem}.h5") as new, h5py.File(path, "w") as old:
        for layer, group in new.items():
            for dataset in group.get(layer, {}).values() if isinstance(group, h5py.Group) else []:
                slashed = (
                    layer.replace("conv1_", "conv1/")
                    if name == "densenet121" and layer in {"conv1_conv", "conv1_bn"}
                    else layer
                )
                old[
                    f"{slashed}/{slashed}/{dataset.name.rpartition('/')[2].partition(':')[0]}:0"
                ] = dataset[()]
    again = mt.load_backbone(name, weights=f"radimagenet:{path}")
    first = mt.load_backbone(name, weights=f"radimagenet:{stem}.h5")
    for key, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_a_keras_file_of_another_network_is_refused(keras_file, tmp_path):
    name, stem = keras_file
    other = "densenet121" if name == "resnet50" else "resnet50"
    with pytest.raises(WeightsError, match="cannot be filled; nothing was loaded"):
        mt.load_backbone(other, weights=f"radimagenet:{stem}.h5")
    (tmp_path / "cut.h5").write_bytes(Path(f"{stem}.h5").read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"not a readable Keras .h5 file|holds no weights"):
        mt.load_backbone(name, weights=f"radimagenet:{tmp_path / 'cut.h5'}")


def test_without_h5py_the_message_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"pip install 'medtransfer\[keras\]'"):
        mt.load_backbone("resnet50", weights=f"radimagenet:{tmp_path / 'a.h5'}")
