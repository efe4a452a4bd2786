"""The common orientation of all volumes: axes to the patient's right, front and head (RAS)."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from medtransfer.data.images.image import Turn

Float = NDArray[np.float64]


def orient(
    array: NDArray[Any], affine: Float, codes: str = "RAS"
) -> tuple[NDArray[Any], Float, Turn]:
    """Flips and swaps the three axes so that they point most nearly to `codes`; no interpolation.

    Returns:
        The array, its affine, and how its axes come from those given (see `Image`).
    """
    change = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(codes)))
    turn = [[int(axis), int(change[axis, 1])] for axis in np.argsort(change[:, 0])]
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape[:3]), turn


def flatten(array: NDArray[np.float32], affine: Float) -> tuple[NDArray[np.float32], Float, Turn]:
    """A volume of one slice as the image a radiologist sees: (row, column), as DICOM lays out its
    planes.

    Columns run to the patient's left (back in sagittal images), rows to the back (feet, where the
    image is not axial).

    Returns:
        The plane, its affine from (row, column, 0, 1) to mm, and how its axes come from the three
        of the volume.
    """
    array, affine, turn = orient(array, affine, "LPI")
    single = array.shape.index(1) if 1 in array.shape else 2
    rows, columns = sorted((axis for axis in range(3) if axis != single), reverse=True)
    order = [rows, columns, single]
    permuted = affine.copy()
    permuted[:, :3] = affine[:, order]
    return (
        np.ascontiguousarray(array.transpose(order)[..., 0]),
        permuted,
        [turn[rows], turn[columns]],
    )


def voxel_sizes(affine: Float) -> tuple[float, ...]:
    """mm along each axis of the array."""
    return tuple(float(v) for v in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
