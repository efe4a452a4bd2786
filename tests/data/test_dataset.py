from __future__ import annotations

import numpy as np
import pytest
import torch
from medtransfer.data.dataset import EpochSampler, ImageDataset, cache_folder, cache_images, make_loader
from medtransfer.data.transforms import fixed_transforms, normalise, random_transforms
from medtransfer.errors import ConfigError


@pytest.fixture
def cached(write_png):
    rng = np.random.default_rng(0)
    paths = [str(write_png(f"{i}.png", rng.integers(0, 255, (30, 50)).astype(np.uint8))) for i in range(6)]
    return paths, cache_images(paths, [f"digest{i}" for i in range(6)], 32, "percentile", cache_folder())


def test_fixed_half_keeps_the_aspect_and_pads(write_png):
    array = np.zeros((20, 40), np.uint8)
    array[:, 20:] = 250
    image = fixed_transforms(32)({"image": str(write_png("a.png", array))})["image"]
    assert type(image) is torch.Tensor
    assert image.shape == (1, 32, 32)
    assert (image.min(), image.max()) == (0, 1)
    assert image[0, :7].max() == 0
    assert image[0, -7:].max() == 0
    assert image[0, 16, :12].max() < 0.1
    assert image[0, 16, 20:].min() > 0.9


def test_windows(write_png):
    array = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    path = str(write_png("a.png", array))
    full = fixed_transforms(200, "full")({"image": path})["image"]
    assert np.allclose(full[0, 0], np.arange(200) / 199, atol=1e-5)
    fixed = fixed_transforms(200, (100.0, 50.0))({"image": path})["image"]
    assert np.allclose(fixed[0, 0], np.clip((np.arange(200) - 75) / 50, 0, 1), atol=1e-5)
    percentile = fixed_transforms(200)({"image": path})["image"]
    low, high = np.percentile(array, [0.5, 99.5])
    assert np.allclose(percentile[0, 0], np.clip((np.arange(200) - low) / (high - low), 0, 1), atol=1e-3)
    with pytest.raises(ConfigError, match="percentile, full or"):
        fixed_transforms(32, "lungs")


def test_sparse_and_constant_images_are_scaled_too(write_png):
    spot = np.zeros((100, 100), np.uint8)
    spot[50, 50:54] = 200
    image = fixed_transforms(100)({"image": str(write_png("spot.png", spot))})["image"]
    assert (image.min(), image.max()) == (0, 1)
    flat = fixed_transforms(100)({"image": str(write_png("flat.png", np.full((100, 100), 9, np.uint8)))})["image"]
    assert flat.abs().max() == 0


def test_the_cache_is_the_uncached_result_bit_for_bit(cached):
    paths, entries = cached
    pipeline = fixed_transforms(32)
    for path, entry in zip(paths, entries, strict=True):
        assert np.array_equal(np.load(entry), pipeline({"image": path})["image"].numpy())


def test_the_cache_is_filled_once_and_keyed_by_content_and_setting(cached):
    paths, entries = cached
    stamps = [entry.stat().st_mtime_ns for entry in entries]
    again = cache_images(paths, [f"digest{i}" for i in range(6)], 32, "percentile", cache_folder())
    assert again == entries
    assert [entry.stat().st_mtime_ns for entry in again] == stamps
    changed = cache_images(paths[:1], ["another"], 32, "percentile", cache_folder())
    larger = cache_images(paths[:1], ["digest0"], 48, "percentile", cache_folder())
    windowed = cache_images(paths[:1], ["digest0"], 32, "full", cache_folder())
    assert len({entries[0], changed[0], larger[0], windowed[0]}) == 4
    assert not list(cache_folder().rglob("*.part"))


def test_a_cache_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be written"):
        folder = cache_folder()
    assert (folder / "images").is_dir()


def test_random_half_stays_in_place_and_depends_on_the_seed():
    image = torch.zeros(1, 64, 64)
    image[0, 24:40, 24:40] = 1
    pipeline = random_transforms(64)
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
