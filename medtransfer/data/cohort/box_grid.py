"""Lesion boxes between the images of a cohort, the grid of the cache, and what a network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.data.annotations.boxes import PLANE, VOLUME, extents, from_axes, to_axes
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.grid.fixed import Fixed
from medtransfer.data.grid.placement import Placement
from medtransfer.data.grid.slices import Plane, boxes_of_volume
from medtransfer.data.grid.source import boxes_as_seen, pad_boxes

Float = NDArray[np.float64]


def place_images(fixed: Fixed, facts: pd.DataFrame) -> list[Placement]:
    """Where the pixels of each image lie in the cache, from what was noted of it."""
    rows = zip(facts["shape"], facts["spacing"], facts["image"], strict=True)
    return [
        fixed.place_shape(tuple(shape), tuple(spacing), image) for shape, spacing, image in rows
    ]


def boxes_on_grid(cohort: Cohort, placements: Sequence[Placement]) -> list[Float]:
    """The boxes of each image of a cohort on the grid of the cache: (box, 4 or 6), lower and then
    upper ends along its axes.
    """
    assert cohort.boxes is not None
    of_image = dict(iter(cohort.boxes.groupby("image", sort=False)))
    placed = []
    for image, placement in zip(cohort.images["image"], placements, strict=True):
        columns = VOLUME if len(placement.shape) == 3 else PLANE
        boxes = (
            of_image[image][list(columns)].to_numpy(float)
            if image in of_image
            else np.zeros((0, len(columns)))
        )
        placed.append(to_axes(placement.place_boxes(boxes)))
    return placed


def boxes_seen(
    boxes: Sequence[Float], placements: Sequence[Placement], plane: Plane
) -> NDArray[np.float32]:
    """Boxes of `boxes_on_grid` as a network sees them, (image, box, 4 or 6); see
    `boxes_as_seen`.
    """
    return boxes_as_seen(pad_boxes(boxes), placements[0].size, plane)


def drop_padding(
    predictions: NDArray[Any], placements: Sequence[Placement], plane: Plane
) -> NDArray[Any]:
    """Candidates that lie wholly in the padding of an image are nothing in it; the best of all
    stays where no other is left.

    Args:
        predictions: (image, candidate, 1 + 2 x axes), see `Detection`. placements: of each image.
            plane: of the slices of volumes.
    """
    result = np.full_like(predictions, np.nan)
    for image, (predicted, placement) in enumerate(zip(predictions, placements, strict=True)):
        candidates = predicted[np.isfinite(predicted[:, 0])]
        inside = (extents(boxes_in_image(candidates[:, 1:], placement, plane)) > 0).all(1)
        remaining = candidates[inside] if inside.any() else candidates[:1]
        result[image, : len(remaining)] = remaining
    return result


def boxes_in_image(boxes: Float, placement: Placement, plane: Plane) -> Float:
    """Boxes as the network sees them -> columns of a table, in pixel edges of the image, cut off at
    its border.
    """
    return placement.return_boxes(
        from_axes(boxes_of_volume(boxes, placement.size, plane) if boxes.shape[1] == 6 else boxes)
    )


def list_candidates(
    predictions: NDArray[Any],
    images: Sequence[str],
    patients: Sequence[str],
    placements: Sequence[Placement],
    plane: Plane,
) -> pd.DataFrame:
    """Candidates in pixel edges of their images.

    Args:
        predictions: (image, candidate, 1 + 2 x axes), see `Detection`.
        images, patients, placements: of each image.
        plane: of the slices of volumes.

    Returns:
        `image, patient`, the coordinates, `probability, logit`; best first within an image.
    """
    frames = []
    for predicted, image, patient, placement in zip(
        predictions, images, patients, placements, strict=True
    ):
        candidates = predicted[np.isfinite(predicted[:, 0])]
        boxes = boxes_in_image(candidates[:, 1:], placement, plane)
        # A candidate that lies in the padding alone is nothing in the image.
        inside = (extents(boxes) > 0).all(1)
        table = pd.DataFrame(boxes[inside], columns=list(VOLUME if boxes.shape[1] == 6 else PLANE))
        table.insert(0, "image", image)
        table.insert(1, "patient", patient)
        frames.append(
            table.assign(probability=expit(candidates[inside, 0]), logit=candidates[inside, 0])
        )
    result: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return result
