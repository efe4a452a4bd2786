from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from medtransfer.data.images.image import turn_array, unturn_array
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError

from volume_files import AFFINE, ARRAY, nifti, patched


def test_scaling_of_zero_or_nan_means_none(tmp_path):
    path = nifti(tmp_path / "v.nii")
    for value in (0.0, np.nan):
        assert np.array_equal(
            read_image(patched(path, 112, "<f4", value)).array[0], ARRAY[::-1, ::-1]
        )
    image = read_image(patched(path, 112, "<f4", [2.0, -7.0]))
    assert np.array_equal(image.array[0], ARRAY[::-1, ::-1] * 2.0 - 7.0)
    assert image.provenance["steps"] == ["rescaled by 2 and -7"]
    with pytest.raises(ImageError, match=r"v\.nii: not a readable volume"):
        read_image(patched(path, 112, "<f4", [2.0, np.nan]))


def test_conflicting_or_missing_forms_are_told(tmp_path):
    def conflict(header):
        header.set_qform(np.diag([0.8, 0.6, 2.5, 1.0]), code=1)
        header.set_sform(AFFINE, code=1)

    def none(header):
        header.set_qform(None, code=0)
        header.set_sform(None, code=0)

    image = read_image(nifti(tmp_path / "c.nii", change=conflict))
    assert np.allclose(image.affine @ [11, 13, 0, 1], [50, 40, -30, 1])  # the sform
    assert image.provenance["hazards"][0][0] == "nifti_forms"
    path = patched(patched(nifti(tmp_path / "n.nii", change=none), 252, "<i2", 0), 254, "<i2", 0)
    image = read_image(path)
    assert image.provenance["hazards"][0][0] == "no_orientation"
    assert image.spacing == pytest.approx((0.8, 0.6, 2.5))


def test_a_qform_alone_is_used(tmp_path):
    def only(header):
        header.set_qform(AFFINE, code=1)
        header.set_sform(None, code=0)

    path = nifti(tmp_path / "q.nii", change=only)
    patched(path, 254, "<i2", 0)
    assert np.allclose(read_image(path).affine @ [11, 13, 0, 1], [50, 40, -30, 1], atol=1e-4)


def test_units_of_the_header_become_mm(tmp_path):
    image = read_image(nifti(tmp_path / "m.nii", change=lambda h: h.set_xyzt_units("micron")))
    assert image.spacing == pytest.approx((0.0008, 0.0006, 0.0025))


def test_one_volume_of_four_dimensions_is_named(tmp_path):
    path = nifti(tmp_path / "t.nii.gz", np.stack([ARRAY, ARRAY + 1, ARRAY + 2], -1))
    with pytest.raises(ImageError, match=r"holds 3 volumes .* Name one as t.nii.gz#1 to #3"):
        read_image(path)
    assert np.array_equal(read_image(f"{path}#2").array[0], (ARRAY + 1)[::-1, ::-1])
    with pytest.raises(ImageError, match="no volume 4"):
        read_image(f"{path}#4")
    assert read_image(nifti(tmp_path / "one.nii", ARRAY[..., None])).array.shape == (1, 12, 14, 10)


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd", "nhdr"])
def test_nrrd_and_metaimage_lie_where_simpleitk_puts_them(tmp_path, suffix):
    image = SimpleITK.GetImageFromArray(ARRAY)
    image.SetSpacing((0.7, 0.9, 3.0))
    image.SetOrigin((5.0, -6.0, 7.0))
    image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    SimpleITK.WriteImage(image, str(tmp_path / f"v.{suffix}"))
    ours = read_image(tmp_path / f"v.{suffix}")
    for index in ((0, 0, 0), (9, 13, 11), (4, 2, 7)):
        lps = image.TransformIndexToPhysicalPoint(index)
        there = np.linalg.solve(ours.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
        assert ours.array[(0, *np.rint(there).astype(int))] == image[index]
    assert sorted(ours.spacing) == pytest.approx([0.7, 0.9, 3.0])


def test_a_spacing_that_is_not_stated_is_told(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 9 10 11\nencoding: raw\n\n"
        + bytes(range(99)) * 10
    )
    image = read_image(tmp_path / "a.nrrd")
    assert image.array.shape == (1, 9, 10, 11)
    assert image.provenance["spacing_from"] == "none"


def test_faulty_volumes_are_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\nnonsense\n\n")
    for name in ("a.nii.gz", "b.nrrd"):
        with pytest.raises(ImageError, match=f"{name}: not a readable volume"):
            read_image(tmp_path / name)
    path = nifti(
        tmp_path / "nan.nii",
        ARRAY.astype(np.float32) / np.where(ARRAY[0, 0, 0] == ARRAY, np.nan, 1),
    )
    with pytest.raises(ImageError, match="are NaN or infinite"):
        read_image(path)
    colour = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageError, match="not one number per voxel"):
        read_image(nifti(tmp_path / "rgb.nii", colour))
    with pytest.raises(ImageError, match="singular"):
        read_image(patched(nifti(tmp_path / "flat.nii"), 280, "<f4", [0.0] * 4))
    with pytest.raises(ImageError, match="from_header needs a DICOM"):
        read_image(nifti(tmp_path / "v.nii"), "from_header")
    huge = patched(nifti(tmp_path / "huge.nii"), 40, "<i2", [3, 1000, 1000, 1000])
    with pytest.raises(ImageError, match="bytes cannot hold|not a readable volume"):
        read_image(huge)


ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]  # of 3! orders and 2**3 directions


@pytest.mark.parametrize("depth", [10, 1])
def test_turns_lead_from_the_file_to_the_image_and_back(tmp_path, depth):
    assert len(ORIENTATIONS) == 48
    for codes in ORIENTATIONS:
        source = nib.Nifti1Image(ARRAY[:, :, :depth], AFFINE)
        change = nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
        )
        turned = source.as_reoriented(change)
        nib.save(turned, tmp_path / "t.nii")
        raw = np.asanyarray(turned.dataobj)
        image = read_image(tmp_path / "t.nii")
        turn, stored = image.provenance["turn"], image.provenance["stored_shape"]
        assert tuple(stored) == raw.shape
        assert np.array_equal(turn_array(raw, turn), image.array[0])
        assert np.array_equal(unturn_array(image.array[0], turn, stored), raw)
        if depth > 1:
            assert np.array_equal(unturn_array(image.array[0], turn), raw)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_turns_of_itk_follow_its_index(tmp_path, suffix):
    for direction in itertools.permutations(np.eye(3).tolist()):
        for signs in itertools.product((1, -1), repeat=3):
            image = SimpleITK.GetImageFromArray(ARRAY)
            image.SetDirection((np.array(direction) * signs).ravel().tolist())
            SimpleITK.WriteImage(image, str(tmp_path / f"v.{suffix}"))
            ours = read_image(tmp_path / f"v.{suffix}")
            assert ours.provenance["stored_shape"] == list(image.GetSize())
            assert np.array_equal(turn_array(ARRAY.T, ours.provenance["turn"]), ours.array[0])
            assert np.array_equal(unturn_array(ours.array[0], ours.provenance["turn"]), ARRAY.T)
