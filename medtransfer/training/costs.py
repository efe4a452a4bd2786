"""What a training costs: memory and energy."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch

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
