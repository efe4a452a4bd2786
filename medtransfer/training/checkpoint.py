"""Weights on disk: safetensors, written aside and renamed."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.evaluation.predictions import write_aside


def save_weights(path: Path, backbone: nn.Module, head: nn.Module, metadata: dict[str, str]) -> None:
    """Writes backbone and head into one safetensors file, keys `backbone.` and `head.`."""
    tensors = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    tensors |= {f"head.{key}": value for key, value in head.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_aside(path, safetensors.torch.save(tensors, metadata))


def load_weights(path: Path, backbone: nn.Module, head: nn.Module) -> None:
    """Reads what `save_weights` wrote into modules of the same shape.

    Raises:
        WeightsError: a tensor is missing or does not fit.
    """
    tensors = safetensors.torch.load_file(path)
    try:
        for prefix, module in (("backbone.", backbone), ("head.", head)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path}: does not fit this backbone and head ({str(error).splitlines()[0]})") from error
