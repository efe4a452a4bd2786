"""What a header says of spacing, place and hazards."""

from __future__ import annotations

import logging

import numpy as np
import pydicom
import pytest
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from pydicom.sequence import Sequence

from dicom_files import codes, real, write

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # pydicom's own remarks, where the test calls it


@pytest.mark.parametrize(
    ("changes", "spacing", "source"),
    [
        ({}, (0.5, 0.25), "PixelSpacing"),
        (
            {"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.1]},
            (0.2, 0.1),
            "ImagerPixelSpacing",
        ),
        (
            {
                "PixelSpacing": None,
                "ImagerPixelSpacing": [0.2, 0.1],
                "EstimatedRadiographicMagnificationFactor": 2,
            },
            (0.1, 0.05),
            "ImagerPixelSpacing",
        ),
        ({"PixelSpacing": [0, 0]}, (1, 1), "none"),
        ({"PixelSpacing": None}, (1, 1), "none"),
    ],
)
def test_spacing_is_found_in_rows_then_columns(tmp_path, changes, spacing, source):
    image = read_image(write(tmp_path / "1.dcm", **changes))
    assert image.spacing == pytest.approx(spacing)
    assert image.provenance["spacing_from"] == source
    assert ("no_spacing" in codes(image)) == (source == "none")


def region(delta, units=3):
    item = pydicom.Dataset()
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.RegionSpatialFormat = 1
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta, 2 * delta
    return item


def test_a_spacing_that_repeats_the_detector_is_corrected_for_magnification(tmp_path):
    """A mammogram magnified 1.8 times: objects are smaller than they look."""
    same = {
        "Modality": "MG",
        "ImagerPixelSpacing": [0.5, 0.25],
        "EstimatedRadiographicMagnificationFactor": 1.8,
    }
    image = read_image(write(tmp_path / "1.dcm", **same))
    assert image.spacing == pytest.approx((0.5 / 1.8, 0.25 / 1.8))
    assert "detector_spacing" in codes(image)
    image = read_image(write(tmp_path / "2.dcm", **same, PixelSpacingCalibrationType="GEOMETRY"))
    assert image.spacing == (0.5, 0.25)


def test_an_aspect_ratio_without_a_spacing_is_kept(tmp_path):
    image = read_image(write(tmp_path / "1.dcm", PixelSpacing=None, PixelAspectRatio=[1, 2]))
    assert image.spacing == (0.5, 1.0)
    assert image.provenance["spacing_from"] == "none"


def test_ultrasound_regions_give_the_spacing_where_they_agree(tmp_path):
    one = write(
        tmp_path / "1.dcm", PixelSpacing=None, SequenceOfUltrasoundRegions=Sequence([region(0.01)])
    )
    assert read_image(one).spacing == pytest.approx((0.2, 0.1))  # cm to mm
    two = write(
        tmp_path / "2.dcm",
        PixelSpacing=None,
        SequenceOfUltrasoundRegions=Sequence([region(0.01), region(0.03)]),
    )
    assert read_image(two).provenance["spacing_from"] == "none"
    other = write(
        tmp_path / "3.dcm",
        PixelSpacing=None,
        SequenceOfUltrasoundRegions=Sequence([region(0.01, units=4)]),
    )
    assert read_image(other).provenance["spacing_from"] == "none"


def test_hazards_are_told_per_file(tmp_path):
    assert "burned_in" in codes(read_image(write(tmp_path / "1.dcm", BurnedInAnnotation="YES")))
    assert "burned_in_unknown" in codes(
        read_image(write(tmp_path / "2.dcm", BurnedInAnnotation=None))
    )
    assert not codes(read_image(write(tmp_path / "3.dcm")))
    overlay = read_image(real("MR-SIEMENS-DICOM-WithOverlays"))
    assert "overlay" in codes(overlay)
    assert np.array_equal(
        overlay.array[0], pydicom.dcmread(real("MR-SIEMENS-DICOM-WithOverlays")).pixel_array
    )
    assert "lossy" in codes(read_image(real("JPEGLSNearLossless_08")))
    assert "lossy" not in codes(read_image(real("MR_small_jpeg_ls_lossless")))
    sided = read_image(
        write(tmp_path / "4.dcm", ImageLaterality="L", ViewPosition="MLO", Laterality="R")
    )
    assert (sided.provenance["laterality"], sided.provenance["view"]) == ("L", "MLO")


def test_nothing_that_identifies_leaves_the_reader(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    secret = {
        "PatientName": "Doe^Jane",
        "PatientID": "MRN-4711",
        "PatientBirthDate": "19700101",
        "PatientAddress": "Main Street 5",
        "InstitutionName": "St Elsewhere",
        "AccessionNumber": "ACC99",
        "StudyInstanceUID": "1.2.3.4.5.6.7.8.9",
        "SeriesDescription": "SECRETSERIES",
    }
    path = write(tmp_path / "1.dcm", **secret)
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        dataset.StudyDate = "19991399 wrong"
        dataset.save_as(path)
    caplog.clear()
    shown = repr(read_image(path).provenance) + caplog.text
    for value in [*secret.values(), "19991399", str(dataset.SOPInstanceUID)]:
        assert value not in shown
    dataset.RescaleSlope = None
    dataset.save_as(path)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert not any(value in str(caught.value) for value in secret.values())


def test_files_without_a_mark_are_read_where_they_are_dicom():
    bare = read_image(real("OT-PAL-8-face"))
    assert any("no DICM mark" in note for note in bare.provenance["notes"])
    with pytest.raises(ImageError, match="not a readable DICOM"):
        read_image(real("no_meta"))


def test_a_plane_has_its_place_in_the_patient():
    image = read_image(real("CT_small"))
    dataset = pydicom.dcmread(real("CT_small"))
    x, y, z = (float(v) for v in dataset.ImagePositionPatient)
    row, column = (float(v) for v in dataset.PixelSpacing)
    # Axial: columns run to the left (-x in RAS), rows to the back (-y).
    assert np.allclose(image.affine @ [10, 20, 0, 1], [-(x + 20 * column), -(y + 10 * row), z, 1])
