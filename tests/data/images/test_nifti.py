"""Facts that a NIfTI header states twice, one test per row of the table in `nifti`."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError

from hazards import codes, told
from volume_files import AFFINE, ARRAY, nifti, patched

NAN = float("nan")


def without_forms(path):
    return patched(patched(path, 252, "<i2", 0), 254, "<i2", 0)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_bytes_of_the_file_against_its_sizes(tmp_path, name):
    if name == "a.hdr":
        nib.save(nib.Nifti1Pair(ARRAY, AFFINE), tmp_path / name)
        pixels = tmp_path / "a.img"
    else:
        pixels = nifti(tmp_path / name)
    whole = pixels.read_bytes()
    content = gzip.decompress(whole) if name.endswith("gz") else whole

    def put(data):
        pixels.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        return tmp_path / name

    assert not codes(read_image(put(content)))
    with pytest.raises(ImageError, match=r"truncated|cut or damaged"):
        read_image(put(content[:-200]))
    image = read_image(put(content + bytes(100)))
    assert np.array_equal(image.array[0], ARRAY[::-1, ::-1])
    assert "100 bytes behind the voxels" in told(image)
    with pytest.raises(
        ImageError, match=r"2 more volume.s. follow those that dim in its header counts"
    ):
        read_image(put(content + ARRAY.tobytes() * 2))


def test_a_compressed_file_that_is_cut_is_named(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ImageError, match="cut or damaged. Copy or download"):
        read_image(path)


def test_bits_against_the_type(tmp_path):
    image = read_image(patched(nifti(tmp_path / "a.nii"), 72, "<i2", 8))
    assert np.array_equal(image.array[0], ARRAY[::-1, ::-1])
    assert "bitpix is 8, datatype has 16 bits" in told(image)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [0, 0, 0], [NAN, 1, 1]])
def test_voxel_sizes_against_the_sform(tmp_path, sizes):
    path = patched(patched(nifti(tmp_path / "a.nii"), 80, "<f4", sizes), 252, "<i2", 0)
    image = read_image(path)
    assert image.spacing == pytest.approx((0.8, 0.6, 2.5))
    assert "pixdim states other voxels than sform, 0.8 x 0.6 x 2.5 mm" in told(image)


def test_voxel_sizes_rounded_to_three_digits_are_no_difference(tmp_path):
    assert not codes(
        read_image(patched(nifti(tmp_path / "a.nii"), 80, "<f4", [0.8004, 0.5996, 2.499]))
    )


@pytest.mark.parametrize("form", [0, 1])
def test_voxel_sizes_where_they_alone_count(tmp_path, form):
    def write(sizes):
        return patched(
            patched(without_forms(nifti(tmp_path / "a.nii")), 252, "<i2", form), 80, "<f4", sizes
        )

    for sizes in ([0.8, 0, 2.5], [NAN, 0.6, 2.5], [np.inf, 0.6, 2.5]):
        with pytest.raises(
            ImageError, match="pixdim states voxels of .* and no sform states their size"
        ):
            read_image(write(sizes))
    image = read_image(write([-0.8, 0.6, 2.5]))
    assert image.spacing == pytest.approx((0.8, 0.6, 2.5))
    assert "pixdim is negative" in told(image)
    image = read_image(write([0, 0, 0]))
    assert image.provenance["spacing_from"] == "none"
    assert image.spacing == (1, 1, 1)
    assert {"no_spacing", "no_orientation"} <= codes(image)


def test_a_unit_of_no_known_code_is_told(tmp_path):
    image = read_image(patched(nifti(tmp_path / "a.nii"), 123, "u1", 7))
    assert image.spacing == pytest.approx((0.8, 0.6, 2.5))
    assert "units" in codes(image)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_axes_of_length_one(tmp_path, order):
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(f"{order}i2")
    nib.save(
        nib.Nifti1Image(ARRAY[..., None, None].astype(f"{order}i2"), AFFINE, header),
        tmp_path / "a.nii",
    )
    assert np.array_equal(read_image(tmp_path / "a.nii").array[0], ARRAY[::-1, ::-1])


@pytest.mark.parametrize(
    ("kind", "named"),
    [([("R", "u1"), ("G", "u1"), ("B", "u1")], "colours"), (np.complex64, "complex numbers")],
)
def test_what_is_no_number_is_named(tmp_path, kind, named):
    with pytest.raises(ImageError, match=f"holds {named}, not one number per voxel"):
        read_image(nifti(tmp_path / "a.nii", np.zeros((8, 9, 10), kind)))
