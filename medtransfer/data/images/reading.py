"""One image -> array (channel, *space), spacing in mm, provenance; the same code in training and at
inference.

An image is a file; a folder with one DICOM series; or a member of one of these, named behind a `#`:
`loop.dcm#3` (a frame, from 1), `scan.nii.gz#2` (a volume of a 4D file, from 1), `folder#1a2b3c4d`
(a series of several, by the name that messages give it), `breastmnist.npz#train/0` (row of an
archive, from 0).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.images.dicom.header import open_dicom
from medtransfer.data.images.dicom.image import read_multiframe, read_plane, read_series
from medtransfer.data.images.image import Image, identity_turn
from medtransfer.data.images.limits import refuse_slivers
from medtransfer.data.images.medmnist import read_member
from medtransfer.data.images.orientation import flatten, orient, voxel_sizes
from medtransfer.data.images.pictures import read_picture
from medtransfer.data.images.signatures import (
    ARCHIVE,
    PICTURES,
    VOLUMES,
    kind_of,
    kind_of_ending,
    readable_kind,
)
from medtransfer.data.images.volumes import pixels_of_another, read_volume
from medtransfer.data.images.windows import Window, needs_header, parse_window, scale, uses_preset
from medtransfer.errors import ImageError


def split_member(path: str | Path) -> tuple[Path, str]:
    """The file or folder, and what stands behind `#` ("" where nothing does)."""
    path = Path(path)
    if "#" not in str(path) or path.exists():
        return path, ""
    name, _, member = str(path).rpartition("#")
    return Path(name), member


def is_image_file(path: Path) -> bool:
    """True for files that `read_image` takes: by their content, or by their ending where they are
    damaged.
    """
    return path.name != "DICOMDIR" and kind_of(path) != ""


def read_image(path: str | Path, window: Any = None) -> Image:
    """Reads one image: a picture (see `pictures`), DICOM file or series, NIfTI, NRRD, MetaImage, or
    a row of MedMNIST.

    The content of a file decides what it is, not its ending.
    Pictures keep 16 bits, their orientation tag is applied, alpha is composed on black. DICOM:
    modality LUT or rescale of each frame, MONOCHROME1 inverted, palette and YBR to RGB, padding set
    to the background, overlays left out; slices sorted by position, tilted ones straightened.
    Volumes are turned to RAS without interpolation. Colour channels that are all equal become one.

    Args:
        path: file or folder, or a member of it behind `#`; see the module.
        window: what becomes 0..1: percentile (0.5 to 99.5 % of the image), full, from_header
            (DICOM: the VOI LUT or first window), lung, brain, soft_tissue, bone (CT), (center,
            width) in the image's units, or three of these for three channels. None leaves the
            units.

    Raises:
        ImageError: missing, damaged, ambiguous, or with values that are not finite.
        ConfigError: an unknown window.
    """
    parsed = None if window is None else parse_window(window)
    if parsed is None:
        return _load(path, False)
    # A window of the header is applied to the stored values, before MONOCHROME1 is inverted: read
    # for it alone.
    only_header = parsed == "from_header"
    return window_image(path, None if only_header else read_image(path), parsed)


def window_image(path: str | Path, image: Image | None, window: Window) -> Image:
    """Maps an image of `read_image(path)` to 0..1; reads the file again where its header's window
    is asked for.

    Raises:
        ImageError: a window in HU for what is not CT, a header without a window, or three windows
            for colour.
    """
    from_header = None
    if needs_header(window):
        from_header = _load(path, True)
    first = image or from_header
    assert first is not None  # one of the two was read
    _refuse_preset(path, first, window)
    parts: list[NDArray[np.float32]] = []
    steps: list[str] = []
    for single in _singles(window):
        source = from_header if single == "from_header" else image
        assert source is not None
        steps += [step for step in source.provenance["steps"] if step not in steps]
        parts.append(source.array if single == "from_header" else scale(source.array, single))
        if single != "from_header":
            text = (
                f"center {single[0]:g} width {single[1]:g}" if isinstance(single, tuple) else single
            )
            steps.append(f"window {text} mapped to 0..1")
    if len(parts) > 1 and first.array.shape[0] != 1:
        raise ImageError(
            f"{path}: three windows make the channels of a grey image; this one has colour."
        )
    return replace(
        first,
        array=np.concatenate(parts) if len(parts) > 1 else parts[0],
        provenance={**first.provenance, "steps": steps},
    )


def _refuse_preset(path: str | Path, image: Image, window: Window) -> None:
    """Windows by name are in HU, which only CT is in; NIfTI and its like do not say what they
    hold.
    """
    kind, modality = image.provenance["format"], image.provenance["modality"]
    if uses_preset(window) and (
        image.provenance["unit"] != "HU"
        if kind == "DICOM"
        else kind not in {"NIfTI", "NRRD", "MetaImage"}
    ):
        raise ImageError(
            f"{path}: the window {window} is in HU, and this is {modality or kind}, not CT in HU. "
            "Use [center, width]."
        )


def _singles(window: Window) -> tuple[Any, ...]:
    return window if isinstance(window, tuple) and len(window) == 3 else (window,)


def _load(path: str | Path, header_window: bool) -> Image:
    file, member = split_member(path)
    if not file.exists():
        raise ImageError(f"{file}: no such file or folder.")
    try:
        return _checked(str(path), _read(file, member, header_window))
    except MemoryError:
        raise ImageError(
            f"{path}: does not fit in the memory that is free. Close other programs, or export a "
            "smaller part of it."
        ) from None


def _read(file: Path, member: str, header_window: bool) -> Image:
    if file.is_dir():
        return read_series(file, member, header_window)
    file = pixels_of_another(file) or file
    kind = readable_kind(file)
    if header_window and kind in {ARCHIVE, *PICTURES, *VOLUMES}:
        raise ImageError(
            f"{file}: window from_header needs a DICOM file. Use percentile, or [center, width]."
        )
    if kind == ARCHIVE:
        return _plain(*read_member(file, member))
    image = _read_kind(file, kind, _number(file, member), header_window)
    named = kind_of_ending(file)
    if kind and named not in {"", kind}:
        hazard = (
            "ending",
            f"is {kind}, though its name ends as that of {named}; its content decides",
        )
        image = replace(
            image,
            provenance={**image.provenance, "hazards": [*image.provenance["hazards"], hazard]},
        )
    return image


def _read_kind(file: Path, kind: str, number: int | None, header_window: bool) -> Image:
    if kind in PICTURES:
        if number is not None:
            raise ImageError(f"{file}: a picture has no part #{number + 1}.")
        return _plain(*read_picture(file, kind))
    if kind in VOLUMES:
        return _volume(*read_volume(file, kind, number))
    try:
        opened = open_dicom(file)
    except ImageError:
        if kind:
            raise
        raise ImageError(
            f"{file}: not an image of a kind that is read here. Save it as PNG, TIFF, DICOM or "
            "NIfTI."
        ) from None
    if number is None and opened.frames > 1:
        return read_multiframe(opened, header_window)
    return read_plane(opened, number, header_window)


def _number(file: Path, member: str) -> int | None:
    if not member:
        return None
    if not member.isdigit() or int(member) < 1:
        raise ImageError(
            f"{file}: a frame or volume is named by its number from 1, as {file.name}#1, not "
            f"#{member}."
        )
    return int(member) - 1


def _plain(array: NDArray[np.float32], provenance: dict[str, Any]) -> Image:
    dimensions = array.ndim - 1
    axes = "row, column" if dimensions == 2 else "slice, row, column"
    order = {"axes": axes, "turn": identity_turn(dimensions), "stored_shape": list(array.shape[1:])}
    return Image(array, (1.0,) * dimensions, np.eye(4), order | provenance)


def _volume(
    array: NDArray[np.float32], affine: NDArray[np.float64], provenance: dict[str, Any]
) -> Image:
    stored = {"stored_shape": list(array.shape)}
    if 1 in array.shape:
        plane, affine, turn = flatten(array, affine)
        return Image(
            plane[None],
            voxel_sizes(affine)[:2],
            affine,
            {**provenance, "axes": "row, column", "turn": turn} | stored,
        )
    array, affine, turn = orient(array, affine)
    return Image(
        array[None],
        voxel_sizes(affine),
        affine,
        {**provenance, "axes": "x, y, z (RAS)", "turn": turn} | stored,
    )


def _checked(path: str, image: Image) -> Image:
    array, steps = image.array, list(image.provenance["steps"])
    if array.size == 0:
        raise ImageError(f"{path}: holds no pixels.")
    refuse_slivers(Path(path), array.shape[1:])
    # DICOM stores whole numbers, of which `dicom_pixels` makes finite ones. A finite sum tells that
    # every value is finite, in half the time of asking each.
    if (
        image.provenance["format"] != "DICOM"
        and not np.isfinite(array.sum())
        and not np.isfinite(array).all()
    ):
        raise ImageError(
            f"{path}: {int((~np.isfinite(array)).sum())} pixels are NaN or infinite. Correct the "
            "file or leave it out."
        )
    if array.shape[0] == 3 and _equal_channels(array):
        array = array[:1]
        steps.append("equal colour channels reduced to one")
    return replace(
        image,
        array=np.ascontiguousarray(array, dtype=np.float32),
        provenance={**image.provenance, "steps": steps},
    )


def _equal_channels(array: NDArray[np.float32]) -> bool:
    """A few lines tell most images of colour before all are compared."""
    return all(
        bool((some[0] == some[1]).all() and (some[1] == some[2]).all())
        for some in (array[:, ::32], array)
    )
