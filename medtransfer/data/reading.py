"""One image file -> array (channel, row, column), spacing in mm, provenance; and the MONAI reader over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader as MonaiImageReader
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from medtransfer.data.dicom import is_dicom, read_dicom
from medtransfer.errors import ImageError

_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_DICOM = {".dcm", ".dicom", ".ima"}


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels of one image.

    Attributes:
        array: float32 (channel, row, column): 1 channel for grey, 3 for colour. Stored units: grey
            levels of the file for pictures (8 bit: 0..255, 16 bit: 0..65535), rescaled units for DICOM.
        spacing: mm between rows and between columns; 1 where the file states none.
        affine: float64 (4, 4), index (row, column, 0, 1) -> mm from the centre of the first pixel.
        provenance: format, depth, and every step done to the pixels.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]
    provenance: dict[str, Any]


def is_image_file(path: Path) -> bool:
    """True for files that `read_image` takes: by their ending, or DICOM by its mark."""
    suffix = path.suffix.lower()
    return suffix in _PICTURES or suffix in _DICOM or (suffix not in {".txt", ".csv", ".json", ".xml"} and is_dicom(path))


def read_image(path: str | Path, window: tuple[float, float] | None = None) -> Image:
    """Reads one PNG, JPEG, TIFF, BMP or single-frame DICOM file.

    16-bit files keep their depth, JPEG orientation is applied, an alpha channel is composed on black,
    colour channels that are all equal become one grey channel; DICOM: see `dicom.read_dicom`.

    Args:
        path: the file.
        window: (center, width) in the image's units, mapped to 0..1 and clipped; None leaves the units.

    Raises:
        ImageError: missing, damaged, ambiguous, or with values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; give one image file.")
    if not path.is_file():
        raise ImageError(f"{path}: no such file.")
    spacing: tuple[float, float] = (1.0, 1.0)
    if path.suffix.lower() in {".tif", ".tiff"}:
        array, provenance = _read_tiff(path)
    elif path.suffix.lower() in _PICTURES:
        array, provenance = _read_picture(path)
    else:
        array, spacing, provenance = read_dicom(path)
    shape = array.shape[1:]
    if array.size == 0 or min(shape) < 8 or max(shape) > 50 * min(shape):
        raise ImageError(f"{path}: has {shape[0]} x {shape[1]} pixels; an image needs at least 8 x 8, and sides within a factor of 50.")
    if not np.isfinite(array).all():
        raise ImageError(f"{path}: {int((~np.isfinite(array)).sum())} pixels are NaN or infinite. Mend the file or leave it out.")
    if array.shape[0] == 3 and (array[0] == array[1]).all() and (array[1] == array[2]).all():
        array = array[:1]
        provenance["steps"].append("equal colour channels reduced to one")
    affine = np.diag([spacing[0], spacing[1], 1.0, 1.0])
    image = Image(np.ascontiguousarray(array, dtype=np.float32), spacing, affine, provenance)
    return image if window is None else _apply_window(image, window)


def _apply_window(image: Image, window: tuple[float, float]) -> Image:
    center, width = window
    if not width > 0:
        raise ImageError(f"window width must be above 0, not {width:g}.")
    array = np.clip((image.array - np.float32(center - width / 2)) / np.float32(width), 0.0, 1.0)
    steps = [*image.provenance["steps"], f"window center {center:g} width {width:g} mapped to 0..1"]
    return replace(image, array=array, provenance={**image.provenance, "steps": steps})


def _read_picture(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    steps: list[str] = []
    try:
        if _png_depth_and_colour(path) in {(16, 2), (16, 4), (16, 6)}:
            raise ImageError(f"{path}: a 16-bit PNG with colour or transparency would lose half its depth. Save it as TIFF.")
        with Pillow.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise ImageError(f"{path}: holds several frames; give one image per file.")
            picture = ImageOps.exif_transpose(opened)
            if opened.getexif().get(0x0112, 1) != 1:
                steps.append("EXIF orientation applied")
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: not a readable picture ({error}). Save it again as PNG.") from error
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
    bits = 1 if pixels.dtype == np.bool_ else 16 if picture.mode.startswith("I") else 8 * pixels.dtype.itemsize
    array = np.moveaxis(np.atleast_3d(pixels), -1, 0).astype(np.float32)
    return array, {"format": opened.format or "", "modality": "", "mode": mode, "bits_stored": bits, "steps": steps}


def _png_depth_and_colour(path: Path) -> tuple[int, int] | None:
    """Bit depth and colour type of the PNG header (ISO 15948, IHDR); Pillow cuts 16-bit colour to 8 silently."""
    with path.open("rb") as stream:
        head = stream.read(26)
    return (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else None


def _read_tiff(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    steps: list[str] = []
    try:
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) != 1:
                raise ImageError(f"{path}: holds {len(tiff.pages)} pages; give one image per file.")
            page = tiff.pages.first
            pixels = page.asarray()
            photometric = getattr(page.photometric, "name", str(page.photometric))
            samples_first = page.planarconfig == 2 and pixels.ndim == 3
    except ImageError:
        raise
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise ImageError(f"{path}: not a readable TIFF ({error}). Save it again.") from error
    array = np.moveaxis(np.atleast_3d(pixels), -1, 0) if not samples_first else pixels
    if array.ndim != 3 or array.shape[0] not in {1, 2, 3, 4} or np.iscomplexobj(array):
        raise ImageError(f"{path}: a TIFF of shape {pixels.shape} is neither a grey nor a colour image.")
    if photometric not in {"MINISBLACK", "MINISWHITE", "RGB", "YCBCR"}:
        raise ImageError(f"{path}: TIFF colours {photometric} are not known. Save it as grey or RGB.")
    if array.shape[0] in {2, 4}:
        array = array[:-1]
        steps.append("alpha channel left out")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
        top = 1
    elif np.issubdtype(array.dtype, np.integer):
        top = np.iinfo(array.dtype).max
    else:
        top = array.max()
    if photometric == "MINISWHITE":
        array = top - array
        steps.append("white-is-zero inverted")
    bits = int(page.bitspersample)
    return array.astype(np.float32), {"format": "TIFF", "modality": "", "mode": photometric, "bits_stored": bits, "steps": steps}


class ImageReader(MonaiImageReader):  # type: ignore[misc]  # MONAI carries no types
    """`read_image` for MONAI's `LoadImage`: channel first, spacing and provenance in the metadata."""

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:  # noqa: ARG002  given by MONAI
        """True: the file's content decides, not its name."""
        return True

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> Image:  # noqa: ARG002
        """Reads one file. A list of one is taken as that file."""
        if isinstance(data, (str, Path)):
            return read_image(data)
        if len(data) != 1:
            raise ImageError(f"one file makes one image, {len(data)} given.")
        return read_image(data[0])

    def get_data(self, img: Image) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The array (channel, row, column) and MONAI's metadata."""
        meta = {
            "affine": img.affine,
            "spatial_shape": np.asarray(img.array.shape[1:]),
            "original_channel_dim": 0,
            "provenance": img.provenance,
        }
        return img.array, meta


def load_tensor(path: str) -> MetaTensor:
    """One file through `ImageReader`, as MONAI's `LoadImage` would return it.

    `LoadImage` itself is not used: when the reader it was given refuses a file, it goes on to MONAI's
    own readers, and those return pixels (not inverted, not rescaled) for files refused with a reason.
    """
    reader = ImageReader()
    array, meta = reader.get_data(reader.read(path))
    return MetaTensor(array, meta=meta)
