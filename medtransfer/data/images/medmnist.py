"""Archives of MedMNIST (Yang et al. 2023, doi:10.1038/s41597-022-01721-8), 2D and 3D.

An `.npz` file holds `train_images`, `train_labels`, and the same for `val` and `test`.

- labels (compared with: images of the part, in number and shape): refused.
- values of labels (compared with: whole numbers from 0): refused, how many named.
- images of a part (compared with: those of the other parts, in shape): refused.
- type of images (compared with: uint8, 0 to 255): values are taken as they are, noted.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.images.limits import refuse_implausible
from medtransfer.data.images.signatures import ARCHIVE, kind_of
from medtransfer.errors import CohortError, ImageError

PARTS = {"train": "train", "val": "tune", "test": "test"}
# The meaning of 0 and 1 in the archives with two classes, as the dataset's own INFO states it.
MEANINGS = {
    "breastmnist": ("malignant", "normal, benign"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}

_open: OrderedDict[tuple[str, int, int, str], NDArray[Any]] = OrderedDict()


def is_archive(path: Path) -> bool:
    """True for `.npz` files, by their content or their ending."""
    return kind_of(path) == ARCHIVE


def read_labels(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Labels by part, and the names of the classes ("0", "1", ... where the archive is not a known
    one).

    Raises:
        CohortError: no archive of this layout, or labels that are not one class per image.
    """
    try:
        labels = {part: np.asarray(_load(path, f"{part}_labels")) for part in PARTS}
        images = {part: _load(path, f"{part}_images") for part in PARTS}
        counts = {part: len(array) for part, array in images.items()}
    except (ImageError, TypeError) as error:
        raise CohortError(
            str(error) if isinstance(error, ImageError) else f"{path}: its arrays have no rows."
        ) from error
    shapes = {part: array.shape[1:] for part, array in images.items() if len(array)}
    if len(set(shapes.values())) > 1:
        shown = ", ".join(f"{part} {' x '.join(map(str, shape))}" for part, shape in shapes.items())
        raise CohortError(
            f"{path}: images of the parts differ in shape ({shown}). Fetch the archive again."
        )
    for part, values in labels.items():
        if values.ndim not in {1, 2} or values.size != len(values):
            raise CohortError(
                f"{path}: {part}_labels has shape {values.shape}; archives with one label per "
                "image are read."
            )
        if len(values) != counts[part]:
            raise CohortError(
                f"{path}: {counts[part]} images but {len(values)} labels in {part}. Fetch the "
                "archive again."
            )
        odd = (
            ~np.isfinite(values.astype(float)) | (values < 0) | (values != np.floor(values))
            if values.dtype.kind in "iufb"
            else None
        )
        if odd is None or odd.any():
            how = (
                "no numbers"
                if odd is None
                else f"{int(odd.sum())} values that are no class (a whole number from 0)"
            )
            raise CohortError(
                f"{path}: {part}_labels holds {how}. Correct them, or leave their images out."
            )
    flat = {part: values.reshape(-1).astype(int) for part, values in labels.items()}
    meanings = next(
        (names for stem, names in MEANINGS.items() if path.stem.lower().startswith(stem)), None
    )
    classes = sorted(set(np.concatenate(list(flat.values())).tolist()))
    names = (
        meanings
        if meanings is not None and set(classes) <= {0, 1}
        else tuple(str(v) for v in range(max(classes, default=0) + 1))
    )
    return flat, names


def read_member(path: Path, member: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """One image of an archive.

    Args:
        path: the `.npz` file.
        member: `train/0`, `val/3`, `test/12`: part and row from 0.

    Returns:
        array: float32 (channel, *space), 0..255.
        provenance: format and depth.

    Raises:
        ImageError: no such image, or no such layout.
    """
    part, _, row = member.partition("/")
    if part not in PARTS or not row.isdigit():
        raise ImageError(
            f"{path}: an image of an archive is named as {path.name}#train/0, #val/0 or #test/0, "
            f"not #{member}."
        )
    images = _load(path, f"{part}_images")
    if int(row) >= len(images):
        raise ImageError(f"{path}: {part} has {len(images)} images, no image {row}.")
    image = images[int(row)]
    colour = image.ndim == 3 and image.shape[-1] == 3
    if image.ndim not in {2, 3}:
        raise ImageError(f"{path}#{member}: an image of shape {image.shape} is neither 2D nor 3D.")
    array = np.moveaxis(image, -1, 0) if colour else image[None]
    facts = {
        "format": "MedMNIST",
        "modality": "",
        "bits_stored": images.dtype.itemsize * 8,
        "spacing_from": "none",
        "steps": [],
        "hazards": []
        if images.dtype == np.uint8
        else [("values", f"images are {images.dtype}, not uint8; values are taken as they are")],
    }
    return array.astype(np.float32), facts


def _load(path: Path, name: str) -> NDArray[Any]:
    """One array of the archive; the last few are kept, as images are read one by one."""
    try:
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size, name)
        if key not in _open:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                if name not in archive.files:
                    raise ImageError(
                        f"{path}: no array {name}; a MedMNIST archive holds train_images, "
                        "train_labels, and so on."
                    )
                _check_header(path, name)
                _open[key] = archive[name]
            while len(_open) > 6:
                _open.popitem(last=False)
        return _open[key]
    except ImageError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise ImageError(
            f"{path}: not a readable archive ({type(error).__name__}). Fetch it again."
        ) from error


def _check_header(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    if dtype.kind not in "iuf":
        raise ImageError(f"{path}: {name} holds {dtype}, not numbers.")
    refuse_implausible(path, shape, path.stat().st_size)
