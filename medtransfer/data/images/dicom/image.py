"""Images and volumes from DICOM files: one plane, the frames of a file, or the slices of a series.

What the files of a stack state twice, and what happens where it differs:

- ImagesInAcquisition, NumberOfSeriesRelatedInstances (compared with: images here): fewer here:
  noted.
- SpacingBetweenSlices, else SliceThickness (compared with: distance by the positions): positions
  decide, noted.
- InstanceNumber (compared with: order by the positions): positions decide, noted.
- FrameOfReferenceUID (compared with: the other slices): differs in all (an anonymiser's doing):
  noted; in some: refused.
- GantryDetectorTilt (compared with: shear of the positions): positions decide, noted.
- spacing, orientation, gaps (compared with: the other slices): see `series`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.images.dicom.geometry import (
    Plane,
    Stack,
    group_planes,
    plane_affine,
    stack_planes,
    straighten,
)
from medtransfer.data.images.dicom.header import DicomFile, is_dicom, numbers, open_dicom, whole
from medtransfer.data.images.dicom.pixels import read_frames
from medtransfer.data.images.image import Image, identity_turn
from medtransfer.data.images.limits import refuse_implausible
from medtransfer.data.images.orientation import orient, voxel_sizes
from medtransfer.errors import ImageError

# Air in CT, for pixels outside of the field of view.
AIR_HU = -1024.0


def read_plane(file: DicomFile, frame: int | None, header_window: bool) -> Image:
    """One frame as an image (channel, row, column)."""
    values, padding, steps = read_frames(file, frame, header_window)
    values = _fill_padding(values, padding, file, header_window)
    plane = file.planes[frame or 0]
    spacing = plane.spacing or file.aspect
    affine = plane_affine(plane)
    if affine is None:
        affine = np.diag([*spacing, 1.0, 1.0])
    order = {
        "axes": "row, column",
        "turn": identity_turn(2),
        "stored_shape": list(values.shape[1:3]),
    }
    provenance = {**file.facts, **order, "steps": steps, "hazards": file.findings}
    if frame is not None:
        provenance["steps"] = [f"frame {frame + 1} of {file.frames}", *steps]
    return Image(_channels_first(values)[:, 0], spacing, affine, provenance)


def read_multiframe(file: DicomFile, header_window: bool) -> Image:
    """A volume where the frames are slices of one; else a film, whose first axis is no axis of
    space.
    """
    if not file.not_image and any(plane.placed for plane in file.planes):
        return _read_stack([file], file.path, header_window)
    values, padding, steps = read_frames(file, None, header_window)
    values = _fill_padding(values, padding, file, header_window)
    spacing = file.planes[0].spacing or file.aspect
    text = (
        f"holds {file.frames} frames without positions: a film, not a volume. Name one frame as "
        f"{file.path.name}#1 to #{file.frames}"
    )
    order = {
        "axes": "frame, row, column",
        "turn": identity_turn(3),
        "stored_shape": list(values.shape[:3]),
    }
    provenance = {
        **file.facts,
        **order,
        "steps": steps,
        "hazards": [*file.findings, ("frames", text)],
    }
    return Image(
        _channels_first(values), (1.0, *spacing), np.diag([1.0, *spacing, 1.0]), provenance
    )


def read_series(folder: Path, member: str, header_window: bool) -> Image:
    """The series in a folder: a volume, or an image where it holds one file.

    Args:
        folder: searched to any depth.
        member: tag of one series (see `series_tag`), "" for all files.
        header_window: apply the window of the header.

    Raises:
        ImageError: no image, no two parallel slices, slices missing or repeated, or two series
            alike in size.
    """
    paths = dicom_files(folder)
    if member:
        tags = {path: series_tag(open_dicom(path, pixels=False)) for path in paths}
        paths = [path for path in paths if tags[path] == member]
        if not paths:
            series = ", ".join(f"#{tag}" for tag in sorted(set(tags.values()))) or "none"
            raise ImageError(f"{folder}: holds no series #{member}. There are: {series}.")
    files = [open_dicom(path) for path in paths]
    for file in files:
        if file.truncated and file.not_image:
            raise ImageError(
                f"{folder}: {file.path.name} holds {file.not_image}. Export the series again."
            )
    files = [file for file in files if not file.not_image]
    if not files:
        raise ImageError(
            f"{folder}: holds no DICOM image. Give a folder with the files of one series."
        )
    if len(files) == 1:
        return (
            read_multiframe(files[0], header_window)
            if files[0].frames > 1
            else read_plane(files[0], None, header_window)
        )
    return _read_stack(files, folder, header_window)


def _read_stack(files: list[DicomFile], where: Path, header_window: bool) -> Image:
    """The largest stack of parallel slices; what is left out is told."""
    files, copies = _without_copies(files)
    owners = [(file, frame) for file in files for frame in range(file.frames)]
    planes = [plane for file in files for plane in file.planes]
    group = _choose_group(planes, owners, where)
    stack = stack_planes(planes, group, str(where))
    first = owners[stack.order[0]][0]
    sides = [
        whole(first.dataset, keyword) or 1 for keyword in ("Rows", "Columns", "SamplesPerPixel")
    ]
    refuse_implausible(where, (len(stack.order), *sides), sum(len(file.pixels) for file in files))
    values, padding, steps = _read_slices(stack, owners, header_window)
    steps.append(
        f"{len(stack.order)} slices of {stack.spacing[0]:.4g} mm sorted by position along their "
        "normal"
    )
    hazards = list(
        dict.fromkeys(
            hazard
            for number in stack.order
            for hazard in owners[number][0].findings
            if hazard[0] != "gantry_tilt"
        )
    )
    hazards += _compare(stack, owners, files)
    rest = len(planes) - len(group)
    if rest:
        hazards.append(
            (
                "left_out",
                (
                    f"{rest} of {len(planes)} slices belong to other series, orientations or grids "
                    "and are left out"
                ),
            )
        )
    if copies:
        hazards.append(("copies", f"{copies} file(s) are copies of others and are left out"))
    values = _fill_padding(values, padding, first, header_window)
    stored_shape = list(values.shape[2::-1])
    affine = stack.affine
    if stack.tilt:
        fill = AIR_HU if first.facts["unit"] == "HU" and not header_window else float(values.min())
        grey = [straighten(channel, stack, fill) for channel in _channels_first(values)]
        values, affine = np.stack([volume for volume, _ in grey], axis=-1), grey[0][1]
        values = values[..., 0] if values.shape[-1] == 1 else values
        hazards.append(
            (
                "gantry_tilt",
                (
                    f"slices were tilted by {stack.tilt:.1f} degrees and are straightened by "
                    "linear "
                    "interpolation"
                ),
            )
        )
        steps.append(f"tilt of {stack.tilt:.1f} degrees straightened")
    ratio = stack.spacing[0] / min(stack.spacing[1:])
    if ratio > 3:
        hazards.append(("anisotropic", f"slices lie {ratio:.1f} times as far apart as pixels"))
    volume, affine, turn = orient(np.moveaxis(_channels_first(values), 0, -1), affine)
    # The stack is (slice, row, column), the order of a file (column, row, slice).
    order = {
        "turn": None if stack.tilt else [[2 - axis, direction] for axis, direction in turn],
        "stored_shape": stored_shape,
    }
    provenance = {
        **first.facts,
        "axes": "x, y, z (RAS)",
        **order,
        "steps": steps,
        "hazards": hazards,
    }
    return Image(np.moveaxis(volume, -1, 0), voxel_sizes(affine), affine, provenance)


def _compare(
    stack: Stack, owners: list[tuple[DicomFile, int]], files: list[DicomFile]
) -> list[tuple[str, str]]:
    """What the headers say of the stack as a whole, against what is here."""
    hazards = []
    members = [owners[number] for number in stack.order]
    counts = {"ImagesInAcquisition": len(owners), "NumberOfSeriesRelatedInstances": len(files)}
    for keyword, count in counts.items():
        stated = max((whole(file.dataset, keyword) or 0 for file, _ in members), default=0)
        if stated > count:
            hazards.append(
                ("incomplete", f"{keyword} counts {stated} images, and {count} are here")
            )
    first, gap = members[0][0].item(members[0][1], "PixelMeasuresSequence"), stack.spacing[0]
    for keyword, meaning in (
        ("SpacingBetweenSlices", "positions decide"),
        ("SliceThickness", "slices overlap, or leave gaps between them"),
    ):
        distance = abs((numbers(first, keyword, 1) or (0.0,))[0])
        if distance > 0:
            if abs(distance - gap) > 0.1 * gap:
                hazards.append(
                    (
                        "slice_distance",
                        f"{keyword} is {distance:g} mm, slices lie {gap:.4g} mm apart: {meaning}",
                    )
                )
            break
    instances = [whole(file.dataset, "InstanceNumber") for file, _ in members if file.frames == 1]
    steps = [b - a for a, b in pairwise(instances) if a is not None and b is not None]
    if steps and min(steps) < 0 < max(steps):
        hazards.append(
            (
                "instance_order",
                "InstanceNumber follows another order than the positions, which decide",
            )
        )
    references = Counter(
        file.text("FrameOfReferenceUID")
        for file in {id(file): file for file, _ in members}.values()
    )
    references.pop("", None)
    if 1 < len(references) < references.total():
        raise ImageError(
            f"{members[0][0].path.parent}: slices of one stack have {len(references)} "
            "FrameOfReferenceUIDs, so that their positions do not "
            "compare (the patient moved in between). Export them as one series each."
        )
    if len(references) > 1:
        hazards.append(
            (
                "frame_of_reference",
                "every slice has a FrameOfReferenceUID of its own; they are taken as of one",
            )
        )
    return hazards


def _without_copies(files: list[DicomFile]) -> tuple[list[DicomFile], int]:
    """Less the files that hold what another one holds; an equal UID is not enough, as some
    anonymisers write one for all.
    """
    stacks: dict[tuple[str, object], list[DicomFile]] = {}
    for file in files:
        alike = stacks.setdefault(
            (file.text("SOPInstanceUID"), tuple(plane.position for plane in file.planes)), []
        )
        if not any(file.pixels == other.pixels for other in alike):
            alike.append(file)
    members = [file for group in stacks.values() for file in group]
    return members, len(files) - len(members)


def _choose_group(
    planes: list[Plane], owners: list[tuple[DicomFile, int]], where: Path
) -> list[int]:
    groups = group_planes(planes)
    if not groups or len(groups[0]) < 2:
        what = (
            "none of which states its position"
            if not groups
            else f"in {len(groups)} series or orientations, no two of them parallel"
        )
        raise ImageError(
            f"{where}: {len(planes)} images, {what}: not a volume. Give the files one by one."
        )
    ties = [group for group in groups if len(group) == len(groups[0])]
    if len(ties) > 1:
        tags = sorted({series_tag(owners[group[0]][0]) for group in ties})
        if where.is_file():
            raise ImageError(
                f"{where}: holds {len(ties)} stacks of {len(ties[0])} slices each. Export them as "
                "one file each."
            )
        how = f"Name one as {where.name}#{tags[0]}, or give" if len(tags) == len(ties) else "Give"
        raise ImageError(
            f"{where}: {len(ties)} stacks of {len(ties[0])} slices each. {how} one folder per "
            "series."
        )
    return groups[0]


def _read_slices(
    stack: Stack, owners: list[tuple[DicomFile, int]], header_window: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, list[str]]:
    """Slices in the order of the stack; a file of many frames is decoded once."""
    decoded: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_] | None]] = {}
    steps: list[str] = []
    slices, masks = [], []
    for number in stack.order:
        file, frame = owners[number]
        key = str(file.path)
        if key not in decoded:
            values, padding, done = read_frames(file, None, header_window)
            decoded[key] = values, padding
            steps += [step for step in done if step not in steps]
        values, padding = decoded[key] if file.frames > 1 else decoded.pop(key)
        slices.append(values[frame])
        masks.append(np.zeros(values[frame].shape, bool) if padding is None else padding[frame])
    mask = np.stack(masks)
    volume = np.stack(slices)
    if sum(step.startswith("rescaled by") for step in steps) > 1:
        steps = [step for step in steps if not step.startswith("rescaled by")] + [
            "each slice rescaled by its own values"
        ]
    return volume, mask if mask.any() else None, steps


def _fill_padding(
    values: NDArray[np.float32],
    padding: NDArray[np.bool_] | None,
    file: DicomFile,
    header_window: bool,
) -> NDArray[np.float32]:
    """Air in CT, else the lowest true value: a disc of another value would tell scanners apart."""
    if padding is None:
        return values
    in_hu = file.facts["unit"] == "HU" and not header_window
    values[padding] = AIR_HU if in_hu else values[~padding].min()
    return values


def _channels_first(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)


def dicom_files(folder: Path) -> list[Path]:
    """DICOM files below a folder, by ending or mark, sorted by name."""
    return [path for path in visible_files(folder) if path.name != "DICOMDIR" and is_dicom(path)]


def visible_files(folder: Path) -> list[Path]:
    """Files below a folder, sorted; what begins with a dot, or lies in such a folder, is left
    out.
    """
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path
        for path in paths
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def series_tag(file: DicomFile) -> str:
    """Eight digits that tell series apart without telling the UID."""
    return hashlib.sha256(file.text("SeriesInstanceUID").encode()).hexdigest()[:8]
