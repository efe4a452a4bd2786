"""Boxes drawn on their images, for the eye: whether they lie where the lesions are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from medtransfer.data.annotations.boxes import PLANE, VOLUME, extents
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.images.reading import read_image
from medtransfer.data.images.windows import scale
from medtransfer.errors import ImageError

Float = NDArray[np.float64]
# Images drawn, and their longest side in pixels.
_DRAWN, _SIDE = 24, 256
_COLOUR = (255, 120, 0)


def draw_boxes(cohort: Cohort, most: int = _DRAWN) -> dict[str, tuple[NDArray[np.uint8], str]]:
    """Some images of a cohort with their boxes: the first ones, and those of the smallest and the
    largest box.

    A volume is shown by the axial slice through the middle of its largest box, front up and the
    patient's right on the left, with all boxes that this slice cuts.

    Args:
        cohort: whose boxes have been fitted. most: images.

    Returns:
        By image, uint8 (row, column, 3) and a caption.
    """
    if cohort.boxes is None or cohort.boxes.empty:
        return {}
    boxes = {str(image): rows for image, rows in cohort.boxes.groupby("image", sort=False)}
    size = {
        image: float(extents(rows[list(PLANE)].to_numpy(float)).prod(1).max())
        for image, rows in boxes.items()
    }
    by_size = sorted(size, key=lambda image: size[image])
    images = list(dict.fromkeys([by_size[0], by_size[-1], *list(boxes)[: max(0, most - 2)]]))
    paths = dict(zip(cohort.images["image"], cohort.images["path"], strict=True))
    drawn = {}
    for image in images:
        try:
            array = read_image(paths[image]).array
        except (ImageError, OSError, KeyError):
            continue
        columns = VOLUME if array.ndim == 4 else PLANE
        drawn[image] = _draw(array, boxes[image][list(columns)].to_numpy(float))
    return drawn


def _draw(array: NDArray[np.float32], boxes: Float) -> tuple[NDArray[np.uint8], str]:
    caption = f"{len(boxes)} box(es)"
    if array.ndim == 4:
        largest = boxes[extents(boxes).prod(1).argmax()]
        level = int(min((largest[4] + largest[5]) / 2, array.shape[-1] - 1))
        cut = boxes[(boxes[:, 4] <= level) & (boxes[:, 5] > level)]
        width, height = array.shape[1:3]
        plane = array[..., level].transpose(0, 2, 1)[:, ::-1, ::-1]
        boxes = np.stack(
            [width - cut[:, 2], height - cut[:, 3], width - cut[:, 0], height - cut[:, 1]], 1
        )
        caption = f"slice {level + 1} of {array.shape[-1]}, {len(cut)} of {caption}"
    else:
        plane = array
    grey = scale(plane, "percentile")
    pixels = np.round(255 * np.moveaxis(np.broadcast_to(grey, (3, *grey.shape[1:])), 0, -1)).astype(
        np.uint8
    )
    factor = _SIDE / max(pixels.shape[:2])
    picture = Pillow.fromarray(np.ascontiguousarray(pixels)).resize(
        [max(1, round(factor * n)) for n in pixels.shape[1::-1]]
    )
    pen = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in (boxes[:, :4] * factor).tolist():
        pen.rectangle([x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)], outline=_COLOUR, width=2)
    return np.asarray(picture), caption
