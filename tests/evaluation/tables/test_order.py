"""Figures follow from what a table says, not from the order of its rows and columns, the names in
it, or the scale of its scores.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.evaluate import evaluate

from detected import (
    few_detections,
    lesion_figures,
)
from predicted import (
    clustered_table,
)


def figures(report):
    """Every number of a report by its path."""
    flat = {}

    def walk(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, (*path, key))
        elif isinstance(value, list | tuple):
            for place, inner in enumerate(value):
                walk(inner, (*path, place))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[path] = value

    data = json.loads(json.dumps(report.to_dict()))
    data.pop("accounts")
    walk(data, ())
    return flat


def assert_same(first, second):
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert second[path] == pytest.approx(value, rel=1e-9, abs=1e-9), path


def scramble(frame, seed, names=("image", "patient")):
    """Rows shuffled, columns permuted, ids renamed."""
    rng = np.random.default_rng(seed)
    frame = frame.sample(frac=1, random_state=seed)[
        list(rng.permutation(frame.columns))
    ].reset_index(drop=True)
    for column in names:
        if column in frame.columns:
            old = sorted(frame[column].unique())
            new = [f"{column}-{n:05d}" for n in rng.permutation(len(old))]
            frame[column] = frame[column].map(dict(zip(old, new, strict=True)))
    return frame


@pytest.mark.parametrize(("seed", "coarse", "images"), [(0, 0.0, 1), (1, 0.5, 2)])
def test_shuffled_permuted_and_renamed_tables_give_the_same_figures(seed, coarse, images):
    frame = clustered_table(seed, coarse=coarse, images=images)
    assert_same(
        figures(evaluate(frame, bootstrap=100)),
        figures(evaluate(scramble(frame, seed), bootstrap=100)),
    )


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["cube", "logistic", "ranks", "tiny"]))
def test_any_increasing_map_leaves_auc_and_average_precision(seed, which):
    frame = clustered_table(seed, images=1, coarse=0.25, column="score")
    # Ranks of all distinct values: the coarsest map that keeps the order.
    maps = {
        "cube": lambda z: z**3 + 100 * z,
        "logistic": lambda z: 1 / (1 + np.exp(-z)),
        "ranks": lambda z: z.rank(method="dense"),
        "tiny": lambda z: 1e-9 * z - 7,
    }
    moved = frame.assign(score=maps[which](frame["score"]))
    first, second = (evaluate(t, bootstrap=100).to_dict() for t in (frame, moved))
    for arm in ("a", "b"):
        for metric in ("auc", "partial_auc", "average_precision"):
            for key in ("estimate", "low", "high"):
                assert first["arms"][arm][metric][key] == pytest.approx(
                    second["arms"][arm][metric][key], abs=1e-9
                )
    for key in ("estimate", "low", "high", "p"):
        assert first["comparisons"][0]["delta_auc"][key] == pytest.approx(
            second["comparisons"][0]["delta_auc"][key], abs=1e-9
        )


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_detection_is_blind_to_order_names_and_scale(seed, grid):
    tested, candidates, lesions = few_detections(seed, grid=grid)
    first = lesion_figures(evaluate_boxes(tested, candidates, lesions, bootstrap=100))
    rng = np.random.default_rng(seed)
    images = dict(
        zip(tested["image"], (f"x{n}" for n in rng.permutation(len(tested))), strict=True)
    )
    patients = {name: f"y{n}" for n, name in enumerate(rng.permutation(tested["patient"].unique()))}
    frames = [
        frame.sample(frac=1, random_state=seed).assign(image=lambda t: t["image"].map(images))
        for frame in (tested, candidates, lesions)
    ]
    frames[0]["patient"] = frames[0]["patient"].map(patients)
    frames[1] = frames[1][list(rng.permutation(frames[1].columns))]
    frames[1]["logit"] = frames[1]["logit"] ** 3 + 5 * frames[1]["logit"]  # increasing
    assert np.allclose(
        np.array(first, float),
        np.array(lesion_figures(evaluate_boxes(*frames, bootstrap=100)), float),
        atol=1e-9,
        equal_nan=True,
    )
