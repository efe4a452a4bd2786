from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.evaluate import evaluate
from sklearn.metrics import roc_auc_score

from predicted import (
    classes_by_site,
    exclusive_classes,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_classes_that_exclude_each_other():
    table, truth, p = exclusive_classes()
    report = evaluate(table, bootstrap=200).to_dict()
    arm = report["arms"]["a"]
    assert arm["auc"]["estimate"] == pytest.approx(
        roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=1e-9
    )
    assert arm["auc_one_against_one"]["estimate"] == pytest.approx(
        roc_auc_score(truth, p, multi_class="ovo", average="macro"), abs=1e-9
    )
    assert arm["auc"]["low"] < arm["auc"]["estimate"] < arm["auc"]["high"]
    str(evaluate(table, bootstrap=100))
    assert arm["accuracy"]["share"] == pytest.approx((p.argmax(1) == truth).mean())
    top, right = p.max(1), p.argmax(1) == truth
    which = np.searchsorted(np.quantile(top, np.linspace(0, 1, 11)[1:-1]), top, side="right")
    gaps = [abs((top - right)[which == b].sum()) for b in range(10)]
    assert arm["accuracy"]["confidence_ece"] == pytest.approx(sum(gaps) / len(top), abs=0.01)
    assert set(report["labels"]) == {"benign", "malignant", "normal"}
    one = report["labels"]["malignant"]["arms"]["a"]
    assert one["auc"]["estimate"] == pytest.approx(roc_auc_score(truth == 1, p[:, 1]))
    assert one["recalibrated"]["method"] == arm["recalibrated"]["method"] == "vector"


def test_vector_scaling_mends_probabilities_that_are_too_sharp():
    table, _, _ = exclusive_classes(patients=900, strength=0.5)
    cubed = table["probability"] ** 3
    table["probability"] = cubed / cubed.groupby(table["image"]).transform("sum")
    arm = evaluate(table, bootstrap=100).to_dict()["arms"]["a"]
    assert arm["recalibrated"]["log_loss"]["estimate"] < 0.8 * arm["log_loss"]["estimate"]
    assert abs(arm["recalibrated"]["calibration"]["slope"]["estimate"] - 1) < 0.2


def test_labels_that_stand_for_themselves_with_unknown_targets(scores):
    edema, mass = scores({"a": 1.0, "b": 0.2}, seed=1), scores({"a": 0.5, "b": 0.4}, seed=2)
    table = pd.concat([edema.assign(label="edema"), mass.assign(label="mass")], ignore_index=True)
    table["target"] = table["target"].astype(object)
    unknown = table.index[(table["label"] == "mass") & (table["patient"] == "P3")]
    table.loc[unknown, "target"] = np.nan
    report = evaluate(table, bootstrap=200).to_dict()
    assert report["labels"]["edema"]["images"] == 120
    assert report["labels"]["mass"]["images"] == 119
    assert any(f"{len(unknown)} rows have no target" in warning for warning in report["warnings"])
    means = [report["labels"][label]["arms"]["a"]["auc"]["estimate"] for label in ("edema", "mass")]
    assert report["arms"]["a"]["auc"]["estimate"] == pytest.approx(np.mean(means))
    (comparison,) = report["comparisons"]
    assert (
        comparison["delta_auc"]["low"]
        < comparison["delta_auc"]["estimate"]
        < comparison["delta_auc"]["high"]
    )
    assert "auc_one_against_one" not in report["arms"]["a"]


def test_the_mean_over_labels_knows_that_they_share_patients(scores):
    """The same label twice carries no more than once."""
    once = scores({"a": 1.0})
    twice = pd.concat([once.assign(label="x"), once.assign(label="y")], ignore_index=True)
    first, second = (
        evaluate(t, bootstrap=100).to_dict()["arms"]["a"]["auc"] for t in (once, twice)
    )
    assert second["estimate"] == pytest.approx(first["estimate"])
    assert second["high"] - second["low"] == pytest.approx(first["high"] - first["low"], rel=0.03)


def test_means_over_labels_are_over_sites_too():
    report = evaluate(classes_by_site(), bootstrap=100, leave_out="site").to_dict()
    delta, entry = report["comparisons"][0]["delta_auc"], report["arms"]["a"]["auc"]
    assert (delta["covers"], entry["method"]) == ("sites", "random effects over sites, logit scale")
    assert entry["over_patients"]["method"].startswith("mean over labels")
    of_labels = [part["arms"]["a"]["auc"] for part in report["labels"].values()]
    for place, site in enumerate(entry["sites"]):
        assert site["estimate"] == pytest.approx(
            np.mean([of["sites"][place]["estimate"] for of in of_labels])
        )
    assert report["models"] == 6
    assert any("judged by how the 6 sites vary" in text for text in report["warnings"])
