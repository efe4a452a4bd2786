from __future__ import annotations

import numpy as np
import pytest
from medtransfer.inference.typicality import distances_to, make_reach
from medtransfer.training.probe import Features


def of(values):
    return Features(values, np.zeros((len(values), 1)), np.arange(len(values)))


def test_images_like_the_tune_images_are_typical_as_often_as_they_should():
    rng = np.random.default_rng(0)
    train, tune, same = (rng.normal(size=(n, 12)) for n in (300, 400, 2000))
    found = make_reach(of(train), of(tune)).typicality(same)
    assert found.min() > 0
    assert found.max() <= 1
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (found < 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_strange_images_are_told():
    rng = np.random.default_rng(1)
    direction = np.zeros(12)
    direction[0] = 8
    train, tune = rng.normal(size=(300, 12)) + direction, rng.normal(size=(200, 12)) + direction
    strange = rng.normal(size=(100, 12)) - direction
    assert (make_reach(of(train), of(tune)).typicality(strange) < 0.05).mean() > 0.9


def test_the_distance_of_a_training_image_is_small_and_channels_count_alike():
    rng = np.random.default_rng(2)
    train = rng.normal(size=(50, 6)) * np.array([1, 10, 100, 1, 1, 0])
    near, far = distances_to(train, train), distances_to(train, -train)
    assert near.mean() < far.mean()
    assert distances_to(train * 7, train * 7) == pytest.approx(near)
