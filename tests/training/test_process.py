"""What a training asks of its process, and that it is given back."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from types import SimpleNamespace

import medtransfer as mt
import pytest
import torch
from medtransfer.errors import ConfigError
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training.device import Engine
from medtransfer.training.process import (
    join_processes,
    keep_freed_memory,
    threads_of,
    training_settings,
    use_threads,
)
from medtransfer.training.settings import TrainSettings

from forks import PROCESSES
from networks import as_if_pretrained, fit_first_fold


def settings():
    """All of torch's settings that a training may touch."""
    dynamo = torch._dynamo.config
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": [
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ],
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "compilations": getattr(dynamo, "recompile_limit", None) or dynamo.cache_size_limit,
        "default": torch.get_default_dtype(),
    }


@pytest.fixture
def of_a_notebook(monkeypatch):
    """Settings that differ from those of a training in all that it sets."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr("medtransfer.training.process.threads_of", lambda jobs: 3)
    before = settings()
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(2)
    yield settings()
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])
    torch.backends.cudnn.benchmark = before["cudnn"][0]
    torch.set_float32_matmul_precision(before["precision"])
    torch.utils.deterministic.fill_uninitialized_memory = before["filled"]
    torch.set_num_threads(before["threads"])


def test_settings_of_torch_are_given_back(of_a_notebook):
    with training_settings(on_cuda=True, jobs=1):
        inside = settings()
        assert (inside["deterministic"], inside["warn_only"], inside["filled"]) == (
            True,
            True,
            False,
        )
        assert (inside["precision"], inside["threads"]) == ("high", 3)
        assert not inside["cudnn"][0]
        assert inside["workspace"] == ":4096:8"
        Engine(torch.device("cpu"), "fp32", compiled=True).compile(torch.nn.Linear(1, 1))
        assert settings()["compilations"] == 256
        with training_settings(on_cuda=False):
            pass
        assert settings()["precision"] == "high"
    assert settings() == of_a_notebook


def test_settings_of_torch_are_given_back_after_an_error(of_a_notebook):
    with pytest.raises(RuntimeError), training_settings(on_cuda=True, jobs=1):
        raise RuntimeError
    assert settings() == of_a_notebook


def test_a_training_in_a_notebook_leaves_torch_as_it_was(manifest, tmp_path, of_a_notebook):
    path = manifest(patients=12, views=1)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    net = as_if_pretrained()
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net)
    section = TrainSettings(epochs=1, precision="fp32", batch_size=4)
    run = fit_first_fold(cohort, net, plan, tmp_path / "run", section)
    assert run.summary["engine"]["deterministic"] is True
    assert settings() == of_a_notebook


def test_placing_a_network_changes_no_setting(of_a_notebook):
    Engine(torch.device("cpu"), "fp32").place(torch.nn.Linear(1, 1))
    assert settings() == of_a_notebook


def test_threads_are_divided_and_the_environment_is_obeyed(monkeypatch):
    monkeypatch.setattr(
        "medtransfer.training.process.joblib.cpu_count", lambda only_physical_cores: 8
    )
    assert [threads_of(jobs) for jobs in (1, 3, 8, 20)] == [8, 2, 1, 1]
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    use_threads(2)
    assert chosen == [4]


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    keep = keep_freed_memory.__wrapped__  # what is called once
    told = []
    library = SimpleNamespace(mallopt=lambda name, value: told.append((name, value)))
    monkeypatch.setattr("medtransfer.training.process.sys.platform", "linux")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.setattr("medtransfer.training.process.ctypes.CDLL", lambda _: library)
    keep()
    assert told == [(-4, 0), (-1, 2**31 - 1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    monkeypatch.setattr("medtransfer.training.process.ctypes.CDLL", lambda _: SimpleNamespace())
    keep()  # another C library
    monkeypatch.setattr("medtransfer.training.process.ctypes.CDLL", lambda _: library)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    keep()
    monkeypatch.delenv("MALLOC_MMAP_MAX_")
    monkeypatch.setattr("medtransfer.training.process.sys.platform", "darwin")
    keep()
    assert len(told) == 2


def count_new_pages(answer):
    """Answers how many pages of memory the system has to give while tensors are made and freed
    again and again.
    """
    keep_freed_memory()
    torch.ones(2**24).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24).sum()
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.process
@pytest.mark.xdist_group("plain")
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc"
)
def test_freed_memory_is_kept_by_this_c_library():
    """Large blocks come from the heap then, which grows, and not from pages mapped for each."""
    answer = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=count_new_pages, args=(answer,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert (
        answer.get() < 20_000
    )  # of 81,920 pages; one block more may be asked for, as the process was forked


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match="2 processes are to train on this machine, which has 1 GPU"
    ):
        join_processes(on_cuda=True)
