"""Slices of a volume: which ones, and how a network sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.errors import ConfigError, ImageError

Plane = Literal["axial", "coronal", "sagittal"]
# Axis of a volume (channel, x, y, z; towards the patient's right, front and head) that runs across
# the slices.
_ACROSS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Slices:
    """Which slices of a volume are seen.

    Attributes:
        count: how many; shorter volumes are padded, longer ones refused.
        spacing: mm from one to the next, averaged over what lies between; the stack is in the
            middle of the volume. None: spread over the whole volume, but never more than it has.
        plane: of the slices.
    """

    count: int = 24
    spacing: float | None = None
    plane: Plane = "axial"

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ConfigError(f"slices is {self.count!r}; it is a number of slices from 1")
        number = isinstance(self.spacing, (int, float)) and not isinstance(self.spacing, bool)
        if self.spacing is not None and not (number and 0 < self.spacing < math.inf):
            raise ConfigError(f"slice_spacing is {self.spacing!r}; it is a number of mm above 0")
        if self.plane not in get_args(Plane):
            raise ConfigError(f"plane is {self.plane!r}; it is one of {', '.join(get_args(Plane))}")

    @property
    def axis(self) -> int:
        """The axis of space that runs across the slices: 0, 1 or 2."""
        return _ACROSS[self.plane]


def cut(volume: Tensor, plane: Plane, slab: int = 1, present: Tensor | None = None) -> Tensor:
    """A volume (channel, x, y, z) -> its slices as radiologists see them, (slice, channel, row,
    column).

    The head or the front is up, the patient's right (or, from the side, the front) is on the left.

    Args:
        volume: of any range.
        plane: of the slices.
        slab: an odd number of neighbouring slices that become the channels of each (2.5D); at the
            ends the last slice stands in for the neighbour that is missing.
        present: which slices are there, bool (slice,), in one run; the rest only pads. All of them
            where left out.

    Raises:
        ImageError: a slab of a volume that has colour channels already.
    """
    stack = volume.movedim(1 + _ACROSS[plane], 0)
    # What is left of x, y, z: columns run along the first, rows along the second, both from high to
    # low.
    stack = stack.transpose(2, 3).flip(2, 3)
    if slab == 1:
        return stack
    if stack.shape[1] != 1:
        raise ImageError(
            f"a slab of {slab} slices needs grey volumes; these have {stack.shape[1]} channels. "
            "Use one window."
        )
    indices = (
        torch.arange(len(stack))
        if present is None or not present.any()
        else present.nonzero()[:, 0]
    )
    first, last = int(indices[0]), int(indices[-1])
    neighbours = [
        torch.arange(len(stack)).add(step).clamp(first, last)
        for step in range(-(slab // 2), slab // 2 + 1)
    ]
    return torch.cat([stack[index] for index in neighbours], dim=1)


def boxes_of_stack(
    boxes: NDArray[np.float64], shape: Sequence[int], plane: Plane
) -> NDArray[np.float64]:
    """Boxes of a volume -> boxes of its stack of slices, which `cut` gives.

    Args:
        boxes: (..., 6), lower and then upper ends along x, y, z.
        shape: pixels along x, y, z.
        plane: of the slices.

    Returns:
        (..., 6), lower and then upper ends along slices, rows, columns.
    """
    across = _ACROSS[plane]
    columns, rows = (axis for axis in range(3) if axis != across)
    low, high = boxes[..., :3], boxes[..., 3:]
    lower = [low[..., across], shape[rows] - high[..., rows], shape[columns] - high[..., columns]]
    upper = [high[..., across], shape[rows] - low[..., rows], shape[columns] - low[..., columns]]
    return np.stack(lower + upper, -1)


def boxes_of_volume(
    boxes: NDArray[np.float64], shape: Sequence[int], plane: Plane
) -> NDArray[np.float64]:
    """The inverse of `boxes_of_stack`; `shape` is still that along x, y, z."""
    across = _ACROSS[plane]
    columns, rows = (axis for axis in range(3) if axis != across)
    result = np.empty_like(boxes)
    for axis, place, turned in ((across, 0, False), (rows, 1, True), (columns, 2, True)):
        low, high = boxes[..., place], boxes[..., 3 + place]
        result[..., axis], result[..., 3 + axis] = (
            (shape[axis] - high, shape[axis] - low) if turned else (low, high)
        )
    return result


def present_slices(volume: Tensor, plane: Plane) -> Tensor:
    """Which slices of a volume (channel, x, y, z) in 0..1 show anything, bool (slice,): those that
    pad it are 0 throughout.
    """
    return volume.movedim(1 + _ACROSS[plane], 0).flatten(1).amax(1) > 0
