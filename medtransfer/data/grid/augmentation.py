"""The random half of the transforms: small changes, drawn for each image by itself, made on a whole
batch at once, on its device.

The draw of an image depends on (seed, view, row of the image) alone: not on the order of loading,
the batch, the arm or the fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtransfer.data.grid.settings import Augment

_ZOOM, _SHIFT = 0.15, 0.08
_GAMMA, _CONTRAST, _BRIGHTNESS = (0.75, 1.35), 0.2, 0.1
# What is drawn for one image, in order: flip, angle, zooms, shifts, gamma, contrast, brightness;
# then four coins, and the other flip.
_DRAWN, _COINS = 9, 4
# Share of a box that must be left within the image.
_LEFT = 0.5


@dataclass(frozen=True, eq=False)
class Changes:
    """Changes of a batch of images, one entry each.

    Attributes:
        flip: bool, left and right are swapped. flip_rows: bool, so are top and bottom of a plane.
        turn: radians; 0 where there is none.
        zoom: (image, 2), step in the old image per step in the new one, along rows and columns,
            0.85 to 1.15.
        shift: (image, 2), as a share of the sides, up to 0.08.
        gamma: 0.75 to 1.35. contrast: factor, 0.8 to 1.2. brightness: added, up to 0.1.
    """

    flip: NDArray[np.bool_]
    flip_rows: NDArray[np.bool_]
    turn: NDArray[np.float64]
    zoom: NDArray[np.float64]
    shift: NDArray[np.float64]
    gamma: NDArray[np.float64]
    contrast: NDArray[np.float64]
    brightness: NDArray[np.float64]


def draw_changes(
    seed: int, view: int, images: Sequence[int], turns: bool = True, augment: Augment | None = None
) -> Changes:
    """Draws: flip (p 0.5); turn, zoom and shift (p 0.9); gamma (p 0.5); contrast (p 0.5);
    brightness (p 0.5).

    Args:
        seed: of the draws. `view`: which draw of the image.
        images: row number of each image.
        turns: False for images with boxes: of a turned lesion the box along the axes is larger than
            it.
        augment: what the labels allow, `auto` as `left_right`; None: the defaults. What it leaves
            out changes no other draw.
    """
    augment = augment or Augment()
    drawn = np.array(
        [np.random.default_rng([seed, view, image]).random(_DRAWN + _COINS + 1) for image in images]
    )
    coins, (flip, turn, *zoom), values = drawn[:, _DRAWN:], drawn.T[:4], drawn[:, 4:_DRAWN]
    moved, most = coins[:, 0] < 0.9, math.radians(augment.rotate)

    def between(low: float, high: float, share: NDArray[np.float64]) -> NDArray[np.float64]:
        return low + (high - low) * share

    return Changes(
        flip=(flip < 0.5) & (augment.flip != "none"),
        flip_rows=(coins[:, _COINS] < 0.5) & (augment.flip == "all"),
        turn=np.where(moved & turns, between(-most, most, turn), 0.0),
        zoom=np.where(moved[:, None], between(1 - _ZOOM, 1 + _ZOOM, np.stack(zoom, 1)), 1.0),
        shift=np.where(moved[:, None], between(-_SHIFT, _SHIFT, values[:, :2]), 0.0),
        gamma=1
        + augment.intensity * np.where(coins[:, 1] < 0.5, between(*_GAMMA, values[:, 2]) - 1, 0.0),
        contrast=1
        + augment.intensity
        * np.where(coins[:, 2] < 0.5, between(-_CONTRAST, _CONTRAST, values[:, 3]), 0.0),
        brightness=augment.intensity
        * np.where(coins[:, 3] < 0.5, between(-_BRIGHTNESS, _BRIGHTNESS, values[:, 4]), 0.0),
    )


def change(images: Tensor, changes: Changes, across: int = 2) -> Tensor:
    """Makes the changes.

    Volumes are turned, zoomed and shifted within their slices, all slices alike. Left and right lie
    along columns of planes, along x of volumes.

    Args:
        images: float32 (image, channel, row, column) or (image, channel, x, y, z), 0..1.
        changes: one of each image.
        across: axis of space of a volume that runs across the slices.

    Returns:
        The same shape, on the same device; brightness may leave 0..1.
    """
    # Copied without waiting: a GPU would first have to finish all that it was given.
    flip = torch.from_numpy(changes.flip).to(images.device, non_blocking=True)
    side = 3 if images.ndim == 4 else 2
    shape = (-1, *(1 for _ in images.shape[1:]))
    images = torch.where(flip.view(shape), images.flip(side), images)
    if images.ndim == 4 and changes.flip_rows.any():
        flip_rows = torch.from_numpy(changes.flip_rows).to(images.device, non_blocking=True)
        images = torch.where(flip_rows.view(shape), images.flip(2), images)
    # Slices stand beside the channels: what is done to a plane is done to all of them.
    planes = images if images.ndim == 4 else images.movedim(2 + across, 2).flatten(1, 2)
    matrices = _matrices(changes, planes.shape[2:]).to(planes.device, non_blocking=True)
    grid = nn.functional.affine_grid(matrices, list(planes.shape), align_corners=False)
    planes = nn.functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    images = (
        planes
        if images.ndim == 4
        else planes.view(*planes.shape[:1], images.shape[1], -1, *planes.shape[2:]).movedim(
            2, 2 + across
        )
    )
    gamma, contrast, brightness = (
        torch.from_numpy(values).to(images.dtype).to(images.device, non_blocking=True).view(shape)
        for values in (changes.gamma, changes.contrast, changes.brightness)
    )
    lowest = images.flatten(1).amin(1).view(shape)
    span = images.flatten(1).amax(1).view(shape) - lowest
    images = ((images - lowest) / (span + 1e-7)).clamp_min(0.0) ** gamma * span + lowest
    return images * contrast + brightness


def change_boxes(
    boxes: NDArray[np.float64], changes: Changes, shape: Sequence[int], across: int = 2
) -> NDArray[np.float64]:
    """Boxes that follow their images.

    Args:
        boxes: (image, box, 4 or 6), lower and then upper ends along the axes of the array, pixel
            edges; rows of NaN are no boxes.
        changes: one of each image.
        shape: pixels along each axis.
        across: see `change`.

    Returns:
        The same shape: the box along the axes around each moved box, cut off at the border; NaN
        where less than half of it is left.
    """
    axes = boxes.shape[-1] // 2
    rows, columns = (0, 1) if axes == 2 else [axis for axis in range(3) if axis != across]
    low, high = boxes[..., :axes].copy(), boxes[..., axes:].copy()
    for side, flip in (
        ((1, changes.flip), (0, changes.flip_rows)) if axes == 2 else ((0, changes.flip),)
    ):
        turned = shape[side] - high[..., side], shape[side] - low[..., side]
        ends = zip(turned, (low, high), strict=True)
        low[..., side], high[..., side] = (
            np.where(flip[:, None], new, old[..., side]) for new, old in ends
        )
    plane = np.array([shape[rows], shape[columns]], float)
    moved, shift = _movement(changes, plane)
    corners = np.stack(
        [np.stack([r[..., rows], c[..., columns]], -1) for r in (low, high) for c in (low, high)], 2
    )
    found = (
        np.einsum(
            "nij,nbkj->nbki", np.linalg.inv(moved), corners - plane / 2 - shift[:, None, None]
        )
        + plane / 2
    )
    for place, axis in enumerate((rows, columns)):
        low[..., axis], high[..., axis] = found[..., place].min(2), found[..., place].max(2)
    whole = np.prod(high - low, -1)
    limits = np.asarray(shape, float)
    low, high = np.clip(low, 0.0, limits), np.clip(high, 0.0, limits)
    left = np.prod(high - low, -1) >= _LEFT * whole
    return np.where(left[..., None], np.concatenate([low, high], -1), np.nan)


def _movement(
    changes: Changes, shape: Sequence[int] | NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each pixel comes from, (image, 2, 2) and (image, 2): rows and columns about the middle,
    turn after shift after zoom.
    """
    cosine, sine = np.cos(changes.turn), np.sin(changes.turn)
    turn = np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], 1)
    return turn * changes.zoom[:, None], np.einsum(
        "nij,nj->ni", turn, changes.shift * np.asarray(shape)
    )


def _matrices(changes: Changes, shape: Sequence[int]) -> Tensor:
    """Where each pixel comes from, in the units of `affine_grid`; float32 (image, 2, 3)."""
    rows, columns = shape
    moved, shift = _movement(changes, shape)
    # Columns before rows, and both in halves of a side.
    matrices = np.stack(
        [
            np.stack(
                [moved[:, 1, 1], moved[:, 1, 0] * rows / columns, 2 * shift[:, 1] / columns], 1
            ),
            np.stack([moved[:, 0, 1] * columns / rows, moved[:, 0, 0], 2 * shift[:, 0] / rows], 1),
        ],
        1,
    )
    return torch.from_numpy(matrices.astype(np.float32))
