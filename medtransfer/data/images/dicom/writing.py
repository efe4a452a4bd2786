"""Writes grey DICOM files, of single images and of series; used by the phantom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray


@dataclass(frozen=True)
class GreyEncoding:
    """How grey pixels are stored.

    Attributes:
        bits: stored bits of the 16 allocated.
        photometric: MONOCHROME2, or MONOCHROME1 (the values are then stored inverted).
        slope, intercept: rescale of the stored values.
    """

    bits: int = 12
    photometric: str = "MONOCHROME2"
    slope: float = 1
    intercept: float = 0


def write_grey_dicom(
    path: Path,
    pixels: NDArray[np.uint16],
    *,
    patient: str,
    number: int,
    spacing: tuple[float, float],
    encoding: GreyEncoding,
) -> None:
    """Writes one grey secondary-capture image; the same arguments give the same bytes.

    Args:
        path: file to write.
        pixels: (row, column), bright is bright, 0..2**bits - 1.
        patient: patient id.
        number: distinct per image; the instance UID is made from it.
        spacing: mm between rows and between columns.
        encoding: how the pixels are stored.
    """
    bits, inverted = encoding.bits, encoding.photometric == "MONOCHROME1"
    # Multi-frame grey word secondary capture.
    dataset = _grey(
        "1.2.840.10008.5.1.4.1.1.7.3",
        "US",
        patient,
        str(number),
        pixels,
        bits,
        encoding.photometric,
    )
    dataset.NumberOfFrames = 1
    dataset.PixelSpacing = list(spacing)
    dataset.RescaleSlope, dataset.RescaleIntercept = encoding.slope, encoding.intercept
    dataset.RescaleType = "US"
    stored = (2**bits - 1) - pixels if inverted else pixels
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_dicom_series(
    folder: Path,
    volume: NDArray[np.uint16],
    *,
    patient: str,
    number: int,
    spacing: tuple[float, float, float],
    bits: int,
) -> None:
    """Writes a volume as a series of axial MR images, one file per slice, their names in no order.

    Args:
        folder: made for the series.
        volume: (x, y, z) towards the patient's right, front and head, 0..2**bits - 1.
        patient: patient id.
        number: distinct per volume; UIDs and names are made from it.
        spacing: mm along x, y and z.
        bits: stored bits of the 16 allocated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    depth = volume.shape[2]
    names = np.random.default_rng(number).permutation(depth)
    for index in range(depth):
        # DICOM's rows run to the back, its columns to the left.
        pixels = volume[::-1, ::-1, index].T
        dataset = _grey(
            "1.2.840.10008.5.1.4.1.1.4",
            "MR",
            patient,
            f"{number} {index}",
            pixels,
            bits,
            "MONOCHROME2",
        )
        dataset.StudyInstanceUID = _uid(f"study {number}")
        dataset.SeriesInstanceUID = _uid(f"series {number}")
        dataset.InstanceNumber = int(names[index]) + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, index * spacing[2]]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        dataset.SliceThickness = spacing[2]
        dataset.PixelData = pixels.astype("<u2").tobytes()
        dataset.save_as(folder / f"IM{int(names[index]):04d}.dcm", enforce_file_format=True)


def _uid(what: str) -> Any:
    return pydicom.uid.generate_uid(entropy_srcs=["medtransfer phantom", what])


def _grey(
    kind: str,
    modality: str,
    patient: str,
    number: str,
    pixels: NDArray[np.uint16],
    bits: int,
    photometric: str,
) -> pydicom.Dataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UID(kind)
    meta.MediaStorageSOPInstanceUID = _uid(number)
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientID = patient
    dataset.Modality = modality
    dataset.BurnedInAnnotation = "NO"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    return dataset
