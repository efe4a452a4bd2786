"""Device, precision, order of memory, threads and seeds: what the machine decides, not the
study.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import inspect
import json
import os
import platform
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.files import write_aside
from medtransfer.models.chain.backbone import Backbone

Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["contiguous", "channels_last"]
# Times as long that fp32 may take as reduced precision before it is given up.
_WORTH_IT = 1.05
# A candidate that takes so many times as long as the best one is not timed again.
_HOPELESS = 1.3
_ROUNDS = 3
_COMPILING = "compiling"
# Share of a step's time that compiling saves at the best, and seconds that it takes at the least:
# where these do not fit, it is not tried.
_MOST_SAVED, _LEAST_COMPILING = 0.5, 15.0
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
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
    layout: Layout = "channels_last"
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
        settle_process(self.device.type == "cuda")  # here, as every process that computes comes by
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
        # Every depth of every architecture is one more; beyond the limit torch would silently not
        # compile.
        dynamo = torch._dynamo.config
        setattr(
            dynamo,
            next(name for name in ("recompile_limit", "cache_size_limit") if hasattr(dynamo, name)),
            256,
        )
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
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
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


def make_engine(
    device: str = "auto",
    precision: str = "auto",
    probe: Backbone | None = None,
    image: Tensor | None = None,
    layout: str = "auto",
    memory: Path | None = None,
    compiled: bool | Literal["auto"] = "auto",
    steps: int = 0,
) -> Engine:
    """Chooses the device, and by measurement precision, order of memory, and whether what trains is
    compiled.

    Args:
        device: auto (CUDA where there is one), cpu or cuda.
        precision: auto, fp32, bf16 or fp16. auto times training steps of `probe` on `image` in fp32
            and in bf16 (fp16 on a GPU without bf16), and takes the fastest; fp32 where it is within
            5 % of it.
        probe: a backbone, frozen as it will be trained; where it is missing, auto is fp32 and
            channels_last.
        image: a batch for it (batch, channel, *space).
        layout: auto, contiguous or channels_last.
        memory: file in which measurements of this machine are kept; None: of none.
        compiled: auto: on CUDA, in a process that trains alone, where it saves more time than it
            takes.
        steps: that one process trains with what is compiled once.

    Raises:
        ConfigError: CUDA asked for and absent, fp16 without CUDA, or compiling asked for where it
            fails.
    """
    on_cuda = uses_cuda(device)
    if device == "cuda" and not on_cuda:
        raise ConfigError(
            "train.device is cuda, but torch sees no CUDA device here. Use auto or cpu."
        )
    if precision == "fp16" and not on_cuda:
        raise ConfigError(
            "train.precision is fp16, which needs a CUDA device. Use auto, fp32 or bf16."
        )
    settle_process(on_cuda)
    state = join_processes(on_cuda)
    where = (
        torch.device("cuda", state[2] % torch.cuda.device_count())
        if on_cuda
        else torch.device("cpu")
    )
    chosen: tuple[str, str] = (
        "fp32" if precision == "auto" else precision,
        "channels_last" if layout == "auto" else layout,
    )
    seconds: dict[str, float] = {}
    if "auto" in {precision, layout} and probe is not None and image is not None:
        precisions = _precisions(where) if precision == "auto" else (precision,)
        layouts = (
            ("channels_last", "contiguous")
            if layout == "auto" and probe.ndim == 2
            else (chosen[1],)
        )
        candidates = [(p, order) for p in precisions for order in layouts]
        seconds = _measured(probe, image, where, candidates, memory)
        chosen = _fastest(candidates, seconds)
    engine = Engine(where, *chosen, seconds, state[:2], compiled is True)  # type: ignore[arg-type]  # validated by the configuration
    trains = probe is not None and any(parameter.requires_grad for parameter in probe.parameters())
    tries = compiled is True or (compiled == "auto" and on_cuda and state[1] == 1)
    if probe is not None and image is not None and trains and tries:
        engine = _compiled(engine, probe, image, memory, steps, compiled is True)
    return engine


def uses_cuda(device: str) -> bool:
    """Whether `train.device` means CUDA here."""
    return device != "cpu" and torch.cuda.is_available()


def join_processes(on_cuda: bool) -> tuple[int, int, int]:
    """Rank, number and local rank where this is one of several processes of `torchrun` or
    `accelerate launch`.

    Raises:
        ConfigError: of those on this machine, more than it has GPUs: they would wait for each other
            for ever.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1, 0
    here, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if on_cuda and here > count:
        raise ConfigError(
            f"{here} processes are to train on this machine, which has {count} GPU. Start "
            f"{count}, or set train.device=cpu."
        )
    # The first one decodes a whole cohort while the others wait.
    state = PartialState(cpu=not on_cuda, timeout=timedelta(hours=12))
    return state.process_index, state.num_processes, state.local_process_index


def _precisions(device: torch.device) -> tuple[str, ...]:
    if device.type == "cpu":
        return ("fp32", "bf16")
    # Where there is bf16, fp16 is no faster, and overflows.
    return (
        ("fp32", "bf16")
        if torch.cuda.is_bf16_supported(including_emulation=False)
        else ("fp32", "fp16")
    )


def _fastest(candidates: list[tuple[str, str]], seconds: Mapping[str, float]) -> tuple[str, str]:
    """The fastest; where fp32 is nearly as fast, the fastest in fp32."""
    timed = [pair for pair in candidates if " ".join(pair) in seconds]
    best = min(timed, key=lambda pair: seconds[" ".join(pair)])
    plain = min(
        (pair for pair in timed if pair[0] == "fp32"),
        key=lambda pair: seconds[" ".join(pair)],
        default=best,
    )
    return plain if seconds[" ".join(plain)] <= _WORTH_IT * seconds[" ".join(best)] else best


def _compiled(
    engine: Engine, probe: Backbone, image: Tensor, memory: Path | None, steps: int, wanted: bool
) -> Engine:
    """The engine with what trains compiled, where that is wanted, or saves more over so many steps
    than it takes.
    """
    plain = engine.precision, engine.layout
    fast = (*plain, "compiled")
    seconds = engine.seconds or _measured(probe, image, engine.device, [plain], memory)
    if not wanted and seconds[" ".join(plain)] * steps * _MOST_SAVED < _LEAST_COMPILING:
        return engine
    try:
        found = _measured(probe, image, engine.device, [plain, fast], memory)
    # no compiler of C, no Triton, a network it does not know: torch tells it in many types
    except Exception as error:
        if not wanted:
            return engine
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"train.compile is true, but {probe.name} cannot be compiled here ({said}). Use auto "
            "or false."
        ) from error
    saved = (found[" ".join(plain)] - found[" ".join(fast)]) * steps
    return replace(
        engine, seconds={**found, **seconds}, compiled=wanted or saved > found[_COMPILING]
    )


def _measured(
    probe: Backbone,
    image: Tensor,
    device: torch.device,
    candidates: Sequence[tuple[str, ...]],
    memory: Path | None,
) -> dict[str, float]:
    """Seconds per step, from what was measured on this machine before or anew; see
    `_time_steps`.
    """
    machine = [_name_of(device), platform.node(), torch.__version__, torch.get_num_threads()]
    about = [*machine, probe.name, probe.frozen, list(image.shape), candidates]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    try:
        known = dict(json.loads(memory.read_text(encoding="utf-8"))) if memory is not None else {}
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = _time_what_fits(probe, image, device, candidates)
        if memory is not None:
            write_aside(memory, json.dumps(known))
    seconds = [{str(name): float(value) for name, value in known[key].items()}]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        broadcast_object_list(seconds)  # all processes choose alike
    return seconds[0]


def _time_what_fits(
    probe: Backbone, image: Tensor, device: torch.device, candidates: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """Of as many of the images as the memory holds; what was taken of a GPU is given back to other
    processes.
    """
    try:
        return _time_steps(probe, image, device, candidates)
    except torch.OutOfMemoryError:
        if len(image) == 1:
            raise
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return _time_what_fits(probe, image[: len(image) // 2], device, candidates)


def _time_steps(
    probe: Backbone, image: Tensor, device: torch.device, candidates: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """Best of a few training steps after a warm-up, in turns, so that a busy moment hits all
    candidates alike.

    Args:
        probe, image, device: see `make_engine`.
        candidates: precision, order of memory, and `compiled` where it is; the compiling itself is
            told beside them.
    """
    models: dict[str, Any] = {}
    for precision, layout, *rest in candidates:
        engine = Engine(device, precision, layout, compiled=bool(rest))  # type: ignore[arg-type]  # of the lists above
        model = engine.place(copy.deepcopy(probe)).train()
        models[" ".join((precision, layout, *rest))] = (
            engine,
            engine.compile(model),
            probe.names[-1],
            engine.move({"image": image}),
        )
    seconds: dict[str, float] = {}
    first = {name: _time_step(*parts) for name, parts in models.items()}
    compiling = sum(taken for name, taken in first.items() if models[name][0].compiled)
    for _ in range(_ROUNDS):
        limit = _HOPELESS * min(seconds.values(), default=float("inf"))
        for name, parts in models.items():
            if seconds.get(name, 0.0) <= limit:
                seconds[name] = min(_time_step(*parts), seconds.get(name, float("inf")))
    return {**seconds, _COMPILING: compiling} if compiling else seconds


def _time_step(engine: Engine, model: Any, last: str, batch: dict[str, Tensor]) -> float:
    begun = time.perf_counter()
    with engine.autocast():
        out = model(batch, [last])[last]
    if out.requires_grad:
        out.float().mean().backward()
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - begun
    model.zero_grad(set_to_none=True)
    return taken


def use_threads(jobs: int = 1) -> None:
    """Divides the cores that this process may use, physical ones and within the limits of a
    container, among jobs.

    What the environment says (OMP_NUM_THREADS) stays.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(jobs))


@cache
def settle_process(on_cuda: bool) -> None:
    """What holds for all that a process computes: deterministic algorithms where torch has them,
    TF32 on CUDA, freed memory kept.
    """
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Debugging aid of that mode: fills every new tensor with NaN, which costs a seventh of a
    # training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in torch's stubs
    # Its choice among algorithms is one of timing; two runs of one seed would differ.
    torch.backends.cudnn.benchmark = False
    if on_cuda:
        torch.set_float32_matmul_precision("high")  # of convolutions TF32 is torch's own choice


@cache
def keep_freed_memory() -> None:
    """Has the C library keep large blocks that are freed, where it is glibc; what the environment
    says (MALLOC_MMAP_MAX_) stays.

    By default every large tensor is mapped anew, and the system fills its pages with zeros: a fifth
    to a third of a training step.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_MAX_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def threads_of(jobs: int) -> int:
    """Threads of each of so many jobs."""
    return max(1, int(joblib.cpu_count(only_physical_cores=True)) // max(1, jobs))


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def describe_machine(engine: Engine) -> dict[str, Any]:
    """Device, threads and determinism for `environment.json`."""
    return {
        "device": str(engine.device),
        "device_name": _name_of(engine.device),
        "threads": torch.get_num_threads(),
        "processes": engine.share[1],
        "precision": engine.precision,
        "layout": engine.layout,
        "compiled": engine.compiled,
        "difference": dict(engine.difference),
        "step_seconds": dict(engine.seconds),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
