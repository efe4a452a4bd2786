"""How unlike the training images an image is, from the features that a head reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from medtransfer.training.probe import Features

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


def typicality(train: Features, tune: Features, others: Features) -> Float:
    """Share of tune images that are at least as far from the training images, (image,) in (0, 1]: a
    conformal p-value.

    Of images like the tune images, a share of 0.05 lies at 0.05 or below (Bates et al. 2023,
    doi:10.1214/22-AOS2244).

    Args:
        train, tune, others: pooled features.
    """
    reference, known, new = train.values, tune.values, others.values
    distances = np.sort(distances_to(reference, known))
    farther = len(distances) - np.searchsorted(distances, distances_to(reference, new), side="left")
    return np.asarray((1 + farther) / (len(distances) + 1), np.float64)
