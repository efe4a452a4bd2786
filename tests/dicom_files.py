"""Grey DICOM files, and those that come with pydicom."""

from __future__ import annotations

import numpy as np
import pydicom
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from pydicom.data import get_testdata_file

RAMP = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80)


def real(name):
    path = get_testdata_file(f"{name}.dcm", download=False)
    assert path is not None, f"{name} comes with pydicom or pydicom-data"
    return path


def write(path, **changes):
    """A 12-bit grey ramp, with elements set or (None) removed."""
    write_grey_dicom(
        path,
        RAMP % 4096,
        patient="P",
        number=1,
        spacing=(0.5, 0.25),
        encoding=GreyEncoding(),
    )
    dataset = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def codes(image):
    return {code for code, _ in image.provenance["hazards"]}
