"""The phantom in three dimensions: lesions of known truth in volumes of noise, as DICOM series and
NIfTI.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from skimage.filters import gaussian

from medtransfer.data.images.dicom.writing import write_dicom_series

SIDE = 64
SPACING = (1.5, 1.5, 4.0)
_BITS = 12

Float = NDArray[np.float64]


def draw_volume(
    lesion: bool,
    radius: float,
    irregularity: float,
    unevenness: float,
    contrast: float,
    gain: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """A volume (x, y, z), 0..4095, and the mask of its lesion.

    Args:
        lesion: whether there is one.
        radius: of the lesion, in pixels of the planar phantom, about 15 to 27.
        irregularity: of its surface, 0 to 0.26.
        unevenness: of its inside, 0 to 1.
        contrast: against the tissue, 0 to 1.
        gain: of the scanner.
        rng: draws everything else, the number of slices too.
    """
    shape = (SIDE, SIDE, int(rng.integers(16, 23)))
    tissue = 0.5 + 0.04 * _noise(shape, 6.0, rng) + 0.025 * _noise(shape, 2.0, rng)
    mask = np.zeros(shape, dtype=bool)
    if lesion:
        mask = _draw_mask(shape, 0.45 * radius * SPACING[0], irregularity, rng)
        edge = gaussian(mask.astype(float), (0.8, 0.8, 0.3))
        inside = 1 + contrast * (1.0 + 0.5 * unevenness * _noise(shape, 1.5, rng))
        tissue = tissue * (1 - edge) + tissue * inside * edge
    # A soft shadow of the coil, and noise.
    tissue *= 1 + 0.08 * _noise(shape, 20.0, rng)
    signal = gain * np.clip(tissue, 0, None) + 0.02 * rng.standard_normal(shape)
    return np.clip(2200 * signal, 0, 2**_BITS - 1).astype(np.uint16), mask


def write_volume(
    folder: Path,
    patient: str,
    number: int,
    volume: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    as_series: bool,
) -> tuple[str, tuple[int, ...]]:
    """Writes a volume and its mask; returns its name in the manifest and its box x0, y0, x1, y1,
    z0, z1 (empty without a lesion).
    """
    name = f"images/{patient}" if as_series else f"images/{patient}.nii.gz"
    if as_series:
        write_dicom_series(
            folder / name, volume, patient=patient, number=number, spacing=SPACING, bits=_BITS
        )
    else:
        _write_nifti(folder / name, volume.astype(np.int16))
    _write_nifti(folder / f"masks/{patient}.nii.gz", mask.astype(np.uint8))
    if not mask.any():
        return name, ()
    spans = [
        np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    (x0, x1), (y0, y1), (z0, z1) = ((int(span[0]), int(span[-1]) + 1) for span in spans)
    return name, (x0, y0, x1, y1, z0, z1)


def _draw_mask(
    shape: tuple[int, ...], radius: float, irregularity: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """An ellipsoid with a rough surface; radius in mm."""
    axes = radius * rng.uniform(0.8, 1.25, 3)
    extent = np.array(shape) * SPACING
    center = rng.uniform(1.1 * axes, extent - 1.1 * axes)
    grid = np.meshgrid(
        *((np.arange(n) + 0.5) * mm for n, mm in zip(shape, SPACING, strict=True)), indexing="ij"
    )
    distance = np.sqrt(sum(((g - c) / a) ** 2 for g, c, a in zip(grid, center, axes, strict=True)))
    rough = 0.6 * _noise(shape, 2.5, rng) + 0.4 * _noise(shape, 1.2, rng)
    return np.asarray((distance < 1 + 2.0 * irregularity * rough) & (distance < 1.8), dtype=bool)


def _noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Float:
    """Smooth noise of unit variance; `scale` in pixels of the slices."""
    sigma = (scale, scale, scale * SPACING[0] / SPACING[2])
    field = gaussian(rng.standard_normal(shape), sigma, mode="wrap")
    return np.asarray(field / field.std(), dtype=np.float64)


def _write_nifti(path: Path, array: NDArray[np.generic]) -> None:
    image = nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0]))
    image.header.set_xyzt_units("mm")
    content = io.BytesIO()
    # Without the time of writing, so that the same seed writes the same bytes.
    with gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as stream:
        stream.write(image.to_bytes())
    path.write_bytes(content.getvalue())
