"""What the headers of NRRD and MetaImage files say, compared with itself and with the bytes that
follow.

ITK, which reads the pixels, takes much of this unsaid. Each fact that a file states twice, and what
happens where it differs:

- NRRD dimension; MetaImage NDims (compared with: numbers in sizes, DimSize, spacings): refused.
- sizes and type (compared with: bytes of uncompressed pixels): fewer: refused as truncated; more:
  noted.
- NRRD spacings (compared with: space directions): both given: refused, as the format forbids it and
  ITK reads neither.
- MetaImage ElementSpacing (compared with: ElementSize (of the voxel itself)): ElementSpacing is
  used, noted.
- spacing (compared with: must be finite and above 0; NRRD: all nan is not stated): refused.
- directions of the axes (compared with: must span the space): refused.
- NRRD space; MetaImage TransformMatrix (compared with: there): missing: left and right are not
  known, noted.
- NRRD space units (compared with: mm): known ones converted, others noted.
- the file with the pixels (compared with: there): refused, the candidates beside it named.
- compressed pixels (compared with: their own sum and end): refused as cut or damaged.
- MetaImage CompressedData, CompressedDataSize (compared with: first bytes and length of the
  pixels): refused, the right value named.

Not compared: AnatomicalOrientation (written after two conventions), thicknesses, min and max,
comments.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np

from medtransfer.errors import ImageError

Hazards = list[tuple[str, str]]

_HEAD = 1_000_000
# Bytes behind the pixels are counted up to here.
_SURPLUS = 64_000_000
_BYTES = {
    "char": 1, "schar": 1, "uchar": 1, "byte": 1, "int8": 1, "uint8": 1, "int8_t": 1,
    "uint8_t": 1, "signed char": 1, "unsigned char": 1,
    "short": 2, "ushort": 2, "int16": 2, "uint16": 2, "int16_t": 2, "uint16_t": 2,
    "short int": 2, "signed short": 2,
    "signed short int": 2, "unsigned short": 2, "unsigned short int": 2,
    "int": 4, "uint": 4, "int32": 4, "uint32": 4, "int32_t": 4, "uint32_t": 4, "signed int": 4,
    "unsigned int": 4, "float": 4,
    "double": 8, "longlong": 8, "long long": 8, "int64": 8, "uint64": 8, "int64_t": 8,
    "uint64_t": 8, "ulonglong": 8,
    "met_char": 1, "met_uchar": 1, "met_short": 2, "met_ushort": 2, "met_int": 4, "met_uint": 4,
    "met_float": 4, "met_double": 8,
    "met_long_long": 8, "met_ulong_long": 8,
}  # fmt: skip
_UNITS = {
    "mm": 1.0,
    "millimeter": 1.0,
    "cm": 10.0,
    "m": 1000.0,
    "meter": 1000.0,
    "um": 0.001,
    "µm": 0.001,
    "micron": 0.001,
    "nm": 1e-6,
}
_REQUIRED = {
    "NRRD": ("type", "dimension", "sizes", "encoding"),
    "MetaImage": ("NDims", "DimSize", "ElementType", "ElementDataFile"),
}
_PLACED = ("left", "right", "ras", "las", "lps")


class Header:
    """The fields of a header, in small letters, and where its pixels begin."""

    def __init__(self, path: Path, kind: str) -> None:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        self.path = path
        self.size = path.stat().st_size
        self.fields: dict[str, str] = {}
        self.end = 0  # where the pixels begin
        mark = ":" if kind == "NRRD" else "="
        for line in head.splitlines(keepends=True):
            self.end += len(line)
            text = line.decode("latin-1").strip()
            if kind == "NRRD" and not text:
                break
            name, separator, rest = text.partition(mark)
            # Behind `:=` stand a user's own keys, which may be named as anything.
            if separator and not (kind == "NRRD" and rest.startswith("=")):
                self.fields.setdefault(name.strip().lower(), rest.strip())
            if name.strip().lower() == "elementdatafile":
                break

    def get(self, *names: str) -> str:
        """The first of these fields that is there, "" where none is."""
        return next(
            (self.fields[name.lower()] for name in names if name.lower() in self.fields), ""
        )

    def numbers(self, name: str) -> list[float]:
        """The numbers of a field; empty where it is missing."""
        try:
            return [float(word) for word in self.get(name).replace(",", " ").split()]
        except ValueError:
            raise ImageError(
                f"{self.path}: its field {name} does not hold numbers. Export it again."
            ) from None


def compare(path: Path, kind: str) -> tuple[Hazards, bool, float]:
    """Compares what the header states.

    Returns:
        hazards: filled with what a user should know.
        stated: the header states a spacing.
        factor: mm of the header's unit of length.

    Raises:
        ImageError: naming the fields that contradict each other or the pixels.
    """
    header = Header(path, kind)
    hazards: Hazards = []
    missing = [name for name in _REQUIRED[kind] if not header.get(name)]
    wide = _BYTES.get(header.get("type").lower(), 1) > 1 and header.get("encoding").lower() not in {
        "ascii",
        "text",
        "txt",
        "hex",
    }
    missing += ["endian"] if kind == "NRRD" and wide and not header.get("endian") else []
    if missing:
        raise ImageError(
            f"{path}: not a readable volume (its header lacks {', '.join(missing)}). Export it "
            "again."
        )
    if kind == "NRRD":
        stated, factor = _compare_nrrd(header, hazards)
    else:
        stated, factor = _compare_meta(header, hazards), 1.0
    _compare_bytes(header, kind, hazards)
    return hazards, stated, factor


def _compare_nrrd(header: Header, hazards: Hazards) -> tuple[bool, float]:
    _same_count(header, "dimension", "sizes", "spacings")
    directions = header.get("space directions")
    spacings = header.numbers("spacings")
    if directions and spacings:
        raise ImageError(
            f"{header.path}: states both spacings and space directions, which NRRD forbids. "
            "Remove the one that is wrong."
        )
    _refuse_flat(header, "space directions", directions)
    numbers = [number for number in spacings if not math.isnan(number)]
    _refuse_spacing(header, "spacings", numbers)
    if (
        numbers
        and len(numbers) < len(spacings)
        and len(spacings) - len(numbers) != len(header.get("sizes").split()) - 3
    ):
        raise ImageError(
            f"{header.path}: spacings is not a number (nan) along one axis. Export it again."
        )
    if not header.get("space").lower().startswith(_PLACED):
        hazards.append(
            ("no_orientation", "no patient space is stated: left and right are not known")
        )
    units = {word.strip('"').lower() for word in header.get("space units").split()} - {""}
    if len(units) > 1 or units - set(_UNITS):
        hazards.append(("units", "space units are mixed or not known; they are taken as mm"))
        units = set()
    return bool(directions or numbers), _UNITS[units.pop()] if units else 1.0


def _compare_meta(header: Header, hazards: Hazards) -> bool:
    _same_count(header, "NDims", "DimSize", "ElementSpacing", "ElementSize")
    spacing, size = header.numbers("ElementSpacing"), header.numbers("ElementSize")
    _refuse_spacing(header, "ElementSpacing", spacing)
    if not spacing:
        _refuse_spacing(header, "ElementSize", size)
    elif size and any(abs(a - b) > 1e-3 * a for a, b in zip(spacing, size, strict=True)):
        hazards.append(("element_size", "ElementSize differs from ElementSpacing, which is used"))
    _refuse_flat(header, "TransformMatrix", header.get("TransformMatrix"))
    if not header.get("TransformMatrix", "Orientation", "Rotation"):
        hazards.append(
            ("no_orientation", "no TransformMatrix is stated: left and right are not known")
        )
    return bool(spacing or size)


def _same_count(header: Header, name: str, *lists: str) -> None:
    stated = header.numbers(name)
    for other in lists:
        values = header.numbers(other)
        if stated and values and stated[0] != len(values):
            raise ImageError(
                f"{header.path}: {name} is {stated[0]:g}, and {other} has {len(values)} numbers. "
                "Export it again."
            )


def _refuse_spacing(header: Header, name: str, spacing: list[float]) -> None:
    if any(not math.isfinite(number) or number <= 0 for number in spacing):
        raise ImageError(
            f"{header.path}: {name} holds a distance that is 0, negative or not finite. "
            "Correct it, or export the volume again."
        )


def _refuse_flat(header: Header, name: str, directions: str) -> None:
    """Directions that do not span the space, so that two voxels would share a place."""
    words = re.sub(r"[(),]|none", " ", directions).split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        raise ImageError(
            f"{header.path}: its field {name} does not hold numbers. Export it again."
        ) from None
    side = math.isqrt(len(numbers))
    if (
        side * side == len(numbers) > 0
        and not abs(np.linalg.det(numbers.reshape(side, side))) > 1e-12
    ):
        raise ImageError(
            f"{header.path}: the directions of {name} are singular or not finite. Correct it, or "
            "export the volume again."
        )


def _compare_bytes(header: Header, kind: str, hazards: Hazards) -> None:
    """The bytes of the pixels against the sizes. Compressed ones are unfolded for it: ITK takes
    damaged ones unsaid.
    """
    holder = _find_pixels(header, kind)
    sizes = header.numbers("sizes" if kind == "NRRD" else "DimSize")
    width = _BYTES.get(header.get("type" if kind == "NRRD" else "ElementType").lower(), 0)
    needed = int(math.prod(sizes) * width * (header.numbers("ElementNumberOfChannels") or [1])[0])
    skips = header.get("line skip", "lineskip", "byte skip", "byteskip", "HeaderSize") not in {
        "",
        "0",
    }
    if holder is None or skips or needed < 1:
        # a part is skipped, or the pixels lie in several files, which ITK misses where they are not
        # there
        return
    pixels, start = holder, header.end if holder == header.path else 0
    with pixels.open("rb") as stream:
        stream.seek(start)
        first = stream.read(2)
    size = pixels.stat().st_size - start
    squeezed = first == b"\x1f\x8b" or (
        first[:1] == b"\x78" and int.from_bytes(first, "big") % 31 == 0
    )
    encoding = header.get("encoding").lower()
    compressed = encoding in {"gz", "gzip"} or header.get("CompressedData").lower() == "true"
    if kind == "MetaImage" and compressed and not squeezed:
        raise ImageError(
            f"{header.path}: CompressedData is True, and the pixels are not compressed. Set it to "
            "False."
        )
    if kind == "MetaImage" and not compressed and squeezed and 0 < size < needed:
        raise ImageError(
            f"{header.path}: the pixels are compressed, and CompressedData does not say so. Set "
            "it to True."
        )
    if compressed:
        unfolded, used = _unfold(pixels, start, needed)
        if unfolded < needed:
            raise ImageError(
                f"{header.path}: its compressed pixels are cut or damaged. Copy or download it "
                "again."
            )
        stated = header.get("CompressedDataSize")
        if kind == "MetaImage" and stated != str(used) and pixels == header.path:
            raise ImageError(
                f"{header.path}: CompressedDataSize is {'wrong' if stated else 'missing'}. Set it "
                f"to {used}."
            )
        size = unfolded
    elif encoding not in {"", "raw"} or header.get("BinaryData").lower() == "false":
        return  # written as text
    if size < needed:
        raise ImageError(
            f"{header.path}: is truncated: the header claims {needed} bytes of pixels, and "
            f"{size} are there. Copy it again."
        )
    if size > needed:
        hazards.append(("surplus", f"{size - needed} bytes behind the pixels are left out"))


def find_pixels(path: Path, kind: str) -> Path | None:
    """The file with the pixels: the header's own or another; None where it names several by a list
    or a pattern.

    Raises:
        ImageError: it is not there.
    """
    return _find_pixels(Header(path, kind), kind)


def _find_pixels(header: Header, kind: str) -> Path | None:
    named = header.get("data file", "datafile") if kind == "NRRD" else header.get("ElementDataFile")
    if not named or named.upper() == "LOCAL":
        return header.path
    if named.upper().startswith("LIST") or "%" in named:
        return None
    pixels = header.path.parent / named
    if not pixels.is_file():
        beside = sorted(
            p.name
            for p in header.path.parent.glob(f"{header.path.stem}.*")
            if p.suffix.lower() in {".raw", ".zraw", ".gz"}
        )
        hint = (
            f"Write {beside[0]}, which lies beside it, into its header"
            if len(beside) == 1
            else "Put it beside, under that name"
        )
        raise ImageError(
            f"{header.path}: its header names a file with the pixels that is not there. {hint}."
        )
    return pixels


def _unfold(path: Path, start: int, needed: int) -> tuple[int, int]:
    """How many bytes a zlib or gzip stream holds, 0 where it is damaged, and its length; both
    checked by its sum.
    """
    count, used = 0, 0
    with path.open("rb") as stream:
        stream.seek(start)
        unpacker, rest = zlib.decompressobj(47), b""
        try:
            while not unpacker.eof:
                block = rest or stream.read(1 << 20)
                if not block:
                    return 0, used
                count += len(unpacker.decompress(block, 1 << 24))
                rest = unpacker.unconsumed_tail
                used += len(block) - len(rest) - len(unpacker.unused_data)
                if count > needed + _SURPLUS:
                    break
        except zlib.error:
            return 0, used
    return count, used
