"""What becomes 0..1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medtransfer.data.grid.monai import fixed_transforms
from medtransfer.data.images.windows import parse_window, scale
from medtransfer.errors import ConfigError


def test_windows(write_png):
    array = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    path = str(write_png("a.png", array))
    full = fixed_transforms(200, "full")({"image": path})["image"]
    assert np.allclose(full[0, 0], np.arange(200) / 199, atol=1e-5)
    fixed = fixed_transforms(200, (100.0, 50.0))({"image": path})["image"]
    assert np.allclose(fixed[0, 0], np.clip((np.arange(200) - 75) / 50, 0, 1), atol=1e-5)
    percentile = fixed_transforms(200)({"image": path})["image"]
    low, high = np.percentile(array, [0.5, 99.5])
    assert np.allclose(
        percentile[0, 0], np.clip((np.arange(200) - low) / (high - low), 0, 1), atol=1e-3
    )
    three = fixed_transforms(200, ["full", [100, 50], "percentile"])({"image": path})["image"]
    assert torch.equal(three, torch.cat([full, fixed, percentile]))


@pytest.mark.parametrize(
    "window",
    [
        "lungs",
        [1],
        [1, 2, 3],
        [40, 0],
        [40, -5],
        ["lung", "brain"],
        None,
        [40, float("nan")],
        True,
        ["lung", ["lung", "brain", "bone"], "brain"],
    ],
)
def test_unknown_windows_are_refused(window):
    with pytest.raises(ConfigError, match="window"):
        parse_window(window)


def test_windows_are_what_float64_gives():
    values = np.random.default_rng(0).normal(0, 800, (1, 50, 50)).astype(np.float32)
    known = {
        "lung": (-1350, 150),
        "brain": (0, 80),
        "soft_tissue": (-160, 240),
        "bone": (-500, 1300),
        (10.0, 3.0): (8.5, 11.5),
    }
    for window, (low, high) in known.items():
        by_hand = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
        assert np.allclose(scale(values, window), by_hand, atol=1e-6)


def test_sparse_and_constant_images_are_scaled_too(write_png):
    spot = np.zeros((100, 100), np.uint8)
    spot[50, 50:54] = 200
    image = fixed_transforms(100)({"image": str(write_png("spot.png", spot))})["image"]
    assert (image.min(), image.max()) == (0, 1)
    flat = fixed_transforms(100)(
        {"image": str(write_png("flat.png", np.full((100, 100), 9, np.uint8)))}
    )["image"]
    assert flat.abs().max() == 0
