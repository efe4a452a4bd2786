"""Every hazard of DICOM files, each on a real file that shows it. Values are worked by hand with
`pydicom.pixels`.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pydicom
import pytest
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from pydicom.data import get_testdata_file
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    convert_color_space,
    pixel_array,
)
from pydicom.sequence import Sequence

from dicom_files import RAMP, codes, real, write

FOLDERS = os.path.dirname(get_testdata_file("DICOMDIR"))


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # pydicom's own remarks, where the test calls it


def test_missing_slices_are_refused_not_averaged():
    with pytest.raises(
        ImageError,
        match=r"uneven: 202.5 mm between 17106 and 17136, where 1.25 mm is usual in 4 slices",
    ):
        read_image(os.path.join(FOLDERS, "77654033", "CT2"))


def test_rotating_projections_are_no_volume():
    with pytest.raises(
        ImageError,
        match="7 images, in 7 series or orientations, no two of them parallel: not a volume",
    ):
        read_image(os.path.join(FOLDERS, "98892003", "MR700"))


def test_series_of_two_orientations_are_not_mixed():
    with pytest.raises(ImageError, match="7 images, in 7 series or orientations"):
        read_image(os.path.join(FOLDERS, "98892003", "MR2"))
    with pytest.raises(ImageError, match="2 images, in 2 series or orientations"):
        read_image(os.path.join(FOLDERS, "98892001", "CT2N"))


def test_descending_instance_numbers_give_the_same_volume():
    folder = os.path.join(FOLDERS, "98892001", "CT5N")
    image = read_image(folder)
    files = [pydicom.dcmread(os.path.join(folder, name)) for name in os.listdir(folder)]
    files.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    assert [int(d.InstanceNumber) for d in files] == [10, 9, 8, 7, 6]
    by_hand = np.stack(
        [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files]
    )
    assert image.array.shape == (1, 16, 16, 5)
    # RAS: x to the right and y to the front, where DICOM's columns run left and its rows back.
    assert np.array_equal(image.array[0], by_hand.transpose(2, 1, 0)[::-1, ::-1])
    assert image.spacing == pytest.approx((0.488281, 0.488281, 2.5))


@pytest.mark.parametrize("name", ["RG1_UNCR", "RG1_J2KR", "RG3_UNCR", "RG3_J2KR"])
def test_monochrome1_is_inverted_over_the_stored_range(name):
    dataset = pydicom.dcmread(real(name))
    assert dataset.PhotometricInterpretation == "MONOCHROME1"
    image = read_image(real(name))
    assert np.array_equal(image.array[0], 2**dataset.BitsStored - 1 - dataset.pixel_array)
    assert image.provenance["laterality"] == dataset.get("Laterality", "")


def test_enhanced_ct_is_rescaled_by_its_functional_groups():
    dataset = pydicom.dcmread(real("eCT_Supplemental"))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    rescale = shared.PixelValueTransformationSequence[0]
    assert (rescale.RescaleSlope, rescale.RescaleIntercept) == (1, -1024)
    image = read_image(real("eCT_Supplemental"))
    heights = [
        float(f.PlanePositionSequence[0].ImagePositionPatient[2])
        for f in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(heights) == pytest.approx([-159, -149], abs=0.6)
    by_hand = apply_modality_lut(dataset.pixel_array, rescale)[np.argsort(heights)]
    assert image.array.shape == (1, 512, 512, 2)
    # Its rows run to the patient's right already.
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [-1, 0, 0, 0, 1, 0]
    assert np.array_equal(image.array[0], by_hand.transpose(2, 1, 0)[:, ::-1])
    # A map of blood flow is no CT in HU, whatever the modality.
    with pytest.raises(ImageError, match="not CT in HU"):
        read_image(real("eCT_Supplemental"), "brain")
    assert image.spacing == pytest.approx(
        (*(float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing), 10.0)
    )
    assert image.array.min() == -1024


def test_modality_lut_is_applied():
    dataset = pydicom.dcmread(real("mlut_18"))
    image = read_image(real("mlut_18"))
    assert np.array_equal(image.array[0], apply_modality_lut(dataset.pixel_array, dataset))
    assert (image.array.min(), image.array.max()) == (0, 65535)
    assert image.provenance["steps"] == ["modality LUT applied"]


def table(descriptor, data):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW", data)
    return item


def test_tables_are_looked_up_without_wrapping(tmp_path):
    """Entries of 8 bits for 4096 values, and a signed first value; worked by hand."""
    eight = (np.arange(4096) // 16).astype("u1").tobytes()
    path = write(tmp_path / "1.dcm", VOILUTSequence=Sequence([table([4096, 0, 8], eight)]))
    assert np.allclose(read_image(path, "from_header").array[0], (RAMP % 4096 // 16) / 255)
    path = write(
        tmp_path / "2.dcm",
        RescaleSlope=None,
        RescaleIntercept=None,
        RescaleType=None,
        PixelRepresentation=1,
    )
    dataset = pydicom.dcmread(path)
    stored = (RAMP % 4096).astype(np.int64) - 2048
    dataset.PixelData = stored.astype("<i2").tobytes()
    item = table([4096, 65536 - 2048, 16], (np.arange(4096) * 3).astype("<u2").tobytes())
    item.ModalityLUTType = "US"
    dataset.ModalityLUTSequence = Sequence([item])
    dataset.save_as(path)
    assert np.array_equal(read_image(path).array[0], (stored + 2048) * 3)


def test_a_header_window_is_not_for_colour():
    with pytest.raises(ImageError, match="from_header is for grey images"):
        read_image(real("SC_rgb_rle"), "from_header")


def test_a_number_of_frames_beyond_the_file_is_refused_at_once(tmp_path):
    for frames in (20_000, 2_000_000_000):
        begun = time.monotonic()
        with pytest.raises(ImageError, match="the header claims|do not fit in memory"):
            read_image(write(tmp_path / "1.dcm", NumberOfFrames=frames, Rows=64, Columns=80))
        assert time.monotonic() - begun < 1


def test_frames_that_are_not_there_are_missed(tmp_path):
    path = write(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 2
    dataset.save_as(path)
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


def test_voi_lut_serves_the_eye_and_is_applied_on_demand():
    dataset = pydicom.dcmread(real("vlut_04"))
    assert np.array_equal(read_image(real("vlut_04")).array[0], dataset.pixel_array)
    shown = read_image(real("vlut_04"), window="from_header")
    top = 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    assert np.allclose(shown.array[0], apply_voi_lut(dataset.pixel_array, dataset) / top, atol=1e-6)


def test_padding_is_masked_before_the_rescale():
    dataset = pydicom.dcmread(real("693_UNCI"))
    padding = dataset.pixel_array == dataset.PixelPaddingValue
    assert padding.sum() == 494
    image = read_image(real("693_UNCI"))
    assert (image.array[0][padding] == -1024).all()
    assert np.array_equal(image.array[0][~padding], dataset.pixel_array[~padding] - 1024.0)
    # Declared, but none present: nothing happens.
    assert not any("padding" in step for step in read_image(real("CT_small")).provenance["steps"])


@pytest.mark.parametrize("name", ["examples_palette", "OBXXXX1A", "OBXXXX1A_rle", "OT-PAL-8-face"])
def test_palettes_become_colour(name):
    dataset = pydicom.dcmread(real(name), force=True)
    if not getattr(dataset, "file_meta", None) or "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    image = read_image(real(name))
    assert np.array_equal(
        image.array, np.moveaxis(apply_color_lut(dataset.pixel_array, dataset), -1, 0)
    )
    assert image.array.shape[0] == 3


def test_frames_of_a_film_come_first():
    image = read_image(real("examples_ybr_color"))
    by_hand = pixel_array(real("examples_ybr_color"))
    assert by_hand.shape == (30, 240, 320, 3)
    assert np.array_equal(image.array, np.moveaxis(by_hand, -1, 0))
    assert image.provenance["axes"] == "frame, row, column"
    assert "frames" in codes(image)
    third = read_image(real("examples_ybr_color") + "#3")
    assert np.array_equal(third.array, np.moveaxis(by_hand[2], -1, 0))
    with pytest.raises(ImageError, match="has 30 frame"):
        read_image(real("examples_ybr_color") + "#31")
    with pytest.raises(ImageError, match="by its number from 1"):
        read_image(real("examples_ybr_color") + "#0")


def test_signed_pixels_of_an_unsigned_stream_are_mended_and_tilt_is_told():
    image = read_image(real("J2K_pixelrep_mismatch"))
    stream = pydicom.encaps.get_frame(
        pydicom.dcmread(real("J2K_pixelrep_mismatch")).PixelData, 0, number_of_frames=1
    )
    import imagecodecs

    raw = imagecodecs.jpeg2k_decode(stream).astype(np.int64)
    by_hand = np.where(raw >= 2**12, raw - 2**13, raw)  # 13 bits stored, two's complement
    assert np.array_equal(image.array[0], by_hand)
    assert image.array.min() == -2000
    assert ("gantry_tilt", "GantryDetectorTilt is -22 degrees") in image.provenance["hazards"]


@pytest.mark.parametrize("window", [None, "from_header", "percentile", (1000.0, 500.0)])
def test_monochrome_twins_give_equal_pixels(tmp_path, window):
    voi = {"WindowCenter": 1500, "WindowWidth": 800}
    two = write(tmp_path / "2.dcm", **voi)
    one = write(tmp_path / "1.dcm", PhotometricInterpretation="MONOCHROME1")
    dataset = pydicom.dcmread(one)
    dataset.PixelData = (4095 - RAMP % 4096).astype("<u2").tobytes()
    # PS3.3 C.11.2.1.2: the mirror of center - 0.5 is 4095 - (center - 0.5), so the twin's center is
    # 4096 - center.
    dataset.WindowCenter, dataset.WindowWidth = 4096 - 1500, 800
    dataset.save_as(one)
    assert np.allclose(read_image(one, window).array, read_image(two, window).array, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_of_the_header_agree_with_pydicom(tmp_path, function):
    path = write(
        tmp_path / "1.dcm", WindowCenter=[1500, 100], WindowWidth=[800, 50], VOILUTFunction=function
    )
    dataset = pydicom.dcmread(path)
    by_hand = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset) / 4095
    assert np.allclose(read_image(path, "from_header").array[0], by_hand, atol=1e-5)


def test_a_header_without_a_window_is_told(tmp_path):
    with pytest.raises(ImageError, match="states no window"):
        read_image(write(tmp_path / "1.dcm"), "from_header")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("MR_small", "MR_small_bigendian"),
        ("MR_small", "MR_small_implicit"),
        ("MR_small", "MR_small_RLE"),
        ("MR_small", "MR_small_jp2klossless"),
        ("MR_small", "MR_small_jpeg_ls_lossless"),
        ("MR_small", "MR_small_padded"),
        ("SC_rgb", "SC_rgb_rle"),
        ("SC_rgb_16bit", "SC_rgb_expb_16bit"),
        ("SC_rgb_16bit", "SC_rgb_rle_16bit"),
        ("SC_rgb", "SC_rgb_jpeg_gdcm"),
        ("color-px", "color-pl"),
        ("emri_small", "emri_small_big_endian"),
        ("emri_small", "emri_small_RLE"),
        ("RG1_UNCR", "RG1_J2KR"),
    ],
)
def test_encodings_of_one_image_give_equal_pixels(first, second):
    assert np.array_equal(read_image(real(first)).array, read_image(real(second)).array)


def test_ybr_is_converted_once():
    image = read_image(real("SC_ybr_full_422_uncompressed"))
    raw = pixel_array(real("SC_ybr_full_422_uncompressed"), raw=True)
    assert tuple(raw[5, 50]) == (76, 85, 255)
    assert tuple(image.array[:, 5, 50]) == (254, 0, 0)
    assert np.array_equal(
        image.array, np.moveaxis(convert_color_space(raw, "YBR_FULL", "RGB"), -1, 0)
    )


@pytest.mark.parametrize(
    "name",
    [
        "JPGExtended",
        "JPEG-lossy",
        "JPEG-LL",
        "bad_sequence",
        "JPGLosslessP14SV1_1s_1f_8b",
        "SC_rgb_jpeg_gdcm",
    ],
)
def test_lossless_and_twelve_bit_jpeg_are_decoded(name):
    image = read_image(real(name))
    assert image.array.std() > 1
    assert image.array.max() <= 4095
    if name in {"JPGExtended", "JPEG-lossy"}:
        # The lossless version of the same picture.
        lossless = read_image(real("JPEG-LL")).array
        assert np.abs(image.array - lossless).mean() < 3
        assert np.corrcoef(image.array.ravel(), lossless.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MR_truncated", "truncated"),
        ("badVR", "NumberOfFrames is not a number"),
        ("rtplan", "holds a plan"),
        ("rtdose", "holds a dose"),
        ("liver_1frame", "holds a segmentation"),
        ("test-SR", "holds no pixels"),
        ("emri_small_jpeg_2k_lossless_too_short", "the file is truncated"),
        ("SC_rgb_small_odd", "3 x 3 pixels"),
    ],
)
def test_what_cannot_be_read_without_doubt_is_refused(name, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(real(name))
    assert real(name) in str(caught.value)


def test_an_unknown_compression_is_named(tmp_path):
    path = write(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.HEVCMP51
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(
        ImageError, match=r"HEVC.*\(1\.2\.840\.10008\.1\.2\.4\.107\) cannot be decoded"
    ):
        read_image(path)


def test_a_missing_decoder_is_named_with_its_package(monkeypatch):
    from medtransfer.data.images.dicom import pixels as dicom_pixels

    def no_plugin(*_, **__):
        raise RuntimeError("Unable to decompress: all plugins are missing dependencies")

    monkeypatch.setattr(dicom_pixels, "pixel_array", no_plugin)
    with pytest.raises(
        ImageError, match=r"JPEG 2000.*1\.2\.840\.10008\.1\.2\.4\.90.*Install pylibjpeg-openjpeg"
    ):
        read_image(real("MR_small_jp2klossless"))


def test_a_stream_larger_than_its_header_is_refused_before_decoding(tmp_path):
    dataset = pydicom.dcmread(real("MR_small_jp2klossless"))
    dataset.Rows = 32
    dataset.save_as(tmp_path / "1.dcm")
    with pytest.raises(ImageError, match="compressed pixels are 64 x 64, the header says 32 x 64"):
        read_image(tmp_path / "1.dcm")


def test_presets_are_for_ct_alone():
    lung = read_image(real("CT_small"), "lung")
    hu = read_image(real("CT_small")).array
    assert np.allclose(lung.array, np.clip((hu + 1350) / 1500, 0, 1), atol=1e-6)
    with pytest.raises(ImageError, match="in HU, and this is MR, not CT"):
        read_image(real("MR_small"), "brain")
    three = read_image(real("CT_small"), ["lung", "brain", [40, 400]])
    assert three.array.shape == (3, 128, 128)
    assert np.array_equal(three.array[1], read_image(real("CT_small"), "brain").array[0])
    with pytest.raises(ImageError, match="has colour"):
        read_image(real("SC_rgb"), ["percentile", "full", "percentile"])
