"""Volumes from slices: order, gaps, tilt, and agreement with independent readers and with NIfTI."""

from __future__ import annotations

import shutil

import highdicom
import medtransfer as mt
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from medtransfer.data.images.image import turn_array, unturn_array
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError

from dicom_series import AXIAL, OBLIQUE, rows_of, write_series


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 3000, (7, 20, 24)).astype(np.uint16)


def world(image, index):
    return (image.affine @ [*index, 1])[:3]


@pytest.mark.parametrize(
    "orientation", [AXIAL, OBLIQUE, (0, 1.0, 0, 0, 0, -1.0), (-1.0, 0, 0, 0, 1.0, 0)]
)
def test_every_voxel_lies_where_its_slice_says(tmp_path, volume, orientation):
    image = read_image(write_series(tmp_path, volume, orientation=orientation))
    row, column, normal = rows_of(orientation)
    for k, i, j in ((0, 0, 0), (6, 19, 23), (3, 5, 17)):
        lps = np.array([-10.0, 20.0, 30.0]) + k * 2.5 * normal + i * 0.6 * column + j * 0.8 * row
        index = np.linalg.solve(image.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
        assert np.allclose(index, np.rint(index), atol=1e-4)
        assert image.array[(0, *np.rint(index).astype(int))] == volume[k, i, j] - 1024.0
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.spacing, np.linalg.norm(image.affine[:3, :3], axis=0))


@pytest.mark.parametrize(
    "orientation",
    [AXIAL, OBLIQUE, (0, 1.0, 0, 0, 0, -1.0), (-1.0, 0, 0, 0, 1.0, 0), (0, 1.0, 0, 1.0, 0, 0)],
)
def test_turns_lead_from_columns_rows_and_slices_to_the_volume(tmp_path, volume, orientation):
    """The slices are named in reverse: the order of the file is by position, not by name."""
    image = read_image(
        write_series(
            tmp_path, volume, orientation=orientation, names=[f"{9 - n}.dcm" for n in range(7)]
        )
    )
    turn, stored = image.provenance["turn"], image.provenance["stored_shape"]
    raw = volume.transpose(2, 1, 0)
    assert stored == [24, 20, 7]
    assert np.array_equal(turn_array(raw, turn) - 1024.0, image.array[0])
    assert np.array_equal(unturn_array(image.array[0], turn) + 1024, raw)


def test_a_straightened_stack_has_no_turn(tmp_path, volume):
    image = read_image(write_series(tmp_path, volume, shear=2.5 * np.tan(np.radians(20))))
    assert image.provenance["turn"] is None
    assert image.provenance["stored_shape"] == [24, 20, 7]
    plane = read_image(tmp_path / "000.dcm")
    assert (plane.provenance["turn"], plane.provenance["stored_shape"]) == (
        [[0, 1], [1, 1]],
        [20, 24],
    )


def test_geometry_agrees_with_simpleitk_and_highdicom(tmp_path, volume):
    write_series(tmp_path, volume, orientation=OBLIQUE)
    image = read_image(tmp_path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = reader.Execute()
    high = highdicom.get_volume_from_series(
        [pydicom.dcmread(p) for p in sorted(tmp_path.iterdir())], apply_real_world_transform=False
    )
    seen = 0
    for index in np.ndindex(*image.array.shape[1:]):
        if sum(index) % 7:
            continue
        seen += 1
        lps = world(image, index) * [-1, -1, 1]
        there = theirs.TransformPhysicalPointToIndex([float(v) for v in lps])
        assert theirs[there] == image.array[(0, *index)]
        k, i, j = np.rint(np.linalg.solve(high.affine, [*lps, 1])[:3]).astype(int)
        assert high.array[k, i, j] == image.array[(0, *index)]
    assert seen > 300
    assert sorted(image.spacing) == pytest.approx(sorted(theirs.GetSpacing()), abs=1e-5)


def test_shuffled_and_renamed_files_give_the_same_volume(tmp_path, volume):
    first = read_image(write_series(tmp_path / "a", volume))
    order = np.random.default_rng(1).permutation(7)
    names = [f"x{order[i]}" for i in range(7)]
    write_series(tmp_path / "b" / "deep", volume, names=names, InstanceNumber=None)
    second = read_image(tmp_path / "b")
    assert np.array_equal(first.array, second.array)
    assert np.allclose(first.affine, second.affine)
    # Written head first and with rows and columns turned round: other files, the same patient.
    turned = (-1.0, 0, 0, 0, -1.0, 0)
    origin = (-10 + 23 * 0.8, 20 + 19 * 0.6, 30 + 6 * 2.5)
    third = write_series(
        tmp_path / "c", volume[::-1, ::-1, ::-1], orientation=turned, origin=origin
    )
    for number, path in enumerate(sorted(third.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [origin[0], origin[1], origin[2] - number * 2.5]
        dataset.save_as(path)
    assert np.array_equal(read_image(third).array, first.array)
    assert np.allclose(read_image(third).affine, first.affine, atol=1e-5)


def test_dicom_and_nifti_of_one_volume_agree(tmp_path, volume):
    image = read_image(write_series(tmp_path / "dicom", volume, orientation=OBLIQUE))
    row, column, normal = rows_of(OBLIQUE)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.stack(
        [row * 0.8, column * 0.6, normal * 2.5], axis=1
    )
    affine[:3, 3] = np.diag([-1, -1, 1]) @ [-10.0, 20.0, 30.0]
    nib.save(
        nib.Nifti1Image((volume.transpose(2, 1, 0) - 1024.0).astype(np.int16), affine),
        tmp_path / "v.nii.gz",
    )
    other = read_image(tmp_path / "v.nii.gz")
    assert other.array.shape == image.array.shape
    assert np.abs(other.array - image.array).max() <= 1
    assert np.abs(other.affine - image.affine).max() < 0.01
    assert other.spacing == pytest.approx(image.spacing, abs=0.01)


def test_slices_of_their_own_slope_are_rescaled_each(tmp_path, volume):
    folder = write_series(tmp_path, volume)
    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = "PT", 1 + number, 0
        dataset.save_as(path)
    image = read_image(folder)
    by_hand = (volume * np.arange(1, 8)[:, None, None]).transpose(2, 1, 0)[::-1, ::-1]
    assert np.array_equal(image.array[0], by_hand)
    assert "each slice rescaled by its own values" in image.provenance["steps"]


def test_gaps_repeats_and_copies(tmp_path, volume):
    folder = write_series(tmp_path / "a", volume)
    shutil.copy(folder / "003.dcm", folder / "copy.dcm")
    image = read_image(folder)
    assert ("copies", "1 file(s) are copies of others and are left out") in image.provenance[
        "hazards"
    ]
    assert image.array.shape == (1, 24, 20, 7)
    (folder / "003.dcm").unlink()
    (folder / "copy.dcm").unlink()
    with pytest.raises(
        ImageError, match=r"5 mm between 002.dcm and 004.dcm, where 2.5 mm is usual in 6 slices"
    ):
        read_image(folder)
    write_series(folder, volume)
    write_series(folder, volume[:3], names=["e0", "e1", "e2"])
    for name in ("e0", "e1", "e2"):
        dataset = pydicom.dcmread(folder / name)
        dataset.SOPInstanceUID = f"1.2.{name[1]}"
        dataset.save_as(folder / name)
    with pytest.raises(
        ImageError, match="3 slice.s. lie where another one lies.*several time points"
    ):
        read_image(folder)


def test_the_largest_series_is_taken_and_the_rest_told(tmp_path, volume):
    write_series(tmp_path / "a", volume)
    write_series(tmp_path / "scout", volume[:2], orientation=(0, 1.0, 0, 0, 0, -1.0), uid="1.2.3")
    write_series(tmp_path / "other", volume[:3], uid="1.2.4")
    image = read_image(tmp_path)
    assert image.array.shape == (1, 24, 20, 7)
    assert (
        "left_out",
        "5 of 12 slices belong to other series, orientations or grids and are left out",
    ) in image.provenance["hazards"]
    write_series(tmp_path / "twin", volume, uid="1.2.5")
    with pytest.raises(
        ImageError, match=r"2 stacks of 7 slices each. Name one as .*#[0-9a-f]{8}"
    ) as caught:
        read_image(tmp_path)
    assert "1.2.5" not in str(caught.value)
    tag = str(caught.value).split("#")[1][:8]
    assert read_image(f"{tmp_path}#{tag}").array.shape == (1, 24, 20, 7)
    with pytest.raises(ImageError, match="holds no series #12345678. There are: #"):
        read_image(f"{tmp_path}#12345678")


@pytest.mark.parametrize("angle", [22.0, -15.0])
def test_a_tilted_stack_is_straightened(tmp_path, angle):
    """A ball in space, cut by sheared slices: after straightening its centre lies where it was
    put.
    """
    depth, height, width = 24, 60, 60
    step = 2.0
    shear = step * np.tan(np.radians(angle))
    k, i, j = np.meshgrid(np.arange(depth), np.arange(height), np.arange(width), indexing="ij")
    x, y, z = j * 1.0, i * 1.0 + k * shear, k * step
    centre = np.array([30.0, 30.0 + 0.5 * depth * shear, 24.0])
    ball = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) < 10**2
    folder = write_series(
        tmp_path, np.where(ball, 2000, 0), spacing=(step, 1.0, 1.0), origin=(0, 0, 0), shear=shear
    )
    image = read_image(folder)
    assert any(
        code == "gantry_tilt" and f"{abs(angle):.1f} degrees" in text
        for code, text in image.provenance["hazards"]
    )
    columns = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    assert np.allclose(columns.T @ columns, np.eye(3), atol=1e-6)
    inside = np.argwhere(image.array[0] > 0)
    found = (image.affine @ np.c_[inside, np.ones(len(inside))].T)[:3].mean(axis=1) * [-1, -1, 1]
    assert np.allclose(found, centre, atol=0.3)
    radius = (3 * len(inside) * step / (4 * np.pi)) ** (1 / 3)
    assert radius == pytest.approx(10, abs=0.3)
    assert image.array.min() == -1024


def test_a_truncated_slice_is_not_left_out(tmp_path, volume):
    folder = write_series(tmp_path, volume)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)
    last = folder / "006.dcm"
    last.write_bytes(last.read_bytes()[:-400])
    with pytest.raises(ImageError, match=r"006\.dcm.*truncated"):
        read_image(folder)


def test_files_of_one_uid_are_all_kept(tmp_path, volume):
    """Some anonymisers write one SOPInstanceUID for all."""
    folder = write_series(tmp_path, volume, SOPInstanceUID="1.2.3.4")
    assert read_image(folder).array.shape == (1, 24, 20, 7)


def test_a_small_tilt_counts_where_it_adds_up(tmp_path):
    blank = np.zeros((60, 16, 16), np.uint16)
    shear = 2.5 * np.tan(np.radians(0.4))
    tilted = read_image(write_series(tmp_path / "long", blank, shear=shear))
    assert any(code == "gantry_tilt" for code, _ in tilted.provenance["hazards"])
    short = read_image(write_series(tmp_path / "short", blank[:8], shear=shear))
    assert not any(code == "gantry_tilt" for code, _ in short.provenance["hazards"])


def test_a_series_over_subfolders_is_one_image_of_a_class(tmp_path, volume):
    write_series(tmp_path / "sick" / "disc" / "a", volume[:4], uid="1.2.3")
    second = write_series(tmp_path / "sick" / "disc" / "b", volume, uid="1.2.3")
    for number in range(4):
        (second / f"{number:03d}.dcm").unlink()
    write_series(tmp_path / "sick" / "other", volume, uid="1.2.4")
    write_series(tmp_path / "well" / "x", volume, uid="1.2.5")
    write_series(
        tmp_path / "well" / "x", volume, uid="1.2.6", names=[f"second{i}.dcm" for i in range(7)]
    )
    cohort = mt.Cohort.from_folders(tmp_path, positive="sick")
    names = cohort.images["image"].tolist()
    assert names[:2] == ["sick/disc", "sick/other"]
    assert all(name.startswith("well/x#") for name in names[2:])
    assert len(names) == 4
    for path in cohort.images["path"]:
        assert read_image(path).array.shape == (1, 24, 20, 7)


def test_anisotropy_is_told(tmp_path, volume):
    image = read_image(write_series(tmp_path, volume, spacing=(5.0, 0.6, 0.8)))
    assert ("anisotropic", "slices lie 8.3 times as far apart as pixels") in image.provenance[
        "hazards"
    ]


def enhanced(path, volume, order, drop_position=False, repeat=False):
    """One multi-frame file with the slices in the given order."""
    dataset = pydicom.dcmread(write_series(path.parent / "one", volume[:1]) / "000.dcm")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = (
        pydicom.uid.EnhancedCTImageStorage
    )
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = volume[order].astype("<u2").tobytes()
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, keyword)
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = [0.6, 0.8], list(AXIAL)
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in order:
        position, rescale, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [-10.0, 20.0, 30.0 + 2.5 * (0 if repeat else int(number))]
        rescale.RescaleSlope, rescale.RescaleIntercept = 1 + int(number), -1024
        frame.PixelValueTransformationSequence = [rescale]
        if not drop_position:
            frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.save_as(path)
    shutil.rmtree(path.parent / "one")
    return path


def test_frames_are_sorted_and_rescaled_each_by_its_own_values(tmp_path, volume):
    order = np.array([3, 0, 6, 5, 1, 2, 4])
    image = read_image(enhanced(tmp_path / "e.dcm", volume, order))
    by_hand = (volume * np.arange(1, 8)[:, None, None] - 1024.0).transpose(2, 1, 0)[::-1, ::-1]
    assert np.array_equal(image.array[0], by_hand)
    assert image.spacing == pytest.approx((0.8, 0.6, 2.5))
    one = read_image(f"{tmp_path / 'e.dcm'}#1")
    assert np.array_equal(one.array[0], volume[3] * 4 - 1024.0)
    with pytest.raises(ImageError, match="lie where another one lies"):
        read_image(enhanced(tmp_path / "r.dcm", volume, order, repeat=True))
    by_position = (volume * np.arange(1, 8)[:, None, None] - 1024.0).transpose(2, 1, 0)
    assert np.array_equal(turn_array(by_position, image.provenance["turn"]), image.array[0])
    film = read_image(enhanced(tmp_path / "p.dcm", volume, order, drop_position=True))
    assert (film.provenance["turn"], film.provenance["stored_shape"]) == (
        [[0, 1], [1, 1], [2, 1]],
        [7, 20, 24],
    )
    assert film.provenance["axes"] == "frame, row, column"
    assert np.array_equal(film.array[0, 1], volume[0] * 1 - 1024.0)
