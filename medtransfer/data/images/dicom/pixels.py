"""From the stored pixels of a DICOM file to values in the units of the modality."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medtransfer.data.images.dicom.facts import settle
from medtransfer.data.images.dicom.header import DicomFile, collected, numbers, value, whole
from medtransfer.data.images.dicom.jpeg import register
from medtransfer.data.images.limits import refuse_implausible
from medtransfer.errors import ImageError

_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)}
_PACKAGES = {
    frozenset(_JPEG_2000): "pylibjpeg-openjpeg",
    frozenset(_JPEG_LS): "pyjpegls",
    frozenset(
        {"1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
    ): "imagecodecs",
    frozenset({"1.2.840.10008.1.2.4.50"}): "pillow",
}


def read_frames(
    file: DicomFile, frame: int | None = None, header_window: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, list[str]]:
    """Decodes a file to the units of the modality.

    Order of work: decode, palette to RGB or modality LUT / rescale (of each frame), then either the
    VOI window of the header, or nothing; MONOCHROME1 inverted last. Overlays are left out.

    Args:
        file: from `open_dicom`, with pixels.
        frame: number from 0; None for all.
        header_window: apply the VOI LUT or first window of the header; the result is 0..1.

    Returns:
        values: float32 (frame, row, column) or (frame, row, column, 3).
        padding: pixels outside of the field of view, by PixelPaddingValue; None where there are
            none.
        steps: what was done.

    Raises:
        ImageError: no pixels, damaged, or a compression that no installed package decodes.
    """
    with collected(file.path):
        return _read_frames(file, frame, header_window)


def _read_frames(
    file: DicomFile, frame: int | None, header_window: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, list[str]]:
    dataset, path = file.dataset, file.path
    if file.not_image:
        raise ImageError(f"{path}: holds {file.not_image}. Leave it out of the cohort.")
    if frame is not None and frame >= file.frames:
        raise ImageError(f"{path}: has {file.frames} frame(s), no frame {frame + 1}.")
    steps: list[str] = []
    photometric = file.text("PhotometricInterpretation")
    if photometric.startswith("YBR_PARTIAL"):
        raise ImageError(
            f"{path}: colours stored as YBR_PARTIAL are not converted here. Export the file as RGB."
        )
    if file.pixel_keyword != "PixelData":
        return _read_floats(file, frame, header_window)
    syntax = _transfer_syntax(dataset)
    native = not (syntax.is_compressed and syntax.is_encapsulated)
    first = b"" if native else get_frame(dataset.PixelData, 0, number_of_frames=file.frames)
    unsigned = settle(file, native, _size_of_stream(first), 0 if native else _count_streams(file))
    photometric = file.text("PhotometricInterpretation")
    stored = _decode(file, frame)
    if (
        unsigned
        and photometric.startswith("MONOCHROME")
        and bool((stored >= 2 ** (int(dataset.BitsStored) - 1)).any())
    ):
        raise ImageError(
            f"{path}: lacks PixelRepresentation, and its values can be read with and without a "
            "sign. Export it again."
        )
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]  # a fourth table is for transparency
        steps.append("palette applied")
    elif photometric.startswith("YBR"):
        steps.append(f"{file.code('PhotometricInterpretation')} converted to RGB")
    samples = 3 if photometric == "PALETTE COLOR" else int(dataset.SamplesPerPixel)
    stored = stored.reshape(-1, *stored.shape[-3 if samples > 1 else -2 :])
    expected = file.frames if frame is None else 1
    if len(stored) != expected:
        raise ImageError(
            f"{path}: holds {len(stored)} frames where the header says {expected}. Export it again."
        )
    if samples == 3:
        if header_window:
            raise ImageError(
                f"{path}: window from_header is for grey images, this one has colour. Use "
                "percentile or full."
            )
        return stored.astype(np.float32), None, steps
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples != 1:
        raise ImageError(
            f"{path}: photometric interpretation "
            f"{file.code('PhotometricInterpretation') or 'of no standard'} with {samples} "
            "sample(s) per "
            "pixel is not known. Export it as grey or RGB."
        )
    planes = [
        _grey(file, plane, number if frame is None else frame, header_window, steps)
        for number, plane in enumerate(stored)
    ]
    values = planes[0][None] if len(planes) == 1 else np.stack(planes)
    return values, _padding(dataset, stored, steps), list(dict.fromkeys(steps))


def _read_floats(
    file: DicomFile, frame: int | None, header_window: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, list[str]]:
    """FloatPixelData and DoubleFloatPixelData: native, grey, of 32 and 64 bits (PS3.3 C.7.6.24 and
    C.7.6.25).
    """
    dataset, path = file.dataset, file.path
    double = file.pixel_keyword == "DoubleFloatPixelData"
    rows, columns = whole(dataset, "Rows"), whole(dataset, "Columns")
    if (
        not rows
        or not columns
        or (file.text("PhotometricInterpretation") or "MONOCHROME2") != "MONOCHROME2"
    ):
        raise ImageError(
            f"{path}: {file.pixel_keyword} is read with Rows, Columns and MONOCHROME2, one of "
            "which is not there. Export it again."
        )
    little = dataset.original_encoding[1] is not False
    values = np.frombuffer(file.pixels, f"{'<' if little else '>'}f{8 if double else 4}")
    if len(values) != file.frames * rows * columns:
        raise ImageError(
            f"{path}: holds {len(values)} values where the header says {file.frames} x {rows} x "
            f"{columns}. Export it again."
        )
    stored = values.reshape(file.frames, rows, columns)[
        slice(None) if frame is None else slice(frame, frame + 1)
    ]
    steps: list[str] = []
    padding = _padding(dataset, stored, steps, file.pixel_keyword.removesuffix("PixelData"))
    inside = stored if padding is None else stored[~padding]
    if not np.isfinite(inside).all() or np.abs(inside).max() > 1e30:
        raise ImageError(
            f"{path}: {int((~np.isfinite(inside)).sum())} pixels are NaN or infinite, or beyond "
            "reason. Export it again."
        )
    planes = []
    for number, plane in enumerate(stored):
        slope, intercept = _rescale(
            file.item(number if frame is None else frame, "PixelValueTransformationSequence"), path
        )
        scaled = plane.astype(np.float64) * slope + intercept
        steps += (
            [f"rescaled by {slope:g} and {intercept:g}"] if (slope, intercept) != (1.0, 0.0) else []
        )
        planes.append(
            _window(file, scaled, number if frame is None else frame, steps)
            if header_window
            else scaled
        )
    return np.stack(planes).astype(np.float32), padding, list(dict.fromkeys(steps))


def _count_streams(file: DicomFile) -> int:
    """Frames among the compressed pixels: by the table of offsets, else by the streams that begin a
    fragment.
    """
    pixels = file.dataset.PixelData
    offsets = parse_basic_offsets(pixels)
    if offsets:
        return len(offsets)
    rle = _transfer_syntax(file.dataset) == RLELossless
    parts = islice(generate_fragments(pixels), 1, None)  # behind the table
    return sum(rle or part[:2] == b"\xff\xd8" or part[:4] == b"\xff\x4f\xff\x51" for part in parts)


def _decode(file: DicomFile, frame: int | None) -> NDArray[Any]:
    dataset, path = file.dataset, file.path
    shape = (
        file.frames if frame is None else 1,
        int(dataset.Rows),
        int(dataset.Columns),
        int(dataset.SamplesPerPixel),
    )
    refuse_implausible(path, shape, len(dataset.PixelData))
    syntax = _transfer_syntax(dataset)
    if syntax.is_compressed and syntax.is_encapsulated:
        stream = get_frame(dataset.PixelData, frame or 0, number_of_frames=file.frames)
        _refuse_other_size(path, stream, shape[1:3])
        # CharLS searches a cut stream for many seconds before it gives up.
        if str(syntax) in _JPEG_LS and not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ImageError(
                f"{path}: the pixels, compressed as {_named(syntax)}, are truncated. Export it "
                "again."
            )
    register()
    try:
        return np.asarray(pixel_array(dataset, index=frame))
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
            package = next(
                (name for syntaxes, name in _PACKAGES.items() if str(syntax) in syntaxes), None
            )
            remedy = (
                f"Install {package}, or export"
                if package
                else "No package that is used here decodes it: export"
            )
            raise ImageError(
                f"{path}: pixels compressed as {_named(syntax)} cannot be decoded. {remedy} the "
                "file uncompressed."
            ) from None
        raise ImageError(
            f"{path}: the pixels, compressed as {_named(syntax)}, are damaged or truncated. "
            "Export it again."
        ) from None
    except ValueError:
        raise ImageError(
            f"{path}: the pixels are truncated, or the header describes others. Export it again."
        ) from None


def _named(syntax: Any) -> str:
    """Name and UID of a standard encoding; private UIDs are not told."""
    return (
        f"{syntax.name} ({syntax})"
        if not syntax.is_private and syntax.name != syntax
        else "a private encoding"
    )


def _transfer_syntax(dataset: Any) -> Any:
    """The encoding; taken from how the file parsed where the header does not state it."""
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian
            if implicit
            else ExplicitVRLittleEndian
            if little
            else ExplicitVRBigEndian
        )
    return dataset.file_meta.TransferSyntaxUID


def _grey(
    file: DicomFile, stored: NDArray[Any], frame: int, header_window: bool, steps: list[str]
) -> NDArray[np.float32]:
    table = value(file.dataset, "ModalityLUTSequence")
    inverted = file.text("PhotometricInterpretation") == "MONOCHROME1"
    slope, intercept = 1.0, 0.0
    if table:
        stored = _look_up(stored, table[0], file.dataset)
        steps.append("modality LUT applied")
        low, high = 0.0, float(2 ** int(table[0].LUTDescriptor[2]) - 1)
    else:
        slope, intercept = _rescale(file.item(frame, "PixelValueTransformationSequence"), file.path)
        low, high = sorted(slope * end + intercept for end in _stored_range(file.dataset))
        if max(-low, high) > 1e30:
            raise ImageError(
                f"{file.path}: rescaled by {slope:g} and {intercept:g}, its values are beyond "
                "reason. Export it again."
            )
        if (slope, intercept) != (1.0, 0.0):
            steps.append(
                f"rescaled by {slope:g} and {intercept:g}"
                if file.frames == 1
                else "rescaled, each frame by its own values"
            )
    if inverted:
        steps.append("MONOCHROME1 inverted")
    if header_window:
        shown = _window(file, _scale(stored, slope, intercept, np.float64), frame, steps)
        return np.asarray(1.0 - shown if inverted else shown, dtype=np.float32)
    # Whole numbers below 2**24 are exact in float32, which takes half the time.
    exact = slope.is_integer() and intercept.is_integer() and max(-low, high) < 2**23
    if inverted:
        # The range the file can hold, not the one this image uses, so that twins of both kinds give
        # equal values.
        slope, intercept = -slope, low + high - intercept
    return _scale(stored, slope, intercept, np.float32 if exact else np.float64).astype(
        np.float32, copy=False
    )


def _scale(
    stored: NDArray[Any], slope: float, intercept: float, kind: type[np.floating[Any]]
) -> NDArray[Any]:
    """slope * stored + intercept, in as few passes as can be."""
    if slope == 1.0:
        return (
            stored.astype(kind)
            if intercept == 0.0
            else np.asarray(np.add(stored, intercept, dtype=kind))
        )
    if slope == -1.0:
        return np.asarray(np.subtract(intercept, stored, dtype=kind))
    scaled: NDArray[Any] = np.multiply(stored, slope, dtype=kind)
    scaled += intercept
    return scaled


def _rescale(item: Any, path: Path) -> tuple[float, float]:
    if "RescaleSlope" not in item and "RescaleIntercept" not in item:
        return 1.0, 0.0
    pair = [numbers(item, keyword, 1) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if pair[0] is None or pair[1] is None:
        raise ImageError(
            f"{path}: RescaleSlope and RescaleIntercept must both be there, with a value. Export "
            "it again."
        )
    if pair[0][0] == 0:
        raise ImageError(
            f"{path}: RescaleSlope is 0, so every pixel would be equal. Export it again."
        )
    return pair[0][0], pair[1][0]


def _stored_range(dataset: Any) -> tuple[float, float]:
    bits = int(dataset.BitsStored)
    if _signed(dataset):
        return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1)


def _window(file: DicomFile, values: NDArray[Any], frame: int, steps: list[str]) -> NDArray[Any]:
    """The VOI LUT, else the first window, to 0..1 (PS3.3 C.11.2.1)."""
    item = file.item(frame, "FrameVOILUTSequence")
    if value(item, "VOILUTSequence"):
        table = item.VOILUTSequence[0]
        steps.append("VOI LUT of the header applied")
        return _look_up(np.rint(values), table, file.dataset) / float(
            2 ** int(table.LUTDescriptor[2]) - 1
        )
    centers, widths = (numbers(item, keyword, None) for keyword in ("WindowCenter", "WindowWidth"))
    if not centers or not widths or widths[0] <= 0:
        raise ImageError(
            f"{file.path}: the header states no window. Use percentile, or [center, width]."
        )
    center, width = centers[0], widths[0]
    function = str(value(item, "VOILUTFunction") or "LINEAR").upper()
    steps.append(
        f"window of the header, center {center:g} width {width:g} ({function}), mapped to 0..1"
    )
    if function == "SIGMOID":
        return np.asarray(
            1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700)))
        )
    if function == "LINEAR" and width > 1:
        center, width = center - 0.5, width - 1.0
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _look_up(stored: NDArray[Any], item: Any, dataset: Any) -> NDArray[np.int64]:
    """A modality or VOI LUT (PS3.3 C.11.1.1.1). pydicom's own wraps indices that do not fit the
    type of the entries.
    """
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    count = count or 65536
    first = int(_as_stored(first, dataset))
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] in {True, None} else ">"
        wide = len(data) >= 2 * count
        entries = np.frombuffer(
            data[: (2 if wide else 1) * count], f"{order}u2" if wide else "u1"
        ).astype(np.int64)
    else:
        entries = np.asarray(data, dtype=np.int64)
    if len(entries) < count:
        raise ValueError("the table is shorter than it says")
    looked_up: NDArray[np.int64] = entries[
        np.clip(stored.astype(np.int64) - first, 0, count - 1)
    ] & (2**bits - 1)
    return looked_up


def _signed(dataset: Any) -> bool:
    return int(value(dataset, "PixelRepresentation") or 0) == 1


def _as_stored(number: float, dataset: Any) -> float:
    """A value of the header on the scale of the pixels: some writers give that of a signed image as
    an unsigned number.
    """
    return number - 65536 if number > 32767 and _signed(dataset) else number


def _padding(
    dataset: Any, stored: NDArray[Any], steps: list[str], kind: str = ""
) -> NDArray[np.bool_] | None:
    """Where the padding lies; `kind` is Float or DoubleFloat for pixels of these, whose values are
    compared as they are.
    """
    end = numbers(dataset, f"{kind}PixelPaddingValue", 1)
    if end is None:
        return None
    limit = numbers(dataset, f"{kind}PixelPaddingRangeLimit", 1) or end
    low, high = sorted(
        number if kind else _as_stored(number, dataset) for number in (end[0], limit[0])
    )
    padding = np.asarray(stored == low if low == high else (stored >= low) & (stored <= high))
    if not padding.any() or padding.all():
        return None
    steps.append(f"{int(padding.sum())} padding pixels set to the background")
    return padding


def _refuse_other_size(path: Path, stream: bytes, size: tuple[int, ...]) -> None:
    """A stream of another size than the header would make the decoder reserve, and fill, what the
    stream claims.
    """
    claimed = _size_of_stream(stream)
    if claimed is not None and claimed != tuple(size):
        raise ImageError(
            f"{path}: the compressed pixels are {claimed[0]} x {claimed[1]}, the header says "
            f"{size[0]} x {size[1]}. Export it again."
        )


def _size_of_stream(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns; None for streams of other kinds (RLE), and where the height is stated later
    in the stream.
    """
    size = _size_of_jpeg_2000(stream) or _size_of_jpeg(stream)
    return size if size is not None and size[0] > 0 else None


def _size_of_jpeg_2000(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns by the SIZ segment (ISO 15444-1, A.5.1)."""
    mark = stream[:4096].find(b"\xff\x4f\xff\x51")
    if mark < 0 or len(stream) < mark + 24:
        return None
    x1, y1, x0, y0 = (
        int.from_bytes(stream[mark + 8 + 4 * i : mark + 12 + 4 * i], "big") for i in range(4)
    )
    return y1 - y0, x1 - x0


def _size_of_jpeg(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns by the frame header of JPEG (ISO 10918-1, B.2.2) or JPEG-LS (ISO 14495-1,
    C.2.2).
    """
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(
                stream[at + 7 : at + 9], "big"
            )
        at += 1 if marker == 0xFF else 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
