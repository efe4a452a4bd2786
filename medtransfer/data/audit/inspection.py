"""What every image of a cohort is: read once, in parallel, and noted."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
from joblib.externals.loky import ProcessPoolExecutor
from numpy.typing import NDArray
from skimage.transform import resize

from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.grid.cache import (
    cache_folder,
    digest_file,
    entry_path,
    read_entry,
    read_facts,
    write_entry,
    write_facts,
)
from medtransfer.data.images.image import Image
from medtransfer.data.images.quiet import silence
from medtransfer.data.images.reading import read_image, split_member
from medtransfer.data.images.windows import scale
from medtransfer.errors import ImageError

if TYPE_CHECKING:
    from medtransfer.data.grid.fixed import Fixed

Progress = Callable[[str, int, int], None]

# Side of the small picture: 64 x 64, or 16 x 16 x 16.
THUMBNAIL = {2: 64, 3: 16}
# Starting processes takes some seconds; more where they load torch.
_WORTH_PROCESSES, _WORTH_TORCH = 4.0, 8.0
# Formats that state a place in the patient.
_PLACED = {"DICOM", "NIfTI", "NRRD", "MetaImage"}
_UNREAD: dict[str, Any] = {
    "file_digest": "",
    "pixel_digest": "",
    "shape": (),
    "spacing": (),
    "axes": "",
    "colour": False,
    "format": "",
    "modality": "",
    "scanner": "",
    "bits_stored": 0,
    "intensity": 0.0,
    "border": (),
    "hazards": (),
    "turn": (),
    "stored_shape": (),
    "affine": (),
    "entry": "",
    "thumbnail": None,
    "picture": None,
}


def inspect_images(
    cohort: Cohort,
    progress: Progress | None = None,
    fixed: Fixed | None = None,
    jobs: int | None = None,
) -> pd.DataFrame:
    """Reads every image once and notes what it is; a bad file is noted, not raised.

    Args:
        cohort: the images.
        progress: called with ("images", done, total).
        fixed: also fill the image cache with this half of the transforms, from the same decoding.
        jobs: processes; None: one per processor where that pays.

    Returns:
        One row per image in the cohort's order: `image`, `error` ("" where readable),
        `file_digest`, `pixel_digest`, `shape` and `spacing` (of space), `axes`, `colour`, `format`,
        `modality`, `scanner`, `bits_stored`, `intensity` (99th percentile), `border` (mean of the
        four edges and share of the lowest value in them), `hazards` ((code, sentence), ...),
        `turn`, `stored_shape` (see `Image`), `affine` (of formats that have one), `thumbnail`
        (float32, 64 x 64 or 16 x 16 x 16, grey), `picture` (uint8, 64 x 64, to look at) and `entry`
        (file of the image cache, "" without `fixed`).
    """
    facts = inspect_paths(cohort.images["path"].tolist(), progress, fixed, jobs)
    return facts.assign(image=cohort.images["image"].to_numpy())


def inspect_paths(
    paths: Sequence[str],
    progress: Progress | None = None,
    fixed: Fixed | None = None,
    jobs: int | None = None,
) -> pd.DataFrame:
    """Reads every file and notes what it is; see `inspect_images`, but for the column `image`.

    Args:
        paths: of the files, each with a member of it behind `#` where it holds several.
        progress: called with ("images", done, total).
        fixed: also fill the image cache with this half of the transforms.
        jobs: processes; None: one per processor where that pays.
    """
    folder = cache_folder()
    rows: list[dict[str, Any]] = []
    for row in _inspect_all(paths, folder, fixed, jobs):
        rows.append(row)
        if progress is not None:
            progress("images", len(rows), len(paths))
    return pd.DataFrame(rows)


def _inspect_all(
    paths: Sequence[str], folder: Path, fixed: Fixed | None, jobs: int | None
) -> Iterator[dict[str, Any]]:
    """In this process until it is known that the rest is worth several."""
    jobs = joblib.cpu_count() if jobs is None else jobs
    worth = _WORTH_PROCESSES if fixed is None else _WORTH_TORCH
    begun = time.monotonic()
    for done, path in enumerate(paths):
        rest = len(paths) - done
        spent = time.monotonic() - begun
        if jobs > 1 and done >= 8 and rest * spent / done > worth:
            yield from _inspect_in_processes(paths[done:], folder, fixed, min(jobs, rest))
            return
        yield inspect_image(path, folder, fixed)


def _inspect_in_processes(
    paths: Sequence[str], folder: Path, fixed: Fixed | None, jobs: int
) -> Iterator[dict[str, Any]]:
    call = joblib.delayed(inspect_image)
    done = 0
    try:
        # joblib warns, in a thread of its own, where it renews a worker that has grown (torch alone
        # grows by more than it allows). Where warnings are errors, that thread would end and the
        # work never.
        with silence("concurrent.futures"):
            for row in joblib.Parallel(n_jobs=jobs, return_as="generator", pre_dispatch="4*n_jobs")(
                call(p, folder, fixed) for p in paths
            ):
                yield row
                done += 1
    except BrokenExecutor:
        # Some image killed its process. One by one it is known which.
        yield from _inspect_one_by_one(paths[done:], folder, fixed)


def _inspect_one_by_one(
    paths: Sequence[str], folder: Path, fixed: Fixed | None
) -> Iterator[dict[str, Any]]:
    """In one other process, renewed after an image that killed it."""
    # Not the executor that joblib keeps: at its next use it would find one there that is not of its
    # own kind.
    alone = ProcessPoolExecutor(max_workers=1)
    try:
        for path in paths:
            try:
                yield alone.submit(inspect_image, path, folder, fixed).result()
            except BrokenExecutor:
                reason = (
                    "reading it killed the process: out of memory, or a fault of the decoder. "
                    "Export it again, or leave it out."
                )
                yield {"error": reason, **_UNREAD}
                alone.shutdown()
                alone = ProcessPoolExecutor(max_workers=1)
    finally:
        alone.shutdown()


def inspect_image(path: str, folder: Path, fixed: Fixed | None = None) -> dict[str, Any]:
    """The row of one image; see `inspect_images`."""
    file, member = split_member(path)
    made: dict[str, Any] | None = None
    pixels = None
    try:
        digest = digest_file(file, member)
        entry = "" if fixed is None else str(entry_path(folder, digest, repr(fixed)))
        known = read_facts(folder, digest)
        if known is None or (fixed is not None and read_entry(Path(entry)) is None):
            image = read_image(path)
            _refuse_film(path, image)
            known = made = describe(image)
            pixels = fixed.apply(path, image)[0].numpy() if fixed is not None else None
    except (ImageError, OSError) as error:
        text = (
            str(error)
            if isinstance(error, ImageError)
            else f"cannot be read ({error.strerror}). Check its permissions."
        )
        reason = (
            text.removeprefix(f"{path}: ")
            .removeprefix(f"{file}: ")
            .replace(str(file.parent) + os.sep, "")
        )
        return {"error": reason, **_UNREAD}
    except MemoryError:
        return {
            "error": "does not fit in memory. Export a smaller part of it, or leave it out.",
            **_UNREAD,
        }
    except Exception as error:
        return {
            "error": f"cannot be read ({type(error).__name__}): a kind of file not met before. "
            "Leave it out, and report it.",
            **_UNREAD,
        }
    # Not among the faults of the image: a full disk is no fault of it.
    if made is not None:
        write_facts(folder, digest, made)
    if pixels is not None:
        write_entry(Path(entry), pixels)
    known = {key: _as_tuple(value) for key, value in known.items()}
    return {"error": "", **_UNREAD, **known, "file_digest": digest, "entry": entry}


def recall_images(digests: Sequence[str], fixed: Fixed) -> pd.DataFrame:
    """What was noted of images by the digests of their files, from the cache alone.

    Args:
        digests: SHA-256 of each file, as `inspect_images` gives it.
        fixed: the transforms that the image cache was filled with.

    Returns:
        A row per image in this order: `error`, `shape`, `spacing`, `entry` and the rest of
        `inspect_images`; `error` where the cache does not hold it any more.
    """
    folder = cache_folder()
    rows = []
    for digest in digests:
        entry = str(entry_path(folder, digest, repr(fixed)))
        known = read_facts(folder, digest)
        if known is None or read_entry(Path(entry)) is None:
            rows.append({"error": "is not in the cache any more", **_UNREAD})
        else:
            known = {key: _as_tuple(value) for key, value in known.items()}
            rows.append({"error": "", **_UNREAD, **known, "file_digest": digest, "entry": entry})
    return pd.DataFrame(rows)


def describe(image: Image) -> dict[str, Any]:
    """Facts of one image as plain values, and its small pictures."""
    array, provenance = image.array, image.provenance
    hazards = [*provenance["hazards"], *_pixel_hazards(image)]
    thumbnail = make_thumbnail(array)
    # Of a volume the middle axial slice as radiologists see it: front up, the patient's right on
    # the left.
    flat = (
        thumbnail
        if array.ndim == 3
        else make_thumbnail(array[..., array.shape[-1] // 2])[::-1, ::-1].T
    )
    return {
        "pixel_digest": digest_pixels(array),
        "shape": list(array.shape[1:]),
        "spacing": [round(v, 6) for v in image.spacing]
        if provenance["spacing_from"] != "none"
        else [],
        "axes": provenance["axes"],
        "turn": provenance["turn"] or [],
        "stored_shape": list(provenance["stored_shape"]),
        "affine": image.affine.tolist() if provenance["format"] in _PLACED else [],
        "colour": array.shape[0] == 3,
        "format": provenance["format"],
        "modality": provenance["modality"],
        "scanner": provenance.get("scanner", ""),
        "bits_stored": int(provenance["bits_stored"]),
        "intensity": float(np.percentile(array, 99)),
        "border": _border(array),
        "hazards": [list(hazard) for hazard in hazards],
        "thumbnail": thumbnail,
        "picture": np.round(255 * scale(flat, "percentile")).astype(np.uint8),
    }


def digest_pixels(array: NDArray[np.float32]) -> str:
    """SHA-256 of shape and values: equal for files that differ in format or header only."""
    return hashlib.sha256(
        str(array.shape).encode() + np.ascontiguousarray(array).tobytes()
    ).hexdigest()


def make_thumbnail(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey, reduced to 64 x 64 (a volume to 16 x 16 x 16) with an anti-aliasing filter."""
    grey = array.mean(axis=0)
    side = THUMBNAIL[grey.ndim]
    # Thinned first where it is far too large: the filter's cost grows with the image.
    steps = tuple(max(1, n // (8 * side)) for n in grey.shape)
    thinned = grey[tuple(slice(None, None, step) for step in steps)]
    small: NDArray[np.float32] = resize(
        thinned, (side,) * grey.ndim, order=1, anti_aliasing=True, preserve_range=True
    ).astype(np.float32)
    return small


def _border(array: NDArray[np.float32]) -> list[float]:
    """Mean of each edge on the scale of the image, and the share of border pixels at the image's
    minimum.
    """
    grey = array.mean(axis=0)
    if grey.ndim == 3:
        grey = grey[:, :, grey.shape[2] // 2]
    low, high = (float(v) for v in np.percentile(grey, [0.5, 99.5]))
    width = max(1, min(grey.shape) // 20)
    edges = [grey[:width], grey[-width:], grey[:, :width], grey[:, -width:]]
    span = max(high - low, 1e-6)
    means = [float((edge.mean() - low) / span) for edge in edges]
    dark = float(np.concatenate([(edge <= low).ravel() for edge in edges]).mean())
    return [round(v, 4) for v in (*means, dark)]


def _pixel_hazards(image: Image) -> list[tuple[str, str]]:
    array = image.array
    low, high = float(array.min()), float(array.max())
    if low == high:
        return [("constant", "every pixel has the same value")]
    found = []
    # The most frequent value of an image is its background. A sample of the pixels tells enough.
    step = max(1, math.isqrt(array.size // 100_000))
    values, counts = np.unique(array[:, ::step, ::step], return_counts=True)
    share = counts.max() / counts.sum()
    if share > 0.98:
        found.append(("nearly_empty", f"{100 * share:.1f} % of the pixels have one value"))
    elif image.provenance["modality"] == "CT" and image.provenance["bits_stored"] <= 8:
        found.append(
            ("requantised", "CT of 8 bits: the HU values were lost before this file was written")
        )
    elif image.provenance["bits_stored"] > 8 and len(values) <= 256 and array.size > 10_000:
        found.append(
            ("few_levels", f"{len(values)} grey levels in {image.provenance['bits_stored']} bits")
        )
    return found


def _refuse_film(path: str, image: Image) -> None:
    for code, sentence in image.provenance["hazards"]:
        if code == "frames":
            raise ImageError(f"{path}: {sentence}.")


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
