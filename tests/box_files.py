"""Three images with boxes, and what a reader finds of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from medtransfer.data.annotations.sources import read_annotations

# x0, y0, x1, y1 of every format below.
TRUE = {
    "a.png": [(4.0, 6.0, 14.0, 26.0), (20.0, 2.0, 30.0, 12.0)],
    "b.png": [(0.0, 0.0, 40.0, 30.0)],
    "c.png": [],
}


def read_boxes(*args, **options):
    return read_annotations(*args, **options).boxes


def boxes_by_image(table: pd.DataFrame) -> dict[str, list[tuple[float, ...]]]:
    columns = ["x0", "y0", "x1", "y1"]
    return {
        name: [
            tuple(np.round(row, 3))
            for row in table.loc[table["image"] == f"images/{name}", columns].to_numpy()
        ]
        for name in TRUE
    }
