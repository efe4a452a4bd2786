"""DICOM files of a volume, one for each slice."""

from __future__ import annotations

import numpy as np
import pydicom

AXIAL = (1.0, 0, 0, 0, 1, 0)
# An oblique orientation: rotated about two axes.
OBLIQUE = (0.96592583, 0.25881905, 0.0, -0.24321035, 0.90767337, 0.34202014)


def rows_of(orientation):
    """Directions of a row, of a column, and across the slices."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    return row, column, np.cross(row, column)


def write_series(
    folder,
    volume,
    spacing=(2.5, 0.6, 0.8),
    orientation=AXIAL,
    origin=(-10.0, 20.0, 30.0),
    shear=0.0,
    uid="1.2.3",
    names=None,
    **changes,
):
    """CT slices of a (slice, row, column) volume of stored values; `shear` mm along the columns per
    slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _, column, normal = rows_of(orientation)
    for number, pixels in enumerate(volume):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.CTImageStorage
        instance = pydicom.uid.generate_uid(entropy_srcs=[uid, str(orientation), str(number)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = (
            uid,
            "1.2",
            "1.2.9",
        )
        dataset.PatientID, dataset.Modality, dataset.InstanceNumber = "P", "CT", number + 1
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
            16,
            16,
            15,
            0,
        )
        dataset.PixelSpacing = list(spacing[1:])
        dataset.SliceThickness = spacing[0]
        dataset.ImageOrientationPatient = list(orientation)
        position = np.array(origin) + number * (spacing[0] * normal + shear * column)
        dataset.ImagePositionPatient = [round(float(v), 6) for v in position]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = pixels.astype("<u2").tobytes()
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(
            folder / (names[number] if names else f"{number:03d}.dcm"), enforce_file_format=True
        )
    return folder
