"""The frozen prefix, computed once: activations at the cut, replayed in place of images."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Sampler

from medtransfer.errors import StudyError
from medtransfer.models.backbone import Backbone
from medtransfer.models.chain import Layout
from medtransfer.tasks.task import Batch
from medtransfer.training.engine import Engine


class PrefixLoader:
    """Batches with activations in place of the image; epoch e replays view e mod views.

    Attributes:
        cut: name of the deepest activation; "image" where nothing is frozen.
        views: random views held of each image.
        batch_size: images of a batch.
    """

    def __init__(self, cut: str, held: dict[str, NDArray[np.float32]], rest: dict[str, torch.Tensor], batches: BatchSampler) -> None:
        self.cut, self.views, self.batch_size = cut, len(held[cut]), batches.batch_size
        self._held, self._rest, self._batches = held, rest, batches
        self._view = 0

    def start_epoch(self, epoch: int) -> None:
        """Chooses the order and the view of the next pass."""
        self._view = epoch % self.views
        if hasattr(self._batches.sampler, "set_epoch"):
            self._batches.sampler.set_epoch(epoch)

    def select(self, images: Sequence[int], batch_size: int, seed: int | None) -> PrefixLoader:
        """The same activations of some images, by their places in the dataset; shuffled anew each epoch where there is a seed."""
        order: Any = list(images) if seed is None else _Shuffled(list(images), seed)
        batches = BatchSampler(order, min(batch_size, len(images)), drop_last=seed is not None)
        return PrefixLoader(self.cut, self._held, self._rest, batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for chosen in self._batches:
            features = {name: torch.from_numpy(values[self._view, chosen]) for name, values in self._held.items()}
            yield cast(Batch, {"features": features, **{key: value[chosen] for key, value in self._rest.items()}})


class _Shuffled(Sampler[int]):
    """An order that depends on (seed, epoch) alone."""

    def __init__(self, images: list[int], seed: int) -> None:
        self.images, self.seed, self.epoch = images, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.images).tolist())


Loader = DataLoader[Any] | PrefixLoader


def start_epoch(loader: Loader, epoch: int) -> None:
    """Chooses the order and the random draws of the next pass."""
    if isinstance(loader, PrefixLoader):
        loader.start_epoch(epoch)
        return
    for part in (loader.sampler, loader.dataset):
        cast(Any, part).set_epoch(epoch)


def cache_prefix(
    backbone: Backbone, loader: DataLoader[Any], cut: str, taps: Sequence[str], views: int, engine: Engine, folder: Path | None = None
) -> PrefixLoader:
    """Runs the stages up to `cut`, once per view of every image, and keeps what comes out, in float32.

    View v is the random draw of epoch v, so that what is replayed is what an uncached pass would have seen. It is kept
    in files without a name, which are gone when nobody uses them, however the program ends.

    Args:
        backbone: with `cut` within its frozen stages.
        loader: of images.
        cut: name of a stage, or "image".
        taps: activations the head reads; of those before the cut the mean over space is kept, which is all it reads.
        views: 1 for a loader without random transforms.
        engine: device and precision.
        folder: of the files; the system's for temporary files where left out.

    Raises:
        StudyError: not enough room on the disk.
    """
    dataset: Any = loader.dataset
    in_order: DataLoader[Any] = DataLoader(dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)
    layouts = {stage.name: stage.layout for stage in backbone.stages}
    before = [tap for tap in taps if tap in backbone.names[: backbone.frozen] and tap != cut]
    held: dict[str, NDArray[np.float32]] = {}
    rest: dict[str, list[torch.Tensor]] = {}
    training = backbone.training
    backbone.eval()
    for view in range(views):
        dataset.set_epoch(view)
        done = 0
        for batch in in_order:
            with torch.inference_mode(), engine.autocast():
                activations = backbone(engine.move(batch["features"]), [*before, cut])
            for name, activation in activations.items():
                values = (activation if name == cut else _mean_in_place(activation, layouts[name])).float().cpu().numpy()
                if name not in held:
                    held[name] = _allocate((views, len(dataset), *values.shape[1:]), folder)
                held[name][view, done : done + len(values)] = values
            done += len(batch["targets"])
            if view == 0:
                for key, value in batch.items():
                    if key != "features":
                        rest.setdefault(key, []).append(value)
    backbone.train(training)
    return PrefixLoader(cut, held, {key: torch.cat(parts) for key, parts in rest.items()}, cast(BatchSampler, loader.batch_sampler))


def _mean_in_place(activation: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The mean over space as an activation of one position, with the axis of slices where there is one; the head's mean of it is itself."""
    first = activation.ndim - len(layout) + 1  # the axis behind images, or images and slices
    if layout == "NC":
        return activation
    space = range(first, activation.ndim - 1) if layout in {"NLC", "NHWC"} else range(first + 1, activation.ndim)
    return activation.float().mean(tuple(space), keepdim=True)


def _allocate(shape: tuple[int, ...], folder: Path | None) -> NDArray[np.float32]:
    size = math.prod(shape) * 4
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            # Claimed at once: a disk that fills up later would kill the process without a word.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise StudyError(
                f"{folder or tempfile.gettempdir()}: no room for {size / 2**30:.1f} GiB of cached activations ({error.strerror}). "
                "Free some, or set plan.views=0 and plan.search=false, which keep none."
            ) from error
        return np.memmap(file, np.float32, "w+", shape=shape)
