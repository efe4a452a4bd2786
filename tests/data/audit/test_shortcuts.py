"""What gives the label away without the lesion."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.data.audit.shortcuts import _auc, probe_shortcuts
from sklearn.metrics import roc_auc_score


def table(count=120, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count).astype(float)
    images = pd.DataFrame(
        {
            "image": [str(i) for i in range(count)],
            "patient": [str(i // 2) for i in range(count)],
            "y": y,
        }
    )
    facts = pd.DataFrame(
        {
            "error": "",
            "shape": [(100, 100)] * count,
            "border": [tuple(rng.uniform(size=5)) for _ in range(count)],
            "spacing": [()] * count,
            "modality": "US",
            "scanner": "A",
            "format": "PNG",
            "bits_stored": 8,
            "colour": False,
        }
    )
    return images, facts, y, rng


def probe(images, facts):
    return {s.source: s for s in probe_shortcuts(images, facts, ["y"], images["patient"])}


@pytest.mark.slow
def test_shortcuts_are_found_where_they_are():
    images, facts, y, rng = table()
    assert set(probe(images, facts)) == {"border"}  # nothing else varies
    assert not probe(images, facts)["border"].warns
    facts["shape"] = [(100 + int(4 * v), 100) for v in y]
    images["site"] = np.where(rng.uniform(size=120) < 0.8, np.where(y, "north", "south"), "west")
    facts["border"] = [(v + 0.01 * rng.normal(), 0.0, 0.0, 0.0, 0.0) for v in y]
    found = probe(images, facts)
    assert set(found) == {"site", "size", "border"}
    assert found["size"].auc == pytest.approx(1)
    assert all(s.warns for s in found.values())
    assert found["site"].low < found["site"].auc < found["site"].high
    assert "site north" in found["site"].facts


@pytest.mark.slow
def test_chance_raises_no_alarm():
    alarms = 0
    for seed in range(6):
        images, facts, _, rng = table(80, seed)
        facts["shape"] = [(int(n), 100) for n in rng.integers(50, 90, 80)]
        alarms += sum(s.warns for s in probe(images, facts).values())
    assert alarms <= 1  # of 12, at one in forty each


def test_images_of_a_patient_are_not_divided_by_the_probe():
    """Each patient has its own image size, which tells the patient but not the label."""
    images, facts, y, rng = table(200)
    patients = np.repeat(np.arange(50), 4)
    images["patient"] = patients.astype(str)
    images["y"] = rng.integers(0, 2, 50)[patients].astype(float)
    facts["shape"] = [(100 + int(p) * 3, 100) for p in rng.permutation(50)[patients]]
    assert not probe(images, facts)["size"].warns
    assert len(y) == 200


def test_too_few_patients_are_not_probed():
    images, facts, _, _ = table(120)
    images["y"] = [1.0] * 9 + [0.0] * 111
    assert probe(images, facts) == {}


def test_the_rank_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        y, score = rng.integers(0, 2, 60), rng.integers(0, 9, 60).astype(float)
        assert _auc(score, y, np.zeros(60, int)) == pytest.approx(roc_auc_score(y, score))
    one = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    assert _auc(*one, np.zeros(4, int)) == 0.75
    # Trees of two folds: only (0.1, 0.35) and (0.4, 0.8) are pairs of one of them.
    assert _auc(*one, np.array([0, 1, 0, 1])) == 1
    assert np.isnan(_auc(*one, np.array([0, 0, 1, 1])))
