"""TIFF and BigTIFF files at their full depth.

Each fact that a file states twice, and what happens where it differs:

- pages (compared with: one image; thumbnails and masks (NewSubfileType, SubfileType) aside):
  several: refused; thumbnails: left out, noted.
- images by ImageJ, OME, or the writer's series (compared with: pages): more than one image:
  refused.
- offsets and lengths of strips or tiles (compared with: length of the file, number needed,
  uncompressed size): refused as truncated.
- BitsPerSample, SampleFormat (compared with: alike for all samples): refused.
- Photometric, SamplesPerPixel, ExtraSamples (compared with: array): refused; unexplained channels
  too.
- Orientation (compared with: 1 to 8): otherwise not applied, noted.

Not compared: MinSampleValue and MaxSampleValue (descriptive), resolutions (of paper, not of
patients), EXIF sizes.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from medtransfer.data.images.limits import refuse_implausible
from medtransfer.data.images.quiet import silence, without_values
from medtransfer.errors import ImageError

_REDUCED, _MASK = 1, 4


def read_tiff(path: Path) -> tuple[NDArray[np.float32], int, dict[str, Any]]:
    """Reads the one image of a file.

    Returns:
        array: float32 (channel, row, column) as stored, before the orientation tag.
        orientation: that tag, 1 to 8.
        facts: mode, bits, steps and hazards.

    Raises:
        ImageError: damaged, several images, or of colours that are not known.
    """
    steps: list[str] = []
    hazards: list[tuple[str, str]] = []
    try:
        with silence("tifffile"), tifffile.TiffFile(path) as tiff:
            page = _choose_page(path, tiff, hazards)
            if isinstance(page.bitspersample, tuple) or isinstance(page.sampleformat, tuple):
                raise ImageError(
                    f"{path}: its samples differ in BitsPerSample or SampleFormat. Save it as "
                    "grey or RGB."
                )
            refuse_implausible(path, page.shape, path.stat().st_size)
            _refuse_missing_bytes(path, page)
            pixels = page.asarray()
            photometric = getattr(page.photometric, "name", str(page.photometric))
            array = (
                pixels
                if page.planarconfig == 2 and pixels.ndim == 3
                else np.moveaxis(np.atleast_3d(pixels), -1, 0)
            )
            bits, alpha = int(page.bitspersample), [int(kind) for kind in page.extrasamples]
            orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
            raw_colour = photometric == "YCBCR" and int(page.compression) == 1
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # tifffile raises many kinds for damaged files
        reason = without_values(str(error).replace(str(path), path.name)) or type(error).__name__
        raise ImageError(f"{path}: not a readable TIFF ({reason}). Export it again.") from error
    if array.size == 0:
        raise ImageError(f"{path}: holds no pixels. Export it again.")
    colours = array.shape[0] - len(alpha)
    if array.ndim != 3 or colours not in {1, 3} or len(alpha) > 1 or np.iscomplexobj(array):
        raise ImageError(
            f"{path}: a TIFF of shape {pixels.shape} is neither a grey nor a colour image. Save "
            "it as grey or RGB."
        )
    if photometric not in {"MINISBLACK", "MINISWHITE", "RGB", "YCBCR"} or raw_colour:
        raise ImageError(
            f"{path}: TIFF colours {photometric} are not known. Save it as grey or RGB."
        )
    if orientation not in range(1, 9):
        hazards.append(("orientation", "the orientation tag is none of 1 to 8 and is not applied"))
        orientation = 1
    values = _compose(path, array, photometric, bits, alpha, steps)
    return (
        values,
        orientation,
        {"mode": photometric, "bits": bits, "steps": steps, "hazards": hazards},
    )


def _choose_page(path: Path, tiff: tifffile.TiffFile, hazards: list[tuple[str, str]]) -> Any:
    """The one page that is no thumbnail of another."""
    if any(
        getattr(tiff, f"is_{maker}", False) for maker in ("svs", "ndpi", "scn", "bif", "philips")
    ):
        raise ImageError(
            f"{path}: is a whole slide. Export the wanted region, or a level that fits in memory, "
            "as TIFF or PNG."
        )
    pages = list(tiff.pages)
    whole = [page for page in pages if not _is_minor(page)]
    if not whole:
        whole = pages[:1]
    if len(whole) != 1:
        raise ImageError(f"{path}: holds {len(whole)} pages; give one image per file.")
    if len(pages) > 1:
        hazards.append(
            (
                "thumbnails",
                f"{len(pages) - 1} page(s) are thumbnails or masks of the image and are left out",
            )
        )
    stated = _stated_images(tiff)
    if stated > 1:
        raise ImageError(
            f"{path}: its metadata state {stated} images, and it holds 1 page; give one image per "
            "file."
        )
    return whole[0]


def _is_minor(page: Any) -> bool:
    """True for a thumbnail, or a mask of transparency (TIFF 6.0, NewSubfileType and
    SubfileType).
    """
    old = page.tags.get(255)
    return bool(int(page.subfiletype) & (_REDUCED | _MASK)) or (
        old is not None and int(old.value) == 2
    )


def _stated_images(tiff: tifffile.TiffFile) -> int:
    """Images by the metadata of the writer: one page can stand for a stack that follows it."""
    imagej = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    counts = [int(imagej) if str(imagej).isdigit() else 1]
    for series in tiff.series[:1]:
        counts.append(
            math.prod(
                n for n, axis in zip(series.shape, series.axes, strict=False) if axis not in "YXS"
            )
        )
    if tiff.is_ome:
        # One page of a set of files: the others are not here.
        counts += [
            math.prod(int(n) for n in sizes) for sizes in _ome_sizes(tiff.ome_metadata or "")
        ]
    return max(counts)


def _ome_sizes(text: str) -> list[tuple[str, ...]]:
    pixels = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    sizes = [tuple(re.findall(r'\bSize[ZT]="(\d+)"', element)) for element in pixels]
    return sizes if len(pixels) < 2 else [*sizes, (str(len(pixels)),)]


def _refuse_missing_bytes(path: Path, page: Any) -> None:
    """Strips or tiles that lie behind the end of the file, or are not there: they would be read as
    zeros.
    """
    offsets, counts, size = page.dataoffsets, page.databytecounts, path.stat().st_size
    needed = math.prod(page.chunked) if page.chunked else 1
    beyond = any(offset + count > size for offset, count in zip(offsets, counts, strict=False))
    empty = sum(offset == 0 or count == 0 for offset, count in zip(offsets, counts, strict=False))
    stored = (
        sum(counts) if int(page.compression) == 1 and int(page.photometric) != 6 else None
    )  # 6: colours share bytes
    short = stored is not None and stored < math.prod(page.shape) * int(page.bitspersample) // 8
    if beyond or short or empty or min(len(offsets), len(counts)) < needed:
        raise ImageError(
            f"{path}: is truncated: not all of its {needed} strips or tiles are there. Copy or "
            "export it again."
        )


def _compose(
    path: Path, array: NDArray[Any], photometric: str, bits: int, alpha: list[int], steps: list[str]
) -> NDArray[np.float32]:
    """Alpha on black, and white made the highest value."""
    top = float(2**bits - 1) if array.dtype.kind in "ub" else float(array.max())
    values = array.astype(np.float32)
    if alpha:
        # Associated alpha (1) is multiplied in already; 0 is a channel that the file does not
        # explain.
        if alpha[0] == 0:
            raise ImageError(
                f"{path}: has a channel besides its colours that it does not explain. Save it as "
                "grey or RGB."
            )
        values = values[:-1] * (values[-1:] / np.float32(top)) if alpha[0] == 2 else values[:-1]
        steps.append("alpha composed on black")
    if photometric == "MINISWHITE":
        values = np.float32(top) - values
        steps.append("white-is-zero inverted")
    return values
