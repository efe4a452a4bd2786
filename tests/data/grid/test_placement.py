"""Resampling to the grid of the network, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.grid.monai import fixed_transforms
from medtransfer.data.grid.placement import Placement, place
from medtransfer.errors import ConfigError
from PIL import Image


@pytest.mark.parametrize("shape", [(300, 200), (50, 40), (97, 211)])
def test_resampling_is_that_of_pillow_in_float(write_png, shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    result = fixed_transforms(96, "full")({"image": str(write_png("a.png", array))})
    size = result["placement"].resized
    scaled = ((array.astype(np.float32) - array.min()) / (array.max() - array.min())).astype(
        np.float32
    )
    reference = np.asarray(Image.fromarray(scaled).resize(size[::-1], Image.Resampling.BILINEAR))
    before = result["placement"].before
    inner = result["image"][
        0, before[0] : before[0] + size[0], before[1] : before[1] + size[1]
    ].numpy()
    assert np.abs(inner - reference).max() < 1e-5


def test_volumes_are_resampled_axis_by_axis():
    """Against the planes resampled one by one, then the columns across them."""
    volume = torch.rand(1, 30, 40, 20, generator=torch.Generator().manual_seed(0))
    found = Placement((30, 40, 20), (12, 50, 9), (0, 0, 0), (12, 50, 9)).place(volume)
    interpolate = torch.nn.functional.interpolate
    planes = torch.stack(
        [
            interpolate(p[None, None], (50, 9), mode="bilinear", antialias=True)[0, 0]
            for p in volume[0]
        ]
    )
    across = torch.stack(
        [
            interpolate(c.T[None, None], (9, 12), mode="bilinear", antialias=True)[0, 0].T
            for c in planes.unbind(1)
        ],
        1,
    )
    assert torch.allclose(found[0], across, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(8, 300), min_size=2, max_size=2)
    | st.lists(st.integers(8, 60), min_size=3, max_size=3),
    size=st.integers(32, 96),
    spacing=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
)
def test_placements_stay_on_the_grid_and_come_back(shape, size, spacing):
    found = place(shape, spacing[: len(shape)], size, None, "here")
    assert max(found.resized) == size
    assert all(b + r <= size for b, r in zip(found.before, found.resized, strict=True))
    if len(shape) == 2:
        boxes = np.array([[0, 0, shape[1], shape[0]], [1, 2, shape[1] / 2, shape[0] / 2]])
    else:
        boxes = np.array([[0, 0, *shape[:2], 0, shape[2]]])
    moved = found.place_boxes(boxes)
    assert (moved >= -1e-9).all()
    assert (moved <= size + 1e-9).all()
    assert np.allclose(found.return_boxes(moved), boxes)
    grid = found.place(torch.ones(1, *shape))
    assert tuple(grid.shape) == (1, *(size,) * len(shape))
    assert grid.sum() == pytest.approx(float(np.prod(found.resized)), rel=1e-4)


@pytest.mark.parametrize(
    ("size", "spacing"),
    [
        (0, None),
        (-3, None),
        ("big", None),
        (1.5, None),
        ((), None),
        (64, -1),
        (64, 0),
        (64, "x"),
        (64, ()),
    ],
)
def test_sizes_and_spacings_that_make_no_sense_are_refused(size, spacing):
    with pytest.raises(ConfigError, match="size is|spacing is"):
        fixed_transforms(size, "full", spacing)
