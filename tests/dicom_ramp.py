"""A grey ramp as a DICOM file."""

from __future__ import annotations

import numpy as np
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom

RAMP = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80)


def dicom(path, pixels=RAMP % 4096, photometric="MONOCHROME2", slope=2.0, intercept=-100.0):
    write_grey_dicom(
        path,
        pixels.astype(np.uint16),
        patient="P",
        number=1,
        spacing=(0.5, 0.25),
        encoding=GreyEncoding(12, photometric, slope, intercept),
    )
    return path
