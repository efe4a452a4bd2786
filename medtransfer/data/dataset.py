"""The image cache, the dataset over it, and batches."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medtransfer.data.audit import Progress
from medtransfer.data.transforms import FIXED_VERSION, Window, fixed_transforms, normalise, random_transforms

Item = tuple[Tensor, Tensor, int]


def cache_folder() -> Path:
    """Where decoded images are kept: `$MEDTRANSFER_CACHE`, else the user's cache folder, else a temporary one.

    Never inside a study: a study folder is handed to others, the pixels of patients are not.
    """
    chosen = os.environ.get("MEDTRANSFER_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(chosen) if chosen else Path(home) / "medtransfer"
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        temporary = Path(tempfile.gettempdir()) / f"medtransfer-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        (temporary / "images").mkdir(parents=True, exist_ok=True)
        warnings.warn(f"{folder} cannot be written ({error.strerror}); images are cached in {temporary}.", stacklevel=2)
        return temporary


def cache_images(
    paths: Sequence[str], file_digests: Sequence[str], size: int, window: Window, folder: Path, progress: Progress | None = None
) -> list[Path]:
    """Runs the fixed half once per distinct file and setting; returns one `.npy` file per image.

    Args:
        paths: image files.
        file_digests: SHA-256 of each file's bytes; with the settings it names the cache entry.
        size, window: see `transforms.fixed_transforms`.
        folder: the cache, from `cache_folder`.
        progress: called with ("images", done, total).

    Returns:
        Files of float32 arrays (channel, size, size), 0..1, in the order of `paths`.
    """
    pipeline = fixed_transforms(size, window)
    setting = f"{size}|{window}|{FIXED_VERSION}|{monai.__version__}"
    entries: list[Path] = []
    for done, (path, digest) in enumerate(zip(paths, file_digests, strict=True), start=1):
        name = hashlib.sha256(f"{digest}|{setting}".encode()).hexdigest()
        entry = folder / "images" / name[:2] / f"{name}.npy"
        if not entry.is_file():
            _write_array(entry, pipeline({"image": path})["image"].numpy())
        entries.append(entry)
        if progress is not None:
            progress("images", done, len(paths))
    return entries


def _write_array(path: Path, array: NDArray[np.float32]) -> None:
    """Writes aside, then renames, so that a reader or a second writer never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            np.save(stream, array)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class ImageDataset(Dataset[Item]):
    """Cached images with their targets; with `seed`, randomly transformed.

    The random draw of an image depends on (seed, epoch, image) alone, not on the order of loading.

    Args:
        entries: cache files from `cache_images`.
        targets: float32 (image, label).
        rows: which images, as row numbers of `entries`.
        seed: of the random half; None leaves the images as they are.
    """

    def __init__(self, entries: Sequence[Path], targets: NDArray[np.float32], rows: Sequence[int], seed: int | None = None) -> None:
        self.entries = list(entries)
        self.targets = torch.tensor(targets, dtype=torch.float32)
        self.rows = [int(row) for row in rows]
        self.seed = seed
        self.epoch = 0
        self.random = random_transforms(np.load(self.entries[self.rows[0]], mmap_mode="r").shape[-1]) if seed is not None else None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random draw of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row = self.rows[index]
        image = torch.from_numpy(np.load(self.entries[row]))
        if self.random is not None and self.seed is not None:
            draw = np.random.SeedSequence([self.seed, self.epoch, row]).generate_state(1)[0]
            state = np.random.RandomState(int(draw))
            for transform in self.random.transforms:
                transform.set_random_state(state=state)
            with plain_tensors():
                image = self.random(image)
        return image, self.targets[row], row


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


def make_loader(dataset: ImageDataset, batch_size: int, mean: Sequence[float], std: Sequence[float]) -> DataLoader[Any]:
    """Batches `{"features": {"image": (batch, channel, row, column)}, "targets": (batch, label), "rows": (batch,)}`.

    A dataset with a seed is shuffled anew each epoch, and an incomplete last batch is left out, as
    batch statistics of a few images are poor; one without a seed keeps its order and every image.
    """

    def collate(items: list[Item]) -> dict[str, Any]:
        images, targets, rows = zip(*items, strict=True)
        return {"features": {"image": normalise(images, mean, std)}, "targets": torch.stack(targets), "rows": torch.tensor(rows)}

    training = dataset.seed is not None
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=EpochSampler(len(dataset), dataset.seed) if dataset.seed is not None else None,
        drop_last=training,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
