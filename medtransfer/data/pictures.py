"""PNG, JPEG, BMP, GIF, WebP, JPEG 2000, PNM, AVIF and TIFF files at their full depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from medtransfer.data.image import identity_turn, turn_array
from medtransfer.data.limits import refuse_implausible
from medtransfer.data.logs import silence, without_values
from medtransfer.errors import ImageError

# The plugins of Pillow that may open a file, by what its content says it is.
_PLUGINS = {"JPEG": ("JPEG", "MPO"), "BMP": ("BMP", "DIB"), "WebP": ("WEBP",), "JPEG 2000": ("JPEG2000",), "PNM": ("PPM",)}
# Bit depth and colour type of the PNG header that Pillow would cut to 8 bits.
_DEEP = {(16, 2), (16, 4), (16, 6)}
# Pillow's limit of size is one setting for all threads.
_no_bombs = Lock()


def read_picture(path: Path, kind: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Grey levels or colours of one picture.

    The orientation tag is applied, an alpha channel is composed on black, a palette becomes RGB.

    Args:
        path: the file.
        kind: one of `signatures.PICTURES`.

    Returns:
        array: float32 (channel, row, column); 8 bit: 0..255, 16 bit: 0..65535, floating TIFF as stored.
        provenance: format, mode, depth and steps.

    Raises:
        ImageError: damaged, several frames, or a depth that would be lost.
    """
    return _read_tiff(path) if kind == "TIFF" else _read_pillow(path, kind)


def _read_pillow(path: Path, named: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    steps: list[str] = []
    try:
        # Pillow warns of odd metadata, which are not used, and of sizes, which are checked here.
        with silence("PIL"):
            with _open(path, _PLUGINS.get(named, (named,))) as picture:
                kind = picture.format or ""
                refuse_implausible(path, (*picture.size, len(picture.getbands())), path.stat().st_size)
                if kind != "MPO" and getattr(picture, "n_frames", 1) > 1:
                    raise ImageError(f"{path}: holds several frames; give one image per file.")
                orientation = picture.getexif().get(0x0112, 1)
                if _png_depth_and_colour(path) in _DEEP:
                    return _read_deep_png(path, orientation)
                picture.load()
            mode = picture.mode
            if mode in {"P", "PA"} or (mode in {"L", "RGB"} and "transparency" in picture.info):
                picture = picture.convert("RGBA")
            if picture.mode in {"LA", "RGBA"}:
                grey = picture.mode == "LA"
                picture = Pillow.alpha_composite(Pillow.new("RGBA", picture.size, (0, 0, 0, 255)), picture.convert("RGBA"))
                picture = picture.convert("L" if grey else "RGB")
                steps.append("alpha composed on black")
            elif picture.mode in {"CMYK", "YCbCr", "LAB", "HSV"}:
                picture = picture.convert("RGB")
                steps.append(f"{mode} converted to RGB")
            pixels = np.asarray(picture)
    except ImageError:
        raise
    except Exception as error:  # each format fails in its own way
        raise ImageError(f"{path}: not a readable picture ({_reason(error, path)}). Save it again as PNG.") from error
    bits = 1 if pixels.dtype == np.bool_ else 16 if picture.mode.startswith("I") else 8 * pixels.dtype.itemsize
    array = np.moveaxis(np.atleast_3d(pixels), -1, 0).astype(np.float32)
    hazards = [("lossy", "JPEG: was compressed with loss")] if kind in {"JPEG", "MPO"} else []
    return _turned(array, orientation, _provenance("JPEG" if kind == "MPO" else kind, mode, bits, steps, hazards))


@contextmanager
def _open(path: Path, plugins: tuple[str, ...]) -> Iterator[Any]:
    """Opens with these plugins alone, and without Pillow's own limit of size: this package has its own."""
    with _no_bombs:
        before, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
        try:
            opened = Pillow.open(path, formats=plugins)
        finally:
            Pillow.MAX_IMAGE_PIXELS = before
    with opened:
        yield opened


def _read_deep_png(path: Path, orientation: int) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """16-bit colour or transparency, which Pillow would cut to 8 bits."""
    array = np.moveaxis(imagecodecs.png_decode(path.read_bytes()), -1, 0).astype(np.float32)
    steps = []
    if array.shape[0] in {2, 4}:
        array = array[:-1] * (array[-1:] / np.float32(65535))
        steps.append("alpha composed on black")
    return _turned(array, orientation, _provenance("PNG", "RGB;16" if array.shape[0] == 3 else "I;16", 16, steps))


def _provenance(kind: str, mode: str, bits: int, steps: list[str], hazards: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
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
    """Bit depth and colour type of the PNG header (ISO 15948, IHDR); Pillow cuts 16-bit colour to 8 silently."""
    with path.open("rb") as stream:
        head = stream.read(26)
    return (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else None


def _read_tiff(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    steps: list[str] = []
    try:
        with silence("tifffile"), tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) != 1:
                raise ImageError(f"{path}: holds {len(tiff.pages)} pages; give one image per file.")
            page = tiff.pages.first
            refuse_implausible(path, page.shape, path.stat().st_size)
            pixels = page.asarray()
            photometric = getattr(page.photometric, "name", str(page.photometric))
            array = pixels if page.planarconfig == 2 and pixels.ndim == 3 else np.moveaxis(np.atleast_3d(pixels), -1, 0)
            bits, alpha = int(page.bitspersample), [int(kind) for kind in page.extrasamples]
            orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
            raw_colour = photometric == "YCBCR" and int(page.compression) == 1
    except ImageError:
        raise
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise ImageError(f"{path}: not a readable TIFF ({_reason(error, path)}). Save it again.") from error
    if array.size == 0:
        raise ImageError(f"{path}: holds no pixels. Save it again.")
    colours = array.shape[0] - len(alpha)
    if array.ndim != 3 or colours not in {1, 3} or len(alpha) > 1 or np.iscomplexobj(array):
        raise ImageError(f"{path}: a TIFF of shape {pixels.shape} is neither a grey nor a colour image.")
    if photometric not in {"MINISBLACK", "MINISWHITE", "RGB", "YCBCR"} or raw_colour:
        raise ImageError(f"{path}: TIFF colours {photometric} are not known. Save it as grey or RGB.")
    top = float(2**bits - 1) if array.dtype.kind in "ub" else float(array.max())
    values = array.astype(np.float32)
    if alpha:
        # Associated alpha (1) is multiplied in already; 0 is a channel that the file does not explain.
        if alpha[0] == 0:
            raise ImageError(f"{path}: has a channel besides its colours that it does not explain. Save it as grey or RGB.")
        values = values[:-1] * (values[-1:] / np.float32(top)) if alpha[0] == 2 else values[:-1]
        steps.append("alpha composed on black")
    if photometric == "MINISWHITE":
        values = np.float32(top) - values
        steps.append("white-is-zero inverted")
    return _turned(values, orientation, _provenance("TIFF", photometric, bits, steps))


def _turned(array: NDArray[np.float32], orientation: int, provenance: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """(channel, row, column) as the orientation tag of EXIF and TIFF 6.0 says it is to be looked at."""
    order = {"turn": identity_turn(2), "stored_shape": list(array.shape[1:])}
    if orientation in range(2, 9):
        rows, columns = (1, 0) if orientation >= 5 else (0, 1)
        turn = [[rows, -1 if orientation in {3, 4, 7, 8} else 1], [columns, -1 if orientation in {2, 3, 6, 7} else 1]]
        array = np.stack([turn_array(channel, turn) for channel in array])
        order["turn"] = turn
        provenance["steps"].append("orientation tag applied")
    return array, provenance | order
