"""What of the frozen stages is kept fits its budget."""

from __future__ import annotations

import pytest
from medtransfer.errors import ConfigError
from medtransfer.models.plan.cache import CacheBudget

from plans import plan


def test_views_follow_the_budget(resnet):
    roomy = plan(resnet, read="last", frozen_stages=5, cache=CacheBudget(4, 128))
    assert (roomy.cache_cut, roomy.bytes_per_image, roomy.views) == (
        "layer2.1",
        128 * 16 * 16 * 4,
        8,
    )
    five = 6.5 * 300 * roomy.bytes_per_image / 2**30
    assert plan(resnet, read="last", frozen_stages=5, cache=CacheBudget(five, 128)).views == 5
    assert plan(resnet, frozen_stages=5, cache=CacheBudget(0, 128)).views == 0
    assert plan(resnet, frozen_stages=0).views == 0
    assert plan(resnet, tuned="first", frozen_stages=5).views == 0
    with pytest.raises(ConfigError, match=r"views is 9; 300 images of 0.1 MiB fit 5 times"):
        plan(resnet, read="last", frozen_stages=5, views=9, cache=CacheBudget(five, 128))
    with pytest.raises(ConfigError, match="no frozen prefix"):
        plan(resnet, frozen_stages=0, views=4)
    slices = plan(resnet, read="last", frozen_stages=5, cache=CacheBudget(4, 128, 24))
    assert slices.bytes_per_image == 24 * roomy.bytes_per_image


def test_a_head_on_all_stages_keeps_their_means_too(resnet):
    last, whole = (
        plan(resnet, read=read, frozen_stages=5, cache=CacheBudget(4, 128))
        for read in ("last", "all")
    )
    assert whole.bytes_per_image - last.bytes_per_image == 4 * (64 + 64 + 64 + 128)
