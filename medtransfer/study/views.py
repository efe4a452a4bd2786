"""An arm of a study: the images as it sees them, its network, what it learns, and how a run left
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medtransfer.data.cohort.box_grid import boxes_on_grid, boxes_seen, place_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.grid.placement import Placement
from medtransfer.data.grid.settings import Augment
from medtransfer.data.grid.slices import Slices
from medtransfer.data.grid.source import ImageSource
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.study.folder import run_folder
from medtransfer.study.record import Prepared, code_digest
from medtransfer.study.settle import augment_of, batch_size, fixed_of, load_arm, train_of
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.detection import Detection
from medtransfer.training.batches import Loader, Source
from medtransfer.training.checkpoint import load_weights
from medtransfer.training.device import Engine
from medtransfer.training.features import FeatureSource
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
        slices: of volumes. `slab`: neighbouring slices that become the channels of each.
        train: batch size and budget.
        store: folder of the activations that are kept of frozen stages; None keeps none.
        placements: where the pixels of each image lie in the cache; needed for boxes.
        augment: which random changes the labels allow.
    """

    cohort: Cohort
    entries: Sequence[Path]
    slices: Slices
    slab: int
    train: TrainSettings
    store: Path | None = None
    placements: Sequence[Placement] = ()
    augment: Augment = field(default_factory=Augment)

    @cached_property
    def boxes(self) -> list[NDArray[np.float64]] | None:
        """Of each image on the grid of the cache, where boxes are to be found; see
        `boxes_on_grid`.
        """
        return boxes_on_grid(self.cohort, self.placements) if self.cohort.detects else None

    @cached_property
    def targets(self) -> NDArray[np.float32]:
        """(image, label), 0 or 1; or boxes as the network sees them, see
        `ImageSource.targets_of`.
        """
        if self.boxes is None:
            return self.cohort.images[list(self.cohort.labels)].to_numpy(np.float32)
        return boxes_seen(self.boxes, self.placements, self.slices.plane)

    @property
    def space(self) -> tuple[int, ...]:
        """Pixels that the network sees along rows and columns, or slices, rows and columns; where
        boxes are to be found.
        """
        size, across = self.placements[0].size, self.slices.axis
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
        recipe = backbone.recipe
        plane = self.slices.plane
        labels = self.cohort.images[list(self.cohort.labels)].to_numpy(np.float32)
        about = (
            recipe.mean,
            recipe.std,
            backbone.ndim,
            plane,
            self.slab,
            seed,
            engine.device,
            self.boxes,
            self.augment,
        )
        return ImageSource(self.entries, labels, *about)

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
        seen = [self.slices.plane, self.slab, self.augment.model_dump()]
        about = [
            list(map(str, self.entries)),
            self.targets.tolist(),
            recipe.mean,
            recipe.std,
            *seen,
        ]
        decided = [
            hashlib.sha256(json.dumps(about).encode()).hexdigest(),
            code_digest(),
            torch.__version__,
            engine.device.type,
        ]
        at_once = self.batches(images, engine)[1]
        return FeatureSource(
            backbone,
            images,
            len(self.entries),
            cut,
            taps,
            engine,
            self.store,
            decided,
            pooled,
            at_once,
            report,
            seed,
        )

    def plain(self, rows: Any, backbone: Backbone, engine: Engine) -> Loader:
        """Batches of some images as they are, in order."""
        source = self.source(backbone, engine)
        return Loader(source, rows, self.batches(source, engine)[1])

    def batches(self, images: ImageSource, engine: Engine) -> tuple[int, int]:
        """Images, or volumes, at a step of training, and at once in prediction; of all processes
        together.
        """
        ndim, processes = len(images.shape), engine.share[1]
        step = batch_size(self.train, ndim, self.cohort.detects)
        # Images with boxes are larger: many at once leave the caches of the processor.
        at_once = (
            step
            if self.cohort.detects
            else max(1, _EVAL_BATCH // (1 if ndim == 2 else self.slices.count))
        )
        # Every process takes as many.
        return max(processes, step - step % processes), at_once


def images_of(prepared: Prepared, arm: str, store: Path | None = None) -> Images:
    """The images of a study as one of its arms sees them."""
    config = prepared.config
    entries, image = [Path(entry) for entry in prepared.facts["entry"]], config.image
    slices = Slices(image.slices, image.slice_spacing, image.plane)
    placements = place_images(fixed_of(config), prepared.facts) if prepared.cohort.detects else ()
    kept = store if config.train.cache_gb else None
    arm_train = train_of(config, arm)
    return Images(
        prepared.cohort,
        entries,
        slices,
        config.arms[arm].slab,
        arm_train,
        kept,
        placements,
        augment_of(config, prepared.cohort),
    )


def backbone_of(prepared: Prepared, arm: str, seed: int) -> Backbone:
    """The backbone of an arm before training: a copy, as training changes it in place; scratch is
    drawn anew from every seed.
    """
    section = prepared.config.arms[arm]
    return (
        deepcopy(prepared.backbones[arm])
        if section.weights
        else load_arm(section, prepared.config.image.size, seed)
    )


def task_of(prepared: Prepared, arm: str) -> Classification | Detection:
    """What an arm learns; slices are pooled where a network of planes sees volumes."""
    if prepared.cohort.detects:
        image, volumes = prepared.config.image, prepared.fingerprint.ndim == 3
        return Detection(prepared.cohort.labels, (image.slices,) * volumes + (image.size,) * 2)
    sliced = prepared.fingerprint.ndim > prepared.backbones[arm].ndim
    return Classification(
        prepared.cohort.labels, pooling=prepared.config.arms[arm].pooling if sliced else "mean"
    )


def load_run(
    prepared: Prepared, output: Path, arm: str, index: int, seed: int
) -> tuple[Backbone, Head, FreezePlan]:
    """The network of a finished run as it was left, and its plan."""
    folder = run_folder(output, arm, index, seed)
    plan = FreezePlan(**json.loads((folder / "run.json").read_text(encoding="utf-8"))["plan"])
    backbone = backbone_of(prepared, arm, seed)
    backbone.truncate(plan.dropped_stages)
    head = replace(task_of(prepared, arm), read=plan.read).make_head(backbone)
    load_weights(folder / "weights.safetensors", backbone, head)
    return backbone, head, plan
