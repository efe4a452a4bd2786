"""A new kind of task is one class: a regression of lesion size, which nothing else knows of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
import torch
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training.settings import TrainSettings
from scipy.special import expit

from networks import SMALL


@dataclass(frozen=True)
class LesionSize:
    """The logarithm of the side of the largest lesion; a size above the median counts as large."""

    kind: ClassVar[str] = "lesion_size"
    convex: ClassVar[bool] = False
    finds_boxes: ClassVar[bool] = False

    labels: tuple[str, ...] = ("large",)
    positive_weights: tuple[float, ...] = (1.0,)
    median: float = 0.0

    def targets(self, labels, boxes, space):
        sides = np.nan_to_num(boxes[..., 2:4] - boxes[..., 0:2], nan=0.0)
        return np.log1p(sides.prod(-1).max(1, keepdims=True) ** 0.5).astype(np.float32)

    def positives(self, targets):
        return targets[:, 0] > np.median(targets)

    def fewest(self, patients_per_class):
        return sum(patients_per_class.values())

    def batch_size(self, ndim):
        return 8

    def at_once(self, step, most):
        return most

    def plan_fields(self, parts):
        return {}

    def planned(self, plan):
        return self

    def fitted(self, targets):
        return replace(self, median=float(np.median(targets)))

    def make_head(self, backbone):
        return LinearHead(backbone.stages[-1:], 1)

    def loss(self, outputs, targets):
        return {"loss": torch.nn.functional.mse_loss(outputs.float(), targets)}

    def predict(self, outputs):
        return outputs.float()

    def correct(self, predictions):
        return np.asarray(predictions, np.float64)

    def score(self, predictions, targets):
        error = float(np.mean((predictions - targets) ** 2))
        return {"loss": error, "raw": error}

    def decode(self, predictions, targets, images, patients):
        margin = np.asarray(predictions, np.float64)[:, 0] - self.median
        return pd.DataFrame(
            {
                "image": images,
                "patient": patients,
                "label": "large",
                "target": (targets[:, 0] > self.median).astype(int),
                "probability": expit(margin),
                "logit": margin,
            }
        )


@pytest.fixture(scope="module")
def run(studies, tmp_path_factory):
    """Trained from scratch on the lesion boxes of a phantom cohort."""
    root = studies.cohort(16, 0).parent
    cohort = mt.Cohort.from_boxes(root, "boxes.csv", manifest=root / "manifest.csv")
    net = mt.load_backbone(SMALL)
    plan = mt.plan_freeze(PlainCounts({"0": 50, "1": 50}, "far"), net, transfer=False)
    return mt.fit(
        cohort,
        mt.split_cohort(cohort, 2).fold(0),
        LesionSize(),
        net,
        replace(plan, level=False),
        tmp_path_factory.mktemp("size") / "run",
        image=mt.ImageSettings(size=32),
        train=TrainSettings(epochs=6, batch_size=8, precision="fp32"),
    )


def test_a_task_that_nothing_else_knows_is_trained_and_predicted(run):
    assert run.summary["task"]["kind"] == "lesion_size"
    assert set(run.predictions["label"]) == {"large"}
    assert set(run.predictions["part"]) == {"tune", "test"}


def test_it_learns(run):
    history = pd.read_json(run.folder / "metrics.jsonl", lines=True)
    assert history["tune_loss"].min() < 0.5 * history["tune_loss"].iloc[0]


def test_its_model_is_refused_where_the_class_is_not_known(run):
    with pytest.raises(mt.MedTransferError, match=r"is no task that this version .*lesion_size"):
        mt.load_model(run.folder)
