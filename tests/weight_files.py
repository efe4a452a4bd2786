"""Files of weights of the small network, and what it is filled with."""

from __future__ import annotations

import io
from pathlib import Path

import medtransfer as mt
import safetensors.torch
import timm
import torch

from networks import SMALL

FC = ("fc.bias", "fc.weight")


def tensors_of(seed: int) -> dict[str, torch.Tensor]:
    """Random weights, the same for each seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(SMALL).state_dict()


A, B = tensors_of(0), tensors_of(1)


def behind(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with a prefix before their names."""
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def saved(content: object, path: Path) -> Path:
    """The path of a torch file with this content."""
    torch.save(content, path)
    return path


def file_of(kind: str) -> bytes:
    """The weights A as a file of this kind."""
    stream = io.BytesIO()
    if kind == "safetensors":
        return safetensors.torch.save(A)
    torch.save(A, stream, _use_new_zipfile_serialization=kind == "torch")
    return stream.getvalue()


def load(path: Path, network: str = "", name: str = SMALL) -> mt.Backbone:
    """A network filled from a file, of which it takes the network of this name."""
    return mt.load_backbone(name, weights=f"file:{path}{network}")


def assert_holds(net: mt.Backbone, tensors: dict[str, torch.Tensor]) -> None:
    """That a network has these weights."""
    for key, value in net.network.state_dict().items():
        assert torch.equal(value, tensors[key].to(value.dtype)), key
