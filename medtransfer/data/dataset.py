"""The dataset over the image cache, and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medtransfer.data.cache import read_entry
from medtransfer.data.slices import Plane, Slices, cut, present_slices
from medtransfer.data.transforms import normalise, random_transforms
from medtransfer.errors import ImageError

# Image, targets, row number, and which slices of it are there.
Item = tuple[Tensor, Tensor, int, Tensor]


class ImageDataset(Dataset[Item]):
    """Cached images with their targets; with `seed`, randomly transformed.

    The random draw of an image depends on (seed, epoch, image) alone, not on the order of loading.

    Args:
        entries: files of the image cache, from `inspect_images`.
        targets: float32 (image, label).
        rows: which images, as row numbers of `entries`.
        seed: of the random half; None leaves the images as they are.
        plane: of the slices of volumes.
    """

    def __init__(
        self, entries: Sequence[Path], targets: NDArray[np.float32], rows: Sequence[int], seed: int | None = None, plane: Plane = "axial"
    ) -> None:
        self.entries = list(entries)
        self.targets = torch.tensor(targets, dtype=torch.float32)
        self.rows = [int(row) for row in rows]
        self.seed = seed
        self.epoch = 0
        self.plane: Plane = plane
        self.across = Slices(plane=plane).axis
        self.random = random_transforms(self.shape, self.across) if seed is not None else None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Pixels of every image along each axis of space."""
        return tuple(self._read(self.rows[0]).shape[1:])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random draw of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, row: int) -> Tensor:
        array = read_entry(self.entries[row])
        if array is None:
            raise ImageError(f"{self.entries[row]}: this entry of the image cache is gone or cut short. Run the same command again.")
        return torch.from_numpy(np.array(array))

    def __getitem__(self, index: int) -> Item:
        row = self.rows[index]
        image = self._read(row)
        # Before the random half, which brightens what only pads a volume too.
        present = present_slices(image, self.plane) if image.ndim == 4 else torch.ones(1, dtype=torch.bool)
        if self.random is not None and self.seed is not None:
            draw = np.random.SeedSequence([self.seed, self.epoch, row]).generate_state(1)[0]
            state = np.random.RandomState(int(draw))
            for transform in self.random.transforms:
                transform.set_random_state(state=state)
            with plain_tensors():
                image = self.random(image)
            if not present.all():
                image.movedim(1 + self.across, 0)[~present] = 0.0
        return image, self.targets[row], row, present


@contextmanager
def plain_tensors() -> Iterator[None]:
    """MONAI without its metadata, whose bookkeeping takes longer than the transforms do."""
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(tracked)


class EpochSampler(Sampler[int]):
    """A shuffled order that depends on (seed, epoch) alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter(order.tolist())


def make_loader(
    dataset: ImageDataset, batch_size: int, mean: Sequence[float], std: Sequence[float], ndim: int = 2, slab: int = 1
) -> DataLoader[Any]:
    """Batches of images in the recipe of the weights.

    A dataset with a seed is shuffled anew each epoch, and an incomplete last batch is left out, as
    batch statistics of a few images are poor; one without a seed keeps its order and every image.

    Args:
        dataset: images, or volumes.
        batch_size: images or volumes.
        mean, std: the recipe, per channel.
        ndim: axes of space that the network takes.
        slab: neighbouring slices that become the channels of each; see `slices.cut`.

    Returns:
        A loader of `{"features": {"image": ...}, "present": bool (batch, slice), "targets": (batch, label),
        "rows": (batch,)}`. The image is (batch, channel, row, column); of volumes (batch, slice, channel, row,
        column) for a network of planes, (batch, channel, slice, row, column) for one of volumes.
    """

    def collate(items: list[Item]) -> dict[str, Any]:
        images, targets, rows, present = zip(*items, strict=True)
        if len(dataset.shape) == 3:
            stacks = [cut(image, dataset.plane, slab, there) for image, there in zip(images, present, strict=True)]
            image = normalise(stacks, mean, std, axis=1)
            image = image if ndim == 2 else image.transpose(1, 2)
        else:
            image = normalise(images, mean, std)
        return {"features": {"image": image}, "present": torch.stack(present), "targets": torch.stack(targets), "rows": torch.tensor(rows)}

    training = dataset.seed is not None
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=EpochSampler(len(dataset), dataset.seed) if dataset.seed is not None else None,
        drop_last=training,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
