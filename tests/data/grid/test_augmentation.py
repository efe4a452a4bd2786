"""The batched random half against MONAI's transforms, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.grid.augmentation import Augment, Changes, change, change_boxes, draw_changes
from monai.transforms import AdjustContrast, Affine


def smooth(shape, seed=0):
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    pool = torch.nn.functional.avg_pool2d if len(shape) == 3 else torch.nn.functional.avg_pool3d
    return pool(image, 5, 1, 2)[0]


@pytest.mark.parametrize("shape", [(40, 56), (48, 48)])
def test_a_plane_is_changed_as_monai_changes_it(shape):
    images = torch.stack([smooth((3, *shape), seed) for seed in range(12)])
    changes = draw_changes(3, 1, range(12))
    ours = change(images, changes)
    for index, image in enumerate(images):
        expected = image.flip(2) if changes.flip[index] else image
        affine = Affine(
            rotate_params=float(changes.turn[index]),
            translate_params=(changes.shift[index] * shape).tolist(),
            scale_params=changes.zoom[index].tolist(),
            padding_mode="border",
            image_only=True,
        )
        expected = torch.as_tensor(affine(expected))
        if changes.gamma[index] != 1.0:
            expected = torch.as_tensor(AdjustContrast(float(changes.gamma[index]))(expected))
        expected = expected * changes.contrast[index] + changes.brightness[index]
        assert torch.allclose(ours[index], expected.float(), atol=2e-5)


def test_a_volume_is_changed_slice_by_slice_all_alike():
    volumes = torch.stack([smooth((1, 24, 20, 6), seed) for seed in range(4)])
    changes = draw_changes(0, 0, range(4))
    plain = Changes(**{**vars(changes), "gamma": np.ones(4)})  # gamma looks at the whole image
    for across in (0, 1, 2):
        ours = change(volumes, plain, across)
        assert ours.shape == volumes.shape
        kept = [axis for axis in range(3) if axis != across]
        for index in range(volumes.shape[2 + across]):
            plane = volumes.select(2 + across, index)
            # Left and right lie along x, the first axis of a volume, which is that of rows in a
            # plane.
            flipped = (
                torch.where(torch.from_numpy(plain.flip).view(-1, 1, 1, 1), plane.flip(2), plane)
                if 0 in kept
                else plane
            )
            expected = change(flipped, Changes(**{**vars(plain), "flip": np.zeros(4, bool)}))
            if across == 0:
                places = np.where(plain.flip, volumes.shape[2] - 1 - index, index)
                found = torch.stack(
                    [volume[:, i] for volume, i in zip(ours, places.tolist(), strict=True)]
                )
            else:
                found = ours.select(2 + across, index)
            assert torch.allclose(found, expected, atol=1e-6)


def test_draws_have_their_ranges_and_chances():
    changes = draw_changes(1, 0, range(4000))
    assert 0.46 < changes.flip.mean() < 0.54
    for values, rest, chance in (
        (changes.turn, 0.0, 0.9),
        (changes.zoom, 1.0, 0.9),
        (changes.shift, 0.0, 0.9),
        (changes.gamma, 1.0, 0.5),
        (changes.contrast, 1.0, 0.5),
        (changes.brightness, 0.0, 0.5),
    ):
        assert abs((values != rest).mean() - chance) < 0.03
    bounds = {
        "turn": np.radians(15),
        "zoom": 0.15,
        "shift": 0.08,
        "contrast": 0.2,
        "brightness": 0.1,
    }
    for name, bound in bounds.items():
        values = getattr(changes, name) - (1.0 if name in {"zoom", "contrast"} else 0.0)
        assert 0.95 * bound < values.max() <= bound
        assert -bound <= values.min() < -0.95 * bound
    assert 0.75 <= changes.gamma.min() < 0.77
    assert 1.33 < changes.gamma.max() <= 1.35


def test_a_draw_depends_on_seed_view_and_image_alone():
    together, alone = draw_changes(5, 2, [7, 3]), draw_changes(5, 2, [3])
    assert together.turn[1] == alone.turn[0]
    for other in (draw_changes(6, 2, [3]), draw_changes(5, 1, [3]), draw_changes(5, 2, [4])):
        assert other.turn[0] != alone.turn[0]


def test_a_square_stays_in_place():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 24:40, 24:40] = 1
    for view in range(20):
        moved = (change(image, draw_changes(0, view, [0]))[0, 0] > 0.5).float()
        assert 100 < moved.sum() < 500  # 256 pixels, zoomed by at most 15 % per axis
        rows, columns = (moved.sum(axis) @ torch.arange(64.0) / moved.sum() for axis in (1, 0))
        assert abs(rows - 31.5) < 9
        assert abs(columns - 31.5) < 9


def test_what_the_labels_forbid_is_not_done_and_changes_no_other_draw():
    usual, still = (
        draw_changes(1, 0, range(400)),
        draw_changes(1, 0, range(400), augment=Augment(flip="none", rotate=0.0, intensity=0.0)),
    )
    assert not still.flip.any()
    assert not still.flip_rows.any()
    assert (still.turn == 0).all()
    assert (still.gamma == 1).all()
    assert (still.contrast == 1).all()
    assert (still.brightness == 0).all()
    assert np.array_equal(still.zoom, usual.zoom)
    assert np.array_equal(still.shift, usual.shift)
    assert not usual.flip_rows.any()
    both = draw_changes(1, 0, range(400), augment=Augment(flip="all", rotate=90.0, intensity=0.5))
    assert np.array_equal(both.flip, usual.flip)
    assert 0.4 < both.flip_rows.mean() < 0.6
    assert abs(np.corrcoef(both.flip, both.flip_rows)[0, 1]) < 0.15
    assert np.allclose(both.turn, 6 * usual.turn)
    assert np.allclose(both.brightness, usual.brightness / 2)
    assert np.allclose(both.gamma - 1, (usual.gamma - 1) / 2)


def test_planes_are_turned_upside_down_where_they_may_be():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    one = np.ones(1)
    still = {
        **vars(draw_changes(0, 0, [0], False, Augment(flip="none", rotate=0.0, intensity=0.0))),
        "zoom": np.ones((1, 2)),
        "shift": np.zeros((1, 2)),
    }
    still.pop("flip_rows")
    assert (still["gamma"], still["turn"]) == (one, 0)
    assert torch.allclose(
        change(image, Changes(**still, flip_rows=np.ones(1, bool))), image.flip(2), atol=1e-5
    )
    assert torch.allclose(
        change(image, Changes(**still, flip_rows=np.zeros(1, bool))), image, atol=1e-5
    )


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
