from __future__ import annotations

import itertools

import numpy as np
import pytest
from medtransfer.data.audit.inspection import make_thumbnail
from medtransfer.data.audit.similarity import near_duplicates
from scipy.ndimage import gaussian_filter


def tissue(seed, shape=(200, 240)):
    rng = np.random.default_rng(seed)
    return sum(gaussian_filter(rng.normal(size=shape), s) * s for s in (2, 6, 20)).astype(
        np.float32
    )


def pairs_of(arrays, features=None):
    return [
        (a, b)
        for a, b, _ in near_duplicates([make_thumbnail(array[None]) for array in arrays], features)
    ]


def test_changes_that_keep_the_pixels_are_seen_through():
    base = tissue(0)
    rng = np.random.default_rng(9)
    changed = {
        "brighter": base * 1.7 + 300,
        "inverted scale of saving": (base / 7).round(1),
        "noise": base + 0.05 * base.std() * rng.normal(size=base.shape),
        "half the size": base[::2, ::2],
        "mirrored": base[:, ::-1],
        "upside down": base[::-1],
        "half a turn": base[::-1, ::-1],
        "one pixel moved": np.roll(base, 1, axis=1),
    }
    arrays = [base, *changed.values(), tissue(1), tissue(2), tissue(3)]
    found = pairs_of(arrays)
    assert {b for a, b in found if a == 0} == set(range(1, len(changed) + 1))
    others = set(range(len(changed) + 1, len(arrays)))
    assert not any(set(pair) & others for pair in found)


def test_images_of_one_view_are_not_the_same_image():
    """Different patients in one view agree in the large (correlation 0.98 here), not in the
    detail.
    """
    view = gaussian_filter(np.random.default_rng(0).normal(size=(200, 240)), 25) * 100
    arrays = [
        (view + 0.12 * view.std() * tissue(seed) / tissue(seed).std()).astype(np.float32)
        for seed in range(1, 6)
    ]
    small = [make_thumbnail(array[None]).ravel() for array in arrays]
    assert np.corrcoef(small[0], small[1])[0, 1] > 0.97
    assert pairs_of(arrays) == []


@pytest.mark.parametrize("kind", ["disc", "sector"])
@pytest.mark.parametrize("spread", [3, 6, 10, 14])
def test_a_frame_that_all_images_share_makes_no_duplicates(kind, spread):
    """The edge of a fundus disc or an ultrasound sector correlates between all images."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :200]
    radius = np.hypot(y + 16, x - 100)
    inside = (
        np.hypot(y - 100, x - 100) < 86
        if kind == "disc"
        else (radius < 200) & (radius > 40) & (np.abs(x - 100) < 0.7 * (y + 16))
    )
    arrays = []
    for _ in range(30):
        texture = sum(
            t / t.std()
            for t in (gaussian_filter(rng.normal(size=inside.shape), s) for s in (2.5, 9))
        )
        arrays.append(np.where(inside, 100 + spread * texture, 0).astype(np.float32))
    small = [make_thumbnail(array[None]).ravel() for array in arrays]
    assert np.corrcoef(small[0], small[1])[0, 1] > 0.9
    again = [array * 1.1 + rng.normal(size=array.shape) for array in arrays[:4]]
    assert pairs_of(arrays + again) == [(i, 30 + i) for i in range(4)]


def test_the_candidates_lose_nothing_against_all_pairs():
    rng = np.random.default_rng(3)
    arrays = []
    for seed in range(30):
        base = tissue(seed, (96, 96))
        arrays += [
            base,
            base + 0.15 * base.std() * gaussian_filter(rng.normal(size=base.shape), 1) * 3,
        ]
    thumbnails = [make_thumbnail(a[None]) for a in arrays]
    found = {(a, b): c for a, b, c in near_duplicates(thumbnails)}
    assert len(found) >= 20
    for a, b in itertools.combinations(range(len(arrays)), 2):
        plain = np.corrcoef(thumbnails[a].ravel(), thumbnails[b].ravel())[0, 1]
        if plain < 0.969:
            assert (a, b) not in found
        elif plain > 0.99:
            assert (a, b) in found
        if (a, b) in found:
            assert found[a, b] == pytest.approx(plain, abs=1e-4)


def test_volumes_are_compared_as_volumes():
    rng = np.random.default_rng(0)
    first = gaussian_filter(rng.normal(size=(40, 40, 24)), 2).astype(np.float32)
    other = gaussian_filter(rng.normal(size=(40, 40, 24)), 2).astype(np.float32)
    assert pairs_of([first, other, first * 3 - 1, tissue(0)]) == [(0, 2)]


def test_unreadable_and_constant_images_have_no_twin():
    thumbnail = make_thumbnail(tissue(0)[None])
    flat = np.zeros((64, 64), np.float32)
    assert [(a, b) for a, b, _ in near_duplicates([None, flat, flat, thumbnail, thumbnail])] == [
        (3, 4)
    ]
    assert near_duplicates([]) == []


def test_embeddings_add_candidates_that_are_still_confirmed():
    """A hash that misses the pair (high-frequency texture), found by equal features."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(64, 64)).astype(np.float32) * 100
    twin = (noise + 0.1 * 100 * rng.normal(size=(64, 64))).astype(np.float32)
    low = 250 * np.outer(np.cos(np.pi * 3 * (np.arange(64) + 0.5) / 64), np.ones(64)).astype(
        np.float32
    )
    stranger = rng.normal(size=(64, 64)).astype(np.float32)
    thumbnails = [noise, twin, stranger, low]
    features = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1]], np.float32)
    assert [(a, b) for a, b, _ in near_duplicates(thumbnails, features)] == [(0, 1)]
