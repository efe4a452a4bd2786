"""What the classifiers of a study looked at: maps of its test images, for the gallery, and against
lesion boxes where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.annotations.boxes import PLANE, VOLUME
from medtransfer.data.cohort.box_grid import boxes_in_image
from medtransfer.evaluation.analyses.localisation import evaluate_localisation
from medtransfer.inference.heat_maps import heat_maps, read_map
from medtransfer.models.heads.linear import LinearHead
from medtransfer.progress import Reporter
from medtransfer.study.recorded import Recorded
from medtransfer.text.tables import write_table

Maps = NDArray[np.float32]


def map_images(
    study: Recorded, arm: str, fold: int, seed: int, images: Sequence[str]
) -> Maps | None:
    """Maps of some images by the network of a run, as it sees them, computed in float32; None for
    arms that are no network.
    """
    if study.config.arms[arm].kind != "network" or not study.task.convex or not len(images):
        return None
    model = study.open(arm, fold, seed).in_fp32()
    batches = model.batches(model.source([study.entries[image] for image in images]))
    return heat_maps(model.backbone, cast(LinearHead, model.head), batches, model.engine)


def write_localisation(study: Recorded, reporter: Reporter) -> None:
    """Writes `localisation.csv`: where the maps of the test images that have a lesion box point, of
    the first seed of every fold. Without a network among the arms, or such an image, there is none.
    """
    boxes, plane = study.boxes, study.config.image.plane
    assert boxes is not None
    marked, seed = set(boxes["image"]), study.config.protocol.seeds[0]
    units = study.units
    records: list[dict[str, Any]] = []
    for arm in study.config.arms:
        for fold in study.folds:
            reporter(f"{arm}, heat maps", fold, len(study.folds))
            images = [image for image in study.part(fold, "test") if image in marked]
            maps = map_images(study, arm, fold, seed, images)
            for image, heat in zip(images, [] if maps is None else maps, strict=maps is not None):
                point, box = read_map(heat)
                placement = study.placements[image]
                ends = np.concatenate([[*point, *point], box]).reshape(2, -1)
                point, box = (
                    boxes_in_image(ends, placement, plane) if np.isfinite(ends).all() else ends
                )
                about = {
                    "arm": arm,
                    "seed": seed,
                    "fold": fold,
                    "image": image,
                    "patient": units[image],
                }
                records.append({**about, **_describe(point, box, placement.shape)})
    if records:
        write_table(pd.DataFrame(records), study.folder.localisation)


def read_localisation(study: Recorded) -> dict[str, Any] | None:
    """What `localisation.csv` says; None where there is none."""
    if study.boxes is None or not study.folder.localisation.is_file():
        return None
    table = pd.read_csv(study.folder.localisation, dtype={"image": str, "patient": str, "arm": str})
    return evaluate_localisation(
        table, study.boxes, study.config.evaluate.bootstrap, study.config.evaluate.seed
    )


def _describe(point: NDArray[Any], box: NDArray[Any], shape: tuple[int, ...]) -> dict[str, float]:
    """In pixels of the image: the highest point, the box, and the size."""
    volume = len(shape) == 3
    places = {"x": point[0], "y": point[1], **({"z": point[4]} if volume else {})}
    sizes = (shape[0], shape[1], shape[2]) if volume else (shape[1], shape[0])
    named = zip(("width", "height", "depth"), sizes, strict=False)
    return {**places, **dict(zip(VOLUME if volume else PLANE, box, strict=True)), **dict(named)}
