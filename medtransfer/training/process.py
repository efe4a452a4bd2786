"""What a training asks of its process: threads, seeds, deterministic algorithms, and the memory
that the C library keeps.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import joblib
import numpy as np
import torch
from accelerate.state import PartialState

from medtransfer.errors import ConfigError

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# Every depth of every architecture is compiled once; beyond its limit torch would silently stop.
_MOST_COMPILATIONS = 256
# Settings of torch's compiler, while ours are in their place: module, name and value.
_of_compiler: list[tuple[Any, str, Any]] = []


@contextmanager
def training_settings(on_cuda: bool, jobs: int | None = None) -> Iterator[None]:
    """Settings of torch under which networks train; afterwards they are as they were before.

    Algorithms are deterministic where torch has such, and matrices on CUDA are multiplied in TF32.

    Args:
        on_cuda: whether networks train on CUDA.
        jobs: processes that divide the cores of this machine, see `use_threads`; None leaves the
            number of threads as it is.
    """
    deterministic = torch.utils.deterministic
    # Not `use_deterministic_algorithms`, which imports the compiler, a second before the first
    # image; `allow_compilations` sets what else it does.
    algorithms = torch.get_deterministic_debug_mode()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # not in its stubs
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    threads, workspace = torch.get_num_threads(), os.environ.get(_CUBLAS)
    try:
        if jobs is not None:
            use_threads(jobs)
        os.environ.setdefault(_CUBLAS, ":4096:8")
        torch.set_deterministic_debug_mode("warn")
        # Debugging aid of that mode: fills every new tensor with NaN, which costs a seventh of a
        # training step.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as above
        # It chooses among algorithms by timing; two runs of one seed would differ.
        torch.backends.cudnn.benchmark = False
        if on_cuda:
            torch.set_float32_matmul_precision("high")  # convolutions use TF32 by default
        yield
    finally:
        torch.set_deterministic_debug_mode(algorithms)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]  # as above
        torch.backends.cudnn.benchmark = benchmark
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        while _of_compiler:
            setattr(*_of_compiler.pop())


def allow_compilations() -> None:
    """Lets torch compile all networks of a study, to deterministic code; `training_settings` sets
    both back.
    """
    if _of_compiler:
        return
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    limit = next(name for name in ("recompile_limit", "cache_size_limit") if hasattr(dynamo, name))
    wanted = [(dynamo, limit, _MOST_COMPILATIONS), (inductor, "deterministic", True)]
    for module, name, value in wanted:
        if hasattr(module, name):
            _of_compiler.append((module, name, getattr(module, name)))
            setattr(module, name, value)


@cache
def keep_freed_memory() -> None:
    """Has glibc keep large blocks of memory that are freed; `MALLOC_MMAP_MAX_` in the environment
    takes precedence.

    By default every large tensor is mapped anew, and the system fills its pages with zeros: a fifth
    to a third of a training step. This cannot be undone, so it is for processes of our own: the
    command line and the workers of a study.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_MAX_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def use_threads(jobs: int = 1) -> None:
    """Divides the physical cores that this process may use, within the limits of a container, among
    jobs; `OMP_NUM_THREADS` in the environment takes precedence.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(jobs))


def threads_of(jobs: int) -> int:
    """Threads of each of so many jobs."""
    return max(1, int(joblib.cpu_count(only_physical_cores=True)) // max(1, jobs))


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def join_processes(on_cuda: bool) -> tuple[int, int, int]:
    """Rank, number of processes and local rank where `torchrun` or `accelerate launch` started
    several; else 0, 1 and 0.

    Raises:
        ConfigError: more processes on this machine than it has GPUs: they would wait for each other
            for ever.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1, 0
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if on_cuda and local > count:
        raise ConfigError(
            f"{local} processes are to train on this machine, which has {count} GPU. Start "
            f"{count}, or set train.device=cpu."
        )
    # The first process decodes a whole cohort while the others wait.
    state = PartialState(cpu=not on_cuda, timeout=timedelta(hours=12))
    return state.process_index, state.num_processes, state.local_process_index
