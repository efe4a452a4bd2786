"""An arm of a study: the images as it sees them, its network, and what it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medtransfer.data.cohort.box_grid import boxes_on_grid, boxes_seen, place_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.laterality import allowed_changes
from medtransfer.data.grid.fixed import fixed_of, input_space, slices_of
from medtransfer.data.grid.placement import Placement
from medtransfer.data.grid.settings import Augment, ImageSettings
from medtransfer.data.grid.source import ImageSource, NetworkInput
from medtransfer.files import digest_of
from medtransfer.models.chain.backbone import Backbone
from medtransfer.study.identity import code_digest
from medtransfer.study.planning import train_of
from medtransfer.study.settle import Settled, load_arm
from medtransfer.tasks.kinds import make_task
from medtransfer.tasks.task import Task
from medtransfer.training.batches import Loader, Source
from medtransfer.training.device import Engine
from medtransfer.training.features import FeatureSource, Store
from medtransfer.training.settings import TrainSettings

Report = Callable[[str, int, int], None]
# Planes that are predicted at once.
_EVAL_BATCH = 32


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a cohort as they lie in the cache, and how a network is given them.

    Attributes:
        cohort: the images.
        entries: files of the image cache, one per image.
        task: what is learnt of them.
        image: how their pixels became the input.
        slab: neighbouring slices that become the channels of each.
        train: batch size and budget.
        store: folder of the activations that are kept of frozen stages; None keeps none.
        placements: where the pixels of each image lie in the cache; needed for boxes.
        augment: which random changes the labels allow.
    """

    cohort: Cohort
    entries: Sequence[Path]
    task: Task
    image: ImageSettings
    slab: int = 1
    train: TrainSettings = field(default_factory=TrainSettings)
    store: Path | None = None
    placements: Sequence[Placement] = ()
    augment: Augment = field(default_factory=Augment)

    @cached_property
    def boxes(self) -> list[NDArray[np.float64]] | None:
        """The boxes of each image on the grid of the cache, see `boxes_on_grid`; None where the
        cohort has none.
        """
        has_boxes = self.cohort.boxes is not None and len(self.placements) > 0
        return boxes_on_grid(self.cohort, self.placements) if has_boxes else None

    @property
    def labels(self) -> NDArray[np.float32]:
        """(image, label), 0 or 1."""
        labels: NDArray[np.float32] = self.cohort.images[list(self.cohort.labels)].to_numpy(
            np.float32
        )
        return labels

    @cached_property
    def targets(self) -> NDArray[np.float32]:
        """What is to be learnt of each image, see `Task.targets`."""
        if self.boxes is None:
            return self.task.targets(self.labels, None, ())
        boxes = boxes_seen(self.boxes, self.placements, self.image.plane)
        return self.task.targets(self.labels, boxes, self.space)

    @property
    def space(self) -> tuple[int, ...]:
        """Pixels that the network sees along rows and columns, or slices, rows and columns; where
        boxes are to be found.
        """
        size, across = self.placements[0].size, slices_of(self.image).axis
        if len(size) == 2:
            return size
        columns, rows = (axis for axis in range(3) if axis != across)
        return size[across], size[rows], size[columns]

    @property
    def groups(self) -> NDArray[np.int64]:
        """(image,), a number per patient, or per cluster where these are kept together."""
        codes: NDArray[np.int64] = np.asarray(pd.factorize(self.cohort.units)[0], np.int64)
        return codes

    def source(self, backbone: Backbone, engine: Engine, seed: int = 0) -> ImageSource:
        """The images in the recipe of the weights; `seed` of their random half."""
        boxes = self.boxes if self.task.finds_boxes else None
        return ImageSource(
            self.entries,
            self.targets if boxes is None else self.labels,
            NetworkInput(
                backbone.recipe.mean,
                backbone.recipe.std,
                backbone.ndim,
                self.image.plane,
                self.slab,
            ),
            seed,
            engine.device,
            boxes,
            self.augment,
        )

    def keep(
        self,
        backbone: Backbone,
        engine: Engine,
        cut: str,
        taps: Sequence[str],
        seed: int,
        pooled: bool = False,
        report: Report = lambda *_: None,
    ) -> Source:
        """Activations behind a cut, kept on disk, or the images where there is no store; see
        `FeatureSource`.

        What is kept of the images as they are is shared by all folds and seeds whose frozen stages
        are the same, and random views by folds.
        """
        images = self.source(backbone, engine, seed)
        if self.store is None:
            return images
        recipe = backbone.recipe
        seen = [self.image.plane, self.slab, self.augment.model_dump()]
        about = [
            list(map(str, self.entries)),
            self.targets.tolist(),
            recipe.mean,
            recipe.std,
            *seen,
        ]
        decided = [digest_of(about), code_digest(), torch.__version__, engine.device.type]
        at_once = self.batches(images, engine)[1]
        store = Store(self.store, len(self.entries), decided, seed, at_once)
        return FeatureSource(backbone, images, cut, taps, engine, store, pooled, report)

    def plain(self, rows: Any, backbone: Backbone, engine: Engine) -> Loader:
        """Batches of some images as they are, in order."""
        source = self.source(backbone, engine)
        return Loader(source, rows, self.batches(source, engine)[1])

    def batches(self, images: ImageSource, engine: Engine) -> tuple[int, int]:
        """Images, or volumes, at a step of training, and at once in prediction; of all processes
        together.
        """
        ndim, processes = len(images.shape), engine.share[1]
        step = self.train.batch_size or self.task.batch_size(ndim)
        most = max(1, _EVAL_BATCH // (1 if ndim == 2 else self.image.slices))
        at_once = self.task.at_once(step, most)
        # Every process takes as many.
        return max(processes, step - step % processes), at_once


def images_of(settled: Settled, arm: str, store: Path | None = None) -> Images:
    """The images of a study as one of its arms sees them."""
    config = settled.config
    has_boxes = settled.cohort.boxes is not None
    return Images(
        settled.cohort,
        [Path(entry) for entry in settled.facts["entry"]],
        task_of(settled, arm),
        config.image,
        config.arms[arm].slab,
        train_of(config, arm),
        store if config.train.cache_gb else None,
        place_images(fixed_of(config.image), settled.facts) if has_boxes else (),
        allowed_changes(settled.cohort, config.augment),
    )


def backbone_of(settled: Settled, arm: str, seed: int) -> Backbone:
    """The backbone of an arm before training: a copy, as training changes it in place; scratch is
    drawn anew from every seed.
    """
    section = settled.config.arms[arm]
    if section.weights:
        return deepcopy(settled.backbones[arm])
    return load_arm(section, settled.config.image.size, seed)


def task_of(settled: Settled, arm: str) -> Task:
    """What an arm learns; slices are pooled where a network of planes sees volumes."""
    config, ndim = settled.config, settled.fingerprint.ndim
    sliced = ndim > settled.backbones[arm].ndim
    pooling = config.arms[arm].pooling if sliced else "mean"
    return make_task(config.task, settled.cohort.labels, input_space(config.image, ndim), pooling)
