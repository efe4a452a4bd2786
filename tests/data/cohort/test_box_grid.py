"""Boxes on the grid of the network, and back."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.annotations.boxes import from_axes, to_axes
from medtransfer.data.grid.placement import place


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(20, 300), st.integers(20, 300)),
    st.integers(32, 256),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
)
def test_boxes_survive_the_fixed_half_and_come_back(shape, size, shares):
    placement = place(shape, (1.0, 1.0), size, None, "image")
    limit = np.array([shape[1], shape[0], shape[1], shape[0]], float)
    boxes = (
        np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in shares]) * limit
    )
    assert np.abs(placement.return_boxes(placement.place_boxes(boxes)) - boxes).max() < 0.5
    assert np.array_equal(from_axes(to_axes(boxes)), boxes)
