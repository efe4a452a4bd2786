"""The pixels of one image, with their place and their history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels of one image.

    Attributes:
        array: float32 (channel, *space): 1 channel for grey, 3 for colour. Space is (row, column) for an
            image, (x, y, z) to the patient's right, front and head (RAS) for a volume, (frame, row,
            column) for a film. Units of the file: grey levels for pictures (8 bit: 0..255, 16 bit:
            0..65535), rescaled values for DICOM (CT: HU) and NIfTI; 0..1 where a window was given.
        spacing: mm along each axis of space; 1 where the file states none (see `provenance["spacing_from"]`).
        affine: float64 (4, 4), index of space (with 0 for a missing third, and 1) -> mm, RAS; for images
            without a place in the patient, mm from the centre of the first pixel.
        provenance: format, depth, `axes`, every step done to the pixels (`steps`), and what to know
            (`hazards`: code and sentence). Nothing that names a person, a place or a date.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing)
        return f"Image({self.provenance['format']}, {self.array.shape}, {spacing} mm, {self.array.min():g} to {self.array.max():g})"
