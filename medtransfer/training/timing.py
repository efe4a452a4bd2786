"""The choice of precision, order of memory and compiling: by timing training steps."""

from __future__ import annotations

import copy
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from medtransfer.errors import ConfigError, FileError
from medtransfer.files import digest_of, read_json, write_json
from medtransfer.models.chain.backbone import Backbone
from medtransfer.training.device import Engine, name_of_device, uses_cuda
from medtransfer.training.process import join_processes

# fp32 is taken where it takes at most so many times as long as reduced precision.
_WORTH_IT = 1.05
# A candidate that takes so many times as long as the best one is not timed again.
_HOPELESS = 1.3
_ROUNDS = 3
_COMPILING = "compiling"
# The largest share of a step's time that compiling can save, and the fewest seconds that it takes:
# where these do not fit, it is not tried.
_MOST_SAVED, _LEAST_COMPILING = 0.5, 15.0


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
    state = join_processes(on_cuda)
    where = (
        torch.device("cuda", state[2] % torch.cuda.device_count())
        if on_cuda
        else torch.device("cpu")
    )
    fastest: tuple[str, str] = (
        "fp32" if precision == "auto" else precision,
        "channels_last" if layout == "auto" else layout,
    )
    seconds: dict[str, float] = {}
    if "auto" in {precision, layout} and probe is not None and image is not None:
        precisions = _precisions(where) if precision == "auto" else (precision,)
        layouts = (
            ("channels_last", "contiguous")
            if layout == "auto" and probe.ndim == 2
            else (fastest[1],)
        )
        candidates = [(p, order) for p in precisions for order in layouts]
        seconds = _measured(probe, image, where, candidates, memory)
        fastest = _fastest(candidates, seconds)
    engine = Engine(where, *fastest, seconds, state[:2], compiled is True)  # type: ignore[arg-type]  # validated by the configuration
    trains = probe is not None and any(parameter.requires_grad for parameter in probe.parameters())
    tries = compiled is True or (compiled == "auto" and on_cuda and state[1] == 1)
    if probe is not None and image is not None and trains and tries:
        engine = _compiled(engine, probe, image, memory, steps, compiled is True)
    return engine


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
    engine: Engine, probe: Backbone, image: Tensor, memory: Path | None, steps: int, required: bool
) -> Engine:
    """The engine with what trains compiled, where that is wanted, or saves more over so many steps
    than it takes.
    """
    plain = engine.precision, engine.layout
    fast = (*plain, "compiled")
    seconds = engine.seconds or _measured(probe, image, engine.device, [plain], memory)
    if not required and seconds[" ".join(plain)] * steps * _MOST_SAVED < _LEAST_COMPILING:
        return engine
    try:
        timed = _measured(probe, image, engine.device, [plain, fast], memory)
    # no compiler of C, no Triton, a network it does not know: torch tells it in many types
    except Exception as error:
        if not required:
            return engine
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"train.compile is true, but {probe.name} cannot be compiled here ({reason}). Use auto "
            "or false."
        ) from error
    saved = (timed[" ".join(plain)] - timed[" ".join(fast)]) * steps
    return replace(
        engine, seconds={**timed, **seconds}, compiled=required or saved > timed[_COMPILING]
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
    machine = [name_of_device(device), platform.node(), torch.__version__, torch.get_num_threads()]
    about = [*machine, probe.name, probe.frozen, list(image.shape), candidates]
    key = digest_of(about)[:32]
    measured = _read_measured(memory) if memory is not None else {}
    names = {" ".join(candidate) for candidate in candidates}
    if not names <= set(measured.get(key, {})):
        measured[key] = _time_what_fits(probe, image, device, candidates)
        if memory is not None:
            write_json(memory, {"seconds": measured}, sealed=True)
    seconds = [measured[key]]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        broadcast_object_list(seconds)  # all processes choose alike
    return seconds[0]


def _read_measured(path: Path) -> dict[str, dict[str, float]]:
    """What was measured before, by key; nothing where the file is damaged, or an older one."""
    try:
        measured: dict[str, dict[str, float]] = read_json(path, sealed=True).get("seconds", {})
    except (FileError, FileNotFoundError):
        return {}
    return measured


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
    seconds = time.perf_counter() - begun
    model.zero_grad(set_to_none=True)
    return seconds
