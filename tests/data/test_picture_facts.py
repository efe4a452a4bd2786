"""Facts that a picture states twice, one test per row of the tables in `pictures` and `tiff`."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from PIL import Image as Pillow

GREY = np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 65535, (32, 40, 3), dtype=np.uint16)
DEEP = COLOUR[..., 0]


def told(image):
    return " ".join(text for _, text in image.provenance["hazards"])


def codes(image):
    return {code for code, _ in image.provenance["hazards"]}


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
def test_films_are_refused_with_their_number_of_frames(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    frames = [Pillow.fromarray(np.roll(GREY, n)) for n in range(3)]
    if kind == "avif":
        frames = [frame.convert("RGB") for frame in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"holds several frames \(3\); give one image per file"):
        read_image(path)
    frames[0].save(path)
    assert read_image(path).array.shape[1:] == (32, 40)


def test_the_first_picture_of_a_phone_is_read(tmp_path):
    first, second = Pillow.fromarray(GREY), Pillow.fromarray(GREY[:16, :20])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert np.abs(image.array[0] - GREY).max() <= 3
    assert "holds 2 pictures, as phones write them; the first is read" in told(image)
    assert "lossy" in codes(image)
    assert image.provenance["format"] == "JPEG"


@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (16, 65535)])
def test_jpeg_2000_keeps_its_depth(tmp_path, bits, top):
    grey, colour = DEEP & top, COLOUR & top
    for stored in (grey, colour):
        data = imagecodecs.jpeg2k_encode(stored, level=0, bitspersample=bits)
        (tmp_path / "a.jp2").write_bytes(data)
        image = read_image(tmp_path / "a.jp2")
        assert np.array_equal(image.array, np.moveaxis(np.atleast_3d(stored), -1, 0))
        assert image.provenance["bits_stored"] == bits
        assert "lossy" not in codes(image)
    (tmp_path / "l.jp2").write_bytes(imagecodecs.jpeg2k_encode(GREY, level=30))
    assert "lossy" in codes(read_image(tmp_path / "l.jp2"))


@pytest.mark.parametrize("lossless", [False, True])
def test_loss_of_webp_is_told(tmp_path, lossless):
    Pillow.fromarray(GREY).save(tmp_path / "a.webp", lossless=lossless)
    assert ("lossy" in codes(read_image(tmp_path / "a.webp"))) != lossless


@pytest.mark.parametrize("top", [3, 100, 255, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_portable_maps_keep_their_values(tmp_path, top, plain):
    for stored in (DEEP.astype(int) % (top + 1), COLOUR.astype(int) % (top + 1)):
        kind = (3 if stored.ndim == 3 else 2) if plain else (6 if stored.ndim == 3 else 5)
        head = f"P{kind}\n# made by Doe, Jane\n40 32\n# more\n{top}\n".encode()
        body = (
            " ".join(map(str, stored.ravel())).encode()
            if plain
            else stored.astype("u1" if top < 256 else ">u2").tobytes()
        )
        (tmp_path / "a.pnm").write_bytes(head + body)
        image = read_image(tmp_path / "a.pnm")
        assert np.array_equal(image.array, np.moveaxis(np.atleast_3d(stored), -1, 0))
        assert image.provenance["bits_stored"] == (8 if top < 256 else 16)
        (tmp_path / "a.pnm").write_bytes(head + body[: len(body) // 2])
        with pytest.raises(ImageError, match="is truncated: 32 x 40 x .* values are stated"):
            read_image(tmp_path / "a.pnm")


def test_several_portable_maps_in_one_file_are_refused(tmp_path):
    (tmp_path / "a.pgm").write_bytes((b"P5\n40 32\n255\n" + GREY.tobytes()) * 2)
    with pytest.raises(ImageError, match="holds several maps"):
        read_image(tmp_path / "a.pgm")


def test_an_orientation_of_no_meaning_is_told(tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = 9
    Pillow.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, 3, 1, 9, True)])
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name)
        assert np.array_equal(image.array[0], GREY)
        assert "orientation" in codes(image)


# TIFF


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
