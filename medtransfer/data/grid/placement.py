"""Where the pixels of an image go on the grid of the network, and back. Boxes and masks go with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medtransfer.errors import ImageError

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """A resampling followed by a padding, along each axis of space.

    Pixel edges count: an image of n pixels spans 0..n, so that edge c of the source lies at
    `c * resized / shape + before` on the grid.

    Attributes:
        shape: pixels of the source.
        resized: pixels after resampling.
        before: pixels of padding in front.
        size: pixels of the grid.
    """

    shape: tuple[int, ...]
    resized: tuple[int, ...]
    before: tuple[int, ...]
    size: tuple[int, ...]

    def place(self, image: Tensor, smooth: bool = True) -> Tensor:
        """Tensor (channel, *shape) -> (channel, *size), padded with 0.

        Args:
            image: an image, or a mask.
            smooth: linear with an anti-aliasing filter; False for masks: nearest, values kept.
        """
        image = torch.as_tensor(image)
        if self.resized != self.shape:
            image = (
                _smooth_resize(image, self.resized)
                if smooth
                else _nearest_resize(image, self.resized)
            )
        padding = [
            p
            for b, r, n in zip(self.before, self.resized, self.size, strict=True)
            for p in (n - b - r, b)
        ][::-1]
        return functional.pad(image, padding)

    def place_boxes(self, boxes: Float) -> Float:
        """Boxes of the source -> boxes on the grid.

        Args:
            boxes: (box, 4) x0, y0, x1, y1 with x along columns and y along rows; (box, 6) x0, y0,
                x1, y1, z0, z1 along the axes of a volume. Pixel edges, upper ends exclusive.
        """
        scale, offset = self._per_column()
        return np.asarray(boxes, dtype=float) * scale + offset

    def return_boxes(self, boxes: Float) -> Float:
        """Boxes on the grid -> boxes of the source, clipped to it."""
        scale, offset = self._per_column()
        moved = (np.asarray(boxes, dtype=float) - offset) / scale
        return np.clip(moved, 0.0, _columns(self.shape))

    def return_mask(self, mask: Tensor, smooth: bool = False) -> Tensor:
        """Tensor (channel, *size) -> (channel, *shape): a mask, or with `smooth` a map of
        probabilities.
        """
        inner = mask[
            (
                slice(None),
                *(slice(b, b + r) for b, r in zip(self.before, self.resized, strict=True)),
            )
        ]
        back = Placement(self.resized, self.shape, (0,) * len(self.shape), self.shape)
        return back.place(inner, smooth)

    def _per_column(self) -> tuple[Float, Float]:
        return _columns(self.resized) / _columns(self.shape), _columns(self.before)


def place(
    shape: Sequence[int],
    spacing: Sequence[float],
    size: int | Sequence[int],
    target: float | Sequence[float | None] | None,
    where: str,
    across: int | None = None,
) -> Placement:
    """The placement of an image.

    Args:
        shape: pixels along each axis of space.
        spacing: mm along each axis.
        size: pixels of the grid, one number for all axes or one each.
        target: mm of the grid along each axis. None, for all or for some: the longest of these
            sides, in mm, fills the grid, and their aspect in mm is kept.
        where: the file, for messages.
        across: axis that runs across slices; without a target it is spread over the grid for
            itself, never magnified.

    Raises:
        ImageError: larger than the grid at the target spacing, or a target for another number of
            axes.
    """
    dimensions = len(shape)
    grid = _each(size, dimensions, where, "image.size")
    wanted = (
        [None] * dimensions if target is None else _each(target, dimensions, where, "image.spacing")
    )
    extent = [n * mm for n, mm in zip(shape, spacing, strict=True)]
    filling = [axis for axis in range(dimensions) if wanted[axis] is None and axis != across]
    factor = min((grid[axis] / extent[axis] for axis in filling), default=1.0)
    resized = []
    for axis, to in enumerate(wanted):
        room = int(grid[axis])
        if to is not None:
            resized.append(max(1, round(extent[axis] / to)))
        else:
            resized.append(
                min(room, shape[axis])
                if axis == across
                else min(room, max(1, round(extent[axis] * factor)))
            )
    if across is not None and resized[across] > grid[across]:
        raise ImageError(
            f"{where}: has {resized[across]} slices {wanted[across]:g} mm apart, more than "
            f"image.slices {int(grid[across])}. "
            "Raise image.slices or image.slice_spacing."
        )
    if across is not None and resized[across] == 1 < shape[across] and wanted[across] is not None:
        raise ImageError(
            f"{where}: is {extent[across]:.0f} mm thick, one slice at image.slice_spacing "
            f"{wanted[across]:g}. Lower it."
        )
    if any(r > g for r, g in zip(resized, grid, strict=True)):
        shown, space = " x ".join(map(str, resized)), " x ".join(str(int(g)) for g in grid)
        raise ImageError(
            f"{where}: has {shown} pixels at image.spacing, more than image.size {space}. Raise "
            "one of these."
        )
    before = tuple((int(g) - r) // 2 for g, r in zip(grid, resized, strict=True))
    return Placement(tuple(shape), tuple(resized), before, tuple(int(g) for g in grid))


def _smooth_resize(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Linear, with a triangle filter where the image shrinks, axis by axis; borders keep their
    brightness.

    The filter is Pillow's (torch's `antialias`). MONAI's Resize smooths with zeros around the
    image, which darkens its border by an amount that tells the size of the source.
    """
    result = image.float()
    if len(size) == 3:
        # Planes first, then the axis across them: the filter is separable.
        result = functional.interpolate(result, size=size[1:], mode="bilinear", antialias=True)
        across = result.transpose(1, 2)
        return functional.interpolate(
            across, size=(size[0], size[2]), mode="bilinear", antialias=True
        ).transpose(1, 2)
    return functional.interpolate(result[None], size=size, mode="bilinear", antialias=True)[0]


def _nearest_resize(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(mask[None].float(), size=size, mode="nearest-exact")[0].to(
        mask.dtype
    )


def _each(value: float | Sequence[float | None], count: int, where: str, key: str) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) else [float(value)] * count
    if len(values) != count:
        raise ImageError(f"{where}: has {count} dimensions, {key} has {len(values)} values.")
    return values


def _columns(values: Sequence[float]) -> Float:
    """One value per axis of the array -> one per column of a box table."""
    if len(values) == 2:
        rows, columns = values
        return np.array([columns, rows, columns, rows], dtype=float)
    x, y, z = values
    return np.array([x, y, x, y, z, z], dtype=float)
