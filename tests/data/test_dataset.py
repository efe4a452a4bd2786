from __future__ import annotations

import numpy as np
import pytest
import torch
from medtransfer.data.cache import cache_folder
from medtransfer.data.dataset import EpochSampler, ImageDataset, make_loader
from medtransfer.data.inspection import inspect_image
from medtransfer.data.transforms import Fixed, normalise, random_transforms
from medtransfer.errors import ImageError


@pytest.fixture
def cached(write_png):
    rng = np.random.default_rng(0)
    paths = [str(write_png(f"{i}.png", rng.integers(0, 255, (30, 50)).astype(np.uint8))) for i in range(6)]
    return paths, [inspect_image(path, cache_folder(), Fixed(32))["entry"] for path in paths]


def test_an_entry_that_is_gone_is_named(tmp_path):
    dataset = ImageDataset([tmp_path / "gone.npy"], np.zeros((1, 1), np.float32), [0])
    with pytest.raises(ImageError, match="gone or cut short"):
        dataset[0]


def test_random_half_stays_in_place_and_depends_on_the_seed():
    image = torch.zeros(1, 64, 64)
    image[0, 24:40, 24:40] = 1
    pipeline = random_transforms((64, 64))
    drawn = []
    for seed in (1, 1, 2):
        pipeline.set_random_state(seed=seed)
        drawn.append(pipeline(image))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == image.shape
    mass = (drawn[2] > 0.5).float()
    assert 100 < mass.sum() < 500  # 256 pixels, zoomed by at most 15 % per axis
    rows, columns = (mass[0].sum(axis) @ torch.arange(64.0) / mass.sum() for axis in (1, 0))
    assert abs(rows - 31.5) < 9
    assert abs(columns - 31.5) < 9


def test_draws_depend_on_epoch_and_image_not_on_order(cached):
    _, entries = cached
    targets = np.zeros((6, 1), np.float32)
    first = ImageDataset(entries, targets, range(6), seed=3)
    other = ImageDataset(entries, targets, [4, 2], seed=3)
    assert torch.equal(first[4][0], other[0][0])
    assert torch.equal(first[4][0], first[4][0])
    before = first[4][0]
    first.set_epoch(1)
    assert not torch.equal(before, first[4][0])


def test_loader_normalises_and_keeps_rows(cached):
    _, entries = cached
    targets = np.arange(6, dtype=np.float32)[:, None]
    loader = make_loader(ImageDataset(entries, targets, [5, 1, 3]), 2, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    batches = list(loader)
    assert [batch["rows"].tolist() for batch in batches] == [[5, 1], [3]]
    assert batches[1]["targets"].tolist() == [[3]]
    raw = torch.from_numpy(np.load(entries[5]))[0]
    image = batches[0]["features"]["image"][0]
    for channel, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.5, 0.2, 0.1), strict=True)):
        assert torch.allclose(image[channel], (raw - mean) / std, atol=1e-5)


def test_training_loader_shuffles_by_epoch_and_drops_the_rest(cached):
    _, entries = cached
    loader = make_loader(ImageDataset(entries, np.zeros((6, 1), np.float32), range(6), seed=1), 4, (0.5,), (0.5,))
    assert len(loader) == 1
    small = make_loader(ImageDataset(entries, np.zeros((6, 1), np.float32), range(3), seed=1), 32, (0.5,), (0.5,))
    assert len(list(small)) == 1
    sampler = EpochSampler(20, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == sorted(sampler) == list(range(20))
    assert list(sampler) != first


def test_normalise_repeats_grey_and_keeps_colour():
    batch = normalise([torch.full((1, 2, 2), 0.5), torch.full((3, 2, 2), 1.0)], (0.5,) * 3, (0.5,) * 3)
    assert batch.shape == (2, 3, 2, 2)
    assert batch[0].abs().max() == 0
    assert (batch[1] == 1).all()
