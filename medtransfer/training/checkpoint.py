"""Weights on disk as safetensors, and the state of an unfinished training; written aside and
renamed.
"""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.files import write_aside

# Seconds between two checkpoints: what a killed process loses at the most. Where writing one takes
# long, more.
_EVERY, _SHARE = 30.0, 20.0


def save_weights(
    path: Path, backbone: nn.Module, head: nn.Module, metadata: dict[str, str]
) -> None:
    """Writes backbone and head into one safetensors file, keys `backbone.` and `head.`."""
    tensors = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    tensors |= {f"head.{key}": value for key, value in head.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_aside(path, safetensors.torch.save(tensors, metadata))


def load_weights(path: Path, backbone: nn.Module, head: nn.Module) -> None:
    """Reads what `save_weights` wrote into modules of the same shape.

    Raises:
        WeightsError: a tensor is missing or does not fit.
    """
    tensors = safetensors.torch.load_file(path)
    try:
        for prefix, module in (("backbone.", backbone), ("head.", head)):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
                strict=True,
            )
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: does not fit this backbone and head ({str(error).splitlines()[0]})"
        ) from error


class Checkpoints:
    """The state of one unfinished training.

    Args:
        path: of the file.
        key: digest of all that decides the training; a state with another key is not taken up.
        every: seconds between two states.
        writes: False for a process that trains along with one that writes.
    """

    def __init__(self, path: Path, key: str, every: float = _EVERY, writes: bool = True) -> None:
        self.path, self.key, self.every, self.writes = path, key, every, writes
        self._last, self._cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether the last state is old enough."""
        return time.monotonic() - self._last >= max(self.every, _SHARE * self._cost)

    def save(self, state: dict[str, Any]) -> str:
        """Writes tensors and plain values, with the state of torch's random numbers; "" or why it
        could not.
        """
        begun, problem = time.monotonic(), ""
        if self.writes:
            stream = io.BytesIO()
            random = [
                torch.get_rng_state(),
                *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []),
            ]
            torch.save({"key": self.key, **state, "random": random}, stream)
            try:
                write_aside(self.path, stream.getvalue())
            except OSError as error:
                # A training is worth more than its checkpoint; the last one stays.
                problem = (
                    f"{self.path}: the state of this training cannot be kept ({error.strerror}); "
                    "interrupted, it would begin again"
                )
        self._last = time.monotonic()
        self._cost = self._last - begun
        return problem

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, with torch's random numbers set as they were; None where there
        is none.
        """
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            if state.pop("key") != self.key:
                return None
            first, *others = state.pop("random")
            torch.set_rng_state(first)
            if torch.cuda.is_available() and len(others) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(others)
        except (OSError, KeyError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        return state

    def clear(self) -> None:
        """Removes the state of a training that is finished."""
        self.path.unlink(missing_ok=True)
