"""Facts that a picture states twice, one test per row of the tables in `pictures` and `tiff`."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from PIL import Image as Pillow

from hazards import told
from picture_arrays import COLOUR, DEEP, GREY


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
