"""Three studies from the files to the page, with all that a report can have: figures, pictures,
what was reused, shortcuts.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
import safetensors.numpy

from studies import LITE, read_run


def pictures(gallery, *kinds):
    return [row for arm in gallery["arms"] for kind in kinds for row in arm[kind]]


@pytest.mark.xdist_group("classification")
def test_classification_from_images_to_the_page(studies):
    study = studies.classification()
    out = study.out
    files = {
        "study.yaml",
        "environment.json",
        "cohort.csv",
        "audit.json",
        "plan.json",
        "predictions.csv",
        "report.json",
        "report.html",
    }
    assert {path.name for path in out.iterdir()} == {
        *files,
        "reuse.json",
        "gallery.json",
        "runs",
        "figures",
        "tables",
    }
    reuse = json.loads((out / "reuse.json").read_text())
    measured = reuse["arms"]["imagenet"]
    assert list(reuse["arms"]) == ["imagenet"]
    assert (
        len(measured["stages"])
        == len(measured["cka"])
        == len(measured["moved"])
        == len(measured["reset_auc"])
        == 18
    )
    frozen = read_run(out, "imagenet")["plan"]["frozen_stages"]
    assert 0 < frozen < 18
    assert measured["moved"][:frozen] == [0.0] * frozen
    assert measured["cka"][:frozen] == pytest.approx([1.0] * frozen)
    (pair,) = reuse["pairs"]
    assert (pair["a"], pair["b"], len(pair["cka"])) == ("imagenet", "scratch", 18)
    gallery = json.loads((out / "gallery.json").read_text())
    shown = pictures(gallery, "false_positives", "false_negatives")
    assert shown
    assert gallery["heat"]
    assert all(
        row[kind].startswith("data:image/png;base64,")
        for row in shown
        for kind in ("picture", "heat")
    )
    audit = json.loads((out / "audit.json").read_text())
    assert audit["not_looked_for"] == []
    assert {shortcut["source"] for shortcut in audit["shortcuts"]} == {
        "site",
        "border",
    }  # what varies in the phantom
    page = (out / "report.html").read_text()
    names = {
        "discrimination-0",
        "reliability-0-0",
        "reliability-0-1",
        "decisions-0",
        "training",
        "reuse",
    }
    assert {path.name for path in (out / "figures").iterdir()} == {f"{name}.svg" for name in names}
    assert page.count("data:image/svg+xml;base64,") == len(names)
    assert page.count("data:image/png;base64,") == 2 * len(shown)
    for part in (
        "Discrimination and calibration",
        "What was reused",
        "Failures",
        "Training",
        "figures as SVG in figures/",
        "Plan",
        "Cohort",
        "<h3>At the same budget</h3>",
        "Trained until level, at most for four budgets of 1 epochs: for ",
        "compared with scratch (trained until level, ",
        "; at the same budget ",
        "went on with warm restarts [",
        "(scratch: up to four times as many, until the tune loss levelled off)",
    ):
        assert part in page, part
    for absent in ("Left out on request", "Shortcuts were not looked for"):
        assert absent not in page


@pytest.mark.xdist_group("detection")
def test_detection_from_images_to_the_page(studies):
    out = studies.detection().out
    page = (out / "report.html").read_text()
    for text in (
        "Lesions found",
        "<p>At the same budget: ",
        "scratch average precision ",
        "FROC curves",
        "Hits, misses, false alarms",
        "RetinaNet",
        "Average precision, overlap 0.5",
        "False alarms",
    ):
        assert text in page, text
    assert "over-fitted" not in page
    gallery = json.loads((out / "gallery.json").read_text())
    assert {"arm", "hits", "misses", "false_alarms"} == set(gallery["arms"][0])
    shown = pictures(gallery, "hits", "misses", "false_alarms")
    assert page.count("data:image/png;base64,") == len(shown) > 0
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert {"froc", "training", "discrimination-0", "decisions-0"} <= figures
    assert page.count("data:image/svg+xml;base64,") == len(figures)
    assert not (out / "reuse.json").exists()  # its measures are of classifiers


@pytest.mark.xdist_group("volumes")
def test_volumes_by_slices_and_as_a_whole_from_files_to_the_page(studies):
    study = studies.volumes()
    out = study.out
    images = pd.read_csv(study.manifest)["image"]
    assert 4 < images.str.endswith(".nii.gz").sum() < 20
    table = pd.read_csv(out / "predictions.csv")
    assert table.groupby("arm")["patient"].nunique().to_dict() == {"imagenet": 24, "scratch": 24}
    assert table["probability"].between(0, 1).all()
    environment = json.loads((out / "environment.json").read_text())["arms"]
    assert environment["imagenet"]["slices"] == "up to 10 axial slices; pooled by attention"
    assert "as one volume" in environment["scratch"]["slices"]
    weights = {
        arm: safetensors.numpy.load_file(
            out / "runs" / arm / "fold-0" / "seed-0" / "weights.safetensors"
        )
        for arm in environment
    }
    assert "head.scores.weight" in weights["imagenet"]
    assert "head.scores.weight" not in weights["scratch"]
    reuse = json.loads((out / "reuse.json").read_text())
    assert set(reuse["arms"]) == {"imagenet"}
    assert reuse["pairs"] == []  # of two architectures
    gallery = json.loads((out / "gallery.json").read_text())
    shown = pictures(gallery, "false_positives", "false_negatives")
    assert all(row["picture"].startswith("data:image/png;base64,") for row in shown)
    assert shown
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == sum(
        1 + (row["heat"] is not None) for row in shown
    )
    for part in ("pooled by attention", "What was reused", "Failures", f"{LITE} (exact)"):
        assert part in page, part
