"""Volumes lie to the right, front and head; a single slice lies as DICOM has it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from medtransfer.data.images.reading import read_image

from volume_files import AFFINE, ARRAY, nifti


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_volumes_are_turned_to_ras_without_interpolation(tmp_path, suffix):
    image = read_image(nifti(tmp_path / f"v.{suffix}"))
    assert np.array_equal(image.array[0], ARRAY[::-1, ::-1])
    assert image.spacing == pytest.approx((0.8, 0.6, 2.5))
    assert np.allclose(image.affine @ [11, 13, 0, 1], [50, 40, -30, 1])
    assert image.provenance["axes"] == "x, y, z (RAS)"
    assert not image.provenance["hazards"]


@pytest.mark.parametrize("codes", ["LAS", "RAS", "PIR", "SLA"])
def test_any_orientation_gives_the_same_volume(tmp_path, codes):
    """The reference is nibabel's own canonical form."""
    source = nib.Nifti1Image(ARRAY, AFFINE)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
    )
    turned = source.as_reoriented(change)
    nib.save(turned, tmp_path / "t.nii")
    image = read_image(tmp_path / "t.nii")
    reference = nib.as_closest_canonical(source)
    assert np.array_equal(image.array[0], np.asanyarray(reference.dataobj))
    assert np.allclose(image.affine, reference.affine)


def test_a_single_slice_is_an_image_as_dicom_lays_it_out(tmp_path):
    image = read_image(nifti(tmp_path / "s.nii", ARRAY[:, :, :1]))
    # The file runs to the left and back already: columns are x, rows are y.
    assert np.array_equal(image.array[0], ARRAY[:, :, 0].T)
    assert image.spacing == pytest.approx((0.6, 0.8))
    assert np.allclose(image.affine @ [3, 5, 0, 1], AFFINE @ [5, 3, 0, 1])
