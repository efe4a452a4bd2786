"""Tables of boxes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.data.annotations.frames import Frame, fit_boxes
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError

from box_files import TRUE, boxes_by_image, read_boxes
from wild_files import BOX, coco, mark, pictures


def test_csv(images, tmp_path):
    rows = [
        {"image": f"images/{n}", "x0": b[0], "y0": b[1], "x1": b[2], "y1": b[3], "label": "cyst"}
        for n, own in TRUE.items()
        for b in own
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "boxes.csv", index=False)
    assert boxes_by_image(read_boxes("boxes.csv", images, tmp_path)) == TRUE
    pd.DataFrame(rows).assign(image=lambda t: t["image"].str.rsplit("/").str[-1]).to_csv(
        tmp_path / "names.csv", index=False
    )
    assert boxes_by_image(read_boxes(str(tmp_path / "names.csv"), images, tmp_path)) == TRUE
    pd.DataFrame(rows).assign(
        image=["images/a.png", "images/z.png", "images/b.png"], x0=["1", "2", "four"]
    ).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(
        # These two and no others.
        CohortError,
        match=r"is\n  - row 3: no image 'images/z.png' [^\n]*\n  - row 4: x0 is no number\Z",
    ):
        read_boxes("bad.csv", images, tmp_path)


def test_planes_may_leave_z_empty(images, tmp_path):
    table = pd.DataFrame(
        [("images/a.png", 1, 1, 9, 9, "", "")],
        columns=["image", "x0", "y0", "x1", "y1", "z0", "z1"],
    )
    table.to_csv(tmp_path / "boxes.csv", index=False)
    boxes = fit_boxes(
        read_boxes("boxes.csv", images, tmp_path), {"images/a.png": Frame((30, 40))}
    ).boxes
    assert boxes.columns.tolist() == ["image", "x0", "y0", "x1", "y1", "label"]


def test_shares_where_pixels_are_meant_are_refused(tmp_path):
    names = pictures(tmp_path / "images", [f"c{i}.png" for i in range(3)])
    coco(tmp_path / "m.json", names, [mark(i, i, (0.2, 0.3, 0.25, 0.2)) for i in range(3)])
    with pytest.raises(CohortError, match="are they shares of the image"):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "m.json"))
    pd.DataFrame([("c0.png", 0.2, 0.3, 0.5, 0.6)], columns=["image", *BOX]).to_csv(
        tmp_path / "b.csv", index=False
    )
    with pytest.raises(CohortError, match="are they shares of the image"):
        Cohort.from_boxes(tmp_path / "images", str(tmp_path / "b.csv"))


def test_boxes_of_kaggle_and_words_for_no_box(tmp_path):
    names = pictures(tmp_path, ["c0.png", "c1.png"])
    table = pd.DataFrame(
        {
            "patientId": names,
            "x": [1, np.nan],
            "y": [2, np.nan],
            "width": [20, np.nan],
            "height": [10, np.nan],
        }
    )
    table.to_csv(tmp_path / "b.csv", index=False)
    images = pd.DataFrame({"image": names, "path": [str(tmp_path / name) for name in names]})
    with pytest.raises(CohortError, match="x1 = x \\+ width"):
        read_annotations("b.csv", images, tmp_path)
    rows = [(names[0], "1,5", "2,5", "20,5", "10,5"), (names[1], "NA", "NA", "NA", "NA")]
    pd.DataFrame(rows, columns=["image", *BOX]).to_csv(tmp_path / "c.csv", index=False, sep=";")
    boxes = read_annotations("c.csv", images, tmp_path).boxes
    assert boxes[BOX].to_numpy().tolist() == [[1.5, 2.5, 20.5, 10.5]]
