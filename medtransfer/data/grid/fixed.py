"""The fixed half of the transforms (the same every time, cacheable), and the recipe of the weights.

Between file and network an image passes through three steps:

1. fixed: read, intensity to 0..1, resample, pad. Cached. Boxes and masks go with the pixels.
2. random (`augmentation`, training only): flip, small affine, contrast and brightness. Still about
0..1. 3. `normalise`: three channels and the mean and standard deviation that belong to the weights.

Step 3 is deterministic too, but stays outside the cache, so that arms whose weights want different
recipes share one cache, and the random half works on 0..1 whatever the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medtransfer.data.grid.placement import Placement, place
from medtransfer.data.grid.settings import ImageSettings
from medtransfer.data.grid.slices import Slices
from medtransfer.data.images.image import Image
from medtransfer.data.images.reading import window_image
from medtransfer.data.images.windows import Window, parse_window
from medtransfer.errors import ConfigError, ImageError


def slices_of(image: ImageSettings) -> Slices:
    """Which slices of a volume a network is given."""
    return Slices(image.slices, image.slice_spacing, image.plane)


def fixed_of(image: ImageSettings) -> Fixed:
    """The fixed half of the transforms that settings ask for."""
    return Fixed(image.size, parse_window(image.window), image.spacing, slices_of(image))


def input_space(image: ImageSettings, ndim: int) -> tuple[int, ...]:
    """Pixels that a network sees along rows and columns, or slices, rows and columns.

    Args:
        image: how pixels become the input.
        ndim: axes of space of the images.
    """
    return (image.slices,) * (ndim == 3) + (image.size,) * 2


@dataclass(frozen=True)
class Fixed:
    """Settings of the fixed half.

    Attributes:
        size: pixels of the result, along every axis or one number each.
        window: what becomes 0..1; see `read_image`.
        spacing: mm of the result along every axis or one number each; the image is then padded to
            `size`. None: its longest side fills `size`, the aspect (in mm) kept.
        slices: of volumes; `size` and `spacing` are then those of the slices. None: a volume is a
            block like another.
    """

    size: int | tuple[int, ...] = 128
    window: Window = "percentile"
    spacing: float | tuple[float, ...] | None = None
    slices: Slices | None = None

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise ConfigError(
                f"size is {self.size!r}; it is a number of pixels from 1, or one per axis"
            )
        spacings = (
            self.spacing
            if isinstance(self.spacing, tuple)
            else (1.0 if self.spacing is None else self.spacing,)
        )
        if not spacings or any(
            isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < float("inf")
            for v in spacings
        ):
            raise ConfigError(
                f"spacing is {self.spacing!r}; it is a number of mm above 0, or one per axis"
            )

    def place(self, image: Image, where: str) -> Placement:
        """Where the pixels of this image go."""
        if image.provenance["axes"].startswith("frame"):
            raise ImageError(f"{where}: is a film, not a volume. Name one frame of it behind a #.")
        return self.place_shape(
            image.array.shape[1:],
            () if image.provenance["spacing_from"] == "none" else image.spacing,
            where,
        )

    def place_shape(self, shape: Sequence[int], spacing: Sequence[float], where: str) -> Placement:
        """Where the pixels of an image of this shape go; `spacing` in mm along each axis, empty
        where it is not known.
        """
        if self.spacing is not None and not spacing:
            raise ImageError(
                f"{where}: states no pixel spacing, so image.spacing cannot be applied. Leave "
                "image.spacing out."
            )
        stated, spacing = bool(spacing), spacing or (1.0,) * len(shape)
        if self.slices is None or len(shape) != 3:
            return place(shape, spacing, self.size, self.spacing, where)
        if self.slices.spacing is not None and not stated:
            raise ImageError(
                f"{where}: states no spacing of its slices, so image.slice_spacing cannot be "
                "applied. Leave it out."
            )
        axis = self.slices.axis
        if isinstance(self.spacing, tuple) and len(self.spacing) != 3:
            raise ImageError(
                f"{where}: has 3 dimensions, image.spacing has {len(self.spacing)} values."
            )
        size = list(self.size) if isinstance(self.size, tuple) else [self.size] * 3
        target: list[float | None] = (
            list(self.spacing) if isinstance(self.spacing, tuple) else [self.spacing] * 3
        )
        size[axis] = self.slices.count
        if not isinstance(self.spacing, tuple) or self.slices.spacing is not None:
            target[axis] = self.slices.spacing
        return place(shape, spacing, size, target, where, axis)

    def apply(self, path: str, image: Image) -> tuple[Tensor, Placement]:
        """An image of `read_image(path)` -> float32 (channel, *size), 0..1, and where its pixels
        went.
        """
        placement = self.place(image, path)
        scaled = window_image(path, image, self.window)
        return placement.place(torch.from_numpy(scaled.array)).clamp(0.0, 1.0), placement


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], axis: int = 1) -> Tensor:
    """A batch, 0..1 -> float32 in the recipe of the weights.

    Args:
        images: (image, channel, *space), of one channel, which is repeated, or of as many as the
            recipe has.
        mean, std: the recipe, per channel.
        axis: of the channels: 1, or 2 of stacks of slices.
    """
    channels, given = len(mean), images.shape[axis]
    if given not in {1, channels}:
        raise ImageError(
            f"an image of {given} channels meets a network of {channels}. Set channels of the "
            "arm, or image.window."
        )
    shape = [channels if n == axis else 1 for n in range(images.ndim)]
    center, scale = (
        torch.tensor(values).to(images.device, non_blocking=True).view(shape)
        for values in (mean, std)
    )
    return (images.float().clamp(0.0, 1.0) - center) / scale
