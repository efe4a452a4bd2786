"""The fixed half: windows, resampling in mm, and boxes and masks that go with the pixels and come
back.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.data.grid.fixed import normalise
from medtransfer.data.grid.monai import fixed_transforms
from medtransfer.data.grid.placement import Placement, place
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.data.images.windows import parse_window, scale
from medtransfer.errors import ConfigError, ImageError
from PIL import Image
from pydicom.data import get_testdata_file


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
    assert np.allclose(
        percentile[0, 0], np.clip((np.arange(200) - low) / (high - low), 0, 1), atol=1e-3
    )
    three = fixed_transforms(200, ["full", [100, 50], "percentile"])({"image": path})["image"]
    assert torch.equal(three, torch.cat([full, fixed, percentile]))


@pytest.mark.parametrize(
    "window",
    [
        "lungs",
        [1],
        [1, 2, 3],
        [40, 0],
        [40, -5],
        ["lung", "brain"],
        None,
        [40, float("nan")],
        True,
        ["lung", ["lung", "brain", "bone"], "brain"],
    ],
)
def test_unknown_windows_are_refused(window):
    with pytest.raises(ConfigError, match="window"):
        parse_window(window)


def test_windows_are_what_float64_gives():
    values = np.random.default_rng(0).normal(0, 800, (1, 50, 50)).astype(np.float32)
    known = {
        "lung": (-1350, 150),
        "brain": (0, 80),
        "soft_tissue": (-160, 240),
        "bone": (-500, 1300),
        (10.0, 3.0): (8.5, 11.5),
    }
    for window, (low, high) in known.items():
        by_hand = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
        assert np.allclose(scale(values, window), by_hand, atol=1e-6)


def test_sparse_and_constant_images_are_scaled_too(write_png):
    spot = np.zeros((100, 100), np.uint8)
    spot[50, 50:54] = 200
    image = fixed_transforms(100)({"image": str(write_png("spot.png", spot))})["image"]
    assert (image.min(), image.max()) == (0, 1)
    flat = fixed_transforms(100)(
        {"image": str(write_png("flat.png", np.full((100, 100), 9, np.uint8)))}
    )["image"]
    assert flat.abs().max() == 0


def dicom(path, spacing, shape=(64, 80)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    disc = ((rows - shape[0] / 2) * spacing[0]) ** 2 + (
        (columns - shape[1] / 2) * spacing[1]
    ) ** 2 < 8.0**2
    pixels = (disc * 1000).astype(np.uint16)
    write_grey_dicom(
        path,
        pixels,
        patient="P",
        number=1,
        spacing=spacing,
        encoding=GreyEncoding(),
    )
    return str(path)


def test_images_are_resampled_in_mm(tmp_path):
    """A disc of 8 mm radius has the same size on the grid whatever the pixels it was stored in."""
    areas = []
    for number, (spacing, shape) in enumerate(
        [((0.5, 0.5), (64, 80)), ((0.25, 0.5), (128, 80)), ((0.4, 0.25), (90, 150))]
    ):
        image = fixed_transforms(64, "full", 0.75)(
            {"image": dicom(tmp_path / f"{number}.dcm", spacing, shape)}
        )["image"]
        assert image.shape == (1, 64, 64)
        areas.append(float((image > 0.5).sum()) * 0.75**2)
    assert areas == pytest.approx([np.pi * 64] * 3, rel=0.04)
    with pytest.raises(
        ImageError, match="has 320 x 400 pixels at image.spacing, more than image.size 64 x 64"
    ):
        fixed_transforms(64, "full", 0.1)({"image": str(tmp_path / "0.dcm")})
    with pytest.raises(ImageError, match="2 dimensions, image.spacing has 3 values"):
        fixed_transforms(64, "full", [1, 1, 1])({"image": str(tmp_path / "0.dcm")})


def test_the_aspect_is_that_in_mm(tmp_path):
    image = (
        fixed_transforms(96, "full")({"image": dicom(tmp_path / "a.dcm", (0.25, 0.5), (128, 80))})[
            "image"
        ][0]
        > 0.5
    )
    assert abs(int(image.any(0).sum()) - int(image.any(1).sum())) <= 1


def test_a_spacing_that_is_not_stated_is_not_made_up(write_png):
    with pytest.raises(ImageError, match="states no pixel spacing"):
        fixed_transforms(64, "full", 0.5)(
            {"image": str(write_png("a.png", np.eye(40, dtype=np.uint8)))}
        )


def test_volumes_go_the_same_way(tmp_path):
    array = np.zeros((40, 30, 10), np.float32)
    array[10:30, 10:20, 3:7] = 100
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 4.0, 1.0])), tmp_path / "v.nii")
    data = {
        "image": str(tmp_path / "v.nii"),
        "boxes": np.array([[10, 10, 30, 20, 3, 7]]),
        "mask": array[None] > 50,
    }
    result = fixed_transforms(48, "full", 1.0)(data)
    assert result["image"].shape == (1, 48, 48, 48)
    inside = np.argwhere(result["image"][0].numpy() > 0.5)
    x0, y0, x1, y1, z0, z1 = result["boxes"][0]
    assert np.allclose(inside.min(0), [x0, y0, z0], atol=1.5)
    assert np.allclose(inside.max(0) + 1, [x1, y1, z1], atol=1.5)
    assert (z1 - z0, x1 - x0) == (16, 20)
    assert int(result["mask"].sum()) == 20 * 10 * 16
    assert torch.equal(
        result["placement"].return_mask(result["mask"]), torch.as_tensor(data["mask"])
    )
    assert normalise(result["image"][None], (0.5,) * 3, (0.5,) * 3).shape == (1, 3, 48, 48, 48)


@pytest.mark.parametrize("shape", [(300, 200), (50, 40), (97, 211)])
def test_resampling_is_that_of_pillow_in_float(write_png, shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    result = fixed_transforms(96, "full")({"image": str(write_png("a.png", array))})
    size = result["placement"].resized
    scaled = ((array.astype(np.float32) - array.min()) / (array.max() - array.min())).astype(
        np.float32
    )
    reference = np.asarray(Image.fromarray(scaled).resize(size[::-1], Image.Resampling.BILINEAR))
    before = result["placement"].before
    inner = result["image"][
        0, before[0] : before[0] + size[0], before[1] : before[1] + size[1]
    ].numpy()
    assert np.abs(inner - reference).max() < 1e-5


def test_volumes_are_resampled_axis_by_axis():
    """Against the planes resampled one by one, then the columns across them."""
    volume = torch.rand(1, 30, 40, 20, generator=torch.Generator().manual_seed(0))
    found = Placement((30, 40, 20), (12, 50, 9), (0, 0, 0), (12, 50, 9)).place(volume)
    interpolate = torch.nn.functional.interpolate
    planes = torch.stack(
        [
            interpolate(p[None, None], (50, 9), mode="bilinear", antialias=True)[0, 0]
            for p in volume[0]
        ]
    )
    across = torch.stack(
        [
            interpolate(c.T[None, None], (9, 12), mode="bilinear", antialias=True)[0, 0].T
            for c in planes.unbind(1)
        ],
        1,
    )
    assert torch.allclose(found[0], across, atol=1e-6)


def test_a_mask_given_as_a_file_is_turned_as_its_image_is(tmp_path):
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    array = np.zeros((20, 30, 12), np.float32)
    array[2:8, 4:9, 3:6] = 100
    for name, values in (("v", array), ("m", (array > 50).astype(np.uint8))):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii.gz")
    result = fixed_transforms(32, "full", 1.0)(
        {"image": str(tmp_path / "v.nii.gz"), "mask": str(tmp_path / "m.nii.gz")}
    )
    assert ((result["image"] > 0.5) == (result["mask"] > 0)).float().mean() > 0.999


def test_boxes_and_masks_go_with_the_pixels_and_back(write_png):
    array = np.zeros((60, 100), np.uint8)
    array[12:30, 40:76] = 255
    mask = array[None] > 0
    boxes = np.array([[40, 12, 76, 30]])
    result = fixed_transforms(160, "full")(
        {"image": str(write_png("a.png", array)), "mask": mask, "boxes": boxes}
    )
    rows, columns = np.nonzero(result["image"][0].numpy() > 0.5)
    assert np.allclose(
        result["boxes"][0], [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], atol=1
    )
    assert np.allclose(result["placement"].return_boxes(result["boxes"]), boxes)
    assert torch.equal(result["placement"].return_mask(result["mask"]), torch.as_tensor(mask))
    with pytest.raises(ImageError, match=r"its mask has \(3, 3\) pixels"):
        fixed_transforms(160)(
            {"image": str(write_png("a.png", array)), "mask": np.zeros((1, 3, 3))}
        )


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(8, 300), min_size=2, max_size=2)
    | st.lists(st.integers(8, 60), min_size=3, max_size=3),
    size=st.integers(32, 96),
    spacing=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
)
def test_placements_stay_on_the_grid_and_come_back(shape, size, spacing):
    found = place(shape, spacing[: len(shape)], size, None, "here")
    assert max(found.resized) == size
    assert all(b + r <= size for b, r in zip(found.before, found.resized, strict=True))
    if len(shape) == 2:
        boxes = np.array([[0, 0, shape[1], shape[0]], [1, 2, shape[1] / 2, shape[0] / 2]])
    else:
        boxes = np.array([[0, 0, *shape[:2], 0, shape[2]]])
    moved = found.place_boxes(boxes)
    assert (moved >= -1e-9).all()
    assert (moved <= size + 1e-9).all()
    assert np.allclose(found.return_boxes(moved), boxes)
    grid = found.place(torch.ones(1, *shape))
    assert tuple(grid.shape) == (1, *(size,) * len(shape))
    assert grid.sum() == pytest.approx(float(np.prod(found.resized)), rel=1e-4)


@pytest.mark.parametrize(
    ("size", "spacing"),
    [
        (0, None),
        (-3, None),
        ("big", None),
        (1.5, None),
        ((), None),
        (64, -1),
        (64, 0),
        (64, "x"),
        (64, ()),
    ],
)
def test_sizes_and_spacings_that_make_no_sense_are_refused(size, spacing):
    with pytest.raises(ConfigError, match="size is|spacing is"):
        fixed_transforms(size, "full", spacing)


def test_a_film_is_not_resampled_over_time():
    with pytest.raises(ImageError, match="is a film"):
        fixed_transforms(64)({"image": get_testdata_file("examples_ybr_color.dcm")})
