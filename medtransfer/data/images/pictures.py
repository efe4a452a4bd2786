"""PNG, JPEG, BMP, GIF, WebP, JPEG 2000, PNM, AVIF and TIFF files at their full depth.

What a file states twice, and what happens where it differs (for TIFF, see `tiff`):

- frames of GIF, WebP, APNG, AVIF (compared with: one): refused.
- pictures of a JPEG (MPO, as phones write) (compared with: one): the first is read, noted.
- depth of PNG, JPEG 2000, PNM (compared with: depth of the decoded pixels): decoded by other means,
  in full.
- depth of AVIF (compared with: 8 bits): refused.
- orientation tag (compared with: 1 to 8): otherwise not applied, noted.
- sides of PNM (compared with: values that follow): fewer: refused; another map behind: refused.

Not compared: EXIF sizes (of the picture before it was edited), sBIT (descriptive), gamma, colour
profiles, resolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from medtransfer.data.images.image import identity_turn, turn_array
from medtransfer.data.images.limits import refuse_implausible
from medtransfer.data.images.quiet import silence, without_values
from medtransfer.data.images.tiff import read_tiff
from medtransfer.errors import ImageError

# The plugins of Pillow that may open a file, by what its content says it is.
_PLUGINS = {
    "JPEG": ("JPEG", "MPO"),
    "BMP": ("BMP", "DIB"),
    "JPEG 2000": ("JPEG2000",),
    "PNM": ("PPM",),
}
# Bit depth and colour type of the PNG header that Pillow would cut to 8 bits.
_DEEP = {(16, 2), (16, 4), (16, 6)}
# The header of a grey or colour map: kind, columns, rows, highest value (netpbm's pgm and ppm),
# with comments between.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(
    rb"P([2356])" + _GAP + rb"(\d{1,6})" + _GAP + rb"(\d{1,6})" + _GAP + rb"(\d{1,6})\s"
)
# Pillow's limit of size is one setting for all threads.
_no_bombs = Lock()


def read_picture(path: Path, kind: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Grey levels or colours of one picture.

    The orientation tag is applied, an alpha channel is composed on black, a palette becomes RGB.

    Args:
        path: the file.
        kind: one of `signatures.PICTURES`.

    Returns:
        array: float32 (channel, row, column); 8 bit: 0..255, 16 bit: 0..65535, floating TIFF as
            stored.
        provenance: format, mode, depth and steps.

    Raises:
        ImageError: damaged, several frames, or a depth that would be lost.
    """
    if kind != "TIFF":
        return _read_pillow(path, kind)
    array, orientation, facts = read_tiff(path)
    return _turned(array, orientation, _provenance("TIFF", **facts))


def _read_pillow(path: Path, named: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    steps: list[str] = []
    try:
        # Pillow warns of odd metadata, which are not used, and of sizes, which are checked here.
        with silence("PIL"):
            with _open(path, _PLUGINS.get(named, (named.upper(),))) as picture:
                refuse_implausible(
                    path, (*picture.size, len(picture.getbands())), path.stat().st_size
                )
                hazards = _look_at(path, named, picture)
                orientation = picture.getexif().get(0x0112, 1)
                deep = _read_deep(path, named)
                if deep is not None:
                    return _turned(deep[0], orientation, _provenance(named, *deep[1:], hazards))
                picture.load()
            mode = picture.mode
            if mode in {"P", "PA"} or (mode in {"L", "RGB"} and "transparency" in picture.info):
                picture = picture.convert("RGBA")
            if picture.mode in {"LA", "RGBA"}:
                grey = picture.mode == "LA"
                picture = Pillow.alpha_composite(
                    Pillow.new("RGBA", picture.size, (0, 0, 0, 255)), picture.convert("RGBA")
                )
                picture = picture.convert("L" if grey else "RGB")
                steps.append("alpha composed on black")
            elif picture.mode in {"CMYK", "YCbCr", "LAB", "HSV"}:
                picture = picture.convert("RGB")
                steps.append(f"{mode} converted to RGB")
            pixels = np.asarray(picture)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # each format fails in its own way
        remedy = "Export it again" if named == "PNG" else "Save it again as PNG"
        raise ImageError(
            f"{path}: not a readable picture ({_reason(error, path)}). {remedy}."
        ) from error
    bits = (
        1
        if pixels.dtype == np.bool_
        else 16
        if picture.mode.startswith("I")
        else 8 * pixels.dtype.itemsize
    )
    array = np.moveaxis(np.atleast_3d(pixels), -1, 0).astype(np.float32)
    return _turned(array, orientation, _provenance(named, mode, bits, steps, hazards))


def _look_at(path: Path, named: str, picture: Any) -> list[tuple[str, str]]:
    """What the header tells before anything is decoded."""
    hazards = []
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":
        raise ImageError(f"{path}: holds several frames ({frames}); give one image per file.")
    if frames > 1:
        hazards.append(
            ("more_pictures", f"holds {frames} pictures, as phones write them; the first is read")
        )
    with path.open("rb") as stream:
        head = stream.read(4096)
    box = head.find(b"av1C")
    if named == "AVIF" and 0 <= box < len(head) - 6 and head[box + 6] & 0x40:
        raise ImageError(
            f"{path}: is AVIF of more than 8 bits, which would be cut. Save it as PNG."
        )
    wavelet = head.find(
        b"\xff\x52"
    )  # its coding style; a transformation of 0 is the irreversible one (ISO 15444-1, A.6.1)
    lossy = {
        "JPEG": True,
        "AVIF": True,
        "WebP": b"VP8 " in head,
        "JPEG 2000": 0 < wavelet < len(head) - 13 and head[wavelet + 13] == 0,
    }
    if lossy.get(named, False):
        hazards.append(("lossy", f"{named}: was compressed with loss"))
    return hazards


@contextmanager
def _open(path: Path, plugins: tuple[str, ...]) -> Iterator[Any]:
    """Opens with these plugins alone, and without Pillow's own limit of size: this package has its
    own.
    """
    with _no_bombs:
        before, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
        try:
            opened = Pillow.open(path, formats=plugins)
        finally:
            Pillow.MAX_IMAGE_PIXELS = before
    with opened:
        yield opened


def _read_deep(path: Path, named: str) -> tuple[NDArray[np.float32], str, int, list[str]] | None:
    """Array, mode, bits and steps of a picture whose depth Pillow would cut or stretch; None for
    all others.
    """
    if named == "PNM":
        return _read_pnm(path)
    if not (
        _png_depth_and_colour(path) in _DEEP
        if named == "PNG"
        else named == "JPEG 2000" and _depth_of_jpeg_2000(path) > 8
    ):
        return None
    decode = imagecodecs.png_decode if named == "PNG" else imagecodecs.jpeg2k_decode
    bits = 16 if named == "PNG" else _depth_of_jpeg_2000(path)
    stored = np.asarray(decode(path.read_bytes()))
    array = np.moveaxis(np.atleast_3d(stored), -1, 0).astype(np.float32)
    steps = []
    if array.shape[0] in {2, 4}:
        array = array[:-1] * (array[-1:] / np.float32(2**bits - 1))
        steps.append("alpha composed on black")
    return array, f"RGB;{bits}" if array.shape[0] == 3 else f"I;{bits}", bits, steps


def _depth_of_jpeg_2000(path: Path) -> int:
    """Bits of the first component, by the SIZ segment (ISO 15444-1, A.5.1)."""
    with path.open("rb") as stream:
        head = stream.read(65536)
    mark = head.find(b"\xff\x4f\xff\x51")
    return (head[mark + 42] & 0x7F) + 1 if 0 <= mark < len(head) - 42 else 0


def _read_pnm(path: Path) -> tuple[NDArray[np.float32], str, int, list[str]] | None:
    """Values as they are written, of which Pillow stretches some and cuts others; None for bilevel
    maps.
    """
    data = path.read_bytes()
    header = _PNM.match(data)
    if header is None:
        return None
    kind, columns, rows, top = (int(group) for group in header.groups())
    channels, plain = (3 if kind in {3, 6} else 1), kind in {2, 3}
    rest, width = data[header.end() :], 1 if top < 256 else 2
    needed = rows * columns * channels
    if plain:
        values = np.array(re.sub(rb"#[^\r\n]*", b"", rest).split()[:needed], dtype=np.float32)
    else:
        if _PNM.match(rest[needed * width :].lstrip()):
            raise ImageError(
                f"{path}: holds several maps one behind the other; give one image per file."
            )
        values = np.frombuffer(
            rest[: len(rest) // width * width][: needed * width], f">u{width}"
        ).astype(np.float32)
    if len(values) < needed or not 0 < top < 65536:
        raise ImageError(
            f"{path}: is truncated: {rows} x {columns} x {channels} values are stated, and "
            f"{len(values)} are there. Copy it again."
        )
    array = np.moveaxis(values.reshape(rows, columns, channels), -1, 0)
    return array, "RGB" if channels == 3 else "L", 8 * width, []


def _provenance(
    kind: str, mode: str, bits: int, steps: list[str], hazards: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    return {
        "format": kind,
        "modality": "",
        "mode": mode,
        "bits_stored": bits,
        "spacing_from": "none",
        "steps": steps,
        "hazards": list(hazards),
    }


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its first bytes are of no picture"
    return without_values(str(error).replace(str(path), path.name)) or type(error).__name__


def _png_depth_and_colour(path: Path) -> tuple[int, int] | None:
    """Bit depth and colour type of the PNG header (ISO 15948, IHDR); Pillow cuts 16-bit colour to 8
    silently.
    """
    with path.open("rb") as stream:
        head = stream.read(26)
    return (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else None


def _turned(
    array: NDArray[np.float32], orientation: int, provenance: dict[str, Any]
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """(channel, row, column) as the orientation tag of EXIF and TIFF 6.0 says it is to be looked
    at.
    """
    order = {"turn": identity_turn(2), "stored_shape": list(array.shape[1:])}
    if orientation in range(2, 9):
        rows, columns = (1, 0) if orientation >= 5 else (0, 1)
        turn = [
            [rows, -1 if orientation in {3, 4, 7, 8} else 1],
            [columns, -1 if orientation in {2, 3, 6, 7} else 1],
        ]
        array = np.stack([turn_array(channel, turn) for channel in array])
        order["turn"] = turn
        provenance["steps"].append("orientation tag applied")
    elif orientation != 1:
        provenance["hazards"].append(
            ("orientation", "the orientation tag is none of 1 to 8 and is not applied")
        )
    return array, provenance | order
