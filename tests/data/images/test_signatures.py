"""The content of a file decides what it is; what is no image is named."""

from __future__ import annotations

import gzip
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from medtransfer.data.images.dicom.header import is_dicom
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.data.images.medmnist import is_archive
from medtransfer.data.images.reading import is_image_file, read_image
from medtransfer.data.images.signatures import kind_of, why_no_image
from medtransfer.data.images.volumes import detached_pixels, pixels_of_another
from medtransfer.errors import ImageError
from PIL import Image as Pillow
from pydicom.data import get_testdata_file

GREY = np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)
VOLUME = np.random.default_rng(1).integers(0, 900, (10, 12, 14)).astype(np.int16)


def write(folder, kind):
    """One file of a kind under its usual name."""
    path = folder / f"source.{kind}"
    if kind == "dcm":
        write_grey_dicom(
            path,
            GREY.astype(np.uint16),
            patient="P",
            number=1,
            spacing=(1, 1),
            encoding=GreyEncoding(),
        )
    elif kind in {"nii", "nii.gz"}:
        nib.save(nib.Nifti1Image(VOLUME, np.diag([-1, -1, 2, 1])), path)
    elif kind == "nii2":
        path = folder / "source2.nii"
        nib.save(nib.Nifti2Image(VOLUME, np.diag([-1, -1, 2, 1])), path)
    elif kind in {"nrrd", "mha"}:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(path))
    elif kind == "tif":
        tifffile.imwrite(path, GREY)
    elif kind == "big.tif":
        tifffile.imwrite(path, GREY, bigtiff=True, byteorder=">")
    elif kind == "webp":
        Pillow.fromarray(GREY).save(path, lossless=True)
    else:
        Pillow.fromarray(GREY).save(path)
    return path


KINDS = {
    "png": "PNG", "jpg": "JPEG", "bmp": "BMP", "gif": "GIF", "webp": "WebP", "jp2": "JPEG 2000",
    "pgm": "PNM", "tif": "TIFF",
    "big.tif": "TIFF", "dcm": "DICOM", "nii": "NIfTI", "nii.gz": "NIfTI", "nii2": "NIfTI",
    "nrrd": "NRRD", "mha": "MetaImage",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "x.png",
        "x.jpg",
        "x.tif",
        "x.dcm",
        "x.nii",
        "x.nii.gz",
        "x.mha",
        "x.npz",
        "x",
        "x.txt",
        "x.PNG",
        "IM0001",
    ],
)
def test_a_whole_file_is_read_under_any_name(tmp_path, kind, name):
    source = write(tmp_path, kind)
    path = tmp_path / "other" / name
    path.parent.mkdir()
    shutil.copy(source, path)
    assert kind_of(path) == KINDS[kind]
    assert is_image_file(path)
    assert is_dicom(path) == (kind == "dcm")
    assert not is_archive(path)
    image, reference = read_image(path), read_image(source)
    assert np.array_equal(image.array, reference.array)
    assert image.provenance["format"] == reference.provenance["format"]
    differs = kind_of(path.with_name(f"missing-{name}")) not in {"", KINDS[kind]}
    assert any(code == "ending" for code, _ in image.provenance["hazards"]) == differs


@pytest.mark.parametrize(
    ("ending", "kind"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("jif", "JPEG"), ("webp", "WEBP"), ("gif", "GIF"),
    ("jp2", "JPEG2000"), ("j2k", "JPEG2000"),
     ("jpx", "JPEG2000"), ("pgm", "PPM"), ("pnm", "PPM"), ("dib", "DIB"), ("JPG", "JPEG"),
     ("TIFF", "TIFF")],
)  # fmt: skip
def test_unusual_endings_are_images(tmp_path, ending, kind):
    path = tmp_path / f"a.{ending}"
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    Pillow.fromarray(GREY).save(path, format=kind, **lossless)
    assert is_image_file(path)
    image = read_image(path)
    assert np.abs(image.array[0] - GREY).max() <= (3 if kind == "JPEG" else 0)
    assert not any(code == "ending" for code, _ in image.provenance["hazards"])


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_portable_maps_of_every_mode(tmp_path, mode):
    picture = Pillow.fromarray(np.stack([GREY, GREY.T.reshape(24, 32), 255 - GREY], -1)).convert(
        mode
    )
    picture.save(tmp_path / "a.pnm")
    expected = np.asarray(picture).astype(float)
    assert np.array_equal(
        read_image(tmp_path / "a.pnm").array, np.moveaxis(np.atleast_3d(expected), -1, 0)
    )


@pytest.mark.parametrize(
    ("name", "content", "cause", "remedy"),
    [
        (
            "a.nii.gz",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n",
            "Git LFS pointer",
            "git lfs pull",
        ),
        ("a.png", b"../../.git/annex/objects/zz/MD5E-s1--0/x", "git-annex pointer", "annex get"),
        (
            "a.jpg",
            b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Sign in</body></html>",
            "web page",
            "Download the file again",
        ),
        ("a.dcm", b"<html><head><title>403</title>", "web page", "Download the file again"),
        ("a.png", b'{"error": "not found"}', "JSON", "Download the file again"),
        ("a.png", b"", "empty", "again"),
        ("a.nii.gz", b"", "empty", "again"),
        ("a.dcm", bytes(5000), "zeros", "again"),
        ("a.tif", bytes(50), "zeros", "again"),
        ("a.dcm", b"Rar!\x1a\x07\x01\0", "rar archive", "Unpack"),
        ("a.nii", b"7z\xbc\xaf\x27\x1c\0\4", "7z archive", "Unpack"),
        ("a.jpg", b"%PDF-1.7\n%", "PDF", "Export the images"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "JPEG or PNG"),
        ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC", "JPEG or PNG"),
        ("a.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", "PNG"),
        ("a.svs", b"II*\0", "whole slide", "region"),
        ("a.ndpi", b"II*\0", "whole slide", "region"),
        ("a.mp4", b"\0\0\0\x18ftypisom", "video", "frames"),
        ("a.npy", b"\x93NUMPY\x01\0", "NumPy array", "NIfTI"),
        ("a.mat", b"MATLAB 5.0 MAT-file", "MATLAB", "NIfTI"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5", "NIfTI"),
        ("a.mgz", gzip.compress(b"\0\0\0\x01" + bytes(300), mtime=0), "FreeSurfer", "mri_convert"),
        ("a.dcm.gz", gzip.compress(bytes(128) + b"DICM", mtime=0), "gzip", "gunzip"),
        ("._a.png", b"\0\x05\x16\x07\0\2\0\0", "macOS", "Leave it out"),
        ("a.hdr", (348).to_bytes(4, "little") + bytes(344), "Analyze", "NIfTI"),
        ("notes", "Größe 5".encode(), "text", "leave it out"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, name, content, cause, remedy):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable ")
    assert cause in message and remedy in message and message.endswith(".")
    assert cause in why_no_image(path)


def test_archives_of_images_and_of_arrays_are_told_apart(tmp_path):
    write(tmp_path, "png")
    with zipfile.ZipFile(tmp_path / "a.nii", "w") as archive:
        archive.write(tmp_path / "source.png", "source.png")
    with pytest.raises(ImageError, match="not a readable volume .it is a zip archive.*Unpack"):
        read_image(tmp_path / "a.nii")
    arrays = {f"{part}_{what}": np.zeros((2, 28, 28) if what == "images" else (2, 1), np.uint8) for part in ("train", "val", "test") for what in ("images", "labels")}  # fmt: skip  # noqa: E501
    np.savez(tmp_path / "named", **arrays)
    (tmp_path / "named.npz").rename(tmp_path / "arrays.zip")
    assert is_archive(tmp_path / "arrays.zip")
    assert read_image(f"{tmp_path / 'arrays.zip'}#train/1").array.shape == (1, 28, 28)


@pytest.mark.parametrize(
    "content",
    [
        b"patient,image\nP1,a.png\n",
        b"P1,2,3\n",
        b"BM,a\n1,2\n" + b" " * 40,
        b"name = value\n",
        b"# Notes\n",
    ],
)
def test_tables_and_notes_are_no_images(tmp_path, content):
    for name in ("a.csv", "a.txt", "a.md", "a"):
        (tmp_path / name).write_bytes(content)
        assert not is_image_file(tmp_path / name)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert not is_image_file(tmp_path / "DICOMDIR")
    assert not is_image_file(tmp_path)


def test_damaged_files_are_images_by_their_ending(tmp_path):
    for name in ("a.png", "a.jfif", "a.nii.gz", "a.dcm", "a.mha", "a.npz"):
        (tmp_path / name).write_bytes(b"\x01\x02\x03 damaged \xff\xfe")
        assert is_image_file(tmp_path / name)
    (tmp_path / "a.xyz").write_bytes(b"\x01\x02\x03 unknown \xff\xfe")
    assert not is_image_file(tmp_path / "a.xyz")
    with pytest.raises(ImageError, match="a.xyz: not an image of a kind that is read here"):
        read_image(tmp_path / "a.xyz")


def test_dicom_without_a_mark_is_known_by_its_first_element(tmp_path):
    import pydicom

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    reference = read_image(get_testdata_file("CT_small.dcm")).array
    for number, (implicit, syntax) in enumerate(
        [(False, pydicom.uid.ExplicitVRLittleEndian), (True, pydicom.uid.ImplicitVRLittleEndian)]
    ):
        with (tmp_path / f"IM{number}").open("wb") as stream:
            file = pydicom.filebase.DicomFileLike(stream)
            file.is_implicit_VR, file.is_little_endian = implicit, True
            pydicom.filewriter.write_dataset(file, dataset)
        assert is_image_file(tmp_path / f"IM{number}"), syntax
        assert np.array_equal(read_image(tmp_path / f"IM{number}").array, reference)


def test_pixels_of_another_header_are_accounted_for(tmp_path):
    nib.save(nib.Nifti1Pair(VOLUME, np.diag([-1, -1, 2, 1])), tmp_path / "pair.img")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(tmp_path / "m.mhd"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(tmp_path / "n.nhdr"))
    for raw, header in (("pair.img", "pair.hdr"), ("m.raw", "m.mhd"), ("n.raw", "n.nhdr")):
        assert pixels_of_another(tmp_path / raw) == tmp_path / header
        assert pixels_of_another(tmp_path / header) is None
        assert detached_pixels(tmp_path / header) == [tmp_path / raw]
        assert detached_pixels(tmp_path / raw) == []
        assert is_image_file(tmp_path / header)
        assert np.array_equal(read_image(tmp_path / raw).array, read_image(tmp_path / header).array)
    assert np.array_equal(read_image(tmp_path / "pair.hdr").array[0], VOLUME[::-1, ::-1])
    assert read_image(tmp_path / "pair.hdr").provenance["format"] == "NIfTI"
    (tmp_path / "lone.raw").write_bytes(b"\x01\x02")
    assert pixels_of_another(tmp_path / "lone.raw") is None
    (tmp_path / "pair.img").unlink()
    with pytest.raises(
        ImageError,
        match=r"pair\.hdr: is the header of a pair, and its pixels .pair\.img. are not beside it",
    ):
        read_image(tmp_path / "pair.hdr")
    text = (tmp_path / "m.mhd").read_text().replace("m.raw", "slice%03d.raw 1 10 1")
    (tmp_path / "p.mhd").write_text(text)
    (tmp_path / "slice004.raw").write_bytes(b"")
    assert tmp_path / "slice004.raw" in detached_pixels(tmp_path / "p.mhd")
    assert pixels_of_another(tmp_path / "slice004.raw") == tmp_path / "p.mhd"
