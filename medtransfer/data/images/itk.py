"""NRRD and MetaImage files, read by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.images.itk_facts import compare
from medtransfer.data.images.limits import refuse_implausible
from medtransfer.errors import ImageError

Float = NDArray[np.float64]


def read_itk(
    path: Path, kind: str, member: int | None
) -> tuple[NDArray[np.float32], Float, dict[str, Any]]:
    """Values, affine and provenance; see `volumes.read_volume`."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(
        "NrrdImageIO" if kind == "NRRD" else "MetaImageIO"
    )  # by content; ITK goes by the name
    reader.SetFileName(str(path))
    hazards, stated, factor = compare(path, kind)
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        refuse_implausible(path, (*size, reader.GetNumberOfComponents()), _bytes_of_pixels(path))
        _refuse_others(path, size, reader.GetNumberOfComponents(), member)
        image = reader.Execute()
    except RuntimeError:  # what ITK says of it quotes the header
        raise ImageError(
            f"{path}: not a readable volume (its header or its pixels are damaged). Export it "
            "again."
        ) from None
    array = sitk.GetArrayFromImage(image).T  # SimpleITK's arrays run k, j, i
    count = image.GetDimension()
    matrix = np.array(image.GetDirection()).reshape(count, count) @ np.diag(image.GetSpacing())
    dimensions = min(count, 3)  # a fourth axis has length 1
    affine = np.eye(4)
    affine[:dimensions, :dimensions] = factor * matrix[:dimensions, :dimensions]
    affine[:dimensions, 3] = factor * np.array(image.GetOrigin()[:dimensions])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's patient system is LPS
    facts = {
        "format": kind,
        "modality": "",
        "bits_stored": array.dtype.itemsize * 8,
        "spacing_from": "affine" if stated else "none",
    }
    steps = [f"spacing converted to mm by {factor:g}"] if factor != 1.0 else []
    return (
        array.reshape((*size, 1)[:3]).astype(np.float32),
        affine,
        facts | {"steps": steps, "hazards": hazards},
    )


def _bytes_of_pixels(path: Path) -> int:
    """Of the file, or, as a header of its own names another, of all beside it."""
    if path.suffix.lower() not in {".nhdr", ".mhd"}:
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.parent.iterdir() if p.is_file())


def _refuse_others(path: Path, size: tuple[int, ...], components: int, member: int | None) -> None:
    if components != 1 or not 2 <= len(size) <= 4 or size[3:] not in {(), (1,)}:
        raise ImageError(
            f"{path}: holds {components} value(s) per voxel (colours, vectors or channels) in "
            f"{len(size)} dimensions of "
            f"{' x '.join(map(str, size))}. Export one grey volume."
        )
    if member is not None:
        raise ImageError(f"{path}: holds one volume; leave out #{member + 1}.")
