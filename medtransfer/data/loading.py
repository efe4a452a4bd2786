"""`read_image` as a reader for MONAI's `LoadImage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader as MonaiImageReader
from numpy.typing import NDArray

from medtransfer.data.image import Image
from medtransfer.data.reading import read_image
from medtransfer.data.windows import parse_window
from medtransfer.errors import ImageError


class ImageReader(MonaiImageReader):  # type: ignore[misc]  # MONAI carries no types
    """Every format of `read_image`: channel first, affine, spacing and provenance in the metadata.

    With `LoadImaged(keys, reader=ImageReader(), image_only=False)`. Beware: when a reader refuses a file,
    `LoadImage` goes on to MONAI's own readers, and those return pixels (not inverted, not rescaled) for
    files refused here with a reason. `fixed_transforms` therefore reads without it.

    Args:
        window: see `read_image`.
    """

    def __init__(self, window: Any = None) -> None:
        super().__init__()
        self.window = None if window is None else parse_window(window)

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:  # noqa: ARG002  given by MONAI
        """True: the file's content decides, not its name."""
        return True

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> Image:  # noqa: ARG002
        """Reads one file or folder. A list of one is taken as that one."""
        if isinstance(data, (str, Path)):
            return read_image(data, self.window)
        if len(data) != 1:
            raise ImageError(f"one file or folder makes one image, {len(data)} given.")
        return read_image(data[0], self.window)

    def get_data(self, img: Image) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The array (channel, *space) and MONAI's metadata."""
        meta = {
            "affine": img.affine,
            "original_affine": img.affine.copy(),
            "spatial_shape": np.asarray(img.array.shape[1:]),
            "original_channel_dim": 0,
            "spacing": img.spacing,
            "space": "RAS",
            "provenance": img.provenance,
        }
        return img.array, meta
