"""Boxes brought from the coordinates of their source onto the pixels of their images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.annotations.boxes import VOLUME, extents, from_axes, to_axes, upper_ends
from medtransfer.data.images.image import Turn, identity_turn
from medtransfer.errors import CohortError, list_faults
from medtransfer.text.names import show

Float = NDArray[np.float64]
# Annotations are rounded: what lies outside by less is cut off, what lies outside by more is a
# fault.
_SLACK = 1.5
# Boxes that somebody should look at: a side below this, or a larger share of the image.
_THINNEST, _LARGEST = 1.0, 0.8
_ASK = "Set cohort.axes to file (as stored) or ras (as shown)."


@dataclass(frozen=True, eq=False)
class Frame:
    """The grid of an image, and how it comes from that of its file.

    Coordinates of boxes count pixels of the image as `read_image` gives it (axes left out, or
    `ras`), pixels in the order of the file (`file`: before an EXIF turn, and before a volume is
    turned to RAS), or mm in the patient's system, RAS (`mm`).

    Attributes:
        shape: along the axes of the array. turn, stored_shape: see `Image`; of an image in the
            order of its file where left out.
        affine: (4, 4), index -> mm, RAS; None where the file states no place.
        resampled: whether pixels were moved by interpolation, so that the order of the file means
            nothing.
    """

    shape: tuple[int, ...]
    turn: Turn | None = None
    stored_shape: tuple[int, ...] = ()
    affine: Float | None = None
    resampled: bool = False

    @property
    def turned(self) -> bool:
        """Whether the order of the file is another."""
        return self.turn is not None and [list(pair) for pair in self.turn] != identity_turn(
            len(self.shape)
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """Boxes on the pixels of their images; what was decided on the way (`notes`), and what somebody
    has to look at (`asks`).
    """

    boxes: pd.DataFrame
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()


def frames_of(facts: pd.DataFrame) -> dict[str, Frame]:
    """By image, from what was noted of each; see `inspection.inspect_images`. Images that could not
    be read have none.
    """
    good = facts[facts["error"] == ""]
    columns = (good[name] for name in ("image", "shape", "turn", "stored_shape", "affine"))
    return {
        image: Frame(
            tuple(shape),
            [list(pair) for pair in turn] if turn else None,
            tuple(stored),
            np.array(affine, float) if len(affine) else None,
            resampled=not turn,
        )
        for image, shape, turn, stored, affine in zip(*columns, strict=True)
    }


def fit_boxes(
    boxes: pd.DataFrame,
    frames: Mapping[str, Frame],
    where: str = "boxes",
    axes: str | None = None,
    sizes: Mapping[str, tuple[float, float]] | None = None,
) -> Fitted:
    """The boxes of these images, on their pixels and cut off at their borders.

    Args:
        boxes: `image`, the coordinates, `label`; see `annotations.Annotations`.
        frames: of the images.
        where: for messages.
        axes: what the coordinates count; see `Frame`.
        sizes: by image, columns and rows that the source states.

    Raises:
        CohortError: boxes without extent, outside of their image by more than rounding, or with
            other axes than it, or of an image of which it cannot be told how it lay when they were
            drawn; all of them.
    """
    boxes = boxes[boxes["image"].isin(frames)].reset_index(drop=True)
    faults: list[str] = []
    orders = {
        image: _order_of(image, frames[image], axes, (sizes or {}).get(image), faults)
        for image in dict.fromkeys(boxes["image"])
    }
    if faults:
        raise CohortError(
            list_faults(f"{where}: boxes of {len(faults)} image(s) cannot be placed", faults)
        )
    given = boxes.reindex(columns=list(VOLUME)).to_numpy(float)
    placed, faults = _place_boxes(given, boxes["image"].tolist(), frames, orders)
    if faults:
        raise CohortError(
            list_faults(
                f"{where}: {len(faults)} of {len(boxes)} boxes do not fit",
                faults,
                "Correct or remove them.",
            )
        )
    limits = _limits(boxes["image"].tolist(), frames)
    cut = np.clip(placed, 0.0, limits)
    clipped = int((~np.isnan(placed) & (cut != placed)).any(axis=1).sum())
    fitted = pd.DataFrame(cut, columns=list(VOLUME))
    fitted = fitted[[c for c in VOLUME if c in boxes.columns]].dropna(axis=1, how="all")
    joined = pd.concat([boxes[["image"]], fitted, boxes[["label"]]], axis=1)
    # Twice the same box is one lesion.
    single = joined.drop_duplicates(["image", *fitted.columns], ignore_index=True)
    notes = [*_describe_orders(orders, frames, axes)]
    if clipped:
        notes.append(
            f"{clipped} box(es) reach beyond their image by rounding, and are cut off at its border"
        )
    if len(single) < len(joined):
        notes.append(f"{len(joined) - len(single)} box(es) are there twice, and count once")
    asks = _ask_about_sizes(cut, limits, boxes["image"].tolist())
    return Fitted(single, tuple(notes), (*asks, *_ask_for_axes(orders, frames, axes)))


def _place_boxes(
    given: Float, images: Sequence[str], frames: Mapping[str, Frame], orders: Mapping[str, str]
) -> tuple[Float, list[str]]:
    """Boxes on the pixels of their images, float64 (box, 6) as `VOLUME`, and those that do not fit,
    in sentences.

    Args:
        given: float64 (box, 6), coordinates as the source states them; z0 and z1 of planes are NaN.
        images: of each box.
        frames, orders: by image.
    """
    placed = given.copy()
    faults: dict[int, str] = {}
    for row, image in enumerate(images):
        frame, order = frames[image], orders[image]
        if fault := _lacks(given[row].tolist(), frame, order):
            faults[row] = fault
            placed[row] = np.nan
        elif order != "shown":
            box = place_box(given[row], frame, order)
            placed[row] = np.concatenate([box, np.full(6 - len(box), np.nan)])
    limits = _limits(images, frames)
    outside = np.any((placed < -_SLACK) | (placed > limits + _SLACK), axis=1)
    empty = (extents(np.clip(placed, 0.0, limits)) <= 0).any(axis=1)
    for row in map(int, np.flatnonzero(outside | empty)):
        faults[row] = (
            f"lies outside of its image, which has {_describe_size(frames[images[row]])} pixels"
            if outside[row]
            else "has no extent; x1 must be above x0, and so on"
        )
    sentences = []
    for row in sorted(faults):
        numbers = ", ".join(f"{value:g}" for value in given[row] if np.isfinite(value))
        sentences.append(f"{show(images[row])}: box ({numbers}) {faults[row]}")
    return placed, sentences


def _limits(images: Sequence[str], frames: Mapping[str, Frame]) -> Float:
    """The largest value of each coordinate, float64 (box, 6); NaN for z0 and z1 of planes."""
    by_image: dict[str, list[float]] = {}
    for image in dict.fromkeys(images):
        ends = upper_ends(frames[image].shape).tolist()
        by_image[image] = ends + [np.nan] * (6 - len(ends))
    return np.array([by_image[image] for image in images], float).reshape(-1, 6)


def _ask_about_sizes(boxes: Float, limits: Float, images: Sequence[str]) -> list[str]:
    """Boxes that somebody should look at, as they are very thin or fill their image."""
    sides, room = extents(boxes), limits[:, [2, 3, 5]]
    planar = np.isnan(sides[:, 2])
    thin = (sides < _THINNEST).any(axis=1) | ((sides <= _THINNEST) | np.isnan(sides)).all(axis=1)
    filled = np.where(planar, np.nanprod(sides, axis=1), sides.prod(axis=1))
    whole = np.where(planar, np.nanprod(room, axis=1), room.prod(axis=1))
    kinds = (
        (thin, "have a side below one pixel, or are one pixel"),
        (
            ~thin & (filled > _LARGEST * whole),
            f"take more than {100 * _LARGEST:.0f} % of their image",
        ),
    )
    names = np.asarray(images, dtype=object)
    return [
        f"{int(rows.sum())} box(es) {what}, such as in {show(names[rows][0])}: are their "
        "coordinates what they are taken for?"
        for rows, what in kinds
        if rows.any()
    ]


def place_box(given: Float, frame: Frame, order: str) -> Float:
    """A box on the pixels of its image.

    Args:
        given: x0, y0, x1, y1, z0, z1; the last two NaN of a plane. frame: of the image. order:
            shown, file or mm.
    """
    if order == "shown":
        return given[: 2 * len(frame.shape)]
    if order == "mm":
        assert frame.affine is not None  # else the box lacks a place
        corners = np.array(
            [
                [x, y, z, 1.0]
                for x, y, z in itertools.product(given[[0, 2]], given[[1, 3]], given[[4, 5]])
            ]
        ).T
        index = (np.linalg.inv(frame.affine) @ corners)[: len(frame.shape)] + 0.5
        return np.asarray(
            from_axes(np.concatenate([index.min(1), index.max(1)])[None])[0], np.float64
        )
    assert frame.turn is not None  # an image that was resampled is refused
    in_file = to_axes(given[None, : 2 * len(frame.stored_shape)])[0].reshape(2, -1)
    if (
        np.isnan(in_file).any()
    ):  # a plane of a volume of one slice: x and y along its two axes, in the order of the file
        two = sorted(axis for axis, _ in frame.turn)
        in_file = np.full((2, 3), np.nan)
        in_file[:, two] = given[:4].reshape(2, 2)
    ends = [
        in_file[:, axis] if way > 0 else frame.stored_shape[axis] - in_file[::-1, axis]
        for axis, way in frame.turn
    ]
    return np.asarray(from_axes(np.array(ends).T.reshape(1, -1))[0], np.float64)


def _describe_size(frame: Frame) -> str:
    """Pixels along x, y and z."""
    return " x ".join(map(str, frame.shape[::-1] if len(frame.shape) == 2 else frame.shape))


def _order_of(
    image: str, frame: Frame, axes: str | None, size: tuple[float, float] | None, faults: list[str]
) -> str:
    """In which order the boxes of an image are: shown, file or mm."""
    plane = len(frame.shape) == 2 and len(frame.stored_shape) < 3
    if plane and size is not None:
        shown, stored = size == frame.shape[::-1], size == tuple(frame.stored_shape[::-1])
        if not (shown or stored):
            faults.append(
                f"{show(image)}: its boxes are of an image of {size[0]:g} x {size[1]:g} pixels, "
                f"and it has {frame.shape[1]} x "
                f"{frame.shape[0]}"
            )
        elif frame.turned and axes is None and shown != stored:
            return "shown" if shown else "file"
    if axes == "mm":
        if plane or frame.affine is None:
            faults.append(
                f"{show(image)}: states no place in the patient, so that boxes in mm cannot be "
                "found in it"
            )
            return "shown"
        return "mm"
    if axes == "file":
        if frame.resampled:
            faults.append(
                f"{show(image)}: its slices were straightened, so that boxes in the order of the "
                "file do not fit; use mm or ras"
            )
            return "shown"
        return "file" if frame.turned or len(frame.stored_shape) > len(frame.shape) else "shown"
    if axes is None and plane and frame.turned:
        faults.append(
            f"{show(image)}: is turned by its EXIF tag; were its boxes drawn before the turn, or "
            f"after it? {_ASK}"
        )
    return "shown"


def _lacks(given: Sequence[float], frame: Frame, order: str) -> str:
    """What a box lacks, or has too much of; "" where nothing."""
    finite = [math.isfinite(value) for value in given]
    if not all(finite[:4]) or finite[4] != finite[5]:
        return "lacks coordinates; all are numbers"
    solid = len(frame.shape) == 3 or order == "mm"
    if solid and not finite[4]:
        return (
            f"lacks coordinates; {'a place in mm' if order == 'mm' else 'a volume'} needs z0 and z1"
        )
    if finite[4] and not solid and not (order == "file" and len(frame.stored_shape) == 3):
        return "has z0 and z1, but the image is a plane"
    return ""


def _describe_orders(
    orders: Mapping[str, str], frames: Mapping[str, Frame], axes: str | None
) -> list[str]:
    notes = []
    turned = [image for image, order in orders.items() if order == "file" and frames[image].turned]
    if turned and axes is None:
        notes.append(
            f"boxes of {len(turned)} image(s), such as {show(turned[0])}, are turned with the "
            "EXIF tag, by the size that is stated"
        )
    elif turned:
        notes.append(
            f"boxes of {len(turned)} image(s) are in the order of the file, and were turned"
        )
    if any(order == "mm" for order in orders.values()):
        notes.append("boxes are in mm, RAS")
    return notes


def _ask_for_axes(
    orders: Mapping[str, str], frames: Mapping[str, Frame], axes: str | None
) -> list[str]:
    """Volumes in another order than RAS, where nobody said what the boxes count."""
    doubtful = [
        image
        for image in orders
        if axes is None
        and len(frames[image].shape) == 3
        and (frames[image].turned or frames[image].resampled)
    ]
    if not doubtful:
        return []
    return [
        (
            f"boxes of {len(doubtful)} volume(s), such as {show(doubtful[0])}, are taken as "
            "voxels to the right, front and head (RAS), "
            "and the file stores them in another order: look at the boxes on the page of `check "
            "--output`. Set cohort.axes to ras if "
            "they are right, to file (voxels as a viewer counts them), or to mm."
        )
    ]
