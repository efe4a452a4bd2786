"""Tables of predictions whose truth is known, for tests of the evaluation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax


def overconfident_arm(
    models=5, patients=150, prevalence=0.3, over=2.0, apart=0.0, shifted=0.0, seed=0
):
    """A cross-validated arm that is over-confident about the prevalence; scales and shifts of its
    models differ.
    """
    rng = np.random.default_rng(seed)
    target = (rng.permutation(patients) < round(prevalence * patients)).astype(int)
    middle = np.log(prevalence / (1 - prevalence))
    truth = middle + 1.5 * (1.5 * target + rng.normal(size=patients)) - 1.125
    fold = np.empty(patients, int)
    for value in (0, 1):
        rows = np.flatnonzero(target == value)
        fold[rows] = rng.permutation(np.arange(len(rows)) % models)
    frames = []
    for model in range(models):
        logit = (
            over * np.exp(apart * rng.normal()) * (truth - middle) + middle + shifted * rng.normal()
        )
        others = rng.permutation(np.flatnonzero(fold != model))
        tune = np.concatenate(
            [
                others[target[others] == value][
                    : max(1, round(0.2 * (target[others] == value).sum()))
                ]
                for value in (0, 1)
            ]
        )
        for part, rows in (("test", np.flatnonzero(fold == model)), ("tune", tune)):
            names = [f"P{row}" for row in rows]
            frames.append(
                pd.DataFrame(
                    {
                        "fold": model,
                        "part": part,
                        "patient": names,
                        "image": names,
                        "target": target[rows],
                        "logit": logit[rows],
                    }
                )
            )
    return pd.concat(frames, ignore_index=True).assign(
        arm="a", seed=0, label="y", probability=lambda t: expit(t["logit"])
    )


def exclusive_classes(patients=150, seed=0, arm="a", strength=1.5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, patients)
    p = softmax(strength * np.eye(3)[truth] * 2 + rng.normal(size=(patients, 3)), axis=1)
    part = np.where(np.arange(patients) % 3 == 0, "tune", "test")
    frames = [
        pd.DataFrame(
            {
                "arm": arm,
                "patient": np.arange(patients),
                "image": np.arange(patients),
                "part": part,
                "label": name,
                "target": (truth == c) * 1,
            }
        ).assign(probability=p[:, c])
        for c, name in enumerate(("benign", "malignant", "normal"))
    ]
    return pd.concat(frames, ignore_index=True), truth[part == "test"], p[part == "test"]


def classes_by_site(flat=False):
    """Three classes, six sites, each tested by a model of its own; of arm b all scores are alike
    where `flat`.
    """
    rng = np.random.default_rng(2)
    truth, site, frames = rng.integers(0, 3, 360), np.arange(360) % 6, []
    for arm, skill in (("a", 2.0), ("b", 1.0)):
        z = (skill * np.eye(3)[truth] + rng.normal(size=(360, 3))) * (
            0.01 if flat and arm == "b" else 1.0
        )
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        about = {
            "arm": arm,
            "seed": 0,
            "fold": site,
            "part": "test",
            "patient": range(360),
            "image": range(360),
        }
        frames += [
            pd.DataFrame(
                {**about, "label": name, "target": (truth == c) * 1, "probability": p[:, c]}
            )
            for c, name in enumerate("XYZ")
        ]
    return pd.concat(frames, ignore_index=True)


def clustered_table(
    seed, patients=40, images=2, arms=("a", "b"), folds=2, coarse=0.0, column="probability"
):
    """Patients with several images, ties where `coarse`, tune and test parts in folds."""
    rng = np.random.default_rng(seed)
    rows = []
    for fold in range(folds):
        for p in range(patients):
            part = "test" if p % folds == fold else "tune"
            for image in range(images):
                target = int((p + image * (seed % 2)) % 3 == 0)
                for arm in arms:
                    z = 1.2 * target + rng.normal() - 0.5
                    z = coarse * round(z / coarse) if coarse else z
                    rows.append(
                        (
                            arm,
                            0,
                            fold,
                            part,
                            f"i{p}_{image}",
                            f"p{p}",
                            target,
                            1 / (1 + np.exp(-z)) if column == "probability" else z,
                        )
                    )
    return pd.DataFrame(
        rows, columns=["arm", "seed", "fold", "part", "image", "patient", "target", column]
    )


def move_scores(table: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """The logits of one arm, shifted and scaled at random in every model."""
    rng = np.random.default_rng(seed)
    moved = table.copy()
    for _, rows in moved[moved["arm"] == arm].groupby(["seed", "fold"]):
        moved.loc[rows.index, "logit"] = np.exp(rng.normal()) * rows["logit"] + 3 * rng.normal()
    return moved.drop(columns="probability", errors="ignore")


def assert_close(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_close(first[key], second[key])
    elif isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            assert_close(a, b)
    elif isinstance(first, float):
        assert second == pytest.approx(first, abs=1e-9)
    else:
        assert first == second
