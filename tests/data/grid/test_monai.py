"""The transforms in pipelines of MONAI."""

from __future__ import annotations

import numpy as np
import pytest
from medtransfer.data.grid.monai import ImageReader
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ConfigError, ImageError
from monai.transforms import LoadImage, LoadImaged
from pydicom.data import get_testdata_file

from dicom_ramp import dicom


@pytest.mark.filterwarnings(
    "ignore"
)  # LoadImaged sets up MONAI's own readers too, which miss packages
def test_the_monai_reader_gives_what_read_image_gives(tmp_path):
    path = str(dicom(tmp_path / "1.dcm", photometric="MONOCHROME1"))
    loaded = LoadImaged("image", reader=ImageReader(), image_only=False)({"image": path})
    assert np.array_equal(loaded["image"].numpy(), read_image(path).array)
    assert np.allclose(loaded["image"].affine, read_image(path).affine)
    with pytest.raises(ImageError):
        ImageReader().read(get_testdata_file("rtplan.dcm"))
    with pytest.raises(ImageError, match="holds a dose"):
        LoadImage()(
            get_testdata_file("rtdose.dcm"), reader=ImageReader()
        )  # no other reader is asked
    with pytest.raises(ConfigError):
        ImageReader("nonsense")
    assert repr(read_image(path)) == "Image(DICOM, (1, 64, 80), 0.5 x 0.25 mm, -100 to 8090)"
    assert ImageReader((1000, 500)).read([path]).array.max() == 1
