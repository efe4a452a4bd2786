"""Damaged files: seeded mutations of real ones, for the fuzz test and the fuzz benchmark.

Nothing may come of them but an image or an error that names the file.
"""

from __future__ import annotations

import gzip
import io
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import medtransfer as mt
import nibabel as nib
import numpy as np
import SimpleITK
import tifffile
from medtransfer.data.audit.inspection import inspect_image
from medtransfer.errors import MedTransferError
from PIL import Image
from pydicom.data import get_testdata_file

SLOWEST_SECONDS = 5.0
MOST_BYTES = 1_000_000_000
_SMALL = 300_000


def sources() -> dict[str, bytes]:
    """All small files of pydicom's wheel, and one file of each other format."""
    folder = Path(get_testdata_file("CT_small.dcm")).parent
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < _SMALL):
        if path.suffix == ".dcm" or "dicomdirtests" in path.parts:
            found[
                f"{path.relative_to(folder).as_posix().replace('/', '-')}.dcm".replace(
                    ".dcm.dcm", ".dcm"
                )
            ] = path.read_bytes()
    rng = np.random.default_rng(0)
    ramp = (np.arange(48 * 64) % 251).reshape(48, 64)
    for name, array in (
        ("grey8.png", ramp.astype(np.uint8)),
        ("grey16.png", (ramp * 200).astype(np.uint16)),
    ):
        found[name] = _save(Image.fromarray(array), "PNG")
    colour = np.stack([ramp, ramp.T.reshape(48, 64), 255 - ramp], -1).astype(np.uint8)
    found |= {
        "colour.png": _save(Image.fromarray(colour), "PNG"),
        "colour.jpg": _save(Image.fromarray(colour), "JPEG"),
    }
    found |= {
        "palette.png": _save(Image.fromarray(colour).quantize(16), "PNG"),
        "a.bmp": _save(Image.fromarray(colour), "BMP"),
    }
    stream = io.BytesIO()
    tifffile.imwrite(stream, (ramp * 200).astype(np.uint16), compression="zlib")
    found["a.tif"] = stream.getvalue()
    volume = nib.Nifti1Image(
        rng.integers(0, 900, (10, 12, 14)).astype(np.int16), np.diag([1, 1, 2, 1])
    )
    found["a.nii"] = volume.to_bytes()
    found["a.nii.gz"] = gzip.compress(volume.to_bytes())
    found["a.npz"] = _archive(ramp)
    for suffix in ("nrrd", "mha"):
        with tempfile.TemporaryDirectory() as folder_of_one:
            SimpleITK.WriteImage(
                SimpleITK.GetImageFromArray(rng.integers(0, 900, (9, 10, 11)).astype(np.int16)),
                f"{folder_of_one}/a.{suffix}",
            )
            found[f"a.{suffix}"] = Path(folder_of_one, f"a.{suffix}").read_bytes()
    rows = "\n".join(f"{i}.png,P{i // 2},{i % 2},site {i % 3},train" for i in range(12))
    found["manifest.csv"] = f"image,patient,malignant,site,split\n{rows}\n".encode()
    return found


def _archive(ramp: np.ndarray) -> bytes:
    stream = io.BytesIO()
    arrays = {
        f"{part}_images": np.stack([ramp[:28, :28]] * 4).astype(np.uint8)
        for part in ("train", "val", "test")
    }
    np.savez_compressed(
        stream,
        **arrays,
        **{f"{part}_labels": np.array([[0], [1], [0], [1]]) for part in ("train", "val", "test")},
    )
    return stream.getvalue()


def _save(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bits, bytes, numbers at their limits, pieces cut, doubled, moved; mostly
    near the beginning.
    """
    result = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if len(result) < 8:
            break
        reach = len(result) if rng.uniform() < 0.3 else min(len(result), 2048)
        at = int(rng.integers(0, reach))
        kind = int(rng.integers(0, 8))
        if kind == 0:
            result[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            result[at] = int(rng.integers(256))
        elif kind == 2:
            result[at : at + 4] = int(
                rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x0000FFFF])
            ).to_bytes(4, "little")
        elif kind == 3:
            result[at : at + 2] = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x8000])).to_bytes(
                2, "little" if rng.uniform() < 0.5 else "big"
            )
        elif kind == 4:
            del result[at : at + int(rng.integers(1, 64))]
        elif kind == 5:
            result[at:at] = result[at : at + int(rng.integers(1, 64))]
        elif kind == 6:
            del result[int(rng.integers(len(result) // 2, len(result))) :]
        else:
            result[at : at + 8] = bytes(rng.integers(0, 256, 8).astype(np.uint8))
    return bytes(result)


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged files, going round all sources."""
    originals = list(sources().items())
    assert len(originals) > 60
    rng = np.random.default_rng(seed)
    for number in range(count):
        name, data = originals[number % len(originals)]
        yield f"{number}-{name}", mutate(data, rng)


def try_one(path: Path) -> str:
    """Reads a damaged file as the product would; "" where all is well, else what is wrong with the
    product.
    """
    begun, before = time.monotonic(), _peak()
    fault = ""
    try:
        _read(path)
    except MedTransferError as error:
        if path.name not in str(error):
            fault = f"the error does not name the file: {error}"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    spent, grown = time.monotonic() - begun, _peak() - before
    if spent > SLOWEST_SECONDS:
        fault = f"took {spent:.1f} s"
    if grown > MOST_BYTES:
        fault = f"took {grown / 1e9:.1f} GB"
    return f"{path.name}: {fault}" if fault else ""


def _read(path: Path) -> None:
    if path.suffix == ".csv":
        mt.Cohort.from_csv(path, path.parent, ["malignant"])
        return
    image = f"{path}#train/1" if path.suffix == ".npz" else str(path)
    reason = inspect_image(image, path.parent / "cache")["error"]
    assert "not met before" not in reason, reason
    assert not reason or reason.strip().endswith("."), reason
    mt.read_image(image)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if os.uname().sysname == "Darwin" else 1024
    )
