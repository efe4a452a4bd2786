"""What the values of a mask mean, and how it lies on its image.

Facts that a mask states beside its values, and what is done where they differ from those of its
image:

- shape (compared with: that of the image as shown, and as stored): as stored: turned as the image
  is; neither: refused.
- affine of a volume (compared with: that of the image, at all corners): a header that states
  nothing (1 mm, origin 0): as the image, noted; else refused.
- values (compared with: each other): two: lesion and background; few whole numbers: lesions of
  their own; else half of the maximum, noted.
- share of the foreground (compared with: half of the picture): more: refused.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as connected

from medtransfer.data.images.image import Image, Turn, turn_array, unturn_array
from medtransfer.errors import ImageError

Values = NDArray[np.float32]
# Whole numbers up to here are names of lesions or of their parts; beyond it grey levels may be
# blurred edges.
_NAMES = 20
_FEW = 64
# Neighbouring pixels of a blurred edge mostly differ, those of numbered lesions mostly do not.
_STEPS = 0.3
# What conversion leaves of whole numbers.
_RESIDUE = 1e-3
_MOST = 0.5
_STORED = ("NIfTI", "NRRD", "MetaImage", "DICOM")


def read_lesions(values: Values) -> tuple[NDArray[np.int64], str]:
    """The lesions of a mask.

    Args:
        values: (channel, *space), as `read_image` gives them.

    Returns:
        Space with 0 for the background and a number for each connected lesion (8 or 26 neighbours),
        and a sentence where values were not simply two with 0 for the background.

    Raises:
        ImageError: values that are no mask, or whose foreground is most of the picture.
    """
    grey, coloured = (values[0], "") if len(values) == 1 else _number_colours(values)
    if grey.min() < 0:
        raise ImageError(
            f"holds values from {grey.min():g} to {grey.max():g}: an image or a map of distances, "
            "not a mask. Save lesions as 1."
        )
    whole = np.rint(grey)
    if 0 < grey.max() <= _RESIDUE:
        return np.zeros(grey.shape, np.int64), "its values are residues of 0"
    if grey.max() > 0.5 and float(np.abs(grey - whole).max()) <= _RESIDUE:
        residues = "" if (whole == grey).all() else "values were rounded to whole numbers"
        different = np.unique(whole)
    else:
        residues, different, whole = "", np.unique(grey), grey
    notes = [coloured, residues]
    if len(different) == 1:
        lesions = np.full(grey.shape, int(different[0] > 0), np.int64)
    elif len(different) == 2:
        lesions = connected(whole == different[1]).astype(np.int64)
        if different[0] > 0:
            notes.append(
                f"values {different[0]:g} and {different[1]:g}: the higher one is the lesion"
            )
    elif (different == np.rint(different)).all() and _are_names(whole, different):
        lesions = _separate(whole, different)
        first = ", ".join(f"{value:g}" for value in different[1:6])
        more = ", ..." if len(different) > 6 else ""
        notes.append(f"values {first}{more} are lesions of their own")
    else:
        middle = (float(different[0]) + float(different[-1])) / 2
        lesions = connected(grey > middle).astype(np.int64)
        notes.append(
            "of many values those above the middle of the lowest and the highest are the lesion"
        )
    share = float((lesions > 0).mean())
    if share > _MOST:
        raise ImageError(
            f"{100 * share:.0f} % of it are lesion by its values: is it inverted, or an image? "
            "Save lesions above 0, the background as "
            "0; give the box of a lesion that is so large in a table."
        )
    return lesions, "; ".join(note for note in notes if note)


def align_mask(mask: Image, image: Image, axes: str | None) -> tuple[Values, str]:
    """The values of a mask on the grid of its image, and what was done to bring them there.

    Args:
        mask, image: as read. axes: `file`, `ras` or `mm` where the user said how masks lie; see
            `frames.Frame`.

    Raises:
        ImageError: it does not lie on the image.
    """
    turn: Turn | None = image.provenance["turn"]
    stored = tuple(image.provenance["stored_shape"])
    shown = image.array.shape[1:]
    if mask.provenance["format"] in _STORED and image.provenance["format"] in _STORED:
        if mask.array.shape[1:] == shown and (gap := _gap(mask, image)) <= 0.5:
            return mask.array, ""
        if (
            turn is not None
            and tuple(mask.provenance["stored_shape"]) == stored
            and _states_nothing(mask)
        ):
            return _turn_as(
                mask, turn
            ), "its header states no place: it was taken as stored in the order of its image"
        if mask.array.shape[1:] == shown:
            raise ImageError(
                f"by its affine it lies up to {gap:.3g} voxels off its image. Resample it to the "
                "image, or give it the image's affine."
            )
    elif turn is not None and not is_identity(turn) and tuple(mask.array.shape[1:]) == stored:
        # A picture that its EXIF tag turns, and a mask that was drawn before the turn, or after it.
        if stored == shown and axes is None:
            raise ImageError(
                "its image is turned by its EXIF tag: was the mask drawn on the image as stored, "
                "or as shown? Set cohort.axes to file, "
                "or ras."
            )
        if stored != shown or axes == "file":
            return _turn_as(mask, turn), "turned as the EXIF tag turns its image"
    if mask.array.shape[1:] != shown:
        raise ImageError(f"the mask has {mask.array.shape[1:]} pixels, its image {shown}")
    return mask.array, ""


def is_identity(turn: Turn) -> bool:
    """Whether an image keeps the order of its file."""
    return all(list(pair) == [axis, 1] for axis, pair in enumerate(turn))


def _turn_as(mask: Image, turn: Turn) -> Values:
    channels = [
        unturn_array(channel, mask.provenance["turn"], mask.provenance["stored_shape"])
        for channel in mask.array
    ]
    return np.stack([turn_array(channel, turn) for channel in channels])


def _gap(mask: Image, image: Image) -> float:
    """How far corners lie apart, in voxels of the image."""
    ends = [(0, n - 1) for n in image.array.shape[1:]] + [(0,)] * (4 - image.array.ndim)
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T
    apart = np.linalg.solve(image.affine, mask.affine @ corners) - corners
    return float(np.abs(apart[: image.array.ndim - 1]).max())


def _states_nothing(mask: Image) -> bool:
    """Whether a header holds what libraries write where nobody says anything: 1 mm, axes along the
    patient's, origin 0.
    """
    if any(code == "no_orientation" for code, _ in mask.provenance["hazards"]):
        return True
    if not np.allclose(mask.spacing, 1.0) or mask.provenance["turn"] is None:
        return False
    axes = np.abs(mask.affine[:3, : mask.array.ndim - 1])
    first = [
        0 if way > 0 else n - 1
        for (_, way), n in zip(mask.provenance["turn"], mask.array.shape[1:], strict=True)
    ]
    origin = mask.affine @ np.array([*first, *[0] * (3 - len(first)), 1.0])
    return bool(
        np.allclose(np.sort(axes, 0)[:2], 0.0, atol=1e-6)
        and np.allclose(origin[:3], 0.0, atol=1e-6)
    )


def _number_colours(values: Values) -> tuple[Values, str]:
    """Colours as numbers, the background as 0: black, or the most frequent; of too many colours the
    brightest channel.
    """
    # As one number each: rows of three are slow to sort.
    codes = np.rint(values).astype(np.int64).reshape(len(values), -1)
    _, first, which, counts = np.unique(
        codes.T @ np.array([1 << 32, 1 << 16, 1]),
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    colours = codes.T[first]
    if len(colours) > _FEW:
        return values.max(0), "of its colours the brightest channel was taken"
    black = np.flatnonzero((colours == 0).all(1))
    background = int(black[0]) if len(black) else int(counts.argmax())
    number = np.arange(len(colours)) + 1
    number[background], number[background + 1 :] = 0, number[background + 1 :] - 1
    if len(colours) > _NAMES + 1 or not _are_names(
        number[which].reshape(values.shape[1:]), np.unique(number)
    ):
        return values.max(0), "of its colours the brightest channel was taken"
    return number[which].reshape(values.shape[1:]).astype(
        np.float32
    ), f"{len(colours) - 1} colours beside the background"


def _are_names(whole: NDArray[Any], different: NDArray[Any]) -> bool:
    """Whether whole numbers name lesions, and are no blurred edge.

    They do where they are few and small; where they count up and neighbours are mostly of one
    number; and where there are few, and each has an interior and meets the background.
    """
    if different[-1] <= _NAMES and len(different) <= _NAMES:
        return True
    if (np.diff(different) == 1).all() and different[0] == 0 and _share_of_steps(whole) < _STEPS:
        return True
    if len(different) > _FEW:
        return False
    around = ndimage.generate_binary_structure(whole.ndim, whole.ndim)
    background = ndimage.binary_dilation(whole == different[0], around)
    for value in different[1:]:
        region = whole == value
        if not (ndimage.binary_erosion(region, around).any() and (region & background).any()):
            return False
    return True


def _share_of_steps(whole: NDArray[Any]) -> float:
    """Of neighbouring pixels that are both above 0, the share that differ."""
    pairs = steps = 0
    for axis in range(whole.ndim):
        first, second = (
            whole.take(range(whole.shape[axis] - 1), axis),
            whole.take(range(1, whole.shape[axis]), axis),
        )
        both = (first > 0) & (second > 0)
        pairs += int(both.sum())
        steps += int((both & (first != second)).sum())
    return steps / pairs if pairs else 0.0


def _separate(whole: NDArray[Any], different: NDArray[Any]) -> NDArray[np.int64]:
    """Connected parts of each value; one that lies within others, as a core within its rim, is a
    part of these.
    """
    around = ndimage.generate_binary_structure(whole.ndim, whole.ndim)
    names = whole.astype(np.int64)
    outside = ndimage.binary_dilation(whole == different[0], around)
    for value in different[1:]:
        parts, _ = ndimage.label(whole == value, around)
        for place, inside in enumerate(ndimage.find_objects(parts), 1):
            near = tuple(slice(max(0, one.start - 1), one.stop + 1) for one in inside)
            part = parts[near] == place
            if (part & outside[near]).any() or _at_border(inside, whole.shape):
                continue
            kinds, counts = np.unique(
                whole[near][ndimage.binary_dilation(part, around) & ~part], return_counts=True
            )
            names[near][part] = int(kinds[counts.argmax()])
    names[whole == different[0]] = 0
    return np.asarray(connected(names, background=0), np.int64)


def _at_border(inside: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return any(
        one.start == 0 or one.stop == length for one, length in zip(inside, shape, strict=True)
    )
