"""Lesions, candidates and tables of them, for tests of detection."""

from __future__ import annotations

import numpy as np
import pandas as pd
from medtransfer.evaluation.metrics.matching import match


def draw_boxes(seed: int, images: int = 30, volumes: bool = False):
    """Lesions, and candidates that are some of them, moved, and others."""
    rng = np.random.default_rng(seed)
    axes = 3 if volumes else 2
    lesions, candidates = [], []
    for image in range(images):
        low = rng.uniform(0, 80, (rng.integers(0, 4), axes))
        own = np.concatenate([low, low + rng.uniform(5, 40, low.shape)], 1)
        lesions.append(own)
        near = own[rng.random(len(own)) < 0.8]
        near = near + rng.normal(0, 3, near.shape)
        near[:, axes:] = np.maximum(near[:, axes:], near[:, :axes] + 1)
        far = rng.uniform(0, 80, (rng.integers(0, 5), axes))
        boxes = np.concatenate([near, near[:1] + 1, np.concatenate([far, far + 20], 1)])
        # Steps of a tenth: there are ties.
        score = np.round(
            np.concatenate([rng.normal(1, 1, len(boxes) - len(far)), rng.normal(0, 1, len(far))]), 1
        )
        candidates.append((boxes, score + 1e-9 * image))
    return lesions, candidates


def rank_candidates(lesions, candidates, least):
    hits = [
        match(boxes, score, own, least) >= 0
        for own, (boxes, score) in zip(lesions, candidates, strict=True)
    ]
    return (
        np.concatenate([score for _, score in candidates]),
        np.concatenate(hits),
        sum(map(len, lesions)),
    )


BOX = ["x0", "y0", "x1", "y1"]


def detection_tables(seeds: int = 1, images: int = 90, volumes: bool = False):
    rows, found, boxes = [], [], []
    columns = ["x0", "y0", "z0", "x1", "y1", "z1"] if volumes else BOX
    for arm, noise in (("good", 0), ("poor", 1)):
        for seed in range(seeds):
            lesions, candidates = draw_boxes(3, images, volumes)
            rng = np.random.default_rng([noise, seed])
            for i, (own, (boxes_of_image, score)) in enumerate(
                zip(lesions, candidates, strict=True)
            ):
                box = boxes_of_image + 12 * noise * (i % 2)
                part = "tune" if i // 2 % 3 == 0 else "test"
                rows.append(
                    (
                        arm,
                        seed,
                        0,
                        part,
                        f"i{i}",
                        f"p{i // 2}",
                        "lesion",
                        int(len(own) > 0),
                        float(rng.normal()),
                    )
                )
                about = {"arm": arm, "seed": seed, "fold": 0, "part": part, "image": f"i{i}"}
                for b, one in zip(box, score, strict=True):
                    found.append(
                        {
                            **about,
                            **dict(zip(columns, b, strict=True)),
                            "logit": one + noise * rng.normal(0, 3),
                        }
                    )
                if arm == "good" and seed == 0:
                    boxes += [dict(zip(columns, b, strict=True)) | {"image": f"i{i}"} for b in own]
    predictions = pd.DataFrame(
        rows,
        columns=["arm", "seed", "fold", "part", "image", "patient", "label", "target", "logit"],
    )
    return predictions, pd.DataFrame(found), pd.DataFrame(boxes)


def few_detections(seed, images=12, grid=0.0):
    rng = np.random.default_rng(seed)
    tested, candidates, lesions = [], [], []
    for i in range(images):
        tested.append(("a", 0, i % 2, "test", f"i{i}", f"p{i // 2}", int(i % 3 > 0), 0.5))
        for _ in range(i % 3):
            x, y = rng.integers(0, 60, 2)
            lesions.append((f"i{i}", x, y, x + 20, y + 20))
            for _ in range(2):
                dx, dy = rng.integers(-8, 9, 2)
                candidates.append(
                    (
                        "a",
                        0,
                        i % 2,
                        "test",
                        f"i{i}",
                        x + dx,
                        y + dy,
                        x + dx + 20,
                        y + dy + 20,
                        rng.normal() + 1,
                    )
                )
        for _ in range(2):
            x, y = rng.integers(0, 60, 2)
            candidates.append(("a", 0, i % 2, "test", f"i{i}", x, y, x + 15, y + 15, rng.normal()))
    box = ["x0", "y0", "x1", "y1"]
    found = pd.DataFrame(
        candidates, columns=["arm", "seed", "fold", "part", "image", *box, "logit"]
    )
    if grid:
        found["logit"] = grid * (found["logit"] / grid).round()
    names = ["arm", "seed", "fold", "part", "image", "patient", "target", "probability"]
    return (
        pd.DataFrame(tested, columns=names),
        found,
        pd.DataFrame(lesions, columns=["image", *box]),
    )


def lesion_figures(report):
    entry = report["arms"]["a"]
    names = ("ap_10", "ap_50", "map", "cpm", "sensitivity_1")
    return [entry[name][key] for name in names for key in ("estimate", "low", "high")] + entry[
        "froc"
    ]["curve"]["sensitivity"]
