"""What the header of a DICOM file says of its pixels, completed and compared with them before they
are decoded.

Each fact that a file states twice, and what happens where the two differ. What is resolved is told
in the hazards.

- PixelData, FloatPixelData, DoubleFloatPixelData (compared with: there, not empty): refused.
- PhotometricInterpretation (compared with: missing: palette tables, PresentationLUTShape): taken
  from these, else refused.
- SamplesPerPixel (compared with: PhotometricInterpretation; length of native pixels): missing: by
  the first; contradicted: by the length, else refused.
- Rows, Columns (compared with: size in the compressed stream; missing: that, or the length of
  native pixels): differ: refused.
- BitsAllocated (compared with: length of native pixels, BitsStored): missing or too small: by the
  length, else refused.
- BitsStored (compared with: at most BitsAllocated; missing: HighBit): refused; from HighBit, except
  for MONOCHROME1, which is mirrored over its bits.
- HighBit (compared with: BitsStored - 1): low bits empty and values too high: shifted; values fit:
  stays; else refused.
- bits above BitsStored (compared with: must be empty, or repeat the sign): one declared or lone
  overlay plane: masked off; else refused.
- PixelRepresentation (compared with: missing: whether any value has its sign bit set): none:
  unsigned; else refused.
- PlanarConfiguration (compared with: missing: the encoding (compressed, YBR_FULL_422)): has one
  meaning: taken; else refused.
- NumberOfFrames (compared with: frames' worth of native pixels, compressed streams): differ:
  refused; less than a frame more is padding, noted.

Not compared: SmallestImagePixelValue, LargestImagePixelValue and their kin (descriptive; often of
another version of the image), LossyImageCompressionRatio, WindowCenter (a choice of display).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.images.dicom.header import DicomFile, value, whole
from medtransfer.errors import ImageError

_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
_OPTIONS = {"SamplesPerPixel": (1, 3), "BitsAllocated": (8, 16, 32)}
_SIZES = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")


def settle(
    file: DicomFile, native: bool, stream_size: tuple[int, int] | None, streams: int
) -> bool:
    """Completes the header in memory, and refuses what contradicts itself.

    Args:
        file: with pixels of whole numbers.
        native: the pixels are not compressed.
        stream_size: rows and columns that the first compressed stream states; None where it states
            none.
        streams: number of compressed streams.

    Returns:
        True where PixelRepresentation was missing: values with their sign bit set cannot be read.

    Raises:
        ImageError: an element is missing, or contradicts another, and more than one reading is
            possible.
    """
    _settle_colours(file)
    _settle_sizes(file, native, stream_size)
    _settle_bits(file)
    unsigned = whole(file.dataset, "PixelRepresentation") not in {0, 1}
    if unsigned:
        grey = file.text("PhotometricInterpretation").startswith("MONOCHROME")
        _tell(
            file,
            "PixelRepresentation",
            0,
            "as no value has its sign bit set" if grey else "as colours have no sign",
        )
    if whole(file.dataset, "SamplesPerPixel") == 3 and whole(
        file.dataset, "PlanarConfiguration"
    ) not in {0, 1}:
        if native and not file.text("PhotometricInterpretation").endswith("_422"):
            raise _lacks(file, "PlanarConfiguration", "the colours can be read in two ways")
        _tell(file, "PlanarConfiguration", 0, "the only one with this encoding")
    _refuse_other_frames(file, streams if not native else 0)
    if native:
        _settle_unused_bits(file)
    return unsigned


def _settle_colours(file: DicomFile) -> None:
    dataset = file.dataset
    if not file.text("PhotometricInterpretation"):
        shape = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}.get(
            file.text("PresentationLUTShape")
        )
        if value(dataset, "RedPaletteColorLookupTableData"):
            _tell(
                file, "PhotometricInterpretation", "PALETTE COLOR", "as there are tables of colours"
            )
        elif shape:
            _tell(file, "PhotometricInterpretation", shape, "by PresentationLUTShape")
        else:
            raise _lacks(
                file,
                "PhotometricInterpretation",
                "whether high values are bright or dark, grey or colours, is not known",
            )
    photometric = file.text("PhotometricInterpretation")
    samples, needed = whole(dataset, "SamplesPerPixel"), _SAMPLES.get(photometric)
    if needed is None or samples == needed:
        return  # kinds that are not known are refused where they are decoded
    if samples is None:
        _tell(file, "SamplesPerPixel", needed, f"by PhotometricInterpretation {photometric}")
    elif _by_length(file, "SamplesPerPixel") == needed:
        _tell(
            file,
            "SamplesPerPixel",
            needed,
            f"by PhotometricInterpretation {photometric} and the length of the pixels",
        )
    else:
        raise ImageError(
            f"{file.path}: PhotometricInterpretation {photometric} has {needed} sample(s) per "
            f"pixel, SamplesPerPixel says {samples}. "
            "Export it again."
        )


def _settle_sizes(file: DicomFile, native: bool, stream_size: tuple[int, int] | None) -> None:
    stored = whole(file.dataset, "BitsStored") or 0
    for keyword in ("Rows", "Columns", "BitsAllocated"):
        number = whole(file.dataset, keyword)
        if number is not None and number > 0 and (keyword != "BitsAllocated" or number >= stored):
            continue
        settled = _by_length(file, keyword) if native else None
        if not native and keyword == "BitsAllocated" and stored:
            settled = 8 * math.ceil(stored / 8)
        elif stream_size is not None and keyword != "BitsAllocated":
            settled = stream_size[keyword == "Columns"]
        if settled is None or (keyword == "BitsAllocated" and settled < stored):
            if number:
                raise ImageError(
                    f"{file.path}: BitsStored is {stored}, more than BitsAllocated {number}. "
                    "Export it again."
                )
            raise _lacks(file, keyword, "the pixels cannot be laid out")
        _tell(
            file,
            keyword,
            settled,
            "by the length of the pixels" if native else "by the compressed pixels",
        )


def _by_length(file: DicomFile, keyword: str) -> int | None:
    """The one value with which the other sizes fill the native pixels, up to a byte of padding."""
    others = [whole(file.dataset, other) for other in _SIZES if other != keyword]
    if any(other is None or other < 1 for other in others):
        return None
    length, bits = (
        len(file.pixels),
        file.frames * math.prod(other for other in others if other is not None),
    )
    options = _OPTIONS.get(keyword, (8 * length // bits,))
    fitting = [
        option
        for option in options
        if option > 0 and 0 <= length - math.ceil(option * bits / 8) <= 1
    ]
    return fitting[0] if len(fitting) == 1 else None


def _settle_bits(file: DicomFile) -> None:
    stored, high = whole(file.dataset, "BitsStored"), whole(file.dataset, "HighBit")
    allocated = whole(file.dataset, "BitsAllocated") or 0
    if stored is None or stored < 1:
        mirrored = file.text("PhotometricInterpretation") == "MONOCHROME1"
        if high is None or not 0 <= high < allocated or mirrored:
            raise _lacks(file, "BitsStored", "the range of the values is not known")
        stored = high + 1
        _tell(file, "BitsStored", stored, "by HighBit")
    if high is None:
        _tell(file, "HighBit", stored - 1, "by BitsStored")


def _settle_unused_bits(file: DicomFile) -> None:
    """Pixels that do not lie in the low BitsStored bits; only native ones can."""
    dataset = file.dataset
    stored, high, allocated = (
        whole(dataset, keyword) or 0 for keyword in ("BitsStored", "HighBit", "BitsAllocated")
    )
    displaced = high != stored - 1
    if (stored == allocated and not displaced) or allocated not in {8, 16, 32}:
        return
    order = ">" if dataset.original_encoding[1] is False else "<"
    size = allocated // 8
    cells = np.frombuffer(file.pixels[: len(file.pixels) // size * size], f"{order}u{size}")
    above = _above(file, cells, stored)
    if not above.any():
        if displaced:
            file.notes.append(
                f"HighBit is {high}, BitsStored {stored}: the values lie in the low {stored} "
                "bits, as they fit there"
            )
        return
    shift = high + 1 - stored
    if displaced and 0 < shift <= allocated - stored and not (cells & ((1 << shift) - 1)).any():
        dataset.PixelData = (cells >> shift).tobytes()
        file.notes.append(
            f"HighBit is {high}, BitsStored {stored}: the values lay in the high bits and were "
            f"shifted down by {shift}"
        )
    elif not displaced and _is_overlay(file, cells, above):
        file.notes.append(f"bits above BitsStored {stored} hold an overlay, masked off the pixels")
    else:
        raise ImageError(
            f"{file.path}: {int((above > 0).sum())} values lie beyond BitsStored {stored} "
            f"(HighBit {high}, BitsAllocated {allocated}): "
            "these numbers, or the values, are wrong. Export it again."
        )


def _above(file: DicomFile, cells: NDArray[Any], stored: int) -> NDArray[Any]:
    """The bits above the stored ones, 0 where they repeat the sign, or where the cell is
    padding.
    """
    above = cells >> stored
    if whole(file.dataset, "PixelRepresentation") == 1:
        every = (1 << (8 * cells.itemsize - stored)) - 1
        above = np.where((above == every) & ((cells >> (stored - 1)) & 1 == 1), 0, above)
    padding = whole(file.dataset, "PixelPaddingValue")
    return (
        above
        if padding is None
        else np.where(cells == padding % (1 << (8 * cells.itemsize)), 0, above)
    )


def _is_overlay(file: DicomFile, cells: NDArray[Any], above: NDArray[Any]) -> bool:
    """True where a group of overlay declares these bits, or a lone bit jumps against a picture that
    is smooth below it.
    """
    stored = whole(file.dataset, "BitsStored") or 0
    positions = [whole(file.dataset, (group, 0x0102)) or 0 for group in range(0x6000, 0x6020, 2)]
    declared = sum({1 << (position - stored) for position in positions if position >= stored})
    if declared and not (above & ~np.asarray(declared, above.dtype)).any():
        return True
    patterns = np.unique(above[above > 0])
    if len(patterns) > 1 or int(patterns[0]).bit_count() > 1:
        return False
    # Values that outgrew their bits run on without them and jump where the bits are cut off; an
    # overlay is the reverse.
    whole_cells = cells.astype(np.int64)
    return bool(
        np.abs(np.diff(whole_cells & ((1 << stored) - 1))).sum()
        < np.abs(np.diff(whole_cells)).sum()
    )


def _refuse_other_frames(file: DicomFile, streams: int) -> None:
    """More pixels than the header has frames; fewer are missed where they are decoded."""
    frames, stated = streams, file.frames
    if not streams:
        bits = math.prod(whole(file.dataset, keyword) or 1 for keyword in _SIZES)
        if file.text("PhotometricInterpretation").endswith("_422"):
            bits = bits * 2 // 3
        frames, rest = divmod(len(file.pixels), math.ceil(bits / 8))
        if frames == stated and rest > 1:
            file.notes.append(f"{rest} bytes behind the pixels are left out")
    if frames > stated:
        says = (
            f"the header says {stated}"
            if value(file.dataset, "NumberOfFrames")
            else "it lacks NumberOfFrames"
        )
        raise ImageError(
            f"{file.path}: holds the pixels of {frames} frames, and {says}. Export it again."
        )


def _tell(file: DicomFile, keyword: str, number: int | str, why: str) -> None:
    """Writes an element into the header in memory, and a note."""
    how = "is missing" if value(file.dataset, keyword) is None else "is wrong"
    setattr(file.dataset, keyword, number)
    file.notes.append(f"{keyword} {how}; {number} is taken, {why}")


def _lacks(file: DicomFile, keyword: str, why: str) -> ImageError:
    present = file.dataset.get_item(keyword) is not None
    return ImageError(
        f"{file.path}: {f'{keyword} has no usable value' if present else f'lacks {keyword}'}: "
        f"{why}. Export it again."
    )
