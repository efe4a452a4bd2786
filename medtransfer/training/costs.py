"""What a training costs, memory and energy, and its curves in TensorBoard or MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
import torch

from medtransfer.errors import ConfigError

Track = Literal["tensorboard", "mlflow"]
Log = Callable[[Mapping[str, float], int], None]
_COUNTERS = Path("/sys/class/powercap")


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has held so far, in 2^30 bytes: of the GPU where it trains on
    one, else its resident memory.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**30 if sys.platform == "darwin" else 2**20)


class EnergyMeter:
    """Energy from the counters of the processor packages (RAPL), and of the GPU (NVML, with
    `nvidia-ml-py`).

    These count the whole machine, whoever uses it: an estimate of what a training took where
    nothing else ran.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._begun = self._read()

    def joules(self) -> float | None:
        """Since this was made; None where the machine does not tell."""
        now = self._read()
        # A counter that ran over says nothing.
        spent = [
            now[name] - begun
            for name, begun in self._begun.items()
            if name in now and now[name] >= begun
        ]
        return sum(spent) if spent else None

    def _read(self) -> dict[str, float]:
        counted = {}
        for counter in sorted(_COUNTERS.glob("*-rapl:?/energy_uj")):
            try:
                counted[str(counter)] = int(counter.read_text()) / 1e6
            except (OSError, ValueError):
                continue  # readable for the administrator alone on most machines
        if self.device.type == "cuda":
            try:
                import pynvml

                pynvml.nvmlInit()
                # By its name: NVML counts all GPUs, also those hidden from this process.
                handle = pynvml.nvmlDeviceGetHandleByUUID(
                    f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
                )
                counted["gpu"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            except (
                Exception
            ):  # an extra that is missing, an old driver, a virtual GPU: then it does not tell
                return counted
        return counted


def refuse_missing(track: Track | None) -> None:
    """Before anything is trained.

    Raises:
        ConfigError: what is asked for is not installed.
    """
    if track is not None and find_spec(track) is None:
        raise ConfigError(
            f'train.track: {track} is not installed: pip install "medtransfer[track]".'
        )


@contextmanager
def tracking(track: Track | None, name: str, folder: Path) -> Iterator[Log]:
    """Gives a function that logs the values of an epoch.

    Args:
        track: where; None: nowhere.
        name: of the run.
        folder: of the run. TensorBoard writes into it; MLflow where its own variables
            (`MLFLOW_TRACKING_URI`) say.
    """
    if track is None:
        yield lambda *_: None
        return
    from accelerate.tracking import MLflowTracker, TensorBoardTracker

    tracker = (
        TensorBoardTracker("tensorboard", folder)
        if track == "tensorboard"
        else MLflowTracker("medtransfer", run_name=name)
    )
    tracker.start()
    try:
        yield lambda values, epoch: tracker.log(dict(values), step=epoch)
    finally:
        tracker.finish()
