from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from medtransfer.data.grid.augmentation import change, draw_changes
from medtransfer.data.grid.cache import write_entry
from medtransfer.data.grid.fixed import Fixed, normalise
from medtransfer.data.grid.slices import (
    Slices,
    boxes_of_stack,
    boxes_of_volume,
    cut,
    present_slices,
)
from medtransfer.data.grid.source import ImageSource, NetworkInput
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ConfigError, ImageError


def volume_file(tmp_path, shape=(40, 30, 20), spacing=(1.0, 1.0, 4.0), name="v.nii.gz"):
    array = np.random.default_rng(0).uniform(10, 99, shape).astype(np.float32)
    path = tmp_path / name
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def apply(path, **settings):
    return Fixed(**settings).apply(str(path), read_image(path))


@pytest.mark.parametrize(
    ("plane", "up", "left"),
    [("axial", "front", "right"), ("coronal", "head", "right"), ("sagittal", "head", "front")],
)
def test_slices_lie_as_radiologists_see_them(plane, up, left):
    """A volume whose brightness grows towards the patient's right, front or head."""
    ramps = dict(
        zip(
            ("right", "front", "head"),
            torch.meshgrid(torch.arange(4.0), torch.arange(5.0), torch.arange(6.0), indexing="ij"),
            strict=True,
        )
    )
    rows, columns = cut(ramps[up][None], plane)[:, 0], cut(ramps[left][None], plane)[:, 0]
    assert (rows.diff(dim=1) == -1).all()
    assert (columns.diff(dim=2) == -1).all()
    across = next(ramp for name, ramp in ramps.items() if name not in {up, left})
    slices = cut(across[None], plane)
    assert [float(s.unique()) for s in slices] == list(range(len(slices)))


def test_neighbours_become_channels():
    volume = torch.arange(5.0).expand(1, 3, 4, 5).clone()
    stack = cut(volume, "axial", slab=3)
    assert stack.shape == (5, 3, 4, 3)
    assert stack[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    # What only pads is no neighbour.
    present = torch.tensor([False, True, True, True, False])
    stack = cut(volume, "axial", slab=3, present=present)
    assert stack[1:4, :, 0, 0].tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 3]]
    with pytest.raises(ImageError, match="grey volumes; these have 3 channels"):
        cut(volume.expand(3, -1, -1, -1), "axial", slab=3)


def test_slices_at_a_spacing_in_mm(tmp_path):
    """80 mm of volume: at 8 mm ten slices, each the mean of the two it covers, in the middle of the
    stack.
    """
    path = volume_file(tmp_path)
    grid, placement = apply(path, size=32, slices=Slices(14, 8.0), window="full")
    assert grid.shape == (1, 32, 32, 14)
    assert placement.resized == (32, 24, 10)
    assert present_slices(grid, "axial").tolist() == [False] * 2 + [True] * 10 + [False] * 2
    with pytest.raises(
        ImageError, match=r"has 20 slices 4 mm apart, more than image.slices 14. Raise"
    ):
        apply(path, size=32, slices=Slices(14, 4.0))


def test_slices_spread_over_the_volume_but_none_is_made_up(tmp_path):
    path = volume_file(tmp_path)
    assert apply(path, size=32, slices=Slices(8))[1].resized == (32, 24, 8)
    assert apply(path, size=32, slices=Slices(32))[1].resized == (32, 24, 20)
    # The same slices, whatever is padded around them.
    few, many = (apply(path, size=40, slices=Slices(n))[0] for n in (20, 26))
    assert torch.equal(few, many[..., 3:23])
    array = torch.from_numpy(read_image(path).array)
    scaled = apply(path, size=40, slices=Slices(20), window="full")[0][:, :, 5:35]
    assert torch.allclose(scaled, (array - array.min()) / (array.max() - array.min()), atol=1e-6)


@pytest.mark.parametrize(
    ("plane", "shape", "resized"),
    [("coronal", (32, 12, 32), (16, 12, 32)), ("sagittal", (12, 32, 32), (12, 12, 32))],
)
def test_other_planes(tmp_path, plane, shape, resized):
    grid, placement = apply(volume_file(tmp_path), size=32, slices=Slices(12, plane=plane))
    assert tuple(grid.shape[1:]) == shape
    assert placement.resized == resized


def test_spacing_in_the_plane_and_across(tmp_path):
    path = volume_file(tmp_path)
    assert apply(path, size=32, spacing=2.0, slices=Slices(12, 8.0))[1].resized == (20, 15, 10)
    assert apply(path, size=32, spacing=(2.0, 2.0, 10.0), slices=Slices(12))[1].resized == (
        20,
        15,
        8,
    )
    with pytest.raises(ImageError, match="has 3 dimensions, image.spacing has 2 values"):
        apply(path, size=32, spacing=(2.0, 2.0), slices=Slices(12, 8.0))
    with pytest.raises(ImageError, match="is 80 mm thick, one slice at image.slice_spacing 200"):
        apply(path, size=32, slices=Slices(12, 200.0))
    image = read_image(path)
    image.provenance["spacing_from"] = "none"
    with pytest.raises(ImageError, match="no spacing of its slices"):
        Fixed(32, slices=Slices(12, 8.0)).place(image, "bare.nii")


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": True},
        {"spacing": -1.0},
        {"spacing": float("nan")},
        {"plane": "oblique"},
    ],
)
def test_wrong_slices_are_refused(wrong):
    with pytest.raises(ConfigError, match="slices is|slice_spacing is|plane is"):
        Slices(**wrong)


def source_of(tmp_path, ndim, slab=1, channels=3, plane="axial"):
    entries = []
    for number in range(3):
        grid, _ = apply(
            volume_file(tmp_path, name=f"{number}.nii.gz"), size=24, slices=Slices(22, plane=plane)
        )
        write_entry(tmp_path / f"{number}.npy", grid.numpy())
        entries.append(tmp_path / f"{number}.npy")
    return ImageSource(
        entries,
        np.zeros((3, 1), np.float32),
        NetworkInput((0.5,) * channels, (0.25,) * channels, ndim, plane, slab),
    )


def test_one_grid_serves_networks_of_planes_and_of_volumes(tmp_path):
    planes, volumes = (source_of(tmp_path, ndim).load([0, 1]) for ndim in (2, 3))
    assert planes["features"]["image"].shape == (2, 22, 3, 24, 24)
    assert volumes["features"]["image"].shape == (2, 3, 22, 24, 24)
    assert torch.equal(planes["features"]["image"].transpose(1, 2), volumes["features"]["image"])
    assert planes["present"].sum(1).tolist() == [20, 20]
    slab = source_of(tmp_path, 2, slab=5, channels=5).load([0, 1])
    assert slab["features"]["image"].shape == (2, 22, 5, 24, 24)
    assert torch.equal(
        slab["features"]["image"][:, 1:21, 2], planes["features"]["image"][:, 1:21, 0]
    )


def test_volumes_are_turned_within_their_slices(tmp_path):
    """All slices move alike: those that pad stay empty, and the order across stays."""
    source = source_of(tmp_path, 2)
    for view in range(4):  # whatever brightness is drawn
        batch = source.load([0, 1, 2], view)
        assert batch["present"].tolist() == [[False] + [True] * 20 + [False]] * 3
        # Padding is as black in training as it is in a test.
        assert (batch["features"]["image"][:, [0, 21]] == -2.0).all()
    volume = torch.zeros(1, 1, 16, 16, 6)
    for index in range(6):
        volume[..., index] = 0.1 + 0.1 * index
    for view in range(8):
        moved = change(volume, draw_changes(0, view, [0]))
        assert moved.shape == volume.shape
        means = moved.mean((0, 1, 2, 3))
        assert (means.diff() > 0).all()
        assert moved.std(dim=(2, 3)).max() < 1e-3


def test_a_channel_count_that_does_not_fit_is_told():
    with pytest.raises(ImageError, match="3 channels meets a network of 5"):
        normalise(torch.rand(1, 3, 4, 4), (0.5,) * 5, (0.5,) * 5)


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
