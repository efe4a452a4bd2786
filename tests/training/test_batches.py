"""The order of batches, their views, and what each of several processes gets."""

from __future__ import annotations

import numpy as np
import pytest
from medtransfer.errors import StudyError
from medtransfer.training.batches import Loader

from noise import Noise


@pytest.mark.parametrize("ahead", [False, True])
def test_an_error_in_the_middle_of_a_pass_is_raised(ahead):
    class Broken(Noise):
        def load(self, rows, view=None):
            if 4 in rows:
                raise StudyError("gone")
            return super().load(rows, view)

    seen = []
    with pytest.raises(StudyError, match="gone"):
        seen.extend(batch["rows"].tolist() for batch in Loader(Broken(), range(6), 2, ahead=ahead))
    assert len(seen) <= 2


def test_orders_views_and_shares():
    noise = Noise()
    in_order = Loader(noise, [4, 1, 2], 2)
    assert [batch["rows"].tolist() for batch in in_order] == [[4, 1], [2]]
    assert len(in_order) == 2
    assert {view for _, view in noise.loaded} == {None}
    loader = Loader(noise, [0, 1, 2, 3, 5], 2, seed=3, views=2)
    orders = []
    for epoch in (0, 1, 2, 0):
        noise.loaded.clear()
        loader.start_epoch(epoch)
        orders.append([row for batch in loader for row in batch["rows"].tolist()])
        assert {view for _, view in noise.loaded} == {epoch % 2}
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert all(len(order) == 4 and set(order) <= {0, 1, 2, 3, 5} for order in orders)
    loader.start_epoch(1, first=1)
    assert [row for batch in loader for row in batch["rows"].tolist()] == orders[1][2:]
    fresh = Loader(noise, range(6), 2, seed=3)
    noise.loaded.clear()
    fresh.start_epoch(7)
    list(fresh)
    assert {view for _, view in noise.loaded} == {7}
    halves = [Loader(noise, range(6), 4, seed=1, share=(rank, 2)) for rank in (0, 1)]
    whole = list(Loader(noise, range(6), 4, seed=1))
    for batch, *parts in zip(whole, *halves, strict=True):
        assert sorted(batch["rows"].tolist()) == sorted(
            row for part in parts for row in part["rows"].tolist()
        )
        assert [len(part["rows"]) for part in parts] == [2, 2]
    assert len(list(Loader(noise, range(3), 32, seed=1))) == 1
    assert np.concatenate(
        [b["rows"] for b in Loader(noise, range(6), 4, ahead=True)]
    ).tolist() == list(range(6))
