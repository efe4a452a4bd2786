"""Weights as safetensors, and the state of an unfinished training.

Both are written beside their place and then renamed, and verified when they are read.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.files import write_aside
from medtransfer.models.weights.formats import seal_tensors

# Seconds between two checkpoints, the most that a killed process loses; more where writing one
# takes more than a twentieth of that.
_EVERY, _SHARE = 30.0, 20.0
# What a checkpoint begins with; behind it the SHA-256 of the rest.
_MARK = b"medtransfer checkpoint 1\n"


def save_weights(path: Path, backbone: nn.Module, head: nn.Module, metadata: dict[str, str]) -> str:
    """Writes backbone and head into one safetensors file, keys `backbone.` and `head.`.

    Returns:
        The SHA-256 of the file.
    """
    tensors = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    tensors |= {f"head.{key}": value for key, value in head.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    content = safetensors.torch.save(tensors, seal_tensors(tensors, metadata))
    write_aside(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(
    path: Path, backbone: nn.Module, head: nn.Module, digest: str | None = None
) -> None:
    """Reads what `save_weights` wrote into modules of the same shape.

    Args:
        path: of the file.
        backbone: filled in place.
        head: filled in place.
        digest: SHA-256 that the file must have; None skips the check.

    Raises:
        WeightsError: the file is missing, damaged or another one than was written, or a tensor is
            missing or does not fit. The modules are then left as they were, but for the last case.
    """
    remedy = "Remove the folder of this run and train it again, or bring the file back."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise WeightsError(
            f"{path}: damaged or changed: its SHA-256 is not the one that was recorded when it was "
            f"written. {remedy}"
        )
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: damaged ({error}). {remedy}") from error
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
        """Writes tensors and plain values, with the state of torch's random numbers.

        Returns:
            "", or why they could not be written.
        """
        begun, problem = time.monotonic(), ""
        if self.writes:
            stream = io.BytesIO()
            random = [
                torch.get_rng_state(),
                *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []),
            ]
            torch.save({"key": self.key, **state, "random": random}, stream)
            payload = stream.getvalue()
            try:
                write_aside(self.path, _MARK + hashlib.sha256(payload).digest() + payload)
            except OSError as error:
                # A training is worth more than its checkpoint; the last one stays.
                problem = (
                    f"{self.path}: the state of this training cannot be kept ({error.strerror}); "
                    "interrupted, it would begin again"
                )
        self._last = time.monotonic()
        self._cost = self._last - begun
        return problem

    def load(self, say: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
        """The state to go on from, with torch's random numbers set as they were.

        Args:
            say: called with a message where the state is damaged. Such a state is removed, so that
                the user reads of it once.

        Returns:
            None where there is no state, or none of this training.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            say(f"{self.path}: cannot be read ({error.strerror}); this training begins again")
            return None
        state = _unpack(content)
        if state is None:
            say(
                f"{self.path}: the state of the unfinished training is damaged; it is removed, and "
                "this training begins again"
            )
            if self.writes:
                self.clear()
            return None
        if state.pop("key") != self.key:
            return None
        first, *others = state.pop("random")
        torch.set_rng_state(first)
        if torch.cuda.is_available() and len(others) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(others)
        return state

    def clear(self) -> None:
        """Removes the state of a training that is finished."""
        self.path.unlink(missing_ok=True)


def _unpack(content: bytes) -> dict[str, Any] | None:
    """The state in a checkpoint; None unless it is exactly what was written."""
    start = len(_MARK) + hashlib.sha256().digest_size
    payload = content[start:]
    if content[:start] != _MARK + hashlib.sha256(payload).digest():
        return None
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(payload), map_location="cpu", weights_only=True
        )
    # The file is whole, but another version of torch wrote it.
    except (RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, KeyError):
        return None
    return state
