"""Boxes around the lesions of masks."""

from __future__ import annotations

import medtransfer as mt
import nibabel
import numpy as np
import pytest
from medtransfer.data.annotations.boxes import box_regions
from medtransfer.data.annotations.masks import read_lesions
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError, ImageError
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.measure import label as connected

from box_files import TRUE, boxes_by_image, read_boxes
from wild_files import BOX, pictures, volume


def test_masks_give_a_box_for_each_part(images, tmp_path):
    (tmp_path / "masks").mkdir()
    for name, own in TRUE.items():
        mask = np.zeros((30, 40), np.uint8)
        for x0, y0, x1, y1 in own:
            mask[int(y0) : int(y1), int(x0) : int(x1)] = 255
        Image.fromarray(mask if name != "b.png" else np.zeros_like(mask)).save(
            tmp_path / "masks" / name
        )
    read = {
        n: sorted(own) for n, own in boxes_by_image(read_boxes("masks", images, tmp_path)).items()
    }
    assert read == {n: sorted(o) if n != "b.png" else [] for n, o in TRUE.items()}
    Image.fromarray(np.eye(30, 41, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(
        CohortError, match=r"a.png: the mask has \(30, 41\) pixels, its image \(30, 40\)"
    ):
        read_boxes("masks", images, tmp_path)


def test_masks_of_volumes_along_their_axes(tmp_path):
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[2:5, 3:9, 1:4] = 1
    mask[9, 9, 7] = 1
    assert box_regions(connected(mask)).tolist() == [[2, 3, 5, 9, 1, 4], [9, 9, 10, 10, 7, 8]]
    for folder, array in (("images", mask * 9), ("masks", mask)):
        (tmp_path / folder).mkdir()
        nibabel.save(
            nibabel.Nifti1Image(array.astype(np.int16), np.diag([2, 2, 3, 1])),
            tmp_path / folder / "v.nii.gz",
        )
    cohort = Cohort.from_boxes(tmp_path, "masks:masks")
    assert cohort.images["image"].tolist() == ["images/v.nii.gz"]
    assert cohort.boxes is not None
    assert (
        cohort.boxes[["x0", "y0", "x1", "y1", "z0", "z1"]].to_numpy().tolist()
        == box_regions(connected(mask)).tolist()
    )


@pytest.mark.parametrize("flips", [(-1, -1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_mask_whose_header_states_no_place_lies_as_its_image_is_stored(tmp_path, flips):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    array = np.random.default_rng(0).normal(0, 5, (40, 48, 20)).astype(np.float32)
    mask = np.zeros(array.shape, np.uint8)
    mask[5:12, 8:16, 4:8] = 1
    array[mask > 0] += 200
    affine = np.diag([*np.multiply(flips, [1.0, 1.0, 2.0]), 1.0])
    affine[:3, 3] = [20, 24, 0]
    volume(tmp_path / "images/v.nii.gz", array, affine)
    volume(tmp_path / "masks/v.nii.gz", mask, np.eye(4))
    cohort = Cohort.from_boxes(tmp_path / "images", "masks:../masks")
    x0, y0, x1, y1, z0, z1 = cohort.boxes[[*BOX, "z0", "z1"]].to_numpy(int)[0]
    assert mt.read_image(tmp_path / "images/v.nii.gz").array[0, x0:x1, y0:y1, z0:z1].mean() > 190
    assert any("states no place" in note for note in cohort.notes)


def test_a_mask_that_lies_elsewhere_by_its_affine_is_refused(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    moved = affine.copy()
    moved[0, 3] = 7.0
    mask = np.zeros((20, 24, 10), np.uint8)
    mask[2:6, 3:9, 1:4] = 1
    volume(tmp_path / "images/v.nii.gz", mask.astype(np.float32), affine)
    volume(tmp_path / "masks/v.nii.gz", mask, moved)
    with pytest.raises(CohortError, match=r"lies up to 7 voxels off its image"):
        Cohort.from_boxes(tmp_path / "images", "masks:../masks")
    volume(
        tmp_path / "masks/v.nii.gz", mask[::-1].copy(), np.diag([1.0, -1.0, 2.0, 1.0]) @ np.eye(4)
    )
    with pytest.raises(CohortError, match="off its image"):
        Cohort.from_boxes(tmp_path / "images", "masks:../masks")


def disc():
    mask = np.zeros((80, 96), np.uint8)
    mask[20:40, 30:50] = 255
    return mask


def boxes_of(values):
    lesions, note = read_lesions(np.atleast_3d(values).transpose(2, 0, 1).astype(np.float32))
    return [tuple(map(int, box)) for box in mt_boxes(lesions)], note


def mt_boxes(lesions):
    from medtransfer.data.annotations.boxes import box_regions

    return box_regions(lesions)


WHOLE = (30, 20, 50, 40)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("two values", disc, [WHOLE]),
        ("0 and 1", lambda: disc() // 255, [WHOLE]),
        ("neither 0", lambda: np.where(disc() > 0, 200, 64), [WHOLE]),
        ("blurred", lambda: np.round(gaussian_filter(disc().astype(float), 3)), [WHOLE]),
        (
            "antialiased",
            lambda: (
                np.where(disc() > 0, 255, 0) - 127 * ((disc() > 0) & ~(np.roll(disc(), 1, 0) > 0))
            ),
            [WHOLE],
        ),
        ("residues", lambda: np.where(disc() > 0, 1, 1e-6 * (np.arange(80)[:, None] % 2)), [WHOLE]),
        ("shares", lambda: gaussian_filter(disc() / 255.0, 2), [WHOLE]),
        (
            "instances",
            lambda: disc() // 255 + (disc() > 0) * (np.arange(96) >= 40),
            [(30, 20, 40, 40), (40, 20, 50, 40)],
        ),
        (
            "grey instances",
            lambda: (disc() > 0) * np.where(np.arange(96) >= 40, 200, 100),
            [(30, 20, 40, 40), (40, 20, 50, 40)],
        ),
        (
            "core in its rim",
            lambda: disc() // 255 + (gaussian_filter(disc().astype(float), 4) > 200),
            [WHOLE],
        ),
        ("nothing", lambda: np.zeros((80, 96)), []),
        (
            "colours",
            lambda: np.stack([disc(), disc() * (np.arange(96) >= 40), 0 * disc()], -1),
            [(30, 20, 40, 40), (40, 20, 50, 40)],
        ),
        (
            "white and red",
            lambda: np.where(disc()[..., None] > 0, [200, 0, 0], [255, 255, 255]),
            [WHOLE],
        ),
    ],
)
def test_what_the_values_of_a_mask_mean(name, make, expected):
    boxes_by_image, note = boxes_of(make())
    assert sorted(boxes_by_image) == expected
    assert bool(note) == (name not in {"two values", "0 and 1", "nothing"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 255 - disc(), "is it inverted"),
        (lambda: np.full((80, 96), 255), "100 % of it are lesion"),
        (lambda: np.random.default_rng(0).normal(size=(80, 96)), "values from -.* not a mask"),
        (lambda: 255 - np.round(gaussian_filter(disc().astype(float), 3)), "is it inverted"),
    ],
)
def test_what_is_no_mask_is_refused(make, message):
    with pytest.raises(ImageError, match=message):
        boxes_of(make())


def test_palette_masks_are_read_by_their_colours(tmp_path):
    pictures(tmp_path / "images", ["a.png"])
    (tmp_path / "masks").mkdir()
    index = (disc() > 0).astype(np.uint8) + ((disc() > 0) & (np.arange(96) >= 40))
    picture = Image.fromarray(index, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    picture.save(tmp_path / "masks/a.png")
    boxes = Cohort.from_boxes(tmp_path / "images", "masks:../masks").boxes
    assert boxes[BOX].to_numpy().tolist() == [[30, 20, 40, 40], [40, 20, 50, 40]]


def instances(side: int, count: int) -> np.ndarray:
    """Squares numbered from 1, a pixel apart."""
    mask = np.zeros((10 * (side + 1) + 1,) * 2, np.float32)
    for number in range(count):
        row, column = divmod(number, 10)
        mask[1 + row * (side + 1) :][:side, 1 + column * (side + 1) :][:, :side] = number + 1
    return mask


@pytest.mark.parametrize(("side", "count"), [(2, 25), (5, 100), (3, 80)])
def test_many_numbered_lesions_are_all_kept(side, count):
    mask = np.zeros((200, 200), np.float32)
    drawn = instances(side, count)
    mask[: drawn.shape[0], : drawn.shape[1]] = drawn
    assert read_lesions(mask[None])[0].max() == count


def test_residues_alone_are_nothing():
    mask = np.zeros((1, 40, 40), np.float32)
    mask[0, 3, 3] = 1e-7
    lesions, note = read_lesions(mask)
    assert lesions.max() == 0
    assert "residues" in note
