"""Which device, precision and layout the arms of a study train in."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from medtransfer.data.grid.cache import cache_folder
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.environment import recorded_engine
from medtransfer.study.settle import Settled
from medtransfer.study.views import images_of, task_of
from medtransfer.training.device import Engine, uses_cuda
from medtransfer.training.precision import compare_with_fp32, same_answers
from medtransfer.training.timing import make_engine

# Images of a class on which reduced precision is compared with fp32.
_COMPARED = 32


def choose_engines(settled: Settled, folder: StudyFolder, workers: int = 1) -> dict[str, Engine]:
    """One engine per architecture, so that arms of the same one train alike; measured on the one
    that trains most of it.

    Reduced precision that is chosen by its speed is taken where features are those of fp32 within
    10 %, and logits of a linear head within 5 %; a linear probe, which goes through the images
    once, and magnifies rounding, is in fp32 always.

    `workers`: processes that share the runs.
    """
    engines: dict[str, Engine] = {}
    for name in dict.fromkeys(backbone.name for backbone in settled.backbones.values()):
        arms = [arm for arm, backbone in settled.backbones.items() if backbone.name == name]
        trained = [arm for arm in arms if settled.plans[arm].strategy != "linear_probe"]
        engine = _choose_engine(settled, folder, trained or arms, workers)
        engines |= {arm: engine if arm in trained else engine.in_fp32() for arm in arms}
    return {arm: engines[arm] for arm in settled.backbones}


def _choose_engine(settled: Settled, folder: StudyFolder, arms: list[str], workers: int) -> Engine:
    """That of arms of one architecture."""
    config = settled.config
    on_cuda = uses_cuda(config.train.device)
    arm = min(arms, key=lambda arm: settled.plans[arm].frozen_stages)
    plan, backbone = settled.plans[arm], deepcopy(settled.backbones[arm])
    backbone.truncate(plan.dropped_stages)
    backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
    # Of any of them: an arm that was added trains as those before it did. On another kind of device
    # all is done again.
    recorded = next(
        (
            found
            for other in arms
            if (found := recorded_engine(folder, other, "cuda" if on_cuda else "cpu"))
        ),
        {},
    )
    by_hand = {"precision": config.train.precision, "layout": config.train.layout}
    if plan.strategy == "linear_probe":
        by_hand["precision"] = "fp32"
    chosen: dict[str, Any] = {
        field: recorded.get(field, "auto") if own == "auto" else own
        for field, own in by_hand.items()
    }
    if config.arms[arm].kind == "features":
        # Computed on the processor: there is nothing to measure.
        chosen = {"precision": "fp32", "layout": "contiguous"}
    # As it was compiled then, and nothing is tried again.
    taken_up = bool(recorded) and config.train.compile == "auto"
    chosen["compiled"] = False if taken_up else config.train.compile
    space = (
        (config.image.size,) * 2
        if backbone.ndim == 2
        else (config.image.slices, config.image.size, config.image.size)
    )
    # On a processor more images take long and change no ratio; a GPU they keep busy.
    batch = config.train.batch_size or task_of(settled, arm).batch_size(backbone.ndim)
    count = batch if on_cuda else min(batch, 16 if backbone.ndim == 2 else 2)
    image = torch.rand(
        count, len(backbone.recipe.mean), *space, generator=torch.Generator().manual_seed(0)
    )
    memory, steps = cache_folder() / "engines.json", _steps_of_one(settled, arms, workers)

    def make(**fields: Any) -> Engine:
        return make_engine(
            config.train.device,
            probe=backbone,
            image=image,
            memory=memory,
            steps=steps,
            **{**chosen, **fields},
        )

    engine = make()
    if engine.precision != "fp32" and not recorded:
        compared = [_compare_with_fp32(settled, arm, engine) for arm in arms]
        difference = {
            name: max(of.get(name, 0.0) for of in compared)
            for name in dict.fromkeys(itertools.chain(*compared))
        }
        if config.train.precision == "auto" and not same_answers(difference):
            engine = make(precision="fp32")
        return replace(engine, difference=difference)
    if taken_up:
        engine = replace(engine, compiled=recorded["compiled"] and engine.share[1] == 1)
    return replace(engine, difference=recorded.get("difference", {}))


def _compare_with_fp32(settled: Settled, arm: str, engine: Engine) -> dict[str, float]:
    """On training images of the first fold, of both classes; see `compare_with_fp32`."""
    images, plan, backbone = (
        images_of(settled, arm),
        settled.plans[arm],
        deepcopy(settled.backbones[arm]),
    )
    backbone.truncate(plan.dropped_stages)
    engine.place(backbone)
    rows = settled.split.fold(0).train
    positive = images.task.positives(images.targets[rows])
    rows = np.concatenate([rows[positive][:_COMPARED], rows[~positive][:_COMPARED]])
    taps = backbone.names if plan.read == "all" else backbone.names[-1:]
    return compare_with_fp32(backbone, taps, images.plain(rows, backbone, engine), engine)


def _steps_of_one(settled: Settled, arms: list[str], workers: int) -> int:
    """Steps that a process trains with what is compiled once: what is frozen decides what is
    compiled.
    """
    config, folds = settled.config, len(settled.split)
    plans = [plan for arm in arms if (plan := settled.plans[arm]).strategy != "linear_probe"]
    steps = sum(plan.steps for plan in plans) * folds * len(config.protocol.seeds) // workers
    kinds = sum(
        1 if plan.unfreeze == "at_once" else plan.kept_stages - plan.frozen_stages for plan in plans
    )
    return steps // max(1, kinds * (folds if config.plan.search else 1))
