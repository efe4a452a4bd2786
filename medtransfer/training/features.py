"""The frozen prefix, computed once: activations at the cut, replayed in place of images."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from medtransfer.errors import StudyError
from medtransfer.models.backbone import Backbone
from medtransfer.tasks.task import Batch
from medtransfer.training.engine import Engine


class PrefixLoader:
    """Batches of a loader with the activation at the cut in place of the image; epoch e replays view e mod views.

    Attributes:
        cut: name of the activation.
        views: random views held of each image.
        batch_size: of the loader.
    """

    def __init__(self, loader: DataLoader[Any], cut: str, views: int, held: NDArray[np.float32], rest: dict[str, torch.Tensor]) -> None:
        self.loader, self.cut, self.views, self.batch_size = loader, cut, views, loader.batch_size
        self._held, self._rest = held, rest
        self._view = 0

    def start_epoch(self, epoch: int) -> None:
        """Chooses the order and the view of the next pass."""
        self._view = epoch % self.views
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for chosen in cast(Any, self.loader.batch_sampler):
            activation = torch.from_numpy(self._held[self._view, chosen])
            yield cast(Batch, {"features": {self.cut: activation}, **{key: value[chosen] for key, value in self._rest.items()}})


Loader = DataLoader[Any] | PrefixLoader


def start_epoch(loader: Loader, epoch: int) -> None:
    """Chooses the order and the random draws of the next pass."""
    if isinstance(loader, PrefixLoader):
        loader.start_epoch(epoch)
        return
    for part in (loader.sampler, loader.dataset):
        cast(Any, part).set_epoch(epoch)


def cache_prefix(
    backbone: Backbone, loader: DataLoader[Any], cut: str, views: int, engine: Engine, folder: Path | None = None
) -> PrefixLoader:
    """Runs the stages up to `cut` once per view of every image and keeps what comes out, in float32.

    View v is the random draw of epoch v, so that what is replayed is what an uncached pass would have seen. It is kept
    in a file without a name, which is gone when nobody uses it, however the program ends.

    Args:
        backbone: with `cut` within its frozen stages.
        loader: of images.
        cut: name of a stage.
        views: 1 for a loader without random transforms.
        engine: device and precision.
        folder: of the file; the system's for temporary files where left out.

    Raises:
        StudyError: not enough room on the disk.
    """
    dataset: Any = loader.dataset
    in_order: DataLoader[Any] = DataLoader(dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)
    held: NDArray[np.float32] | None = None
    rest: dict[str, list[torch.Tensor]] = {}
    training = backbone.training
    backbone.eval()
    for view in range(views):
        dataset.set_epoch(view)
        done = 0
        for batch in in_order:
            with torch.inference_mode(), engine.autocast():
                activation = backbone(engine.move(batch["features"]), [cut])[cut].float().cpu().numpy()
            if held is None:
                held = _allocate((views, len(dataset), *activation.shape[1:]), folder)
            held[view, done : done + len(activation)] = activation
            done += len(activation)
            if view == 0:
                for key, value in batch.items():
                    if key != "features":
                        rest.setdefault(key, []).append(value)
    backbone.train(training)
    assert held is not None  # a loader has at least one image
    return PrefixLoader(loader, cut, views, held, {key: torch.cat(parts) for key, parts in rest.items()})


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
                "Free some, or set plan.views=0 to compute them anew."
            ) from error
        return np.memmap(file, np.float32, "w+", shape=shape)
