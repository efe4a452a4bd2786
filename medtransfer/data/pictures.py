"""PNG, JPEG, BMP and TIFF files at their full depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from medtransfer.data.limits import refuse_implausible
from medtransfer.data.logs import silence
from medtransfer.errors import ImageError

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
# Bit depth and colour type of the PNG header that Pillow would cut to 8 bits.
_DEEP = {(16, 2), (16, 4), (16, 6)}


def read_picture(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Grey levels or colours of one picture.

    JPEG orientation is applied, an alpha channel is composed on black, a palette becomes RGB.

    Returns:
        array: float32 (channel, row, column); 8 bit: 0..255, 16 bit: 0..65535, floating TIFF as stored.
        provenance: format, mode, depth and steps.

    Raises:
        ImageError: damaged, several frames, or a depth that would be lost.
    """
    return _read_tiff(path) if path.suffix.lower() in {".tif", ".tiff"} else _read_pillow(path)


def _read_pillow(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    steps: list[str] = []
    try:
        # Pillow warns of odd metadata, which are not used, and of sizes, which are checked here.
        with silence("PIL"):
            with Pillow.open(path) as opened:
                kind = opened.format or ""
                refuse_implausible(path, (*opened.size, len(opened.getbands())), path.stat().st_size)
                if getattr(opened, "n_frames", 1) > 1:
                    raise ImageError(f"{path}: holds several frames; give one image per file.")
                if _png_depth_and_colour(path) in _DEEP:
                    return _read_deep_png(path)
                picture = ImageOps.exif_transpose(opened)
                if opened.getexif().get(0x0112, 1) != 1:
                    steps.append("EXIF orientation applied")
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
        raise ImageError(f"{path}: not a readable picture ({_first_line(error)}). Save it again as PNG.") from error
    bits = 1 if pixels.dtype == np.bool_ else 16 if picture.mode.startswith("I") else 8 * pixels.dtype.itemsize
    array = np.moveaxis(np.atleast_3d(pixels), -1, 0).astype(np.float32)
    hazards = [("lossy", "JPEG: was compressed with loss")] if kind == "JPEG" else []
    return array, _provenance(kind, mode, bits, steps, hazards)


def _read_deep_png(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """16-bit colour or transparency, which Pillow would cut to 8 bits."""
    array = np.moveaxis(imagecodecs.png_decode(path.read_bytes()), -1, 0).astype(np.float32)
    steps = []
    if array.shape[0] in {2, 4}:
        array = array[:-1] * (array[-1:] / np.float32(65535))
        steps.append("alpha composed on black")
    return array, _provenance("PNG", "RGB;16" if array.shape[0] == 3 else "I;16", 16, steps)


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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


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
        raise ImageError(f"{path}: not a readable TIFF ({_first_line(error)}). Save it again.") from error
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
    if orientation != 1:
        values = _turn(values, orientation)
        steps.append("orientation applied")
    return values, _provenance("TIFF", photometric, bits, steps)


def _turn(array: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """(channel, row, column) as the orientation tag of TIFF 6.0 says it is to be looked at."""
    turned = array.swapaxes(1, 2) if orientation >= 5 else array
    rows = -1 if orientation in {3, 4, 7, 8} else 1
    columns = -1 if orientation in {2, 3, 6, 7} else 1
    return np.ascontiguousarray(turned[:, ::rows, ::columns])
