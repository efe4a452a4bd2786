"""NIfTI files of a small volume, with sound headers and with faulty ones."""

from __future__ import annotations

import nibabel as nib
import numpy as np

ARRAY = np.random.default_rng(0).integers(-500, 500, (12, 14, 10)).astype(np.int16)
AFFINE = np.array([[-0.8, 0, 0, 50], [0, -0.6, 0, 40], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])


def nifti(path, array=ARRAY, affine=AFFINE, change=None):
    """A file whose header `change` may change."""
    image = nib.Nifti1Image(array, affine)
    if change is not None:
        change(image.header)
    nib.save(image, path)
    return path


def patched(path, offset, kind, value):
    """A field of the header written as bytes, which nibabel itself would refuse to write."""
    data = bytearray(path.read_bytes())
    field = np.array(value, dtype=kind).tobytes()
    data[offset : offset + len(field)] = field
    path.write_bytes(bytes(data))
    return path
