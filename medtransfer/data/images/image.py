"""The pixels of one image, with their place and their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One pair per axis of an array: the axis of the file that it is, and -1 where it runs the other
# way.
Turn = list[list[int]]


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels of one image.

    Attributes:
        array: float32 (channel, *space): 1 channel for grey, 3 for colour. Space is (row, column)
            for an image, (x, y, z) to the patient's right, front and head (RAS) for a volume,
            (frame, row, column) for a film. Units of the file: grey levels for pictures (8 bit:
            0..255, 16 bit: 0..65535), rescaled values for DICOM (CT: HU) and NIfTI; 0..1 where a
            window was given.
        spacing: mm along each axis of space; 1 where the file states none (see
            `provenance["spacing_from"]`).
        affine: float64 (4, 4), index of space (with 0 for a missing third, and 1) -> mm, RAS; for
            images without a place in the patient, mm from the centre of the first pixel.
        provenance: format, depth, `axes`, every step done to the pixels (`steps`), and what to know
            (`hazards`: code and sentence). Nothing that names a person, a place or a date.
            `turn` tells how the axes of space come from those of the file, for masks and boxes
            drawn in the order of the file: a list with one pair [axis of the file, direction] per
            axis of space, direction -1 where it is reversed. `stored_shape` is the shape along the
            axes of the file, in that same order: (row, column) for pictures, planes of DICOM and
            rows of MedMNIST, before any orientation tag; (i, j, k) as NIfTI, NRRD and MetaImage
            index their voxels, with 1 for missing axes; (column, row, slice) for volumes of DICOM,
            slices sorted by position along their normal; (frame, row, column) for films. A file of
            one slice has three axes in `stored_shape` and two pairs in `turn`. `turn` is None where
            the pixels were moved by interpolation, as those of a tilted stack are. See
            `turn_array`.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing)
        return (
            f"Image({self.provenance['format']}, {self.array.shape}, {spacing} mm, "
            f"{self.array.min():g} to {self.array.max():g})"
        )


def identity_turn(dimensions: int) -> Turn:
    """The turn of an array that keeps the order of its file."""
    return [[axis, 1] for axis in range(dimensions)]


def turn_array(array: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """Turns what is given in the order of the file, such as a mask, as the pixels of its image were
    turned.

    Args:
        array: of `provenance["stored_shape"]`.
        turn: `provenance["turn"]`.

    Returns:
        The array along the axes of the image's space; axes that the image lacks must have length 1.
    """
    axes = [axis for axis, _ in turn]
    rest = [axis for axis in range(array.ndim) if axis not in axes]
    turned = array.transpose(*axes, *rest).reshape([array.shape[axis] for axis in axes])
    return np.ascontiguousarray(
        turned[tuple(slice(None, None, direction) for _, direction in turn)]
    )


def unturn_array(
    array: NDArray[Any], turn: Turn, stored_shape: Sequence[int] | None = None
) -> NDArray[Any]:
    """The inverse of `turn_array`.

    Args:
        array: along the axes of the image's space.
        turn: `provenance["turn"]`.
        stored_shape: `provenance["stored_shape"]`; needed where the file has more axes than the
            image.
    """
    straight = array[tuple(slice(None, None, direction) for _, direction in turn)]
    back = straight.transpose(np.argsort([axis for axis, _ in turn]))
    return np.ascontiguousarray(back if stored_shape is None else back.reshape(tuple(stored_shape)))
