"""How unlike the training images an image is, from the features that a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sklearn.neighbors import NearestNeighbors

from medtransfer.errors import FileError
from medtransfer.files import write_aside
from medtransfer.models.heads.linear import LinearHead
from medtransfer.training.batches import Loader
from medtransfer.training.predicting import Model
from medtransfer.training.probe import Features, pooled_features

Float = NDArray[np.float64]
_NEIGHBOURS = 5


def distances_to(train: Float, others: Float) -> Float:
    """Mean distance to the five nearest training images, of features standardised by channel, per
    root of a channel.

    As Bergman, Cohen & Hoshen 2020, arXiv:2002.10445: no assumption on how features are
    distributed.

    Args:
        train: (image, channel). others: (image, channel).

    Returns:
        (image,), from 0.
    """
    mean, scale = train.mean(0), train.std(0)
    scale[scale < 1e-8] = 1.0

    nearest = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(train))).fit((train - mean) / scale)
    return np.asarray(
        nearest.kneighbors((others - mean) / scale)[0].mean(1) / np.sqrt(train.shape[1]), np.float64
    )


@dataclass(frozen=True, eq=False)
class Reach:
    """How far the training images of a model reach.

    Attributes:
        features: (image, channel), pooled features of the training images.
        distances: (image,), ascending, how far the tune images are from these.
    """

    features: Float
    distances: Float

    def typicality(self, features: Float) -> Float:
        """Share of tune images that are at least as far from the training images: a conformal
        p-value.

        Of images like the tune images, a share of 0.05 lies at 0.05 or below (Bates et al. 2023,
        doi:10.1214/22-AOS2244).

        Args:
            features: (image, channel), pooled features of other images.

        Returns:
            (image,), in (0, 1].
        """
        farther = len(self.distances) - np.searchsorted(
            self.distances, distances_to(self.features, features), side="left"
        )
        return np.asarray((1 + farther) / (len(self.distances) + 1), np.float64)

    def save(self, path: Path) -> None:
        """Writes both arrays into one safetensors file."""
        arrays = {"features": self.features, "distances": self.distances}
        write_aside(path, save(arrays))

    @staticmethod
    def load(path: Path) -> Reach:
        """Reads what `save` wrote.

        Raises:
            FileError: the file is damaged.
            OSError: it cannot be read.
        """
        try:
            arrays = load(path.read_bytes())
            return Reach(arrays["features"], arrays["distances"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise FileError(f"{path}: is damaged ({error}).") from error


def make_reach(train: Features, tune: Features) -> Reach:
    """How far training images reach, from pooled features of them and of the tune images."""
    return Reach(train.values, np.sort(distances_to(train.values, tune.values)))


def measure_typicality(model: Model, parts: Sequence[Loader]) -> tuple[Float, Reach]:
    """Typicality of the tune images, then of the test images.

    Args:
        model: of a linear head, whose pooled features are compared.
        parts: batches of the training, the tune and the test images.
    """
    head = cast(LinearHead, model.head)
    train, tune, test = (
        pooled_features(model.backbone, head, batches, model.engine) for batches in parts
    )
    reach = make_reach(train, tune)
    return np.concatenate([reach.typicality(part.values) for part in (tune, test)]), reach
