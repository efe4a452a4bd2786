"""How large an image may be on this machine, so that no file, damaged or not, claims more memory
than there is.

A value of a file takes up to 12 bytes while it is read: as stored, as float32, and once more while
it is turned. Images of a cohort are read by one process per processor. A file that unfolds to
hundreds of values per byte is small to keep and to copy, so that many of them can meet: all
processes together must have room for them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil

from medtransfer.errors import ImageError

_BYTES = 12
# Up to this many values a file is taken at its word.
_FREE = 32_000_000
# Values per byte of a file: above the first it unfolds strongly; no codec in use reaches the second
# (deflate shrinks a thousandfold, and a value has at least one bit).
_STRONG = 200
_MOST = 8_800
_CGROUPS = Path("/sys/fs/cgroup")
_SHORTEST = 8
_SLIVER = 50


def refuse_implausible(path: Path, shape: Sequence[int], file_bytes: int) -> None:
    """Refuses a shape before any memory is reserved for it.

    Args:
        path: for the message.
        shape: as the header claims it, all axes.
        file_bytes: size of the (compressed) pixels.

    Raises:
        ImageError: an axis below 1, more values than fit in memory, or more than the file can hold.
    """
    claimed = " x ".join(str(n) for n in shape)
    if not shape or min(shape) < 1:
        raise ImageError(
            f"{path}: the header claims a size of {claimed or 'nothing'}. Export it again."
        )
    values = math.prod(shape)
    if values <= _FREE:
        return
    if values > _MOST * file_bytes:
        raise ImageError(
            f"{path}: the header claims {claimed} values, which {file_bytes} bytes cannot hold. "
            "Export it again."
        )
    strong = values > _STRONG * file_bytes
    most = (
        memory_bytes() // 4 // (os.cpu_count() or 1) if strong else memory_bytes() // 2
    ) // _BYTES
    if values > max(most, _FREE):
        shrunk = (
            f" (of a file that unfolds to {values // max(file_bytes, 1)} values per byte)"
            if strong
            else ""
        )
        raise ImageError(
            f"{path}: its {claimed} values do not fit in memory: reading them needs "
            f"{_gigabytes(values * _BYTES)}; images of up to "
            f"{most / 1e6:,.0f} million values ({_gigabytes(most * _BYTES)}) are read on this "
            f"machine{shrunk}. "
            "Export a smaller part of it, or fewer pixels, or use a machine with more memory."
        )


@cache
def memory_bytes() -> int:
    """Memory that this process may use: that of the machine, or what its container or job is
    granted.
    """
    return min([int(psutil.virtual_memory().total), *_granted()])


def _granted() -> list[int]:
    """The limits of the control groups that hold this process (version 2, then 1), from the
    innermost to the root.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    limits = []
    for line in lines:
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers not in {"", "memory"} and "memory" not in controllers.split(","):
            continue
        root, name = (
            (_CGROUPS, "memory.max")
            if not controllers
            else (_CGROUPS / "memory", "memory.limit_in_bytes")
        )
        parts = Path(group.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            try:
                text = root.joinpath(*parts[:depth], name).read_text().strip()
            except OSError:  # seen from inside a container, outer groups are not there
                continue
            # Version 2 writes "max", version 1 a number beyond all memory where there is no limit.
            if text.isdigit() and int(text) > 0:
                limits.append(int(text))
    return limits


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e10 else f"{count / 1e9:,.0f} GB"


def refuse_slivers(path: Path, space: Sequence[int]) -> None:
    """Refuses what is no picture: a side of a plane below 8 pixels, or 50 times longer than the
    other.

    Args:
        path: for the message.
        space: number of pixels along rows and columns; of a volume, its two longest sides.
    """
    short, long = sorted(space)[-2:]
    shown = " x ".join(str(n) for n in space)
    if short < _SHORTEST:
        raise ImageError(
            f"{path}: has {shown} pixels, and an image needs at least {_SHORTEST} x {_SHORTEST}. "
            "Leave it out."
        )
    if long > _SLIVER * short:
        raise ImageError(
            f"{path}: has {shown} pixels, one side {long / short:.0f} times as long as the other: "
            "a strip and no image, or one saved with "
            f"its axes mixed up. Sides within a factor of {_SLIVER} are read; cut it, or leave it "
            "out."
        )
