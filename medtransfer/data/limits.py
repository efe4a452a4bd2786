"""How large an image may be, so that a small damaged file cannot claim the memory of the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medtransfer.errors import ImageError

# Above this, a file must be large enough to hold what it claims; the strongest codecs shrink about a thousandfold.
_FREE = 32_000_000
_SHRINK = 1_100
_MOST = 1_500_000_000
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
        raise ImageError(f"{path}: the header claims a size of {claimed or 'nothing'}. Export it again.")
    values = math.prod(shape)
    if values > _MOST:
        raise ImageError(f"{path}: {claimed} values do not fit in memory. Export a smaller part of it.")
    if values > _FREE and values > _SHRINK * file_bytes:
        raise ImageError(f"{path}: the header claims {claimed} values, which {file_bytes} bytes cannot hold. Export it again.")


def refuse_slivers(path: Path, space: Sequence[int]) -> None:
    """Refuses what is no picture: a side of a plane below 8 pixels, or 50 times longer than the other.

    Args:
        path: for the message.
        space: number of pixels along rows and columns; of a volume, its two longest sides.
    """
    short, long = sorted(space)[-2:]
    if short < _SHORTEST or long > _SLIVER * short:
        shown = " x ".join(str(n) for n in space)
        raise ImageError(f"{path}: has {shown} pixels; an image needs at least 8 x 8, and sides within a factor of 50.")
