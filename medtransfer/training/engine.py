"""Device, precision and seeds: what the machine decides, not the study."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from medtransfer.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
# Reduced precision must win by this factor. Near-ties would be decided by timing noise, and two runs
# of one study would differ.
_WORTH_IT = 1.3
_ACCELERATE_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Engine:
    """A device with a precision.

    Attributes:
        device: where the networks live.
        precision: of the forward pass; losses and logits are float32 always.
        seconds: per step by precision where it was measured, else empty.
    """

    device: torch.device
    precision: Precision
    seconds: dict[str, float]

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def move(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Activations to the device, in the order of memory that convolutions of planes like best."""
        return {
            name: x.to(self.device, non_blocking=True, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
            for name, x in features.items()
        }

    def place(self, network: nn.Module) -> nn.Module:
        """A network to the device, in the same order of memory; in place."""
        for tensor in network.parameters():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        return network.to(self.device)

    def make_accelerator(self) -> Accelerator:
        """A new `accelerate` object for one training: scales, clips and steps.

        One per training, as it keeps every optimiser it is given, and the state of its gradient scaler.
        """
        AcceleratorState._reset_state(True)  # accelerate keeps one precision per process
        return Accelerator(mixed_precision=_ACCELERATE_NAMES[self.precision], cpu=self.device.type == "cpu")


def make_engine(device: str = "auto", precision: str = "auto", probe: nn.Module | None = None, image: Tensor | None = None) -> Engine:
    """Chooses the device, and the precision by measurement.

    Args:
        device: auto (CUDA where there is one), cpu or cuda.
        precision: auto, fp32, bf16 or fp16. auto times a training step of `probe` on `image` in fp32
            and bf16 and takes bf16 where it is at least 1.3 times as fast.
        probe: a backbone as it will be trained; fp32 is taken where it is missing.
        image: a batch for it (batch, channel, row, column).

    Raises:
        ConfigError: CUDA asked for and absent, or fp16 without CUDA.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("train.device is cuda, but torch sees no CUDA device here. Use auto or cpu.")
    on_cuda = has_cuda and device != "cpu"
    if precision == "fp16" and not on_cuda:
        raise ConfigError("train.precision is fp16, which needs a CUDA device. Use auto, fp32 or bf16.")
    seconds: dict[str, float] = {}
    chosen: Precision = "fp32"
    if precision != "auto":
        chosen = precision  # type: ignore[assignment]  # validated by the configuration
    elif probe is not None and image is not None:
        where = torch.device("cuda" if on_cuda else "cpu")
        seconds = {name: _time_step(probe, image, where, name == "bf16") for name in ("fp32", "bf16")}
        chosen = "bf16" if seconds["fp32"] >= _WORTH_IT * seconds["bf16"] else "fp32"
    return Engine(torch.device("cuda" if on_cuda else "cpu"), chosen, seconds)


def _time_step(probe: nn.Module, image: Tensor, device: torch.device, bf16: bool) -> float:
    """Seconds of the best of two forward and backward passes after a warm-up; gradients are cleared, batch statistics restored."""
    engine = Engine(device, "bf16" if bf16 else "fp32", {})
    model: Any = engine.place(copy.deepcopy(probe)).train()
    batch = engine.move({"image": image})
    last = model.names[-1]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with engine.autocast():
            out = model(batch, [last])[last]
        if out.requires_grad:
            out.float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return min(times[1:])


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch, and asks torch for deterministic algorithms where it has them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  MONAI and others draw from the global generator
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Debugging aid of that mode: fills every new tensor with NaN, which costs a seventh of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in torch's stubs
    torch.backends.cudnn.benchmark = False


def describe_machine(engine: Engine) -> dict[str, Any]:
    """Device, threads and determinism for `environment.json`."""
    name = torch.cuda.get_device_name() if engine.device.type == "cuda" else "cpu"
    return {
        "device": str(engine.device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "precision": engine.precision,
        "step_seconds": engine.seconds,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
