"""Damaged copies of a file, as crashes and faulty disks leave them."""

from __future__ import annotations

import numpy as np


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """A copy that differs: a few bits flipped, a stretch of zeros, an end cut off, or nothing."""
    data = np.frombuffer(content, np.uint8).copy()
    kind = rng.integers(4)
    while data.tobytes() == content:
        if kind == 0:
            places = rng.integers(len(data), size=rng.integers(1, 9))
            data[places] ^= (1 << rng.integers(8, size=len(places))).astype(np.uint8)
        elif kind == 1:
            start = int(rng.integers(len(data)))
            data[start : start + int(rng.integers(1, 4096))] = 0
            kind = 0 if data.tobytes() == content else kind  # there were zeros before
        elif kind == 2:
            data = data[: int(rng.integers(len(data)))]
        else:
            data = data[:0]
    return data.tobytes()
