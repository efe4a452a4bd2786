"""Boxes follow the pixels of the random half."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.grid.augmentation import Changes, change, change_boxes, draw_changes
from medtransfer.data.grid.slices import boxes_of_stack, boxes_of_volume, cut


def changes(flip, turn, zoom, shift, flip_rows=False) -> Changes:
    one = np.ones(1)
    return Changes(
        np.array([flip]),
        np.array([flip_rows]),
        np.array([turn]),
        np.array([zoom]),
        np.array([shift]),
        one,
        one,
        0 * one,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.sampled_from([0.0, 0.2, -0.25]),
    st.tuples(st.floats(0.85, 1.15), st.floats(0.85, 1.15)),
    st.tuples(st.floats(-0.08, 0.08), st.floats(-0.08, 0.08)),
    st.tuples(st.integers(20, 50), st.integers(20, 60)),
)
def test_boxes_follow_the_pixels_of_the_random_half(flip, turn, zoom, shift, corner):
    """The box of a bright patch, moved, is the box of the moved patch: where it is not turned, to
    half a pixel.
    """
    shape = (96, 128)
    row, column = corner
    image = torch.zeros(1, 1, *shape)
    image[0, 0, row : row + 18, column : column + 24] = 1.0
    drawn = changes(flip, turn, zoom, shift)
    moved = change(image, drawn)[0, 0].numpy()
    rows, columns = (np.flatnonzero((moved >= 0.5).any(axis)) for axis in (1, 0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], float)
    boxes = np.array([[[row, column, row + 18, column + 24]]], float)
    told = change_boxes(boxes, drawn, shape)[0, 0]
    assert np.abs(told - seen).max() <= (1.0 if turn == 0 else 2.0)  # an edge is between two pixels
    if turn == 0:
        inverse = 1 / np.array(zoom)
        plane = np.array(shape, float)
        back = told.reshape(2, 2)
        back = (back - plane / 2) / inverse + np.array(shift) * plane + plane / 2
        if flip:
            back[:, 1] = shape[1] - back[::-1, 1]
        assert np.abs(back.ravel() - boxes[0, 0]).max() < 0.5


def test_boxes_that_leave_the_image_are_dropped():
    boxes = np.array([[[0, 0, 10, 10], [40, 40, 50, 50], [np.nan] * 4]], float)
    moved = change_boxes(boxes, changes(False, 0.0, (1.0, 1.0), (0.08, 0.08)), (96, 96))
    assert np.isnan(moved[0, 0]).all()
    assert np.isnan(moved[0, 2]).all()
    assert moved[0, 1].tolist() == pytest.approx([40 - 7.68, 40 - 7.68, 50 - 7.68, 50 - 7.68])
    assert draw_changes(0, 0, range(50), turns=False).turn.tolist() == [0.0] * 50
    assert np.array_equal(
        draw_changes(0, 0, range(50)).zoom, draw_changes(0, 0, range(50), turns=False).zoom
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_boxes_of_a_stack_are_where_its_slices_show_them(plane):
    volume = torch.zeros(1, 9, 11, 13)
    volume[0, 2:4, 3:8, 5:6] = 1.0
    boxes = np.array([[2, 3, 5, 4, 8, 6]], float)
    stack = cut(volume, plane)[:, 0].numpy()
    spans = [
        np.flatnonzero(stack.any(tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    there = boxes_of_stack(boxes, (9, 11, 13), plane)
    assert there[0].tolist() == [*(span[0] for span in spans), *(span[-1] + 1 for span in spans)]
    assert np.array_equal(boxes_of_volume(there, (9, 11, 13), plane), boxes)


def test_changes_of_volumes_move_boxes_within_slices():
    volume = torch.zeros(1, 1, 40, 36, 10)
    volume[0, 0, 6:16, 10:20, 3:5] = 1.0
    drawn = changes(True, 0.0, (1.1, 0.9), (0.05, -0.05))
    moved = change(volume, drawn, across=2)[0, 0].numpy() >= 0.5
    spans = [
        np.flatnonzero(moved.any(tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    seen = np.array([*(span[0] for span in spans), *(span[-1] + 1 for span in spans)], float)
    told = change_boxes(np.array([[[6, 10, 3, 16, 20, 5]]], float), drawn, (40, 36, 10), 2)[0, 0]
    assert np.abs(told - seen).max() <= 1.0
    assert told[2] == 3
    assert told[5] == 5
