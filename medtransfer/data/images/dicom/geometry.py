"""From planes in space to one volume: grouping, order, gaps, tilt. Knows geometry, not files.

Coordinates are mm in the patient system of DICOM (LPS: x to the left, y to the back, z to the head;
PS3.3 C.7.6.2.1).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medtransfer.errors import ImageError

Float = NDArray[np.float64]

# Distances between neighbouring slices may differ by this share of their median.
_GAP = 0.10
# Direction cosines of parallel slices agree within this: three digits, rounded either way.
_PARALLEL = 1.5e-3
# A shear below this angle in degrees comes from rounding in the header.
_TILT = 0.5
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """One slice in space.

    Attributes:
        key: what slices of one volume share besides their geometry: series, shape, samples.
        name: of the file (and frame), for messages.
        position: mm, centre of the first pixel; None where not stated.
        orientation: direction of a row and of a column, each a unit vector; None where not stated.
        spacing: mm between rows and between columns; None where not stated.
    """

    key: Hashable
    name: str
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, float] | None = None

    @property
    def placed(self) -> bool:
        """True where the plane can be part of a volume."""
        return (
            self.position is not None and self.orientation is not None and self.spacing is not None
        )


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order.

    Attributes:
        order: row numbers of the planes, along the normal.
        spacing: mm between slices, rows, columns.
        affine: float64 (4, 4), index (slice, row, column, 1) -> mm, RAS. Sheared where the gantry
            was tilted.
        shear: rows and columns by which each slice lies off the one before it, on a straight grid.
        tilt: angle of that shear in degrees; 0 for a straight stack.
    """

    order: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: Float
    shear: tuple[float, float]
    tilt: float


def plane_affine(plane: Plane) -> Float | None:
    """Index (row, column, 0, 1) -> mm, RAS; None for a plane without a place in space."""
    if plane.position is None or plane.orientation is None or plane.spacing is None:
        return None
    along_row, along_column, normal = _axes(plane)
    return _affine(
        [along_column * plane.spacing[0], along_row * plane.spacing[1], normal], plane.position
    )


def group_planes(planes: Sequence[Plane]) -> list[list[int]]:
    """Parallel planes of one key and spacing, the largest group first; planes without a place are
    left out.
    """
    groups: list[list[int]] = []
    for number, plane in enumerate(planes):
        if not plane.placed:
            continue
        for group in groups:
            if _alike(planes[group[0]], plane):
                group.append(number)
                break
        else:
            groups.append([number])
    return sorted(groups, key=len, reverse=True)


def stack_planes(planes: Sequence[Plane], group: Sequence[int], where: str) -> Stack:
    """Orders parallel planes by their position along the normal.

    Raises:
        ImageError: two planes at one position, missing slices, or planes shifted irregularly.
    """
    first = planes[group[0]]
    assert first.spacing is not None  # group_planes takes placed planes only
    along_row, along_column, normal = _axes(first)
    positions = np.array([planes[number].position for number in group], dtype=float)
    distance = positions @ normal
    ranks = np.argsort(distance, kind="stable")
    order = [group[rank] for rank in ranks]
    steps = np.diff(positions[ranks], axis=0)
    gaps = steps @ normal
    usual = float(np.median(gaps))
    _refuse_repeated(gaps, usual, [planes[number].name for number in order], where)
    if not _is_rounded(distance[ranks], positions):
        _refuse_gaps(gaps, usual, [planes[number].name for number in order], where)
    sideways = np.stack(
        [steps @ along_column / first.spacing[0], steps @ along_row / first.spacing[1]], axis=1
    )
    shear = sideways.mean(axis=0)
    drift = np.cumsum(sideways - shear, axis=0)
    off = float(np.abs(drift).max())
    if off > 1.0:
        raise ImageError(
            f"{where}: slices are shifted against each other by up to {off:.1f} pixels, not "
            "evenly. Export it again."
        )
    gap = float(gaps.mean())
    offset = float(np.hypot(shear[0] * first.spacing[0], shear[1] * first.spacing[1]))
    tilt = math.degrees(math.atan2(offset, gap))
    # A small angle adds up over many slices; below half a pixel in all, or what the digits of the
    # cosines explain, it is rounding.
    small = float(np.abs(shear).max()) * (len(order) - 1) < 0.5 or tilt < _angle_of_digits(first)
    straight = tilt < _TILT and small
    step = gap * normal if straight else steps.mean(axis=0)
    affine = _affine(
        [step, along_column * first.spacing[0], along_row * first.spacing[1]], positions[ranks[0]]
    )
    return Stack(
        tuple(order),
        (gap, *first.spacing),
        affine,
        (0.0, 0.0) if straight else (float(shear[0]), float(shear[1])),
        0.0 if straight else tilt,
    )


def straighten(
    volume: NDArray[np.float32], stack: Stack, fill: float
) -> tuple[NDArray[np.float32], Float]:
    """Moves the slices of a tilted stack onto a straight grid, linearly interpolated.

    Args:
        volume: (slice, row, column) in the order of the stack.
        stack: with its shear.
        fill: value outside of the slices.

    Returns:
        The volume on a grid widened by the shear, and its straight affine.
    """
    count = len(volume)
    total = [rate * (count - 1) for rate in stack.shear]
    before = [math.ceil(max(0.0, -t)) for t in total]
    after = [math.ceil(max(0.0, t)) for t in total]
    widened = np.pad(volume, [(0, 0), *zip(before, after, strict=True)], constant_values=fill)
    for number in range(count):
        shift = [rate * number for rate in stack.shear]
        widened[number] = ndimage.shift(widened[number], shift, order=1, mode="constant", cval=fill)
    affine = stack.affine.copy()
    row, column = affine[:3, 1], affine[:3, 2]
    affine[:3, 0] -= stack.shear[0] * row + stack.shear[1] * column
    affine[:3, 3] -= before[0] * row + before[1] * column
    return widened, affine


def _digits(numbers: Float) -> int:
    """Decimals with which all of these are written, at most 6."""
    return next(
        (count for count in range(6) if np.abs(numbers - np.round(numbers, count)).max() < 1e-7), 6
    )


def _angle_of_digits(plane: Plane) -> float:
    """Degrees that the rounding of the direction cosines can turn a plane by; 0 where they are
    exact, as 1 and 0 are.
    """
    digits = _digits(np.asarray(plane.orientation, dtype=float))
    return math.degrees(10.0**-digits) if digits else 0.0


def _is_rounded(distance: Float, positions: Float) -> bool:
    """True where slices lie evenly but for the digits of their positions, and these are fine enough
    for no slice to be missed.
    """
    if len(distance) < 8:  # few slices lie near some even grid whether or not one is missing
        return False
    number, digit = np.arange(len(distance)), 10.0 ** -_digits(positions)
    gap, first = np.polyfit(number, distance, 1)
    return bool(digit <= 0.42 * gap and np.ptp(distance - gap * number - first) <= 1.2 * digit)


def _alike(a: Plane, b: Plane) -> bool:
    return (
        a.key == b.key
        and np.allclose(a.orientation, b.orientation, atol=_PARALLEL, rtol=0)  # type: ignore[arg-type]  # placed planes
        and np.allclose(a.spacing, b.spacing, rtol=_PARALLEL)  # type: ignore[arg-type]
    )


def _axes(plane: Plane) -> tuple[Float, Float, Float]:
    cosines = np.asarray(plane.orientation, dtype=float)
    along_row, along_column = (v / np.linalg.norm(v) for v in (cosines[:3], cosines[3:]))
    normal = np.cross(along_row, along_column)
    return along_row, along_column, normal / np.linalg.norm(normal)


def _affine(columns: Sequence[Float], origin: Sequence[float]) -> Float:
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack(columns, axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(origin, dtype=float)
    return affine


def _refuse_repeated(gaps: Float, usual: float, names: Sequence[str], where: str) -> None:
    same = np.flatnonzero(gaps < max(0.01, _GAP * usual))
    if len(same):
        first = same[0]
        raise ImageError(
            f"{where}: {len(same)} slice(s) lie where another one lies, such as {names[first]} "
            f"and {names[first + 1]}: several "
            "time points, echoes or reconstructions in one series. Export them as one series each."
        )


def _refuse_gaps(gaps: Float, usual: float, names: Sequence[str], where: str) -> None:
    wide = np.flatnonzero(np.abs(gaps - usual) > _GAP * usual)
    if len(wide):
        listed = ", ".join(
            f"{gaps[i]:.4g} mm between {names[i]} and {names[i + 1]}" for i in wide[:5]
        )
        raise ImageError(
            f"{where}: slices are missing or uneven: {listed}, where {usual:.4g} mm is usual in "
            f"{len(gaps) + 1} slices. "
            "Export the whole series."
        )
