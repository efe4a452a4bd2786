"""`read_image` against pydicom's own pixel pipeline, in as many processes. Run: make bench."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import joblib
import numpy as np
import pydicom
from medtransfer.data.images.dicom.jpeg import register
from medtransfer.data.images.reading import read_image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, pixel_array

# Uncompressed, RLE, JPEG 2000, JPEG-LS and lossless JPEG; CT, MR, CR, US; grey and colour; 0.03 to
# 7 MB.
NAMES = (
    "RG1_UNCR",
    "RG3_UNCR",
    "RG3_J2KR",
    "MR2_UNCR",
    "MR2_J2KR",
    "693_UNCR",
    "693_J2KR",
    "JPEG2000_UNC",
    "JPGLosslessP14SV1_1s_1f_8b",
    "US1_UNCR",
    "US1_J2KR",
    "CT_small",
    "MR_small_jpeg_ls_lossless",
    "MR_small_RLE",
    "OBXXXX1A_rle",
)
COPIES, REPEATS = 6, 7


def by_pydicom(path: str) -> None:
    """Decode, YBR to RGB, and the modality LUT; what a script of one's own would do."""
    warnings.simplefilter("ignore")
    register()  # without it, lossless JPEG cannot be decoded
    dataset = pydicom.dcmread(path)
    array = pixel_array(dataset)
    if dataset.SamplesPerPixel == 1 and dataset.PhotometricInterpretation != "PALETTE COLOR":
        array = apply_modality_lut(array, dataset)
    elif dataset.PhotometricInterpretation == "PALETTE COLOR":
        array = pydicom.pixels.apply_color_lut(array, dataset)
    np.asarray(array, dtype=np.float32)


def by_medtransfer(path: str) -> None:
    """The same files through the product."""
    read_image(path)


def seconds(parallel: joblib.Parallel, work: Callable[[str], None], paths: list[str]) -> float:
    begun = time.perf_counter()
    parallel(joblib.delayed(work)(path) for path in paths)
    return time.perf_counter() - begun


def main() -> None:
    compare("of every kind", NAMES)
    compare("uncompressed", [name for name in NAMES if "UNC" in name])


def compare(kind: str, names: Sequence[str]) -> None:
    """Both ways turn by turn, so that a busy machine slows both."""
    paths = [str(Path(get_testdata_file(f"{name}.dcm"))) for name in names]
    with joblib.Parallel(n_jobs=joblib.cpu_count(), batch_size=4) as parallel:
        for work in (by_pydicom, by_medtransfer):
            seconds(parallel, work, paths * 2)
        pairs = [
            (
                seconds(parallel, by_pydicom, paths * COPIES),
                seconds(parallel, by_medtransfer, paths * COPIES),
            )
            for _ in range(REPEATS)
        ]
    theirs, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    count = COPIES * len(paths)
    speeds = (
        f"{theirs / ours:.2f} times the speed of pydicom's pipeline ({count / ours:.0f} against "
        f"{count / theirs:.0f} files/s)"
    )
    print(f"read_image of {count} DICOM files {kind} in {joblib.cpu_count()} processes: {speeds}")


if __name__ == "__main__":
    main()
