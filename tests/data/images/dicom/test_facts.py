"""Facts that a DICOM file states twice, one test per row of the tables in `dicom_facts` and
`dicom_image`.
"""

from __future__ import annotations

import imagecodecs
import numpy as np
import pydicom
import pytest
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from dicom_series import write_series

RAMP = (np.arange(64 * 80, dtype=np.uint16).reshape(64, 80) * 13) % 4096
COLOUR = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # pydicom's own remarks, where the test calls it


def write(path, pixels=None, drop=(), **changes):
    """A 12-bit grey ramp with elements set, removed, or of raw pixels."""
    write_grey_dicom(
        path,
        RAMP,
        patient="P",
        number=1,
        spacing=(0.5, 0.25),
        encoding=GreyEncoding(),
    )
    dataset = pydicom.dcmread(path)
    del dataset.NumberOfFrames
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    for keyword in drop:
        delattr(dataset, keyword)
    if pixels is not None:
        dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    return path


def write_colour(path, photometric="RGB", drop=(), **changes):
    rgb = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": photometric,
        "PlanarConfiguration": 0,
        "Rows": 24,
        "Columns": 32,
    }
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return write(
        path,
        COLOUR,
        ("RescaleSlope", "RescaleIntercept", "RescaleType", *drop),
        **{**rgb, **bits, **changes},
    )


def told(image):
    return " ".join(text for _, text in image.provenance["hazards"])


@pytest.mark.parametrize(
    ("keyword", "why"),
    [
        ("SamplesPerPixel", "1 is taken, by PhotometricInterpretation MONOCHROME2"),
        ("Rows", "64 is taken, by the length"),
        ("Columns", "80 is taken, by the length"),
        ("BitsAllocated", "16 is taken, by the length"),
        ("BitsStored", "12 is taken, by HighBit"),
        ("HighBit", "11 is taken, by BitsStored"),
        ("PixelRepresentation", "0 is taken, as no value has its sign bit set"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_element_of_which_one_value_is_possible_is_told(tmp_path, keyword, why, empty):
    pixels = (RAMP % 2048).astype("<u2")
    path = write(
        tmp_path / "1.dcm", pixels, () if empty else [keyword], **({keyword: None} if empty else {})
    )
    image = read_image(path)
    assert np.array_equal(image.array[0], pixels)
    assert f"{keyword} is missing; {why}" in told(image)


@pytest.mark.parametrize(
    ("drop", "named"),
    [
        (["PhotometricInterpretation"], "PhotometricInterpretation"),
        (["Rows", "Columns"], "Rows"),
        (["BitsStored", "HighBit"], "BitsStored"),
        (["PixelRepresentation"], "PixelRepresentation"),  # the ramp reaches the twelfth bit
        (["SamplesPerPixel", "PhotometricInterpretation"], "PhotometricInterpretation"),
        (["PixelData"], "PixelData|no pixels"),
    ],
)
def test_a_missing_element_of_which_several_are_possible_is_named(tmp_path, drop, named):
    with pytest.raises(
        ImageError, match=rf"1\.dcm: (lacks|holds) .*{named}|1\.dcm: lacks {named}"
    ) as caught:
        read_image(write(tmp_path / "1.dcm", drop=drop))
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "keyword",
    ["SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "HighBit", "PlanarConfiguration"],
)
def test_a_missing_element_of_compressed_pixels_is_taken_from_their_stream(tmp_path, keyword):
    for name in (
        "MR_small_jp2klossless",
        "SC_rgb_rle" if keyword == "PlanarConfiguration" else "JPEG-LL",
    ):
        source = get_testdata_file(f"{name}.dcm", download=False)
        dataset = pydicom.dcmread(source)
        if keyword in dataset:
            delattr(dataset, keyword)
        dataset.save_as(tmp_path / f"{name}.dcm")
        assert np.array_equal(read_image(tmp_path / f"{name}.dcm").array, read_image(source).array)


def test_the_kind_of_grey_is_taken_from_the_shape_of_presentation(tmp_path):
    for shape, photometric in (("IDENTITY", "MONOCHROME2"), ("INVERSE", "MONOCHROME1")):
        path = write(
            tmp_path / "1.dcm", drop=["PhotometricInterpretation"], PresentationLUTShape=shape
        )
        reference = write(tmp_path / "2.dcm", PhotometricInterpretation=photometric)
        assert np.array_equal(read_image(path).array, read_image(reference).array)


def test_palettes_are_known_by_their_tables(tmp_path):
    source = get_testdata_file("examples_palette.dcm")
    dataset = pydicom.dcmread(source)
    del dataset.PhotometricInterpretation
    dataset.save_as(tmp_path / "1.dcm")
    assert np.array_equal(read_image(tmp_path / "1.dcm").array, read_image(source).array)


def test_samples_and_colours_must_agree(tmp_path):
    image = read_image(write_colour(tmp_path / "1.dcm", SamplesPerPixel=1))
    assert np.array_equal(image.array, np.moveaxis(COLOUR, -1, 0))
    assert "SamplesPerPixel is wrong; 3 is taken" in told(image)
    with pytest.raises(
        ImageError, match="MONOCHROME2 has 1 sample.s. per pixel, SamplesPerPixel says 3"
    ):
        read_image(write_colour(tmp_path / "2.dcm", photometric="MONOCHROME2"))
    image = read_image(write(tmp_path / "3.dcm", SamplesPerPixel=3))
    assert np.array_equal(image.array[0], RAMP)


def test_bits_beyond_those_allocated(tmp_path):
    image = read_image(write(tmp_path / "1.dcm", BitsAllocated=8))
    assert np.array_equal(image.array[0], RAMP)
    assert "BitsAllocated is wrong; 16 is taken, by the length" in told(image)
    with pytest.raises(ImageError, match="BitsStored is 20, more than BitsAllocated 16"):
        read_image(write(tmp_path / "2.dcm", BitsStored=20, HighBit=19))


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_high_bits_are_shifted_down(tmp_path, signed):
    stored = RAMP.astype(np.int64) - (2048 if signed else 0)
    cells = ((stored & 0xFFF) << 4).astype("<u2")
    image = read_image(
        write(tmp_path / "1.dcm", cells, HighBit=15, PixelRepresentation=int(signed))
    )
    assert np.array_equal(image.array[0], stored)
    assert "shifted down by 4" in told(image)


def test_a_high_bit_that_the_values_contradict(tmp_path):
    image = read_image(write(tmp_path / "1.dcm", HighBit=15))
    assert np.array_equal(image.array[0], RAMP)
    assert "HighBit is 15, BitsStored 12: the values lie in the low 12 bits" in told(image)
    with pytest.raises(
        ImageError, match=r"values lie beyond BitsStored 12 \(HighBit 15, BitsAllocated 16\)"
    ):
        read_image(write(tmp_path / "2.dcm", (RAMP * 16 + 3).astype("<u2"), HighBit=15))


def test_overlays_in_unused_bits_are_masked_off(tmp_path):
    plane = np.zeros(RAMP.shape, np.uint16)
    plane[10:20, 10:30] = 1
    smooth = (np.add.outer(np.arange(64), np.arange(80)) * 20).astype(np.uint16)
    image = read_image(write(tmp_path / "lone.dcm", (smooth | plane << 13).astype("<u2")))
    assert np.array_equal(image.array[0], smooth)
    assert "hold an overlay, masked off" in told(image)
    path = write(
        tmp_path / "declared.dcm",
        (smooth | plane << 12 | plane.T.reshape(64, 80) << 14).astype("<u2"),
    )
    dataset = pydicom.dcmread(path)
    for group, position in ((0x6000, 12), (0x6002, 14)):
        dataset.add_new((group, 0x0102), "US", position)
    dataset.save_as(path)
    assert np.array_equal(read_image(path).array[0], smooth)


def test_values_that_outgrew_their_bits_are_refused_and_padding_is_not(tmp_path):
    grown = (np.add.outer(np.arange(64), np.arange(80)) * 40).astype("<u2")
    assert 4096 < grown.max() < 8192
    with pytest.raises(ImageError, match="values lie beyond BitsStored 12"):
        read_image(write(tmp_path / "1.dcm", grown))
    padded = RAMP.astype("<u2")
    padded[:5] = 63536
    path = write(tmp_path / "2.dcm", padded)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    assert read_image(path).array.max() == 4095


def test_the_order_of_colours_is_named_where_it_is_missing(tmp_path):
    with pytest.raises(ImageError, match="lacks PlanarConfiguration"):
        read_image(write_colour(tmp_path / "1.dcm", drop=["PlanarConfiguration"]))
    source = get_testdata_file("SC_ybr_full_422_uncompressed.dcm")
    dataset = pydicom.dcmread(source)
    del dataset.PlanarConfiguration
    dataset.save_as(tmp_path / "2.dcm")
    assert np.array_equal(read_image(tmp_path / "2.dcm").array, read_image(source).array)


def test_frames_of_the_header_and_of_the_pixels(tmp_path):
    three = np.stack([RAMP, RAMP // 2, RAMP // 3]).astype("<u2")
    with pytest.raises(
        ImageError, match="holds the pixels of 3 frames, and it lacks NumberOfFrames"
    ):
        read_image(write(tmp_path / "1.dcm", three))
    with pytest.raises(ImageError, match="holds the pixels of 3 frames, and the header says 2"):
        read_image(write(tmp_path / "2.dcm", three, NumberOfFrames=2))
    assert read_image(write(tmp_path / "3.dcm", three, NumberOfFrames=3)).array.shape == (
        1,
        3,
        64,
        80,
    )
    padded = read_image(
        write(tmp_path / "4.dcm", np.concatenate([RAMP, np.zeros_like(RAMP)[:5]]).astype("<u2"))
    )
    assert np.array_equal(padded.array[0], RAMP)
    assert told(padded)
    for syntax in (pydicom.uid.RLELossless, pydicom.uid.JPEG2000Lossless):
        path = write(tmp_path / "5.dcm", three, NumberOfFrames=3)
        dataset = pydicom.dcmread(path)
        if syntax == pydicom.uid.RLELossless:
            dataset.compress(syntax)
            frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
        else:
            frames = [
                imagecodecs.jpeg2k_encode(plane, level=0, codecformat="J2K", bitspersample=12)
                for plane in three
            ]
            dataset.file_meta.TransferSyntaxUID = syntax
        for offsets in (True, False):
            dataset.PixelData = pydicom.encaps.encapsulate(frames, has_bot=offsets)
            dataset.NumberOfFrames, dataset["PixelData"].is_undefined_length = 3, True
            dataset.save_as(path)
            assert read_image(path).array.shape == (1, 3, 64, 80)
            dataset.NumberOfFrames = 1
            dataset.save_as(path)
            with pytest.raises(
                ImageError, match="holds the pixels of 3 frames, and the header says 1"
            ):
                read_image(path)


@pytest.mark.parametrize("double", [False, True])
def test_float_pixels_are_read(tmp_path, double):
    values = np.random.default_rng(0).normal(0, 7, (2, 16, 20)).astype("<f8" if double else "<f4")
    drop = [
        "PixelData",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
    ]
    keyword = "DoubleFloatPixelData" if double else "FloatPixelData"

    def float_file(name, array, **changes):
        sizes = {
            "Rows": 16,
            "Columns": 20,
            "BitsAllocated": 64 if double else 32,
            "NumberOfFrames": len(array),
        }
        return write(tmp_path / name, drop=drop, **{keyword: array.tobytes(), **sizes, **changes})

    assert np.allclose(read_image(float_file("film.dcm", values)).array[0], values)
    image = read_image(float_file("one.dcm", values[:1], RescaleSlope=1, RescaleIntercept=0))
    assert np.allclose(image.array[0], values[0])
    assert image.provenance["bits_stored"] == (64 if double else 32)
    assert np.allclose(read_image(str(tmp_path / "film.dcm") + "#2").array[0], values[1])
    padded = values.copy()
    padded[0, :3] = -1e9
    padding = {f"{keyword.removesuffix('PixelData')}PixelPaddingValue": -1e9}
    assert read_image(float_file("padded.dcm", padded[:1], **padding)).array.min() == pytest.approx(
        padded[0, 3:].min()
    )
    padded[0, 5, 5] = np.nan
    with pytest.raises(ImageError, match="1 pixels are NaN or infinite"):
        read_image(float_file("nan.dcm", padded[:1]))
    with pytest.raises(ImageError, match="holds 640 values where the header says 3 x 16 x 20"):
        read_image(float_file("short.dcm", values, NumberOfFrames=3))


@pytest.mark.parametrize(
    ("changes", "spacing", "code"),
    [
        ({"PixelSpacing": [0, 0]}, (1, 1), "PixelSpacing is not 2 positive numbers"),
        ({"PixelSpacing": [-0.5, 0.5]}, (1, 1), "PixelSpacing is not 2 positive numbers"),
        ({"PixelSpacing": [0.5]}, (1, 1), "PixelSpacing is not 2 positive numbers"),
        (
            {"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]},
            (0.2, 0.1),
            "PixelSpacing is not",
        ),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, (0.5, 0.25), "at right angles"),
        ({"ImageOrientationPatient": [0] * 6}, (0.5, 0.25), "at right angles"),
        (
            {"ImagePositionPatient": [1, 2]},
            (0.5, 0.25),
            "ImagePositionPatient is not 3 finite numbers",
        ),
    ],
)
def test_geometry_that_cannot_be_used_is_told(tmp_path, changes, spacing, code):
    image = read_image(write(tmp_path / "1.dcm", **changes))
    assert image.spacing == pytest.approx(spacing)
    assert code in told(image)


# Rows of a stack.


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 3000, (7, 20, 24)).astype(np.uint16)


@pytest.mark.parametrize("keyword", ["ImagesInAcquisition", "NumberOfSeriesRelatedInstances"])
def test_a_series_of_which_a_part_is_here_is_told(tmp_path, volume, keyword):
    folder = write_series(tmp_path, volume)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        setattr(dataset, keyword, 9)
        dataset.save_as(path)
    assert f"{keyword} counts 9 images, and 7 are here" in told(read_image(folder))
    assert "counts" not in told(
        read_image(write_series(tmp_path / "whole", volume, **{keyword: 7}))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SpacingBetweenSlices": 5.0}, "SpacingBetweenSlices is 5 mm, slices lie 2.5 mm apart"),
        ({"SliceThickness": 1.0}, "SliceThickness is 1 mm, slices lie 2.5 mm apart"),
        ({"SpacingBetweenSlices": -2.5, "SliceThickness": 5.0}, ""),
        ({"SpacingBetweenSlices": 2.4999}, ""),
    ],
)
def test_distances_of_slices_are_compared_with_their_positions(tmp_path, volume, changes, message):
    image = read_image(write_series(tmp_path, volume, **changes))
    assert image.spacing[2] == pytest.approx(2.5)
    assert ("mm apart" in told(image)) == bool(message)
    assert message in told(image)


def test_an_order_of_numbers_that_the_positions_contradict_is_told(tmp_path, volume):
    folder = write_series(tmp_path, volume)
    assert "InstanceNumber" not in told(read_image(folder))
    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = [4, 1, 7, 2, 6, 3, 5][number]
        dataset.save_as(path)
    image = read_image(folder)
    assert "InstanceNumber follows another order" in told(image)
    assert np.array_equal(image.array[0], volume.transpose(2, 1, 0)[::-1, ::-1] - 1024.0)


def test_frames_of_reference_are_one_or_of_no_meaning(tmp_path, volume):
    def write_references(name, uids):
        folder = write_series(tmp_path / name, volume)
        for path, uid in zip(sorted(folder.iterdir()), uids, strict=True):
            dataset = pydicom.dcmread(path)
            dataset.FrameOfReferenceUID = uid
            dataset.save_as(path)
        return folder

    assert "FrameOfReferenceUID of its own" in told(
        read_image(write_references("each", [f"1.2.{n}" for n in range(7)]))
    )
    with pytest.raises(ImageError, match="2 FrameOfReferenceUIDs") as caught:
        read_image(write_references("two", ["1.2.777"] * 3 + ["1.2.888"] * 4))
    assert "1.2.777" not in str(caught.value)


def test_rounding_of_positions_and_directions_is_no_fault(tmp_path, volume):
    """Slices 2.5 mm apart with positions in whole mm; an oblique stack with cosines of two
    digits.
    """
    deep = np.concatenate([volume] * 6)
    folder = write_series(tmp_path / "whole", deep)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [round(float(v)) for v in dataset.ImagePositionPatient]
        dataset.save_as(path)
    assert read_image(folder).spacing[2] == pytest.approx(2.5, abs=0.03)
    next(iter(sorted(folder.iterdir())[20:])).unlink()
    with pytest.raises(ImageError, match="slices are missing or uneven"):
        read_image(folder)
    for digits in (2, 3):
        orientation = (0.96592583, 0.25881905, 0.0, -0.24321035, 0.90767337, 0.34202014)
        folder = write_series(tmp_path / f"oblique{digits}", deep, orientation=orientation)
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.ImageOrientationPatient = [round(v, digits) for v in orientation]
            dataset.save_as(path)
        image = read_image(folder)
        assert image.provenance["turn"] is not None
        assert image.array.shape == (1, 24, 20, 42)


def test_overlay_groups_and_sequences_do_not_disturb(tmp_path):
    image = read_image(write(tmp_path / "1.dcm", SharedFunctionalGroupsSequence=Sequence([])))
    assert np.array_equal(image.array[0], RAMP)
