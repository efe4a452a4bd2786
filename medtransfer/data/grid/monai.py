"""For use with MONAI, which takes seconds to import: `read_image` as a reader for its `LoadImage`,
the fixed half as a transform.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.image_reader import ImageReader as MonaiImageReader
from monai.transforms import Transform
from numpy.typing import NDArray

from medtransfer.data.grid.fixed import Fixed
from medtransfer.data.grid.slices import Slices
from medtransfer.data.images.image import Image
from medtransfer.data.images.reading import read_image
from medtransfer.data.images.windows import parse_window
from medtransfer.errors import ImageError


class ImageReader(MonaiImageReader):  # type: ignore[misc]  # MONAI carries no types
    """Every format of `read_image`: channel first, affine, spacing and provenance in the metadata.

    With `LoadImaged(keys, reader=ImageReader(), image_only=False)`. Beware: when a reader refuses a
    file, `LoadImage` goes on to MONAI's own readers, and those return pixels (not inverted, not
    rescaled) for files refused here with a reason. `fixed_transforms` therefore reads without it.

    Args:
        window: see `read_image`.
    """

    def __init__(self, window: Any = None) -> None:
        super().__init__()
        self.window = None if window is None else parse_window(window)

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:  # noqa: ARG002
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


class ApplyFixed(Transform):  # type: ignore[misc]  # MONAI carries no types
    """`Fixed` on a dictionary: `image` is a path; `mask` and `boxes` follow where given.

    A `mask` is best given as a path, as it is then turned as its image is; an array (channel,
    *space), and the table of `boxes`, are on the grid of `read_image(path)`, which is not that of a
    NIfTI file turned to RAS.

    Adds `placement`, which brings masks and boxes of the network back to the image.
    """

    def __init__(self, fixed: Fixed) -> None:
        self.fixed = fixed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """See the class."""
        path = str(data["image"])
        result = dict(data)
        result["image"], placement = self.fixed.apply(path, read_image(path))
        if "mask" in data:
            given = data["mask"]
            mask = torch.as_tensor(
                read_image(given).array if isinstance(given, (str, Path)) else given
            )
            if tuple(mask.shape[1:]) != placement.shape:
                raise ImageError(
                    f"{path}: its mask has {tuple(mask.shape[1:])} pixels, the image "
                    f"{placement.shape}."
                )
            result["mask"] = placement.place(mask, smooth=False)
        if "boxes" in data:
            result["boxes"] = placement.place_boxes(data["boxes"])
        result["placement"] = placement
        return result


def fixed_transforms(
    size: int | Sequence[int],
    window: Any = "percentile",
    spacing: float | Sequence[float] | None = None,
    slices: Slices | None = None,
) -> ApplyFixed:
    """The cacheable half: `{"image": path}` -> `{"image": float32 tensor (channel, *size), 0..1,
    "placement": ...}`.

    Args:
        size, window, spacing, slices: see `Fixed`. A study sets `slices`; without them a volume is
            a block of `size` along every axis.

    Raises:
        ConfigError: an unknown window.
    """
    grid = tuple(size) if isinstance(size, (list, tuple)) else size
    mm = tuple(spacing) if isinstance(spacing, (list, tuple)) else spacing
    return ApplyFixed(Fixed(grid, parse_window(window), mm, slices))  # type: ignore[arg-type]  # checked there
