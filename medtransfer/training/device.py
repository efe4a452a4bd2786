"""Device, precision and order of memory: what the machine decides, not the study."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.training.process import allow_compilations
from medtransfer.training.settings import Device

Precision = Literal["fp32", "bf16", "fp16"]
MemoryOrder = Literal["contiguous", "channels_last"]
_ACCELERATE_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Engine:
    """A device with a precision and an order of memory.

    Attributes:
        device: where the networks live.
        precision: of the forward pass; losses and logits are float32 always.
        layout: of images and of the weights of convolutions of planes.
        seconds: per step of training by candidate (`bf16 channels_last`) where they were measured,
            else empty.
        share: rank and number of the processes that train one network together.
        compiled: what trains is compiled by torch.
        difference: of what reduced precision gives, or would have given, from fp32; see
            `compare_with_fp32`. Empty where none was tried.
    """

    device: torch.device
    precision: Precision
    layout: MemoryOrder = "channels_last"
    seconds: Mapping[str, float] = field(default_factory=dict)
    share: tuple[int, int] = (0, 1)
    compiled: bool = False
    difference: Mapping[str, float] = field(default_factory=dict)

    def in_fp32(self) -> Engine:
        """The same without reduced precision, as linear probes need it, and without compiling."""
        return replace(self, precision="fp32", compiled=False, difference={})

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(
            self.device.type,
            _REDUCED.get(self.precision, torch.bfloat16),
            enabled=self.precision != "fp32",
        )

    @property
    def memory_format(self) -> torch.memory_format:
        """The order of memory of planes, in torch's words."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def move(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Activations to the device, in its order of memory."""
        return {
            name: x.to(
                self.device,
                non_blocking=True,
                memory_format=self.memory_format if x.ndim == 4 else torch.preserve_format,
            )
            for name, x in features.items()
        }

    def place(self, network: nn.Module) -> nn.Module:
        """A network to the device, in the same order of memory; in place."""
        for tensor in network.parameters():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=self.memory_format)
        return network.to(self.device)

    def make_accelerator(self) -> Accelerator:
        """A new `accelerate` object for one training: scales, clips and steps.

        One per training, as it keeps every optimiser it is given, and the state of its gradient
        scaler.
        """
        AcceleratorState._reset_state(
            self.share[1] == 1
        )  # accelerate keeps one precision per process
        return Accelerator(
            mixed_precision=_ACCELERATE_NAMES[self.precision], cpu=self.device.type == "cpu"
        )

    def compile(self, network: nn.Module) -> Any:
        """The network compiled, where this engine does so; what was compiled of one like it in this
        process is used again.
        """
        if not self.compiled:
            return network
        allow_compilations()
        return torch.compile(network, dynamic=False)

    def distribute(self, network: nn.Module, unread: bool = False) -> nn.Module:
        """The network as each of several processes trains it: gradients are averaged. Itself where
        there is one process.

        `unread`: some of it that trains is read by no head, and has no gradient.
        """
        if self.share[1] == 1 or not any(
            parameter.requires_grad for parameter in network.parameters()
        ):
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        # Batch statistics stay each process's own within an epoch; their mean is taken after it.
        # torch 2.14 renamed the argument.
        arguments = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers"
        name = name if name in arguments else "broadcast_buffers"
        settings: dict[str, Any] = {
            "device_ids": devices,
            name: False,
            "find_unused_parameters": unread,
        }
        return nn.parallel.DistributedDataParallel(network, **settings)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        result: Tensor = values if self.share[1] == 1 else reduce(values, "mean")
        return result

    def any(self, flag: bool) -> bool:
        """Whether any of the processes says so."""
        return (
            flag
            if self.share[1] == 1
            else bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)
        )

    def wait(self) -> None:
        """Until all processes are here."""
        if self.share[1] > 1:
            PartialState().wait_for_everyone()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.share[0] == 0


def refuse_device(device: str) -> None:
    """Refuses a device that is none of `train.device`.

    Raises:
        ConfigError: it is another.
    """
    *others, last = get_args(Device)
    if device not in (*others, last):
        raise ConfigError(f"device is {device!r}. Choose {', '.join(others)} or {last}.")


def uses_cuda(device: str) -> bool:
    """Whether `train.device` means CUDA here."""
    return device != "cpu" and torch.cuda.is_available()


def describe_machine(engine: Engine) -> dict[str, Any]:
    """Device, threads and determinism for `environment.json`."""
    return {
        "device": str(engine.device),
        "device_name": name_of_device(engine.device),
        "threads": torch.get_num_threads(),
        "processes": engine.share[1],
        "precision": engine.precision,
        "layout": engine.layout,
        "compiled": engine.compiled,
        "difference": dict(engine.difference),
        "step_seconds": dict(engine.seconds),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def name_of_device(device: torch.device) -> str:
    """The model of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
