"""Batches: which rows, in which order, at which view; from images or from what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.tasks.task import Batch
from medtransfer.training.device import Engine


class Source(Protocol):
    """Where batches come from: images, or activations that are kept of them."""

    def prepare(self, rows: Sequence[int], view: int | None) -> None:
        """Makes ready whatever these rows need at this view, so that `load` is quick."""
        ...

    def load(self, rows: Sequence[int], view: int | None = None) -> dict[str, Any]:
        """One `Batch`; `view` is the number of the random draw, None leaves the images as they
        are.
        """
        ...


class Loader:
    """Batches of some rows of a source.

    Args:
        source: of the batches.
        rows: row numbers of the cohort.
        batch_size: images, or volumes.
        seed: shuffled anew each epoch and randomly transformed, an incomplete last batch left out,
            as batch statistics of a few images are poor; None: in order, every image, as it is.
        views: epoch e takes random draw e mod views; 0: a new draw each epoch.
        share: rank and number of processes; each takes its slice of every batch.
        ahead: prepare the next batch in a thread, while an accelerator works.

    Attributes:
        waited, filled: seconds spent waiting for batches so far, and computing what is kept of
            images.
    """

    def __init__(
        self,
        source: Source,
        rows: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        seed: int | None = None,
        views: int = 0,
        share: tuple[int, int] = (0, 1),
        ahead: bool = False,
    ) -> None:
        self.source, self.rows, self.seed, self.views, self.share, self.ahead = (
            source,
            [int(row) for row in rows],
            seed,
            views,
            share,
            ahead,
        )
        self.batch_size = max(1, min(batch_size, len(self.rows)))
        self.waited, self.filled = 0.0, 0.0
        self._epoch, self._first = 0, 0

    def start_epoch(self, epoch: int, first: int = 0) -> None:
        """Chooses the order and the random draw of the next pass, and its first batch."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + (rest > 0 and self.seed is None)

    def __iter__(self) -> Iterator[Batch]:
        rows, view = self.rows, None
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(len(rows))
            rows = [rows[place] for place in order[: len(self) * self.batch_size]]
            view = self._epoch % self.views if self.views else self._epoch
        rank, world = self.share
        batch_rows = [
            rows[at : at + self.batch_size][rank::world]
            for at in range(0, len(rows), self.batch_size)
        ][self._first :]
        self._first = 0
        begun = time.perf_counter()
        # All of them, though a shuffled pass leaves out a few: other passes will want these.
        self.source.prepare(self.rows, view)
        self.filled += time.perf_counter() - begun
        loaded = self._load([batch for batch in batch_rows if batch], view)
        batches = iter(_ahead(loaded) if self.ahead else loaded)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - begun
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield cast(Batch, batch)

    def _load(
        self, batch_rows: list[list[int]], view: int | None
    ) -> Iterator[dict[str, Any] | Exception]:
        """An error comes as a value: raised in a thread it would end the pass without a word."""
        try:
            for batch in batch_rows:
                yield self.source.load(batch, view)
        except Exception as error:
            yield error


def _ahead(batches: Iterator[Any]) -> Iterable[Any]:
    from monai.data import ThreadBuffer  # takes seconds to import

    buffered: Iterable[Any] = ThreadBuffer(batches, buffer_size=2)
    return buffered


def collect(
    batches: Iterable[Batch], engine: Engine, work: Callable[[Batch], Tensor]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """What `work` gives for every image, without gradients: values, targets and rows, in the order
    of the batches.

    Where several processes take their slices, each gets all of it.
    """
    collected: list[list[Any]] = [[], [], []]
    for batch in batches:
        with torch.inference_mode():
            collected[0].append(work(batch).cpu().numpy())
        collected[1].append(batch["targets"].numpy())
        collected[2].append(batch["rows"].numpy())
    if engine.share[1] > 1:
        collected = [
            [part for gathered in gather_object([parts]) for part in gathered]
            for parts in collected
        ]
    values, targets, rows = (np.concatenate(parts) for parts in collected)
    if engine.share[1] > 1 and isinstance(batches, Loader):
        places = {row: place for place, row in enumerate(batches.rows)}
        order = np.argsort([places[int(row)] for row in rows])
        values, targets, rows = values[order], targets[order], rows[order]
    return values, targets, rows
