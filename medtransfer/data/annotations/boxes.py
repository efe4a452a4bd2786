"""The geometry of lesion boxes: their columns, their sides, and their order along the axes.

A box is in pixel edges of the image as `read_image` gives it: x along columns, y along rows, upper
ends exclusive; of a volume along its axes x, y, z. `sources` reads what annotators write, and
`frames` brings it onto the pixels of each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.measure import regionprops

Float = NDArray[np.float64]
PLANE, VOLUME = ("x0", "y0", "x1", "y1"), ("x0", "y0", "x1", "y1", "z0", "z1")
LESION = "lesion"


def upper_ends(shape: Sequence[int]) -> Float:
    """The largest value of each coordinate column, from pixels along the axes of the array."""
    if len(shape) == 2:
        return np.array([shape[1], shape[0], shape[1], shape[0]], float)
    return np.array([shape[0], shape[1], shape[0], shape[1], shape[2], shape[2]], float)


def extents(boxes: Float) -> Float:
    """Sides of boxes in the order of their columns, (box, 4 or 6) -> (box, 2 or 3)."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    return (
        np.concatenate([sides, boxes[:, 5:6] - boxes[:, 4:5]], 1) if boxes.shape[1] == 6 else sides
    )


def to_axes(boxes: Float) -> Float:
    """Columns of the table -> lower, then upper ends along the axes of the array: (y0, x0, y1, x1),
    or (x0, y0, z0, x1, y1, z1).
    """
    return boxes[:, [1, 0, 3, 2]] if boxes.shape[1] == 4 else boxes[:, [0, 1, 4, 2, 3, 5]]


def from_axes(boxes: Float) -> Float:
    """The inverse of `to_axes`."""
    return boxes[:, [1, 0, 3, 2]] if boxes.shape[1] == 4 else boxes[:, [0, 1, 3, 4, 2, 5]]


def box_regions(lesions: NDArray[np.int64]) -> Float:
    """One box around each numbered lesion, (row, column) or (x, y, z) -> (box, 4 or 6); see
    `masks.read_lesions`.
    """
    ends = [region.bbox for region in regionprops(lesions)]
    return from_axes(np.asarray(ends, float).reshape(-1, 2 * np.ndim(lesions)))
