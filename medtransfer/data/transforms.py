"""MONAI pipelines in two halves: fixed (the same every time, cacheable) and random (training only).

Between file and network an image passes through three steps:

1. fixed: read, intensity to 0..1, resize keeping the aspect, pad to a square. Cached.
2. random: flip, small affine, contrast and brightness. Still 0..1.
3. `normalise`: three channels and the mean and standard deviation that belong to the weights.

Step 3 is deterministic too, but stays outside the cache, so that arms whose weights want different
recipes share one cache, and the random half works on 0..1 whatever the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    Lambdad,
    RandAdjustContrast,
    RandAffine,
    RandFlip,
    RandScaleIntensity,
    RandShiftIntensity,
    Resized,
    ScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    SpatialPadd,
    Transform,
)
from torch import Tensor

from medtransfer.data.reading import load_tensor
from medtransfer.errors import ConfigError

Window = Literal["percentile", "full"] | tuple[float, float]

# Raised whenever the fixed half changes its result, so that older cache entries are not taken.
FIXED_VERSION = 2


def fixed_transforms(size: int, window: Window = "percentile") -> Compose:
    """The cacheable half: `{"image": path}` -> `{"image": float32 tensor (channel, size, size), 0..1}`.

    Args:
        size: side of the square result in pixels; the longer side of the image is resized to it.
        window: intensity range mapped to 0..1: percentile (0.5 to 99.5 of the image), full (minimum
            to maximum), or (center, width) in the image's units.
    """
    key = "image"
    scale: Transform
    if window == "percentile":
        scale = Lambdad(key, func=_scale_percentiles)
    elif window == "full":
        scale = ScaleIntensityd(key, minv=0.0, maxv=1.0)
    elif isinstance(window, tuple):
        center, width = window
        scale = ScaleIntensityRanged(key, a_min=center - width / 2, a_max=center + width / 2, b_min=0.0, b_max=1.0, clip=True)
    else:
        raise ConfigError(f"window {window!r}: use percentile, full or (center, width)")
    return Compose(
        [
            Lambdad(key, func=load_tensor),
            scale,
            Resized(key, spatial_size=size, size_mode="longest", mode="bilinear", anti_aliasing=True),
            SpatialPadd(key, spatial_size=(size, size)),
            EnsureTyped(key, dtype=torch.float32, track_meta=False),
        ]
    )


def _scale_percentiles(image: Tensor) -> Tensor:
    """0.5 to 99.5 % of the image to 0..1; the full range where these coincide, as in a small bright spot on black."""
    low, high = np.percentile(image.numpy(), [0.5, 99.5])
    if not high > low:
        low, high = float(image.min()), float(image.max())
    if not high > low:
        return torch.zeros_like(image)
    return torch.as_tensor(ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(image))


def random_transforms(size: int) -> Compose:
    """The training half: tensor (channel, size, size), 0..1 -> the same, changed a little.

    Left-right flip (p 0.5); rotation up to 15 degrees, zoom up to 15 %, shift up to 8 % of the side
    (p 0.9); gamma 0.75 to 1.35 (p 0.5); contrast up to 20 % and brightness up to 0.1 (p 0.5).
    """
    shift = 0.08 * size
    return Compose(
        [
            RandFlip(prob=0.5, spatial_axis=1),
            RandAffine(
                prob=0.9,
                rotate_range=math.radians(15),
                scale_range=(0.15, 0.15),
                translate_range=(shift, shift),
                mode="bilinear",
                padding_mode="border",
            ),
            RandAdjustContrast(prob=0.5, gamma=(0.75, 1.35)),
            RandScaleIntensity(prob=0.5, factors=0.2),
            RandShiftIntensity(prob=0.5, offsets=0.1),
        ]
    )


def normalise(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Stacks images (1 or 3 channels, 0..1) to float32 (batch, channel, row, column) in the recipe of the weights."""
    channels = len(mean)
    batch = torch.stack([image.expand(channels, -1, -1) for image in images])
    shape = (1, channels, 1, 1)
    return (batch.clamp(0.0, 1.0) - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
