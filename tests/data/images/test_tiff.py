"""Facts of TIFF files that their tags state twice, or not at all."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from PIL import Image as Pillow

from hazards import told
from picture_arrays import DEEP, GREY


@pytest.mark.parametrize(
    "kind", [{"subfiletype": 1}, {"subfiletype": 4}, {"extratags": [(255, 3, 1, 2, True)]}]
)
def test_thumbnails_are_no_pages(tmp_path, kind):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(DEEP, metadata=None)
        small = GREY[:16, :20] > 100 if kind.get("subfiletype") == 4 else GREY[:16, :20]
        writer.write(
            small,
            metadata=None,
            photometric="mask" if small.dtype == bool else "minisblack",
            **kind,
        )
    image = read_image(tmp_path / "a.tif")
    assert np.array_equal(image.array[0], DEEP)
    assert "1 page(s) are thumbnails or masks" in told(image)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(DEEP, metadata=None)
        writer.write(DEEP, metadata=None)
    with pytest.raises(ImageError, match="holds 2 pages"):
        read_image(tmp_path / "b.tif")


def test_images_by_the_metadata_of_the_writer(tmp_path):
    path = tmp_path / "a.tif"
    stack = np.stack([GREY] * 3)
    tifffile.imwrite(
        path,
        stack,
        description="ImageJ=1.53\nimages=3\nslices=3\n",
        metadata=None,
        photometric="minisblack",
    )
    with pytest.raises(ImageError, match="holds 3 pages"):
        read_image(path)
    # As ImageJ writes large stacks: one page, and the others behind it without pages of their own.
    tifffile.imwrite(path, GREY, description="ImageJ=1.53\nimages=3\nslices=3\n", metadata=None)
    path.write_bytes(path.read_bytes() + GREY.tobytes() * 2)
    with pytest.raises(ImageError, match="its metadata state 3 images, and it holds 1 page"):
        read_image(path)
    ome = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="40" SizeY="32" SizeZ="{z}" SizeC="1" SizeT="1"><TiffData/></Pixels></Image></OME>'  # noqa: E501
    tifffile.imwrite(path, GREY, description=ome.format(z=4), metadata=None)
    with pytest.raises(ImageError, match="its metadata state 4 images, and it holds 1 page"):
        read_image(path)
    for options in (
        {"description": ome.format(z=1), "metadata": None},
        {"imagej": True},
        {"ome": True},
        {},
    ):
        tifffile.imwrite(path, GREY, **options)
        assert np.array_equal(read_image(path).array[0], GREY)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"compression": "lzw", "rowsperstrip": 8}],
)
def test_strips_and_tiles_that_are_not_there(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP, **options)
    assert np.array_equal(read_image(path).array[0], DEEP)
    data = path.read_bytes()
    path.write_bytes(data[:-150])
    with pytest.raises(ImageError, match="is truncated: not all of its"):
        read_image(path)


def test_sparse_strips_are_not_read_as_zeros(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP, rowsperstrip=8)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags["StripByteCounts"]
        at, count = tag.valueoffset, tag.count
    data = bytearray(path.read_bytes())
    size = 2 if struct.unpack_from("<H", data, tag.offset + 2)[0] == 3 else 4
    data[at + size * (count - 1) : at + size * count] = bytes(size)
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="is truncated"):
        read_image(path)


def test_samples_of_several_kinds_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([GREY] * 3, -1), photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags["BitsPerSample"].valueoffset
    data = bytearray(path.read_bytes())
    data[at : at + 6] = np.array([8, 8, 4], "<u2").tobytes()
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match=r"samples differ in BitsPerSample|not a readable TIFF"):
        read_image(path)


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64, np.uint32])
def test_signed_floating_and_wide_samples_keep_their_values(tmp_path, kind):
    values = (
        (DEEP.astype(np.int64) - 30000).astype(kind)
        if np.dtype(kind).kind != "u"
        else DEEP.astype(kind)
    )
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0], values.astype(np.float32))


def test_remedies_fit_the_file(tmp_path):
    stream = io.BytesIO()
    Pillow.fromarray(GREY).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue()[:-200])
    with pytest.raises(ImageError, match="not a readable picture") as caught:
        read_image(tmp_path / "a.png")
    assert "as PNG" not in str(caught.value)
