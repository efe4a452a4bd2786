"""NIfTI-1 and NIfTI-2 files: plain or compressed, in one file or as a pair of header and pixels."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medtransfer.data.limits import refuse_implausible
from medtransfer.data.signatures import header_sizes, is_nifti_pair, unpack_gzip
from medtransfer.errors import ImageError

Float = NDArray[np.float64]
Hazards = list[tuple[str, str]]


def read_nifti(path: Path, member: int | None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    """Values, affine and provenance of one volume; see `volumes.read_volume`."""
    with _opened(path) as image:
        return _read(path, image, member)


def _read(path: Path, image: Any, member: int | None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    header = image.header
    refuse_implausible(path, image.shape, path.stat().st_size)
    if header.get_data_dtype().kind not in "iuf":
        raise ImageError(f"{path}: holds {header.get_data_dtype()} values, not one number per voxel. Export a grey volume.")
    shape, chosen = _choose_volume(path, image.shape, member)
    raw = np.asanyarray(image.dataobj.get_unscaled())
    raw = raw.reshape(image.shape)[chosen].reshape(shape)
    steps: list[str] = []
    hazards: Hazards = []
    # nibabel takes a slope of 0 or NaN as none (NIfTI-1 standard, scl_slope), and refuses an intercept of NaN.
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    values = raw.astype(np.float32) if (slope, intercept) == (1.0, 0.0) else (raw.astype(np.float64) * slope + intercept).astype(np.float32)
    if (slope, intercept) != (1.0, 0.0):
        steps.append(f"rescaled by {slope:g} and {intercept:g}")
    affine = _affine(header, hazards)
    unit = header.get_xyzt_units()[0]
    factor = {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
    if factor != 1.0:
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
        steps.append(f"spacing in {unit}s converted to mm")
    provenance = {"format": "NIfTI", "modality": "", "bits_stored": raw.dtype.itemsize * 8, "spacing_from": "affine"}
    return values, affine, provenance | {"steps": steps, "hazards": hazards}


def _affine(header: Any, hazards: Hazards) -> Float:
    """sform where it has a code, else qform, else the spacing alone."""
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if qform > 0 and sform > 0:
        gap = float(np.abs(header.get_sform() - header.get_qform()).max())
        if gap > 0.01:
            hazards.append(("nifti_forms", f"qform and sform differ by up to {gap:.3g} mm; sform is used"))
    if sform > 0:
        return np.asarray(header.get_sform(), dtype=float)
    if qform > 0:
        return np.asarray(header.get_qform(), dtype=float)
    hazards.append(("no_orientation", "neither qform nor sform is set: left and right are not known"))
    return np.asarray(header.get_base_affine(), dtype=float)


def _choose_volume(path: Path, shape: tuple[int, ...], member: int | None) -> tuple[tuple[int, ...], Any]:
    """The spatial shape and the index of the volume; axes of length 1 behind the third are dropped."""
    space = (*shape[:3], 1, 1)[:3] if len(shape) < 3 else shape[:3]
    others = shape[3:]
    count = int(np.prod(others)) if others else 1
    if count > 1 and member is None:
        raise ImageError(f"{path}: holds {count} volumes (time points, directions or channels). Name one as {path.name}#1 to #{count}.")
    if member is not None and member >= count:
        raise ImageError(f"{path}: has {count} volume(s), no volume {member + 1}.")
    where = np.unravel_index(member or 0, others) if others else ()
    return tuple(space), (..., *where) if others else ...


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file as its first bytes say it is, whatever its name; nibabel goes by the name."""
    with path.open("rb") as raw:
        head = raw.read(4096)
        raw.seek(0)
        zipped = head[:2] == b"\x1f\x8b"
        head = unpack_gzip(head) if zipped else head
        second = 540 in header_sizes(head)
        with gzip.open(raw) if zipped else nullcontext(raw) as stream:
            if is_nifti_pair(head):
                pixels = nib.FileHolder(filename=str(_pixels(path)))
                kind = nib.Nifti2Pair if second else nib.Nifti1Pair
                yield kind.from_file_map({"header": nib.FileHolder(fileobj=stream), "image": pixels})
            else:
                yield (nib.Nifti2Image if second else nib.Nifti1Image).from_stream(stream)


def _pixels(header: Path) -> Path:
    """The file with the pixels of a pair."""
    stem = header.name.removesuffix(".gz")
    stem = stem[:-4] if stem.lower().endswith(".hdr") else stem
    for ending in (".img", ".img.gz", ".IMG"):
        found = header.with_name(stem + ending)
        if found.is_file():
            return found
    raise ImageError(f"{header}: is the header of a pair, and its pixels ({stem}.img) are not beside it. Put them there.")
