from __future__ import annotations

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from medtransfer.data.images.image import turn_array, unturn_array
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from PIL import Image as Pillow
from PIL import ImageOps
from pydicom.data import get_testdata_file

from dicom_ramp import RAMP, dicom


def test_monochrome_twins_give_equal_pixels(tmp_path):
    one = read_image(dicom(tmp_path / "1.dcm", photometric="MONOCHROME1"))
    two = read_image(dicom(tmp_path / "2.dcm", photometric="MONOCHROME2"))
    assert np.array_equal(one.array, two.array)
    assert "MONOCHROME1 inverted" in one.provenance["steps"]
    assert one.array[0, 0, 1] == 2 * 1 - 100


def test_dicom_keeps_units_spacing_and_axes(tmp_path):
    image = read_image(dicom(tmp_path / "1.dcm"))
    assert image.array.shape == (1, 64, 80)
    assert image.array.dtype == np.float32
    assert image.spacing == (0.5, 0.25)
    assert np.allclose(image.affine @ [2, 4, 0, 1], [1.0, 1.0, 0, 1])
    assert image.provenance["bits_stored"] == 12
    assert "P" not in map(str, image.provenance.values())


@pytest.mark.parametrize(
    ("slope", "intercept", "signed"),
    [(1, 0, False), (2.5, -7, False), (1, -1024, True), (-1, 50, True)],
)
def test_inversion_mirrors_the_stored_range(tmp_path, slope, intercept, signed):
    """y -> max + min - y over the range the file can hold; worked by hand from the stored
    values.
    """
    path = dicom(tmp_path / "1.dcm", photometric="MONOCHROME2", slope=slope, intercept=intercept)
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    stored = np.arange(64 * 80).reshape(64, 80) % 4096 - (2048 if signed else 0)
    if signed:
        dataset.PixelRepresentation = 1
        dataset.PixelData = stored.astype("<i2").tobytes()
    dataset.save_as(path)
    mirrored = -1 - stored if signed else 4095 - stored
    assert np.allclose(read_image(path).array[0], slope * mirrored + intercept)


def test_real_ct_is_in_hounsfield_units():
    image = read_image(get_testdata_file("CT_small.dcm"))
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    by_hand = dataset.pixel_array.astype(float) * dataset.RescaleSlope + dataset.RescaleIntercept
    assert np.allclose(image.array[0], by_hand)
    assert (image.array.min(), image.array.max()) == (-896, 1167)
    assert image.spacing == pytest.approx((0.661468, 0.661468))
    assert image.provenance["modality"] == "CT"


def test_modality_lut_and_palette_are_applied(tmp_path):
    path = dicom(tmp_path / "1.dcm", pixels=np.tile(np.arange(4, dtype=np.uint16), (8, 2)))
    dataset = pydicom.dcmread(path)
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 16])
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "OW", np.array([10, 20, 400, 9000], "<u2").tobytes())
    dataset.ModalityLUTSequence = [table]
    dataset.save_as(path)
    assert read_image(path).array[0, 0, :4].tolist() == [10, 20, 400, 9000]
    colour = read_image(get_testdata_file("examples_palette.dcm"))
    assert colour.array.shape[0] == 3


def test_padding_becomes_background(tmp_path):
    pixels = np.full((8, 8), 900, np.uint16)
    pixels[:2], pixels[5, 5] = 0, 100
    path = dicom(tmp_path / "1.dcm", pixels)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 0)
    dataset.save_as(path)
    image = read_image(path)
    assert image.array.min() == 2 * 100 - 100
    assert "16 padding pixels" in " ".join(image.provenance["steps"])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    path = tmp_path / f"ramp.{suffix}"
    Pillow.fromarray(RAMP).save(path) if suffix == "png" else tifffile.imwrite(path, RAMP)
    image = read_image(path)
    assert np.array_equal(image.array[0], RAMP)
    assert image.provenance["bits_stored"] == 16
    assert len(np.unique(image.array)) == 64 * 80


def test_pictures_of_every_mode(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colour = np.stack([grey, grey + 1, grey + 2], -1)
    cases = {
        "grey.png": (Pillow.fromarray(grey), 1),
        "rgb.png": (Pillow.fromarray(colour), 3),
        "grey_as_rgb.png": (Pillow.fromarray(np.stack([grey] * 3, -1)), 1),
        "palette.png": (Pillow.fromarray(colour).quantize(32), 3),
        "bilevel.png": (Pillow.fromarray(grey > 30), 1),
        "rgba.png": (
            Pillow.fromarray(np.concatenate([colour, np.full((8, 8, 1), 255, np.uint8)], -1)),
            3,
        ),
        "rgb.tif": (Pillow.fromarray(colour), 3),
        "rgb.bmp": (Pillow.fromarray(colour), 3),
    }
    for name, (picture, channels) in cases.items():
        picture.save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert image.array.shape == (channels, 8, 8), name
    assert np.array_equal(read_image(tmp_path / "grey_as_rgb.png").array[0], grey)
    assert np.array_equal(read_image(tmp_path / "rgba.png").array, np.moveaxis(colour, -1, 0))


def test_jpeg_orientation_is_applied(tmp_path):
    array = np.zeros((16, 32), np.uint8)
    array[:, 16:] = 255
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Pillow.fromarray(array).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "turned.jpg")
    assert image.array.shape == (1, 32, 16)
    assert image.array[0, :12].mean() < 10 < 245 < image.array[0, 20:].mean()


def test_transparency_is_composed_on_black(tmp_path):
    array = np.full((8, 8, 4), 200, np.uint8)
    array[:4, :, 3] = 0
    Pillow.fromarray(array).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.array[0, 0, 0] == 0
    assert image.array[0, 7, 7] == pytest.approx(200 * 200 / 255, abs=1)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_png_with_colour_or_transparency_keeps_its_depth(tmp_path, channels):
    ramp = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80) * 12
    planes = [ramp, ramp[::-1], ramp[:, ::-1], np.full_like(ramp, 32768)]
    stored = np.stack([ramp, planes[-1]] if channels == 2 else planes[:channels], -1)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(stored))
    image = read_image(tmp_path / "deep.png")
    assert image.array.shape == (1 if channels == 2 else 3, 64, 80)
    factor = 32768 / 65535 if channels in {2, 4} else 1.0
    assert np.allclose(image.array[0], ramp * factor, atol=0.01)
    assert len(np.unique(image.array[0])) > 4000
    assert image.provenance["bits_stored"] == 16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "not a readable picture"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not a readable picture"),
        ("a.jpg", b"hello", "not a readable picture"),
        ("a.tif", b"II*\0" + b"\xff" * 20, "not a readable TIFF|holds 0 pages"),
        ("a.dcm", b"no dicom at all", "not a readable DICOM"),
        ("a.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 50, "DICOM|pixels|truncated"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_folder_and_nan_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="holds no DICOM image"):
        read_image(tmp_path)
    array = np.ones((8, 8), np.float32)
    array[2, 2] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", array)
    with pytest.raises(ImageError, match="1 pixels are NaN"):
        read_image(tmp_path / "nan.tif")
    tifffile.imwrite(
        tmp_path / "pages.tif", np.zeros((5, 16, 16), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ImageError, match="pages|neither"):
        read_image(tmp_path / "pages.tif")


@pytest.mark.parametrize("keyword", ["RescaleSlope", "PixelPaddingRangeLimit", "BitsStored"])
def test_empty_header_elements_are_refused_or_taken_as_absent(tmp_path, keyword):
    path = dicom(tmp_path / "1.dcm", photometric="MONOCHROME1")
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 0)
    if keyword == "PixelPaddingRangeLimit":
        dataset.add_new(keyword, "US", None)
    else:
        setattr(dataset, keyword, None)
    dataset.save_as(path)
    if keyword == "PixelPaddingRangeLimit":
        assert read_image(path).array.shape == (1, 64, 80)
    else:
        with pytest.raises(ImageError, match=r"1\.dcm: "):
            read_image(path)


def test_compressed_and_bilevel_tiffs(tmp_path):
    tifffile.imwrite(tmp_path / "lzw.tif", RAMP, compression="lzw")
    assert np.array_equal(read_image(tmp_path / "lzw.tif").array[0], RAMP)
    tifffile.imwrite(tmp_path / "bits.tif", RAMP % 2 == 0, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "bits.tif").array[0], RAMP % 2)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_tiffs_are_turned_as_pillow_turns_them(tmp_path, orientation):
    array = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(274, 3, 1, orientation, True)])
    picture = Pillow.fromarray(array)
    picture.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0], expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "deep.png", "colour.png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_of_the_orientation_tag_lead_from_the_file_to_the_image_and_back(
    tmp_path, suffix, orientation
):
    """The deep PNG is one that Pillow cannot hold; the tag counts there too."""
    array, path = np.arange(16 * 24, dtype=np.uint8).reshape(16, 24) // 2, tmp_path / f"a.{suffix}"
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    colour = np.stack([array, array.T.reshape(16, 24), 255 - array], -1)
    if suffix == "tif":
        tifffile.imwrite(path, array, extratags=[(274, 3, 1, orientation, True)])
    elif suffix == "deep.png":
        import io

        deep = imagecodecs.png_encode(colour.astype(np.uint16) * 200)
        stream = io.BytesIO()
        Pillow.fromarray(array).save(stream, "PNG", exif=exif)
        chunk = stream.getvalue()
        at = chunk.index(b"eXIf") - 4
        length = 12 + int.from_bytes(chunk[at : at + 4], "big")
        path.write_bytes(deep[:33] + chunk[at : at + length] + deep[33:])
    else:
        options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
        Pillow.fromarray(colour if suffix == "colour.png" else array).save(
            path, exif=exif, **options
        )
    image = read_image(path)
    turn, stored = image.provenance["turn"], image.provenance["stored_shape"]
    raw = (
        np.asarray(Pillow.open(path))
        if suffix != "deep.png"
        else imagecodecs.png_decode(path.read_bytes())
    )
    raw = raw[..., 0] if raw.ndim == 3 else raw
    if suffix == "tif":
        raw = array
    assert stored == [16, 24]
    assert (turn == [[0, 1], [1, 1]]) == (orientation == 1)
    assert np.array_equal(turn_array(raw, turn), image.array[0])
    assert np.array_equal(unturn_array(image.array[0], turn), raw)


def test_alpha_and_unexplained_channels_of_tiffs(tmp_path):
    array = np.full((12, 20, 4), 200, np.uint8)
    array[:6, :, 3], array[..., 1] = 0, 100
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    image = read_image(tmp_path / "a.tif").array
    assert image[0, 0, 0] == 0
    assert image[0, 11, 11] == pytest.approx(200 * 200 / 255, abs=0.01)
    tifffile.imwrite(
        tmp_path / "b.tif",
        array[..., :2],
        photometric="minisblack",
        extrasamples=["unspecified"],
        planarconfig="contig",
    )
    with pytest.raises(ImageError, match="does not explain"):
        read_image(tmp_path / "b.tif")


def test_white_is_zero_over_the_bits_of_the_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP % 4096, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0], 65535 - RAMP % 4096)


def test_slivers_are_refused(tmp_path):
    Pillow.fromarray(np.zeros((3, 1000), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="3 x 1000 pixels"):
        read_image(tmp_path / "a.png")


def test_window_maps_to_the_unit_interval():
    image = read_image(get_testdata_file("CT_small.dcm"), window=(40, 400))
    raw = read_image(get_testdata_file("CT_small.dcm")).array
    assert np.allclose(image.array, np.clip((raw + 160) / 400, 0, 1), atol=1e-6)
