"""DICOM files: their header, geometry and hazards. With `dicom_pixels` and `dicom_jpeg` the only
user of pydicom.

The identifiers of a header (names, ids, UIDs) are used to group files and never returned with the
pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom._uid_dict import UID_dictionary
from pydicom.errors import InvalidDicomError

from medtransfer.data.images.dicom.geometry import Plane
from medtransfer.data.images.limits import refuse_implausible
from medtransfer.data.images.quiet import silence, without_values
from medtransfer.data.images.signatures import kind_of
from medtransfer.errors import ImageError

# Values of the value representation CS, less what names are written with.
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_RESCALED = {"HU", "US", "OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}
_STANDARD = "1.2.840.10008."
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Values computed from images, not images of a patient.
_NO_IMAGE = {
    "RTDOSE": "a dose",
    "SEG": "a segmentation",
    "RTSTRUCT": "contours",
    "RTPLAN": "a plan",
}
_GEOMETRY = (
    ("PixelMeasuresSequence", "PixelSpacing", 2),
    ("", "ImagerPixelSpacing", 2),
    ("", "NominalScannedPixelSpacing", 2),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PlanePositionSequence", "ImagePositionPatient", 3),
)
# Baseline and extended JPEG, near-lossless JPEG-LS.
_LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81)}
_PROJECTIONS = {"CR", "DX", "MG", "XA", "RF", "PX", "IO", "RG"}


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One file, its header read.

    Attributes:
        path: where it lies.
        dataset: the pydicom dataset; with pixels unless only the header was read.
        notes: what pydicom had to say, values withheld.
    """

    path: Path
    dataset: Any = field(repr=False)  # names the patient
    notes: list[str]

    def text(self, keyword: str) -> str:
        """One value as text, "" where absent."""
        return str(value(self.dataset, keyword) or "").strip()

    def code(self, keyword: str) -> str:
        """A value of defined terms (CS), "" where it holds anything else: such values are told, and
        free text is not.
        """
        stated = self.text(keyword)
        return stated if _CODE.fullmatch(stated) else ""

    @cached_property
    def not_image(self) -> str:
        """What the object holds instead of an image of a patient, "" for an image."""
        kind = self.derived
        if not kind and self.pixel_keyword:
            return ""
        if self.truncated:
            return "only the beginning of an object: the file is truncated"
        return f"{kind or 'no pixels'} ({self._class or 'class unknown'})"

    @property
    def _class(self) -> str:
        """The name of the kind of object; "" where the standard has none: what a damaged header
        holds may name a person.
        """
        uid = str(value(self.dataset, "SOPClassUID") or "")
        return str(pydicom.uid.UID(uid).name) if uid in UID_dictionary else ""

    @cached_property
    def pixel_keyword(self) -> str:
        """The element that holds the pixels, "" where there are none."""
        return next((keyword for keyword in _PIXELS if value(self.dataset, keyword)), "")

    @property
    def pixels(self) -> bytes:
        """The pixels as stored."""
        return bytes(self.dataset[self.pixel_keyword].value)

    @property
    def derived(self) -> str:
        """What was computed from images and is none: a dose, a segmentation; "" else."""
        return _NO_IMAGE.get(self.text("Modality"), "")

    @property
    def lost(self) -> bool:
        """True for what is no more an image but was one: the header ends before its rows, or lacks
        them though its class must have them.
        """
        if self.derived or "Rows" in self.dataset:
            return False
        return self.truncated or "Image Storage" in self._class

    @property
    def truncated(self) -> bool:
        """True where the file ends before what it announces."""
        return any(note.startswith("End of file") for note in self.notes)

    @property
    def owner(self) -> tuple[str, str]:
        """Patient (with the issuer of the id) and study, for grouping. Not to be shown."""
        patient, issuer = self.text("PatientID"), self.text("IssuerOfPatientID")
        return f"{issuer}|{patient}" if patient else "", self.text("StudyInstanceUID")

    @cached_property
    def frames(self) -> int:
        """Number of frames, at least 1."""
        try:
            return max(1, int(value(self.dataset, "NumberOfFrames") or 1))
        except (ValueError, TypeError):
            raise ImageError(
                f"{self.path}: NumberOfFrames is not a number. Export it again."
            ) from None

    def item(self, frame: int, sequence: str) -> Any:
        """The macro of one frame (per frame, else shared, else the file itself; PS3.3 C.7.6.16)."""
        for groups, index in (
            ("PerFrameFunctionalGroupsSequence", frame),
            ("SharedFunctionalGroupsSequence", 0),
        ):
            items = value(self.dataset, groups) if sequence else None
            if items and index < len(items) and value(items[index], sequence):
                return items[index][sequence][0]
        return self.dataset

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """Where each frame lies."""
        key = (
            self.text("SeriesInstanceUID"),
            value(self.dataset, "Rows"),
            value(self.dataset, "Columns"),
            value(self.dataset, "SamplesPerPixel"),
        )
        planes = []
        for frame in range(self.frames):
            name = self.path.name if self.frames == 1 else f"{self.path.name}#{frame + 1}"
            orientation = numbers(
                self.item(frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
            )
            if orientation is not None and not _orthonormal(orientation):
                orientation = None
            position = numbers(self.item(frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
            planes.append(Plane(key, name, position, orientation, self.spacing(frame)[0]))
        return tuple(planes)

    def spacing(self, frame: int = 0) -> tuple[tuple[float, float] | None, str]:
        """mm between rows and between columns, and the attribute they come from."""
        measures = self.item(frame, "PixelMeasuresSequence")
        magnification = (
            numbers(self.dataset, "EstimatedRadiographicMagnificationFactor", 1) or (1.0,)
        )[0]
        sources = [
            (measures, "PixelSpacing", 1.0),
            (self.dataset, "ImagerPixelSpacing", magnification),
            (self.dataset, "NominalScannedPixelSpacing", 1.0),
        ]
        if self._uncalibrated(measures):
            del sources[0]
        for holder, keyword, divisor in sources:
            pair = numbers(holder, keyword, 2)
            if pair is not None and min(pair) > 0 and divisor > 0:
                return (pair[0] / divisor, pair[1] / divisor), keyword
        regions = value(self.dataset, "SequenceOfUltrasoundRegions") or []
        deltas = {_region_spacing(region) for region in regions} - {None}
        if len(deltas) == 1:
            return deltas.pop(), "SequenceOfUltrasoundRegions"
        return None, "none"

    def _uncalibrated(self, measures: Any) -> bool:
        """True for a projection whose PixelSpacing repeats that of the detector (PS3.3
        10.7.1.3).
        """
        stated = numbers(measures, "PixelSpacing", 2)
        same = stated is not None and stated == numbers(self.dataset, "ImagerPixelSpacing", 2)
        return (
            same
            and self.text("Modality") in _PROJECTIONS
            and not self.text("PixelSpacingCalibrationType")
        )

    @property
    def aspect(self) -> tuple[float, float]:
        """Height and width of a pixel where no spacing is stated, relative to the width."""
        ratio = numbers(self.dataset, "PixelAspectRatio", 2)
        return (ratio[0] / ratio[1], 1.0) if ratio is not None and min(ratio) > 0 else (1.0, 1.0)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What may be told of the file: nothing that names a person, a place or a date."""
        meta = getattr(self.dataset, "file_meta", None) or {}
        anatomy = self.item(0, "FrameAnatomySequence")
        laterality = (
            self.code("ImageLaterality")
            or self.code("Laterality")
            or str(value(anatomy, "FrameLaterality") or "")
        )
        syntax = str(meta.get("TransferSyntaxUID", ""))
        return {
            "format": "DICOM",
            "modality": self.code("Modality"),
            "unit": self._unit(),
            "photometric": self.code("PhotometricInterpretation"),
            "bits_stored": whole(self.dataset, "BitsStored")
            or whole(self.dataset, "BitsAllocated")
            or 0,
            "transfer_syntax": syntax if syntax.startswith(_STANDARD) else "",
            "scanner": " ".join(
                part
                for part in (self.text("Manufacturer"), self.text("ManufacturerModelName"))
                if part
            ),
            "laterality": laterality if _CODE.fullmatch(laterality) else "",
            "view": self.code("ViewPosition"),
            "spacing_from": self.spacing()[1],
            "burned_in": self.code("BurnedInAnnotation").upper(),
            "notes": self.notes,
        }

    def _unit(self) -> str:
        """HU for CT unless the header says otherwise, as perfusion maps do (PS3.3 C.11.1.1.2); else
        what it says.
        """
        rescale = self.item(0, "PixelValueTransformationSequence")
        stated = str(value(rescale, "RescaleType") or "")
        stated = stated if stated in _RESCALED or not stated else "not known"
        return (
            "HU"
            if self.text("Modality") == "CT"
            and stated in {"", "HU"}
            and value(rescale, "RescaleIntercept") is not None
            else stated
        )

    @cached_property
    def hazards(self) -> list[tuple[str, str]]:
        """(code, sentence) of what a user should know."""
        lengths = []
        modality, burned = self.code("Modality"), self.facts["burned_in"]
        if burned == "YES":
            lengths.append(
                (
                    "burned_in",
                    (
                        "BurnedInAnnotation is YES: text in the pixels may name the patient or the "
                        "diagnosis"
                    ),
                )
            )
        elif burned != "NO" and modality in {"US", "SC", "OT", "XC", "ES"}:
            lengths.append(
                (
                    "burned_in_unknown",
                    (
                        f"BurnedInAnnotation is not stated for modality {modality}: look for "
                        "text in "
                        "the pixels"
                    ),
                )
            )
        tilt = numbers(self.dataset, "GantryDetectorTilt", 1)
        if tilt is not None and abs(tilt[0]) > 0.5:
            lengths.append(("gantry_tilt", f"GantryDetectorTilt is {tilt[0]:g} degrees"))
        source = self.facts["spacing_from"]
        if source == "none":
            lengths.append(("no_spacing", "states no pixel spacing"))
        elif source == "ImagerPixelSpacing":
            lengths.append(
                ("detector_spacing", "spacing is that of the detector, not of the patient")
            )
        if self.text("LossyImageCompression") == "01" or self.facts["transfer_syntax"] in _LOSSY:
            lengths.append(("lossy", "was compressed with loss"))
        lengths += self._unusable()
        kind = value(self.dataset, "ImageType")
        if kind and "SECONDARY" in list(kind):
            lengths.append(
                ("derived", "is a secondary or derived image, not what the device first wrote")
            )
        if self.dataset.get_item(0x60003000) is not None:
            lengths.append(("overlay", "has an overlay, left out of the pixels"))
        return lengths

    def _unusable(self) -> list[tuple[str, str]]:
        """Elements of geometry that are there and cannot be used."""
        faults = []
        for sequence, keyword, count in _GEOMETRY:
            item = self.item(0, sequence)
            stated = numbers(item, keyword, count)
            empty = value(item, keyword) in (None, "", [])
            if not empty and (stated is None or (count == 2 and min(stated) <= 0)):
                faults.append(
                    (
                        "unusable",
                        (
                            f"{keyword} is not {count} {'positive' if count == 2 else 'finite'} "
                            "numbers and is not used"
                        ),
                    )
                )
            elif count == 6 and stated is not None and not _orthonormal(stated):
                faults.append(
                    (
                        "unusable",
                        (
                            f"{keyword} is not two directions of length 1 at right angles and "
                            "is not "
                            "used"
                        ),
                    )
                )
        return faults

    @property
    def findings(self) -> list[tuple[str, str]]:
        """The hazards, and what pydicom had to say of the header."""
        return [*self.hazards, *(("header", note) for note in self.notes)]


def is_dicom(path: Path) -> bool:
    """True by the content, or by the ending where the content shows no other kind."""
    return kind_of(path) == "DICOM"


def open_dicom(path: Path, pixels: bool = True) -> DicomFile:
    """Reads a file; without `pixels` only its header.

    Raises:
        ImageError: no DICOM, or damaged.
    """
    with collected(path) as notes:
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
        except InvalidDicomError:
            dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
            if "Rows" not in dataset or "SOPClassUID" not in dataset:
                raise ImageError(
                    f"{path}: not a readable DICOM file (no DICM mark). Export it again."
                ) from None
            notes.append("the file has no DICM mark; its encoding was guessed")
        file = DicomFile(path, dataset, notes)
        # Before anything is made for each frame.
        size = path.stat().st_size
        rows, columns = (max(1, whole(dataset, keyword) or 1) for keyword in ("Rows", "Columns"))
        refuse_implausible(path, (file.frames, rows, columns), size)
        if file.frames > size:
            raise ImageError(
                f"{path}: the header claims {file.frames} frames, which {size} bytes cannot hold. "
                "Export it again."
            )
        # Elements are parsed when they are first asked for: now, so that what pydicom says of them
        # is kept.
        _ = file.planes, file.facts, file.hazards, file.owner, file.text("SOPInstanceUID")
    return file


def value(holder: Any, keyword: str | tuple[int, int]) -> Any:
    """The value of an element; None where absent. Several times as fast as `Dataset.get`, for which
    absence is an exception.
    """
    tag = _tag(keyword)
    return None if holder.get_item(tag) is None else holder[tag].value


@cache
def _tag(keyword: str | tuple[int, int]) -> pydicom.tag.BaseTag:
    return pydicom.tag.Tag(keyword)


def whole(holder: Any, keyword: str | tuple[int, int]) -> int | None:
    """One whole number; None where absent, empty, or anything else."""
    stated = numbers(holder, keyword, 1)
    return int(stated[0]) if stated is not None and stated[0].is_integer() else None


def numbers(
    holder: Any, keyword: str | tuple[int, int], count: int | None
) -> tuple[float, ...] | None:
    """Finite numbers of an element; None where absent, empty, or not `count` of them."""
    try:
        stated = value(holder, keyword)
        if stated is None or isinstance(stated, str):
            stated = [] if not stated else [stated]
        values = tuple(float(v) for v in (stated if hasattr(stated, "__iter__") else [stated]))
    except (TypeError, ValueError, AttributeError):
        return None
    if not values or not np.isfinite(values).all() or (count is not None and len(values) != count):
        return None
    return values


def _orthonormal(cosines: tuple[float, ...]) -> bool:
    row, column = np.asarray(cosines[:3]), np.asarray(cosines[3:])
    lengths = (np.linalg.norm(row), np.linalg.norm(column))
    return bool(
        abs(lengths[0] - 1) < 0.01 and abs(lengths[1] - 1) < 0.01 and abs(row @ column) < 0.01
    )


def _region_spacing(region: Any) -> tuple[float, float] | None:
    """mm of a two-dimensional ultrasound region measured in cm (PS3.3 C.8.5.5)."""
    units = [
        value(region, k)
        for k in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection", "RegionSpatialFormat")
    ]
    across, down = (numbers(region, k, 1) for k in ("PhysicalDeltaX", "PhysicalDeltaY"))
    if units != [3, 3, 1] or across is None or down is None or across[0] == 0 or down[0] == 0:
        return None
    return abs(down[0]) * 10.0, abs(across[0]) * 10.0


@contextmanager
def collected(path: Path) -> Iterator[list[str]]:
    """Keeps pydicom's warnings with the file, and turns whatever a damaged header raises into one
    error.
    """
    notes: list[str] = []
    with silence("pydicom") as caught:
        try:
            yield notes
        except (ImageError, MemoryError):
            raise
        except OSError as error:
            raise ImageError(
                f"{path}: cannot be read ({error.strerror or 'not a file of pixels'}). Export it "
                "again."
            ) from None
        except Exception:  # an empty or wrong element can fail anywhere
            raise ImageError(
                f"{path}: the header or the pixels are damaged, or of a kind not known here. "
                "Export it again."
            ) from None
    notes += sorted({without_values(str(note.message)) for note in caught})
