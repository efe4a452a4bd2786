"""NRRD and MetaImage files, read by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.limits import refuse_implausible
from medtransfer.errors import ImageError

Float = NDArray[np.float64]
Hazards = list[tuple[str, str]]


def read_itk(path: Path, kind: str, member: int | None) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    """Values, affine and provenance; see `volumes.read_volume`."""
    import SimpleITK as sitk  # noqa: N813  its own convention; 0.3 s that only these files need

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if kind == "NRRD" else "MetaImageIO")  # by content; ITK goes by the name
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
    with path.open("rb") as stream:
        header = stream.read(65536).lower()
    stated = any(word in header for word in (b"spacing", b"space directions", b"elementsize"))
    provenance = _provenance(kind, array.dtype.itemsize * 8, [], [])
    return array.reshape((*array.shape, 1)[:3]).astype(np.float32), affine, provenance | ({} if stated else {"spacing_from": "none"})


def _provenance(kind: str, bits: int, steps: list[str], hazards: Hazards) -> dict[str, Any]:
    return {"format": kind, "modality": "", "bits_stored": bits, "spacing_from": "affine", "steps": steps, "hazards": hazards}
