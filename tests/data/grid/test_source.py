from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from medtransfer.data.audit.inspection import inspect_image
from medtransfer.data.grid.cache import cache_folder, write_entry
from medtransfer.data.grid.fixed import Fixed, normalise
from medtransfer.data.grid.source import ImageSource, NetworkInput
from medtransfer.errors import ImageError


@pytest.fixture
def cached(write_png):
    rng = np.random.default_rng(0)
    paths = [
        str(write_png(f"{i}.png", rng.integers(0, 255, (30, 50)).astype(np.uint8)))
        for i in range(6)
    ]
    return paths, [inspect_image(path, cache_folder(), Fixed(32))["entry"] for path in paths]


def source_of(entries, seed=0, mean=(0.5,), std=(0.5,)):
    return ImageSource(
        entries,
        np.arange(len(entries), dtype=np.float32)[:, None],
        NetworkInput(mean, std),
        seed=seed,
    )


def test_an_entry_that_is_gone_is_named(tmp_path):
    with pytest.raises(ImageError, match="gone or damaged"):
        source_of([tmp_path / "gone.npy"]).load([0])


def test_a_damaged_entry_is_named_and_not_learnt_from(cached):
    entry = Path(cached[1][2])
    content = entry.read_bytes()
    entry.write_bytes(content[:200] + bytes(len(content) - 200))
    with (
        pytest.warns(UserWarning, match=entry.name),
        pytest.raises(ImageError, match=f"{entry.name}: .*damaged. Run the same command again"),
    ):
        source_of(cached[1]).load([2])
    entry.write_bytes(content)


def test_draws_depend_on_view_and_image_not_on_the_batch(cached):
    source = source_of(cached[1], seed=3)
    image = source.load([4], 1)["features"]["image"][0]
    assert torch.equal(image, source.load([0, 4, 2], 1)["features"]["image"][1])
    assert not torch.equal(image, source.load([4], 2)["features"]["image"][0])
    assert not torch.equal(image, source.load([4])["features"]["image"][0])
    assert not torch.equal(image, source_of(cached[1], seed=4).load([4], 1)["features"]["image"][0])


def test_batches_are_normalised_and_keep_rows(cached):
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)
    batch = source_of(cached[1], mean=mean, std=std).load([5, 1])
    assert batch["rows"].tolist() == [5, 1]
    assert batch["targets"].tolist() == [[5], [1]]
    raw = torch.from_numpy(np.load(cached[1][5]))[0]
    for channel in range(3):
        assert torch.allclose(
            batch["features"]["image"][0, channel], (raw - mean[channel]) / std[channel], atol=1e-5
        )


def test_normalise_repeats_grey_and_keeps_colour():
    grey, colour = (
        normalise(torch.full((1, 1, 2, 2), 0.5), (0.5,) * 3, (0.5,) * 3),
        normalise(torch.ones(1, 3, 2, 2), (0.5,) * 3, (0.5,) * 3),
    )
    assert grey.shape == colour.shape == (1, 3, 2, 2)
    assert grey.abs().max() == 0
    assert (colour == 1).all()


def test_grey_and_colour_images_share_a_batch(tmp_path):
    write_entry(tmp_path / "grey.npy", np.full((1, 4, 4), 0.5, np.float32))
    write_entry(tmp_path / "colour.npy", np.ones((3, 4, 4), np.float32))
    images = source_of(
        [tmp_path / "grey.npy", tmp_path / "colour.npy"], mean=(0.5,) * 3, std=(0.5,) * 3
    ).load([0, 1])["features"]["image"]
    assert images.shape == (2, 3, 4, 4)
    assert images[0].abs().max() == 0
    assert (images[1] == 1).all()
