"""NIfTI, NRRD and MetaImage files, and the common orientation of all volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from medtransfer.data.limits import refuse_implausible
from medtransfer.data.logs import silence
from medtransfer.errors import ImageError

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
Float = NDArray[np.float64]
Hazards = list[tuple[str, str]]


def is_volume(path: Path) -> bool:
    """True for the endings read here."""
    return path.name.lower().endswith(NIFTI + ITK)


def read_volume(path: Path, member: int | None = None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    """Reads a NIfTI, NRRD or MetaImage file.

    Args:
        path: the file.
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
            array, affine, provenance = (_read_nifti if path.name.lower().endswith(NIFTI) else _read_itk)(path, member)
            if not _is_sound(affine):
                raise ImageError(f"{path}: the affine of the header is singular or not finite. Export it again.")
            return array, affine, provenance
    except ImageError:
        raise
    except Exception as error:  # each reader fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0][:200].replace(str(path), path.name)
        raise ImageError(f"{path}: not a readable volume ({reason}). Export it again.") from error


def orient(array: NDArray[Any], affine: Float, codes: str = "RAS") -> tuple[NDArray[Any], Float]:
    """Flips and swaps the three axes so that they point most nearly to `codes`; no interpolation."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(codes)))
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape[:3])


def flatten(array: NDArray[np.float32], affine: Float) -> tuple[NDArray[np.float32], Float]:
    """A volume of one slice as the image a radiologist sees: (row, column), as DICOM lays out its planes.

    Columns run to the patient's left (back in sagittal images), rows to the back (feet, where the image
    is not axial).

    Returns:
        The plane, and its affine from (row, column, 0, 1) to mm.
    """
    array, affine = orient(array, affine, "LPI")
    single = array.shape.index(1) if 1 in array.shape else 2
    rows, columns = sorted((axis for axis in range(3) if axis != single), reverse=True)
    order = [rows, columns, single]
    permuted = affine.copy()
    permuted[:, :3] = affine[:, order]
    return np.ascontiguousarray(array.transpose(order)[..., 0]), permuted


def voxel_sizes(affine: Float) -> tuple[float, ...]:
    """mm along each axis of the array."""
    return tuple(float(v) for v in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def _read_nifti(path: Path, member: int | None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    image: Any = nib.load(path)
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
    affine = _nifti_affine(image, header, hazards)
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    factor = {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
    if factor != 1.0:
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
        steps.append(f"spacing in {unit}s converted to mm")
    return values, affine, _provenance("NIfTI", raw.dtype.itemsize * 8, steps, hazards)


def _nifti_affine(image: Any, header: Any, hazards: Hazards) -> Float:
    """sform where it has a code, else qform, else the spacing alone."""
    if "qform_code" not in header:
        affine = np.asarray(image.affine, dtype=float)
    else:
        qform, sform = int(header["qform_code"]), int(header["sform_code"])
        if qform > 0 and sform > 0:
            gap = float(np.abs(header.get_sform() - header.get_qform()).max())
            if gap > 0.01:
                hazards.append(("nifti_forms", f"qform and sform differ by up to {gap:.3g} mm; sform is used"))
        if sform > 0:
            affine = np.asarray(header.get_sform(), dtype=float)
        elif qform > 0:
            affine = np.asarray(header.get_qform(), dtype=float)
        else:
            hazards.append(("no_orientation", "neither qform nor sform is set: left and right are not known"))
            affine = np.asarray(header.get_base_affine(), dtype=float)
    return affine


def _is_sound(affine: Float) -> bool:
    """True where every axis of the array has a direction of its own in the patient."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return False
    return not np.isnan(io_orientation(affine)).any()


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


def _read_itk(path: Path, member: int | None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    import SimpleITK as sitk  # noqa: N813  its own convention; 0.3 s that only these files need

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    # A header of its own (.nhdr, .mhd) names the file with the pixels.
    held = (
        path.stat().st_size
        if path.suffix.lower() in {".nrrd", ".mha"}
        else sum(p.stat().st_size for p in path.parent.iterdir() if p.is_file())
    )
    refuse_implausible(path, (*size, reader.GetNumberOfComponents()), held)
    if reader.GetNumberOfComponents() != 1 or len(size) not in {2, 3}:
        raise ImageError(
            f"{path}: holds {reader.GetNumberOfComponents()} values per voxel in {len(size)} dimensions. Export one grey volume."
        )
    if member is not None:
        raise ImageError(f"{path}: holds one volume; leave out #{member + 1}.")
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image).T  # SimpleITK's arrays run k, j, i
    dimensions = len(size)
    affine = np.eye(4)
    affine[:dimensions, :dimensions] = np.array(image.GetDirection()).reshape(dimensions, dimensions) @ np.diag(image.GetSpacing())
    affine[:dimensions, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's patient system is LPS
    kind = "NRRD" if path.suffix.lower() in {".nrrd", ".nhdr"} else "MetaImage"
    with path.open("rb") as stream:
        header = stream.read(65536).lower()
    stated = any(word in header for word in (b"spacing", b"space directions", b"elementsize"))
    provenance = _provenance(kind, array.dtype.itemsize * 8, [], [])
    return array.reshape((*array.shape, 1)[:3]).astype(np.float32), affine, provenance | ({} if stated else {"spacing_from": "none"})


def _provenance(kind: str, bits: int, steps: list[str], hazards: Hazards) -> dict[str, Any]:
    return {"format": kind, "modality": "", "bits_stored": bits, "spacing_from": "affine", "steps": steps, "hazards": hazards}
