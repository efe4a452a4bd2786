"""A small network for what does not depend on which one it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import medtransfer as mt
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.records.run import Run
from medtransfer.training.settings import TrainSettings

SMALL = "test_resnet"  # timm's own for tests: 5 stages, 0.4 million parameters, batch norm


def as_if_pretrained(seed: int = 1) -> Backbone:
    """With random weights that are said to be trained ones, so that its stages may be frozen; the
    same ones every time.
    """
    net = mt.load_backbone(SMALL, seed=seed)
    net.weights = replace(
        net.weights,
        source="file:small.pth",
        origin="small.pth",
        digest="0" * 64,
        proof={"passed": True},
    )
    return net


def fit_first_fold(
    cohort: mt.Cohort,
    net: Backbone,
    plan: FreezePlan,
    folder: Path,
    train: TrainSettings,
    **settings: Any,
) -> Run:
    """A training on the first of two folds, on images of 32 pixels."""
    fold, task = mt.split_cohort(cohort, 2).fold(0), mt.Classification(cohort.labels)
    image = mt.ImageSettings(size=32)
    return mt.fit(cohort, fold, task, net, plan, folder, image=image, train=train, **settings)
