"""NIfTI-1 and NIfTI-2 files: plain or compressed, in one file or as a pair of header and pixels.

Each fact that a file states twice, and what happens where it differs:

- dim and datatype (compared with: bytes of the file): fewer: refused as truncated; more: noted;
  whole volumes more: refused.
- bitpix (compared with: datatype): datatype is used, noted.
- sform (compared with: qform): sform is used, noted; neither: pixdim alone, left and right not
  known, noted.
- pixdim (compared with: voxel sizes of sform): sform is used, noted.
- pixdim, where it is used (compared with: must be finite and not 0; all 0: not stated): refused;
  negative: taken as positive, noted.
- unit of xyzt_units (compared with: known codes): taken as mm, noted.
- scl_slope (compared with: 0 or NaN): means none.
- magic (compared with: one file or a pair): the pixels of a pair must lie beside.

Not compared: cal_min, cal_max, glmin, glmax, descrip, slice_code, intent (none changes a value or
its place).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medtransfer.data.images.limits import refuse_implausible
from medtransfer.data.images.signatures import header_sizes, is_nifti_pair, unpack_gzip
from medtransfer.errors import ImageError

Float = NDArray[np.float64]
Hazards = list[tuple[str, str]]

# Codes of the unit of length: mm of each.
_UNITS = {0: (1.0, "no unit"), 1: (1000.0, "meters"), 2: (1.0, "mm"), 3: (0.001, "microns")}
# Bytes behind compressed voxels are counted up to here.
_SURPLUS = 64_000_000


def read_nifti(path: Path, member: int | None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    """Values, affine and provenance of one volume; see `volumes.read_volume`."""
    with _opened(path) as (image, stream, stated_header):
        header = image.header
        pixels = path if stream is not None else _pixels(path)
        refuse_implausible(path, image.shape, pixels.stat().st_size)
        kind = header.get_data_dtype()
        if kind.kind not in "iuf":
            what = (
                "colours" if kind.names else "complex numbers" if kind.kind == "c" else "no numbers"
            )
            raise ImageError(
                f"{path}: holds {what}, not one number per voxel. Export a grey volume."
            )
        shape, part = _choose_volume(path, image.shape, member)
        hazards: Hazards = []
        raw = (
            _read_voxels(path, image, stream, pixels, hazards)
            .reshape(image.shape)[part]
            .reshape(shape)
        )
    bits = int(stated_header["bitpix"])
    if bits != 8 * kind.itemsize:
        hazards.append(
            ("bitpix", f"bitpix is {bits}, datatype has {8 * kind.itemsize} bits and is used")
        )
    steps: list[str] = []
    # nibabel takes a slope of 0 or NaN as none (NIfTI-1 standard, scl_slope), and refuses an
    # intercept of NaN.
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    values = (
        raw.astype(np.float32)
        if (slope, intercept) == (1.0, 0.0)
        else (raw.astype(np.float64) * slope + intercept).astype(np.float32)
    )
    if (slope, intercept) != (1.0, 0.0):
        steps.append(f"rescaled by {slope:g} and {intercept:g}")
    affine, stated = _affine(
        path, header, np.asarray(stated_header["pixdim"][1:4], dtype=float), hazards
    )
    factor = _UNITS.get(int(header["xyzt_units"]) % 8, (1.0, "an unknown unit"))
    if factor[0] != 1.0:
        affine = np.diag([factor[0]] * 3 + [1.0]) @ affine
        steps.append(f"spacing in {factor[1]} converted to mm")
    elif factor[1] == "an unknown unit":
        hazards.append(("units", "the code of the unit of length is not known; it is taken as mm"))
    provenance = {
        "format": "NIfTI",
        "modality": "",
        "bits_stored": 8 * kind.itemsize,
        "spacing_from": "affine" if stated else "none",
    }
    return values, affine, provenance | {"steps": steps, "hazards": hazards}


def nifti_pixels(path: Path) -> list[Path]:
    """The file with the pixels of a pair, by its header; none for a file that holds them itself."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    return (
        [_pixels(path)]
        if is_nifti_pair(unpack_gzip(head) if head[:2] == b"\x1f\x8b" else head)
        else []
    )


def _read_voxels(
    path: Path, image: Any, stream: Any, pixels: Path, hazards: Hazards
) -> NDArray[Any]:
    """Voxels as stored; bytes that are missing or left over are refused or noted."""
    offset = int(image.dataobj.offset)
    size = image.header.get_data_dtype().itemsize
    needed = offset + size * int(np.prod(image.shape, dtype=np.int64))
    plain = not _is_gzip(pixels)
    length = pixels.stat().st_size
    if plain and length < needed:
        raise ImageError(
            f"{path}: is truncated: the header claims {needed} bytes, and {length} are there. Copy "
            "it again."
        )
    try:
        raw: NDArray[Any] = np.asanyarray(image.dataobj.get_unscaled())
        if not plain and stream is not None:
            stream.seek(needed)
            length = needed + len(stream.read(_SURPLUS))
    except (OSError, EOFError, zlib.error):
        raise ImageError(
            f"{path}: its compressed voxels are cut or damaged. Copy or download it again."
        ) from None
    volume = size * int(np.prod(image.shape[:3], dtype=np.int64))
    if (
        length - needed >= volume
        and (plain or length - needed < _SURPLUS)
        and (length - needed) % volume == 0
    ):
        count = (length - needed) // volume
        raise ImageError(
            f"{path}: {count} more volume(s) follow those that dim in its header counts. Export "
            "it again."
        )
    if length > needed and (plain or stream is not None):
        more = f"{length - needed}" if plain or length - needed < _SURPLUS else "many"
        hazards.append(("surplus", f"{more} bytes behind the voxels are left out"))
    return raw


def _affine(path: Path, header: Any, sizes: Float, hazards: Hazards) -> tuple[Float, bool]:
    """sform where it has a code, else qform, else the spacing alone; and whether any of these
    states a spacing.

    `sizes` are those of pixdim as the file has them: nibabel corrects some of them in its header.
    """
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    # An axis that is not there, and those of a file that states none, have no size.
    sizes = np.where(
        (np.asarray(header["dim"][1:4]) < 2)
        & (sizes == 0)
        & (np.arange(3) >= int(header["dim"][0])),
        1.0,
        sizes,
    )
    usable = bool(np.isfinite(sizes).all() and (sizes != 0).all())
    if usable and (sizes < 0).any():
        hazards.append(("pixdim", "pixdim is negative, and taken as positive"))
    if usable:
        header["pixdim"][1:4] = sizes = np.abs(sizes)
    if sform > 0:
        affine = np.asarray(header.get_sform(), dtype=float)
        _compare_sform(header, affine, sizes if usable else None, qform > 0, hazards)
        return affine, True
    if not usable and sizes.any():
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise ImageError(
            f"{path}: pixdim states voxels of {shown}, and no sform states their size. Export it "
            "again."
        )
    if qform > 0 and usable:
        return np.asarray(header.get_qform(), dtype=float), True
    hazards.append(
        ("no_orientation", "neither qform nor sform is set: left and right are not known")
    )
    if not usable:
        hazards.append(("no_spacing", "pixdim is 0: states no voxel size"))
        header["pixdim"][1:4] = 1.0
    return np.asarray(header.get_base_affine(), dtype=float), usable


def _compare_sform(
    header: Any, affine: Float, sizes: Float | None, with_qform: bool, hazards: Hazards
) -> None:
    if with_qform and sizes is not None:
        gap = float(np.abs(affine - header.get_qform()).max())
        if gap > 0.01:
            hazards.append(
                ("nifti_forms", f"qform and sform differ by up to {gap:.3g} mm; sform is used")
            )
    columns = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if sizes is None or not np.allclose(sizes, columns, rtol=5e-3, atol=1e-4):
        hazards.append(
            (
                "pixdim",
                (
                    "pixdim states other voxels than sform, "
                    f"{' x '.join(f'{v:.4g}' for v in columns)} mm, which is used"
                ),
            )
        )


def _choose_volume(
    path: Path, shape: tuple[int, ...], member: int | None
) -> tuple[tuple[int, ...], Any]:
    """The spatial shape and the index of the volume; axes of length 1 behind the third are
    dropped.
    """
    space = (*shape[:3], 1, 1)[:3] if len(shape) < 3 else shape[:3]
    others = shape[3:]
    count = int(np.prod(others)) if others else 1
    if count > 1 and member is None:
        raise ImageError(
            f"{path}: holds {count} volumes (time points, directions or channels). Name one as "
            f"{path.name}#1 to #{count}."
        )
    if member is not None and member >= count:
        raise ImageError(f"{path}: has {count} volume(s), no volume {member + 1}.")
    where = np.unravel_index(member or 0, others) if others else ()
    return tuple(space), (..., *where) if others else ...


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """The image, its stream (None for a pair), and its header as it is written.

    The first bytes of the file decide what it is. nibabel goes by the name, and corrects headers
    without a word.
    """
    with path.open("rb") as raw:
        head = raw.read(4096)
        raw.seek(0)
        zipped = head[:2] == b"\x1f\x8b"
        head = unpack_gzip(head) if zipped else head
        second, pair = 540 in header_sizes(head), is_nifti_pair(head)
        with gzip.open(raw) if zipped else nullcontext(raw) as stream:
            try:
                if pair:
                    kind = nib.Nifti2Pair if second else nib.Nifti1Pair
                    pixels = nib.FileHolder(filename=str(_pixels(path)))
                    image = kind.from_file_map(
                        {"header": nib.FileHolder(fileobj=stream), "image": pixels}
                    )
                else:
                    image = (nib.Nifti2Image if second else nib.Nifti1Image).from_stream(stream)
            except ImageError:
                raise
            except Exception:  # what nibabel says of it quotes the header
                raise ImageError(
                    f"{path}: not a readable volume (its header is damaged). Export or download "
                    "it again."
                ) from None
            written = type(image.header)(head[: image.header.structarr.nbytes], check=False)
            yield image, None if pair else stream, written


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _pixels(header: Path) -> Path:
    """The file with the pixels of a pair."""
    stem = header.name.removesuffix(".gz")
    stem = stem[:-4] if stem.lower().endswith(".hdr") else stem
    for ending in (".img", ".img.gz", ".IMG"):
        pixels = header.with_name(stem + ending)
        if pixels.is_file():
            return pixels
    raise ImageError(
        f"{header}: is the header of a pair, and its pixels ({stem}.img) are not beside it. Put "
        "them there."
    )
