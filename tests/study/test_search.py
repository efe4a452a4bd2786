"""The search for the depth and the learning curve, from the configuration to the page."""

from __future__ import annotations

import json

import medtransfer as mt
import pandas as pd
import pytest
from medtransfer.config.study_config import load_config
from medtransfer.errors import ConfigError
from medtransfer.study.draws import refuse_large_sizes

from studies import LITE, finished_runs, invoke, prepare_study, read_run, write_config


def test_a_search_and_a_learning_curve_from_end_to_end(studies, tmp_path, monkeypatch):
    for name, value in {"_FOLDS": 2, "_REPEATS": 1, "_INNER": 2, "_FEWEST_STEPS": 2}.items():
        monkeypatch.setattr(
            f"medtransfer.training.depth.{name}", value
        )  # the path is the same, and takes seconds
    config = write_config(
        tmp_path,
        studies.cohort(40),
        plan={"search": True},
        learning_curve={"sizes": [5, 2, 3], "episodes": 1},
        arms={
            "imagenet": {
                "backbone": LITE,
                "weights": "imagenet",
                "plan": {"read": "last", "frozen_stages": 15},
            }
        },
        report={"figures": ["svg"], "gallery": False, "reuse": False},
    )
    out = tmp_path / "out"
    result = invoke("compare", config, "--output", out)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "predictions.csv", dtype={"image": str})
    # Nested: the search never saw a test patient, as its key holds the rows of train and tune
    # alone.
    for fold in (0, 1):
        found = json.loads((out / "runs" / "imagenet" / f"fold-{fold}" / "depth.json").read_text())
        assert len(found["probes"]) == 18
        assert 1 <= len(found["trials"]) <= 3
        assert found["trials"][0]["frozen_stages"] == 15
        plan = read_run(out, "imagenet", fold)["plan"]
        chosen = found["trials"][found["chosen"]]
        assert (plan["frozen_stages"], plan["dropped_stages"]) == (
            chosen["frozen_stages"],
            chosen["dropped_stages"],
        )
        assert found["reason"] in plan["reason"]
    sizes = sorted(set(table["size"]))
    assert sizes == [0, 2, 3, 5]
    small = table[table["size"] == 2]
    assert (
        len(small)
        == small["image"].nunique()
        == (table["size"].eq(0) & table["part"].eq("test")).sum()
    )
    report = json.loads((out / "report.json").read_text())
    assert [(row["size"], row["extrapolated"]) for row in report["learning_curve"]] == [
        (2, 0),
        (3, 0),
        (5, 0),
        (10, 1),
        (20, 1),
    ]
    assert any(sentence.startswith("Learning curve of imagenet") for sentence in report["growth"])
    page = (out / "report.html").read_text()
    for part in ("Search for the depth", "<h2>Learning curve</h2>", "no measure of performance"):
        assert part in page
    assert {"depth-0.svg", "learning.svg"} <= {path.name for path in (out / "figures").iterdir()}
    again = mt.evaluate(out / "predictions.csv", report["bootstrap"], report["seed"]).to_dict()
    assert again["learning_curve"] == report["learning_curve"]
    # A second time nothing is trained: the search and the draws are taken as they are.
    stamps = finished_runs(out)
    assert len(stamps) == 2 + 2 + 6
    assert invoke("compare", config, "report.figures=[]", "--output", out).exit_code == 0
    assert finished_runs(out) == stamps
    without = (out / "report.html").read_text()  # the tables stay
    assert all(part in without for part in ("Search for the depth", "<h2>Learning curve</h2>"))


def test_more_patients_than_there_are_cannot_be_drawn(studies, tmp_path):
    config = write_config(tmp_path, studies.cohort(40))
    settings = ["learning_curve=[500]", f"arms={{scratch: {{backbone: {LITE}}}}}"]
    with pytest.raises(ConfigError, match="500 patients per class are asked for"):
        refuse_large_sizes(prepare_study(config, *settings))
    assert load_config(config, settings).learning_curve.sizes == (500,)
