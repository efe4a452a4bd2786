"""Facts that an NRRD or MetaImage header states twice, one test per row of the table in
`itk_facts`.
"""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError

from hazards import codes, told
from volume_files import ARRAY


def nrrd(path, data=None, **fields):
    base = {
        "type": "short",
        "dimension": "3",
        "sizes": "12 14 10",
        "space": "left-posterior-superior",
        "endian": "little",
    }
    base |= {
        "space directions": "(2,0,0) (0,2,0) (0,0,3)",
        "space origin": "(0,0,0)",
        "encoding": "raw",
    } | fields
    base = {
        name: base.pop(name) for name in ("type", "dimension", "space dimension") if name in base
    } | base
    text = (
        "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in base.items() if value) + "\n"
    )
    path.write_bytes(text.encode() + (ARRAY.tobytes(order="F") if data is None else data))
    return path


def meta(path, data=None, **fields):
    base = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    }
    base |= {
        "Offset": "0 0 0",
        "ElementSpacing": "2 2 3",
        "DimSize": "12 14 10",
        "ElementType": "MET_SHORT",
    }
    base |= {"ElementDataFile": "LOCAL"} | fields
    base["ElementDataFile"] = base.pop("ElementDataFile")  # the last one, always
    path.write_bytes(
        "".join(f"{k} = {v}\n" for k, v in base.items() if v).encode()
        + (ARRAY.tobytes(order="F") if data is None else data)
    )
    return path


RAW = ARRAY.tobytes(order="F")


def test_both_writers_are_right(tmp_path):
    for path in (nrrd(tmp_path / "a.nrrd"), meta(tmp_path / "a.mha")):
        image = read_image(path)
        assert np.array_equal(image.array[0], ARRAY[::-1, ::-1])
        assert image.spacing == (2, 2, 3)
        assert not codes(image)


@pytest.mark.parametrize("write", [nrrd, meta])
def test_bytes_of_pixels_against_their_sizes(tmp_path, write):
    with pytest.raises(
        ImageError, match="is truncated: the header claims 3360 bytes of pixels, and 3300 are there"
    ):
        read_image(write(tmp_path / "a", RAW[:3300]))
    image = read_image(write(tmp_path / "a", RAW + bytes(9)))
    assert np.array_equal(image.array[0], ARRAY[::-1, ::-1])
    assert "9 bytes behind the pixels" in told(image)


def test_detached_pixels_are_compared_and_missed(tmp_path):
    for suffix, change in (("mhd", "ElementDataFile"), ("nhdr", "data file")):
        write = meta if suffix == "mhd" else nrrd
        (tmp_path / "pixels.raw").write_bytes(RAW)
        path = write(tmp_path / f"a.{suffix}", b"", **{change: "pixels.raw"})
        assert np.array_equal(read_image(path).array[0], ARRAY[::-1, ::-1])
        (tmp_path / "pixels.raw").write_bytes(RAW[:-8])
        with pytest.raises(ImageError, match="is truncated"):
            read_image(path)
        path = write(tmp_path / f"a.{suffix}", b"", **{change: "Doe_Jane.raw"})
        with pytest.raises(
            ImageError,
            match=f"a.{suffix}: its header names a file with the pixels that is not there. Put it",
        ) as caught:
            read_image(path)
        assert "Doe" not in str(caught.value)
    (tmp_path / "a.nhdr").unlink()
    (tmp_path / "pixels.raw").rename(tmp_path / "a.raw")
    with pytest.raises(ImageError, match=r"Write a\.raw, which lies beside it, into its header"):
        read_image(meta(tmp_path / "a.mhd", b"", ElementDataFile="Doe_Jane.raw"))


@pytest.mark.parametrize(
    ("write", "fields", "message"),
    [
        (nrrd, {"sizes": "12 140"}, "dimension is 3, and sizes has 2 numbers"),
        (meta, {"DimSize": "12 140"}, "NDims is 3, and DimSize has 2 numbers"),
        (meta, {"ElementSpacing": "1 1"}, "NDims is 3, and ElementSpacing has 2 numbers"),
        (nrrd, {"spacings": "2 2 3"}, "both spacings and space directions"),
        (nrrd, {"space directions": "", "spacings": "0 1 1"}, ("spacings holds a distance that is "
                                                              "0, negative or not finite")),
        (nrrd, {"space directions": "", "spacings": "-1 1 1"}, "spacings holds a distance"),
        (nrrd, {"space directions": "", "spacings": "nan 1 1"}, ("spacings is not a number .nan. "
                                                                "along one axis")),
        (nrrd, {"space directions": "(0,0,0) (0,2,0) (0,0,3)"}, "space directions are singular"),
        (nrrd, {"space directions": "(nan,0,0) (0,2,0) (0,0,3)"}, ("space directions are singular "
                                                                  "or not finite")),
        (meta, {"ElementSpacing": "0 1 1"}, "ElementSpacing holds a distance"),
        (meta, {"ElementSpacing": "nan 1 1"}, "ElementSpacing holds a distance"),
        (meta, {"ElementSpacing": "", "ElementSize": "1 -1 1"}, "ElementSize holds a distance"),
        (meta, {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "TransformMatrix are singular"),
        (meta, {"CompressedData": "True"}, ("CompressedData is True, and the pixels are not "
                                           "compressed")),
        (nrrd, {"endian": ""}, "its header lacks endian"),
        (nrrd, {"type": ""}, "its header lacks type"),
        (nrrd, {"encoding": ""}, "its header lacks encoding"),
        (meta, {"ElementType": ""}, "its header lacks ElementType"),
        (meta, {"DimSize": ""}, "its header lacks DimSize"),
        (meta, {"ElementNumberOfChannels": "3", "DimSize": "4 14 10"}, ("holds 3 value.s. per "
                                                                       "voxel .colours, vectors")),
        (nrrd, {"sizes": "3 4 14 10", "dimension": "4", "kinds": "vector domain domain domain",
                "space directions": "none (2,0,0) (0,2,0) (0,0,3)"}, ("holds 3 value.s. per voxel "
                                                                     ".colours, vectors")),
        (meta, {"ElementSpacing": "Doe 1 1"}, "its field ElementSpacing does not hold numbers"),
    ],
)  # fmt: skip
def test_contradictions_of_headers_are_refused_by_name(tmp_path, write, fields, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(write(tmp_path / "a.x", **fields))
    assert "Doe" not in str(caught.value)


def test_compressed_pixels_that_are_not_called_so(tmp_path):
    with pytest.raises(ImageError, match="CompressedData does not say so. Set it to True"):
        read_image(meta(tmp_path / "a.mha", zlib.compress(RAW)))
    squeezed = zlib.compress(RAW)
    for size in ("", str(len(squeezed) - 1)):
        with pytest.raises(
            ImageError,
            match=f"CompressedDataSize is {'wrong' if size else 'missing'}. Set it to "
            f"{len(squeezed)}",
        ):
            read_image(
                meta(tmp_path / "b.mha", squeezed, CompressedData="True", CompressedDataSize=size)
            )
    right = {"CompressedData": "True", "CompressedDataSize": str(len(squeezed))}
    image = read_image(meta(tmp_path / "b.mha", squeezed + bytes(9), **right))
    assert np.array_equal(image.array[0], ARRAY[::-1, ::-1])
    (tmp_path / "b.zraw").write_bytes(squeezed)
    path = meta(
        tmp_path / "b.mhd", b"", **{**right, "CompressedDataSize": "", "ElementDataFile": "b.zraw"}
    )
    assert np.array_equal(read_image(path).array[0], ARRAY[::-1, ::-1])
    assert np.array_equal(
        read_image(nrrd(tmp_path / "b.nrrd", gzip.compress(RAW), encoding="gzip")).array[0],
        ARRAY[::-1, ::-1],
    )
    flipped = bytearray(squeezed)
    flipped[-12] ^= 0x55
    zipped = bytearray(gzip.compress(RAW))
    zipped[-12] ^= 0x55
    damaged = [(meta, squeezed[:-400], right), (meta, flipped, right)]
    damaged += [(nrrd, zipped[:-400], {"encoding": "gzip"}), (nrrd, zipped, {"encoding": "gz"})]
    for write, data, fields in damaged:
        with pytest.raises(ImageError, match="compressed pixels are cut or damaged"):
            read_image(write(tmp_path / "c", bytes(data), **fields))


@pytest.mark.parametrize(
    ("write", "fields", "code", "spacing"),
    [
        (meta, {"ElementSize": "2 2 5"}, "element_size", (2, 2, 3)),
        (meta, {"ElementSize": "2.0001 2 3"}, "", (2, 2, 3)),
        (meta, {"ElementSpacing": "", "ElementSize": "2 2 5"}, "", (2, 2, 5)),
        (meta, {"TransformMatrix": ""}, "no_orientation", (2, 2, 3)),
        (nrrd, {"space": "", "space dimension": "3"}, "no_orientation", (2, 2, 3)),
        (nrrd, {"space": "scanner-xyz"}, "no_orientation", (2, 2, 3)),
        (nrrd, {"space": "RAS"}, "", (2, 2, 3)),
        (nrrd, {"space units": '"cm" "cm" "cm"'}, "", (20, 20, 30)),
        (nrrd, {"space units": '"furlong" "mm" "mm"'}, "units", (2, 2, 3)),
    ],
)
def test_differences_of_one_reading_are_told(tmp_path, write, fields, code, spacing):
    image = read_image(write(tmp_path / "a.x", **fields))
    assert image.spacing == pytest.approx(spacing)
    assert codes(image) == ({code} - {""})
    assert sorted(image.array.ravel()) == sorted(ARRAY.ravel())


def test_nan_for_all_spacings_and_words_in_comments_state_none(tmp_path):
    for number, fields in enumerate(({"spacings": "nan nan nan"}, {"content": "spacing unknown"})):
        image = read_image(
            nrrd(
                tmp_path / f"{number}.nrrd",
                **{"space directions": "", "space": "", "space origin": ""} | fields,
            )
        )
        assert image.provenance["spacing_from"] == "none"


def test_byte_orders_and_a_fourth_axis_of_length_one(tmp_path):
    swapped = ARRAY.astype(">i2").tobytes(order="F")
    assert np.array_equal(
        read_image(nrrd(tmp_path / "a.nrrd", swapped, endian="big")).array[0], ARRAY[::-1, ::-1]
    )
    assert np.array_equal(
        read_image(meta(tmp_path / "a.mha", swapped, BinaryDataByteOrderMSB="True")).array[0],
        ARRAY[::-1, ::-1],
    )
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(ARRAY)])
    assert image.GetDimension() == 4
    for suffix in ("mha", "nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / f"four.{suffix}"))
        read = read_image(tmp_path / f"four.{suffix}")
        assert read.array.shape == (1, 10, 14, 12)
        assert read.provenance["stored_shape"] == [10, 14, 12]
