"""What the classifiers of a study looked at: maps of its test images, for the gallery, and against
lesion boxes where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.annotations.boxes import PLANE, VOLUME
from medtransfer.data.cohort.box_grid import boxes_in_image, place_images
from medtransfer.evaluation.analyses.localisation import evaluate_localisation
from medtransfer.inference.heat_maps import heat_maps, read_map
from medtransfer.models.heads.linear import LinearHead
from medtransfer.progress import Reporter
from medtransfer.study.record import Prepared
from medtransfer.study.settle import fixed_of
from medtransfer.study.views import images_of, load_run
from medtransfer.text.tables import write_table
from medtransfer.training.device import Engine

Maps = NDArray[np.float32]
LOCALISATION = "localisation.csv"


def map_images(
    prepared: Prepared,
    engine: Engine,
    output: Path,
    arm: str,
    index: int,
    seed: int,
    rows: Sequence[int],
) -> Maps | None:
    """Maps of some images by the network of a run, as it sees them; None for arms that are no
    network.
    """
    if prepared.config.arms[arm].kind != "network" or not len(rows):
        return None
    backbone, head, _ = load_run(prepared, output, arm, index, seed)
    if not isinstance(head, LinearHead):
        return None
    plain = replace(engine, precision="fp32")
    plain.place(backbone)
    head.to(plain.device)
    return heat_maps(backbone, head, images_of(prepared, arm).plain(rows, backbone, plain), plain)


def write_localisation(
    prepared: Prepared, engines: Mapping[str, Engine], output: Path, reporter: Reporter
) -> dict[str, Any] | None:
    """Writes `localisation.csv`, and evaluates it: the maps of the test images that have a lesion
    box, of the first seed of every fold.

    None where there is nothing to evaluate.
    """
    cohort, plane = prepared.cohort, prepared.config.image.plane
    assert cohort.boxes is not None
    placements = place_images(fixed_of(prepared.config), prepared.facts)
    marked, seed = set(cohort.boxes["image"]), prepared.config.protocol.seeds[0]
    names, units = cohort.images["image"].tolist(), cohort.units.astype(str).tolist()
    records: list[dict[str, Any]] = []
    for arm in prepared.config.arms:
        for index in range(len(prepared.split)):
            reporter(f"{arm}, heat maps", index, len(prepared.split))
            rows = [int(row) for row in prepared.split.fold(index).test if names[row] in marked]
            maps = map_images(prepared, engines[arm], output, arm, index, seed, rows)
            for row, heat in zip(rows, [] if maps is None else maps, strict=maps is not None):
                point, box = read_map(heat)
                placement = placements[row]
                ends = np.concatenate([[*point, *point], box]).reshape(2, -1)
                point, box = (
                    boxes_in_image(ends, placement, plane) if np.isfinite(ends).all() else ends
                )
                records.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "fold": index,
                        "image": names[row],
                        "patient": units[row],
                        **_told(point, box, placement.shape),
                    }
                )
    if not records:  # no network among the arms, or no test image with a box
        return None
    table = pd.DataFrame(records)
    write_table(table, output / LOCALISATION)
    return evaluate_localisation(
        table, cohort.boxes, prepared.config.evaluate.bootstrap, prepared.config.evaluate.seed
    )


def _told(point: NDArray[Any], box: NDArray[Any], shape: tuple[int, ...]) -> dict[str, float]:
    """In pixels of the image: the highest point, the box, and the size."""
    volume = len(shape) == 3
    places = {"x": point[0], "y": point[1], **({"z": point[4]} if volume else {})}
    sizes = (shape[0], shape[1], shape[2]) if volume else (shape[1], shape[0])
    named = zip(("width", "height", "depth"), sizes, strict=False)
    return {**places, **dict(zip(VOLUME if volume else PLANE, box, strict=True)), **dict(named)}
