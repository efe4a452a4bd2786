"""Features by formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medtransfer.models.catalog.formulas import build_handcrafted, describe_picture
from skimage.draw import disk
from skimage.feature import graycomatrix, graycoprops


def lesion(radius, brightness=0.9, size=64):
    picture = np.full((size, size), 0.2, np.float32)
    picture[disk((size / 2, size / 2), radius)] = brightness
    return picture


def test_features_are_finite_whatever_the_picture():
    pictures = [
        np.zeros((32, 32), np.float32),
        np.ones((32, 40), np.float32),
        np.random.default_rng(0).random((64, 64)).astype(np.float32),
        np.full((32, 32), np.nan, np.float32),
        lesion(10),
    ]
    found = [describe_picture(p) for p in pictures]
    assert len({len(f) for f in found}) == 1
    assert all(np.isfinite(f).all() for f in found)
    assert len(found[0]) > 60


def test_intensity_and_texture_are_what_their_names_say():
    picture = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    found = describe_picture(picture)
    assert found[0] == pytest.approx(picture.mean(), rel=1e-6)
    assert found[1] == pytest.approx(picture.std(), rel=1e-6)
    shades = np.minimum((picture.astype(np.float64) * 32).astype(np.uint8), 31)
    pairs = graycomatrix(
        shades, (1, 2, 4), (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4), 32, symmetric=True, normed=True
    )
    assert found[12:15] == pytest.approx(graycoprops(pairs, "contrast").mean(1))


def test_the_shape_of_a_lesion_is_seen():
    small, large = describe_picture(lesion(8)), describe_picture(lesion(20))
    place = np.flatnonzero(np.isclose(large, np.pi * 400 / 64**2, rtol=0.1))
    assert len(place)
    assert np.isclose(small[place], np.pi * 64 / 64**2, rtol=0.2).any()
    dark = describe_picture(1 - lesion(12))
    assert not np.allclose(dark, describe_picture(lesion(12)))


def test_they_stand_where_a_backbone_stands():
    backbone = build_handcrafted()
    backbone.freeze(1)
    assert backbone.weights.trained
    assert not any(p.requires_grad for p in backbone.parameters())
    image = torch.rand(3, 3, 48, 48)
    found = backbone({"image": image}, ["features"])["features"]
    assert found.shape == (3, backbone.stages[0].channels)
    grey = image.mean(1).numpy()
    assert found[1].numpy() == pytest.approx(describe_picture(grey[1]), rel=1e-5, abs=1e-6)
    volume = torch.rand(2, 4, 3, 32, 32)  # slice by slice
    assert backbone({"image": volume}, ["features"])["features"].shape == (2, 4, found.shape[1])
