"""Single-frame DICOM files. The only module that knows pydicom."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from medtransfer.errors import ImageError


def is_dicom(path: Path) -> bool:
    """True where the file carries the DICOM mark after its 128-byte preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path) -> tuple[NDArray[np.float32], tuple[float, float], dict[str, Any]]:
    """Reads the pixels of one frame in the units of the modality.

    Order of work: decode, modality LUT or rescale, padding to the lowest true value, MONOCHROME1
    inverted over the stored range. Overlays and the VOI window are left out: they serve the eye.

    Returns:
        array: float32 (channel, row, column); 1 channel, or 3 (0..255 or the stored range) for colour.
        spacing: mm between rows and between columns; (1, 1) where the file states none.
        provenance: what was found and done. Never a name, date or other identifying attribute.

    Raises:
        ImageError: no DICOM, no pixels, several frames, or a compression no installed package decodes.
    """
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            array, spacing, provenance = _read(path)
        except ImageError:
            raise
        except Exception as error:  # an empty or wrong header element can fail anywhere
            raise ImageError(f"{path}: a header element is damaged ({type(error).__name__}: {error}). Export it again.") from error
    # What pydicom had to say of the file: kept with the image, not printed among a thousand others.
    provenance["notes"] = sorted({str(note.message).replace(str(path), path.name) for note in notes})
    return array, spacing, provenance


def _read(path: Path) -> tuple[NDArray[np.float32], tuple[float, float], dict[str, Any]]:
    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ImageError(f"{path}: not a readable DICOM file ({error}). Export it again.") from error
    if "PixelData" not in dataset:
        raise ImageError(f"{path}: this DICOM object ({_sop_name(dataset)}) holds no pixels. Leave it out of the cohort.")
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
    except (ValueError, TypeError) as error:
        raise ImageError(f"{path}: NumberOfFrames is {dataset.get('NumberOfFrames')!r}, not a number. Export it again.") from error
    if frames != 1:
        raise ImageError(f"{path}: holds {frames} frames; an image of this cohort is one frame. Export the frame you want.")
    stored = _decode(dataset, path)
    steps: list[str] = []
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        steps.append("palette applied")
    if stored.ndim == 3:
        array = np.moveaxis(stored, -1, 0).astype(np.float32)
    elif photometric in {"MONOCHROME1", "MONOCHROME2"}:
        array = _grey(dataset, stored, photometric, steps)[None]
    else:
        raise ImageError(f"{path}: photometric interpretation {photometric or 'missing'!r} with one sample per pixel is not known.")
    spacing, spacing_from = _spacing(dataset)
    provenance = {
        "format": "DICOM",
        "modality": str(dataset.get("Modality", "") or ""),
        "photometric": photometric,
        "bits_stored": int(dataset.get("BitsStored", 0) or 0),
        "transfer_syntax": str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else "",
        "spacing_from": spacing_from,
        "burned_in": str(dataset.get("BurnedInAnnotation", "") or ""),
        "steps": steps,
    }
    return array, spacing, provenance


def _decode(dataset: Any, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(dataset.pixel_array)
    except (RuntimeError, NotImplementedError) as error:
        syntax = dataset.file_meta.get("TransferSyntaxUID", None) if hasattr(dataset, "file_meta") else None
        name = f"{syntax.name} ({syntax})" if syntax is not None else "unknown"
        raise ImageError(
            f"{path}: pixels compressed as {name} cannot be decoded here ({str(error).splitlines()[0]}). "
            "Install python-gdcm or pylibjpeg-libjpeg, or export the file uncompressed."
        ) from error
    except Exception as error:  # a damaged header can fail anywhere inside the decoder
        raise ImageError(f"{path}: the pixels are damaged or truncated ({error}). Export it again.") from error


def _grey(dataset: Any, stored: NDArray[Any], photometric: str, steps: list[str]) -> NDArray[np.float32]:
    has_table = bool(dataset.get("ModalityLUTSequence"))
    if has_table:
        steps.append("modality LUT applied")
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        steps.append(f"rescaled by {float(dataset.RescaleSlope):g} and {float(dataset.RescaleIntercept):g}")
    elif "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
        raise ValueError("RescaleSlope and RescaleIntercept must both be there, with a value")
    values = apply_modality_lut(stored, dataset).astype(np.float32)
    padding = _padding(dataset, stored)
    if padding is not None and padding.any() and not padding.all():
        values[padding] = values[~padding].min() if photometric == "MONOCHROME2" else values[~padding].max()
        steps.append(f"{int(padding.sum())} padding pixels set to the background")
    if photometric == "MONOCHROME1":
        low, high = _output_range(dataset, values if has_table else None)
        values = np.float32(low + high) - values
        steps.append("MONOCHROME1 inverted")
    return values


def _padding(dataset: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    # Some writers give the value of a signed image as an unsigned number; its bits are what is meant.
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    ends = [int(v) - 65536 if signed and int(v) > 32767 else int(v) for v in (value, value if limit is None else limit)]
    low, high = sorted(ends)
    return np.asarray((stored >= low) & (stored <= high))


def _output_range(dataset: Any, table_values: NDArray[np.float32] | None) -> tuple[float, float]:
    """Lowest and highest value the stored range maps to: the mirror for MONOCHROME1.

    The range the file *can* hold, not the one this image happens to use, so that twins stored as
    MONOCHROME1 and MONOCHROME2 give equal values.
    """
    if table_values is not None:
        table = dataset.ModalityLUTSequence[0]
        bits = int(table.LUTDescriptor[2])
        return 0.0, float(2**bits - 1)
    bits = int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = (
        float(default if (v := dataset.get(k)) is None else v) for k, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    low, high = sorted(slope * end + intercept for end in ends)
    return low, high


def _spacing(dataset: Any) -> tuple[tuple[float, float], str]:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = dataset.get(keyword)
        try:
            rows, columns = (float(v) for v in value)
        except (TypeError, ValueError):
            continue
        if rows > 0 and columns > 0:
            return (rows, columns), keyword
    return (1.0, 1.0), "none"


def _sop_name(dataset: Any) -> str:
    uid = dataset.get("SOPClassUID")
    return str(uid.name) if uid is not None else "class unknown"


def write_grey_dicom(
    path: Path,
    pixels: NDArray[np.uint16],
    *,
    patient: str,
    number: int,
    spacing: tuple[float, float],
    bits: int,
    photometric: str,
    slope: float,
    intercept: float,
) -> None:
    """Writes one grey secondary-capture image; the same arguments give the same bytes.

    Args:
        path: file to write.
        pixels: (row, column), bright is bright, 0..2**bits - 1.
        patient: patient id.
        number: distinct per image; the instance UID is made from it.
        spacing: mm between rows and between columns.
        bits: stored bits of the 16 allocated.
        photometric: MONOCHROME2, or MONOCHROME1 (the values are then stored inverted).
        slope, intercept: rescale of the stored values.
    """
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.7.3")  # multi-frame grey word secondary capture
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["medtransfer phantom", str(number)])
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientID = patient
    dataset.Modality = "US"
    dataset.BurnedInAnnotation = "NO"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.NumberOfFrames = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelSpacing = list(spacing)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    stored = (2**bits - 1) - pixels if photometric == "MONOCHROME1" else pixels
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
