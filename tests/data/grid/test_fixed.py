"""The fixed half: windows, resampling in mm, and boxes and masks that go with the pixels and come
back.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from medtransfer.data.grid.fixed import normalise
from medtransfer.data.grid.monai import fixed_transforms
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.errors import ImageError
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


def test_a_film_is_not_resampled_over_time():
    with pytest.raises(ImageError, match="is a film"):
        fixed_transforms(64)({"image": get_testdata_file("examples_ybr_color.dcm")})
