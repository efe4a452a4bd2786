"""NIfTI, NRRD and MetaImage files, and the files that hold their pixels."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medtransfer.data.images.itk import read_itk
from medtransfer.data.images.itk_facts import find_pixels
from medtransfer.data.images.nifti import nifti_pixels, read_nifti
from medtransfer.data.images.quiet import silence, without_values
from medtransfer.data.images.signatures import header_sizes, kind_of
from medtransfer.errors import ImageError

Float = NDArray[np.float64]

# Pixels without a header of their own.
_RAW = {".img", ".raw", ".zraw", ".gz", ".bz2", ".bin", ".dat", ".data", ".vol"}
_HEADERS = {".mhd", ".nhdr", ".hdr"}


def read_volume(
    path: Path, kind: str, member: int | None = None
) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    """Reads a NIfTI, NRRD or MetaImage file.

    Args:
        path: the file; of a pair, its header.
        kind: one of `signatures.VOLUMES`.
        member: which volume of a 4D file, from 0.

    Returns:
        array: float32 (i, j, k) in the order of the file, in its scaled units.
        affine: float64 (4, 4), index -> mm, RAS.
        provenance: steps and hazards.

    Raises:
        ImageError: damaged, no real numbers, or several volumes and none chosen.
    """
    try:
        with silence("nibabel.global"):
            array, affine, provenance = (
                read_nifti(path, member) if kind == "NIfTI" else read_itk(path, kind, member)
            )
            if not _is_sound(affine):
                raise ImageError(
                    f"{path}: the affine of the header is singular or not finite. Export it again."
                )
            return array, affine, provenance
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # each reader fails in its own way
        reason = without_values(str(error).replace(str(path), path.name)) or type(error).__name__
        raise ImageError(f"{path}: not a readable volume ({reason}). Export it again.") from error


def pixels_of_another(path: Path) -> Path | None:
    """The header file that these pixels belong to: of an `.img` its `.hdr`, of a `.raw` the `.mhd`
    or `.nhdr` that names it.

    None for files that stand for themselves.
    """
    if path.suffix.lower() not in _RAW or path.name.lower().endswith(".nii.gz"):
        return None
    stem = path.name.split(".")[0]
    beside = (
        [p for p in path.parent.iterdir() if p.suffix.lower() in _HEADERS and p.is_file()]
        if path.parent.is_dir()
        else []
    )
    # A header of the same name is looked at first; most folders need no other.
    for header in sorted(beside, key=lambda p: (not p.name.startswith(stem), p.name)):
        if _holds(header, path):
            return header
    return None


def detached_pixels(path: Path) -> list[Path]:
    """The files with the pixels of a header of its own, as far as they are there; none for a file
    that holds its own.

    All files beside it where the header names them by a list or a pattern.
    """
    kind = kind_of(path)
    try:
        if kind == "NIfTI":
            return nifti_pixels(path)
        place = find_pixels(path, kind) if kind in {"NRRD", "MetaImage"} else path
    except (ImageError, OSError):
        return []
    if place is None:
        return sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    return [] if place == path else [place]


def _holds(header: Path, path: Path) -> bool:
    """True where the header names the file, or, with `.hdr`, has its name."""
    with header.open("rb") as stream:
        head = stream.read(65536)
    if header.suffix.lower() == ".hdr":
        stems = [p.name.lower().removesuffix(".gz").rpartition(".")[0] for p in (path, header)]
        return stems[0] == stems[1] and not {348, 540}.isdisjoint(header_sizes(head))
    if os.fsencode(path.name) in head:
        return True
    # Slices by a pattern of C's printf: slice%03d.raw.
    for pattern in re.findall(rb"[^\s/\\=:]*%0?\d*d[^\s/\\]*", head):
        parts = [re.escape(part) for part in re.split(rb"%0?\d*d", pattern)]
        if re.fullmatch(rb"\d+".join(parts), os.fsencode(path.name)):
            return True
    return False


def _is_sound(affine: Float) -> bool:
    """True where every axis of the array has a direction of its own in the patient."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return False
    return not np.isnan(io_orientation(affine)).any()
