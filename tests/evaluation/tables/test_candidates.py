from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.tables.candidates import read_candidates, read_lesions

from detected import detection_tables, few_detections, lesion_figures


def test_tables_are_read_strictly(tmp_path):
    _, candidates, boxes = detection_tables()
    candidates.assign(probability=0.5).drop(
        columns=["logit", "arm", "seed", "fold", "part"]
    ).to_csv(tmp_path / "c.csv", index=False)
    table = read_candidates(tmp_path / "c.csv")
    assert set(table["arm"]) == {"model"}
    assert set(table["logit"]) == {0.0}
    candidates.assign(probability=2.0).drop(columns="logit").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(PredictionsError, match="row 2: probability is 2, outside 0 to 1"):
        read_candidates(tmp_path / "c.csv")
    boxes.assign(x1=boxes["x0"]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(PredictionsError, match="row 2: x1 is not above x0"):
        read_lesions(tmp_path / "b.csv")
    boxes.drop(columns="y1").to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(PredictionsError, match="no column y1"):
        read_lesions(tmp_path / "b.csv")
    with pytest.raises(PredictionsError, match="no such file"):
        read_lesions(tmp_path / "none.csv")


def test_names_stay_text(tmp_path):
    table = pd.DataFrame(
        [("007", "NA", 0, 0, 5, 5, 0.5)],
        columns=["arm", "image", "x0", "y0", "x1", "y1", "probability"],
    )
    table.to_csv(tmp_path / "c.csv", index=False)
    assert read_candidates(tmp_path / "c.csv")[["arm", "image"]].to_numpy().tolist() == [
        ["007", "NA"]
    ]
    table.assign(part="Test").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(PredictionsError, match="row 2: part is 'Test'"):
        read_candidates(tmp_path / "c.csv")
    table.iloc[:0].to_csv(tmp_path / "c.csv", index=False)
    assert read_candidates(tmp_path / "c.csv").empty


def test_candidates_with_a_score_of_any_scale(tmp_path):
    tested, candidates, lesions = few_detections(2)
    score = candidates.drop(columns="logit").assign(score=50 + 10 * candidates["logit"])
    score.to_csv(tmp_path / "c.csv", index=False, sep=";", decimal=",")
    first = lesion_figures(evaluate_boxes(tested, candidates, lesions, bootstrap=100))
    second = evaluate_boxes(tested, tmp_path / "c.csv", lesions, bootstrap=100)
    assert np.allclose(first, lesion_figures(second), atol=1e-9)
    assert second["accounts"][0]["given"] == len(candidates)
