"""Batches of cached images, as a network is given them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.data.grid.augmentation import Changes, change, change_boxes, draw_changes
from medtransfer.data.grid.cache import read_entry
from medtransfer.data.grid.fixed import normalise
from medtransfer.data.grid.settings import Augment
from medtransfer.data.grid.slices import Plane, Slices, boxes_of_stack, cut, present_slices
from medtransfer.errors import ImageError


class ImageSource:
    """Cached images of a cohort, by their row numbers, in the recipe of the weights.

    Args:
        entries: files of the image cache, from `inspect_images`.
        targets: float32 (image, label).
        mean, std: the recipe, per channel.
        ndim: axes of space that the network takes.
        plane, slab: of the slices of volumes; see `slices.cut`.
        seed: of the random half.
        device: where the random half runs and the batches lie.
        augment: which random changes the labels allow.
        boxes: of each image, (box, 4 or 6) on the grid of the cache, lower and then upper ends
            along its axes; the targets are then these, in place of labels.
    """

    def __init__(
        self,
        entries: Sequence[Path],
        targets: NDArray[np.float32],
        mean: Sequence[float],
        std: Sequence[float],
        ndim: int = 2,
        plane: Plane = "axial",
        slab: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        boxes: Sequence[NDArray[np.float64]] | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.entries, self.augment = list(entries), augment or Augment()
        self.boxes = None if boxes is None else pad_boxes(boxes)
        self.targets = torch.tensor(targets, dtype=torch.float32)
        self.mean, self.std, self.ndim, self.plane, self.slab, self.seed, self.device = (
            mean,
            std,
            ndim,
            plane,
            slab,
            seed,
            device,
        )
        self.across = Slices(plane=plane).axis

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Pixels of every image along each axis of space."""
        return tuple(self._read(0).shape[1:])

    def __len__(self) -> int:
        return len(self.entries)

    def prepare(self, rows: Sequence[int], view: int | None) -> None:
        """Nothing: images lie in the cache."""

    def load(self, rows: Sequence[int], view: int | None = None) -> dict[str, Any]:
        """One batch.

        Args:
            rows: which images.
            view: number of the random draw; None leaves the images as they are.

        Returns:
            `{"features": {"image": ...}, "present": bool (batch, slice), "targets": see
            `targets_of`, "rows": (batch,)}`. The image is (batch, channel, row, column); of volumes
            (batch, slice, channel, row, column) for a network of planes, (batch, channel, slice,
            row, column) for one of volumes.

        Raises:
            ImageError: an entry of the cache is gone, or its channels do not fit the network.
        """
        given = [self._read(row) for row in rows]
        channels = max(len(image) for image in given)
        shape = (len(given), channels, *given[0].shape[1:])
        # Memory that a GPU copies from by itself, while it computes.
        images = torch.empty(shape, pin_memory=torch.device(self.device).type == "cuda")
        for place, image in zip(images, given, strict=True):
            place.copy_(image)  # where it has one channel, to all of them
        volumes = images.ndim == 5
        # Before the random half, which brightens what only pads a volume too.
        there = (
            [present_slices(image, self.plane) for image in given]
            if volumes
            else [torch.ones(1, dtype=torch.bool)] * len(given)
        )
        present = torch.stack(there)
        images = images.to(self.device, non_blocking=True)
        changes = (
            None
            if view is None
            else draw_changes(self.seed, view, rows, self.boxes is None, self.augment)
        )
        if changes is not None:
            images = change(images, changes, self.across)
        if volumes:
            stacks = torch.stack(
                [
                    cut(image, self.plane, self.slab, there)
                    for image, there in zip(images, present, strict=True)
                ]
            )
            stacks = torch.where(
                present.to(stacks.device, non_blocking=True)[:, :, None, None, None],
                stacks,
                stacks.new_zeros(()),
            )
            images = normalise(stacks, self.mean, self.std, axis=2)
            images = images if self.ndim == 2 else images.transpose(1, 2)
        else:
            images = normalise(images, self.mean, self.std)
        return {
            "features": {"image": images},
            "present": present,
            "targets": self.targets_of(rows, changes),
            "rows": torch.tensor(rows, dtype=torch.int64),
        }

    def targets_of(self, rows: Sequence[int], changes: Changes | None = None) -> Tensor:
        """Labels, float32 (image, label); or boxes as the network sees them, float32 (image, box, 4
        or 6), the rest NaN.

        Boxes have lower and then upper ends along rows and columns, of volumes along slices, rows
        and columns.
        """
        if self.boxes is None:
            return self.targets[list(rows)]
        boxes = self.boxes[list(rows)]
        if changes is not None:
            boxes = change_boxes(boxes, changes, self.shape, self.across)
        return torch.from_numpy(boxes_as_seen(boxes, self.shape, self.plane))

    def _read(self, row: int) -> Tensor:
        array = read_entry(self.entries[row])
        if array is None:
            raise ImageError(
                f"{self.entries[row]}: this entry of the image cache is gone or cut short. Run "
                "the same command again."
            )
        return torch.from_numpy(np.array(array, np.float32))


def boxes_as_seen(
    boxes: NDArray[np.float64], shape: Sequence[int], plane: Plane
) -> NDArray[np.float32]:
    """Boxes on the grid of the cache, (..., 4 or 6), as a network sees them; see
    `ImageSource.targets_of`.
    """
    return (boxes_of_stack(boxes, shape, plane) if boxes.shape[-1] == 6 else boxes).astype(
        np.float32
    )


def pad_boxes(boxes: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Boxes of each image, (box, ends) -> (image, box, ends), rows of NaN where an image has fewer
    than another; one row at least.
    """
    most = max(1, max(map(len, boxes), default=0))
    ends = next((own.shape[1] for own in boxes if len(own)), 4)
    padded = np.full((len(boxes), most, ends), np.nan)
    for place, own in enumerate(boxes):
        padded[place, : len(own)] = own.reshape(-1, ends)
    return padded
