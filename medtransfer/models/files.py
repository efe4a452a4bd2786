"""Files of weights -> tensors by name. Nothing but tensors is ever unpickled."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from medtransfer.errors import WeightsError

Tensors = dict[str, Tensor]

KERAS = (".h5", ".hdf5")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# torch's hub names files so: the end is the beginning of their SHA-256.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|safetensors)$")


def read_tensors(path: Path) -> Tensors:
    """Reads a state_dict from safetensors, a torch file, or a Keras `.h5`.

    Keras tensors are named `layer/kernel` and so on, and keep Keras's axes.

    Raises:
        WeightsError: no such file, damaged, not what its name says, or not a plain state_dict.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {what}. Give the path of a .safetensors or .pth state_dict.")
    _check_digest_in_name(path)
    if path.suffix in KERAS:
        return _read_keras(path)
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle protocol; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        if isinstance(error, pickle.UnpicklingError) and re.search(r"(?i)unsupported (global|class)|GLOBAL \S+\.\S+", str(error)):
            raise WeightsError(
                f"{path}: holds more than tensors and is refused, as it could run code. Where you trust it, save its tensors alone: "
                "torch.save(model.state_dict(), PATH)."
            ) from error
        raise WeightsError(f"{path}: not a readable weights file ({_begins(path)}). Download it again.") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: not a plain state_dict of tensors. Save `model.state_dict()`.")
    return content


def _begins(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(24)
    return "it is empty" if not size else f"{size} bytes, beginning with {start!r}"


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable weights file ({error}). Download it again.") from error


def digest_of(path: Path) -> str:
    """SHA-256 of the file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_digest_in_name(path: Path) -> None:
    found = DIGEST_IN_NAME.search(path.name)
    # A link in the cache of a hub is named by its target: the digest of the whole file.
    target = path.resolve().name
    known = found.group(1) if found else target if re.fullmatch(r"[0-9a-f]{64}", target) else ""
    if known and not digest_of(path).startswith(known):
        raise WeightsError(f"{path}: damaged or changed: its SHA-256 should start with {known[:16]}, as it is named. Download it again.")


def _read_keras(path: Path) -> Tensors:
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(f"{path}: reading Keras files needs h5py: pip install 'medtransfer[keras]'") from error
    tensors: Tensors = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            # model_weights/conv1_conv/conv1_conv/kernel:0 -> conv1_conv/kernel; DenseNet's layers hold a slash: conv1/bn/gamma.
            parts = [part for part in name.split("/") if part != "model_weights"]
            half = parts[: (len(parts) - 1) // 2]
            layer = half if half and parts[:-1] == half + half else parts[:-1]
            tensors["/".join([*layer, parts[-1].partition(":")[0]])] = torch.from_numpy(np.asarray(item[()]))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except Exception as error:  # a damaged file fails in any way
        raise WeightsError(f"{path}: not a readable Keras .h5 file ({_begins(path)}). Download it again.") from error
    if not tensors:
        raise WeightsError(f"{path}: holds no weights. Download it again.")
    return tensors
