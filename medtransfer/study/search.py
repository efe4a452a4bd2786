"""The search for the depth of a fold, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medtransfer.errors import FileError
from medtransfer.files import read_json, write_json
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.cache import CacheBudget, plan_cache
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.study.planning import count_steps
from medtransfer.study.run import Training
from medtransfer.training.batches import Loader, Source
from medtransfer.training.choice import DepthChoice, apply_choice
from medtransfer.training.depth import Setting, search_depth
from medtransfer.training.loop import Budget
from medtransfer.training.process import seed_everything

Report = Callable[[str, int, int], None]


def search_fold(
    training: Training, path: Path, cache: CacheBudget, steps: int, report: Report
) -> FreezePlan:
    """The plan of a fold after a search on its train and tune patients.

    Args:
        training: the first of the fold, whatever its seed; its backbone is left as it is.
        path: where the choice is written, and taken up again.
        cache: what is left for kept activations.
        steps: of a fine-tuning, should the plan be a probe and the search find a better depth.
        report: progress.

    Raises:
        MedTransferError: see the parts it calls.
    """
    images, fold, plan = training.images, training.fold, training.plan
    backbone, engine, seed = training.backbone, training.engine, training.seed
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    source = images.source(backbone, engine)
    batches = images.batches(source, engine)
    per_epoch = len(Loader(source, rows, batches[0], seed))
    fine_tuned = replace(plan, strategy="lp_ft", steps=plan.steps or steps)
    steps = count_steps(fine_tuned, images.train, per_epoch)
    choice = _read_choice(path, training.key)
    if choice is None:
        seed_everything(seed)
        weighted = images.task.planned(plan).fitted(images.targets[rows])
        budget = Budget(steps, None, images.train.weight_decay)
        costs = measure_stages(backbone, cache.size, images.image.slices)

        def keep(network: Backbone, cut: str, taps: Sequence[str], pooled: bool = False) -> Source:
            return images.keep(network, engine, cut, taps, seed, pooled, report)

        setting = Setting(weighted, engine, keep, rows, images.groups, batches, seed)
        choice = search_depth(backbone, setting, plan, budget, costs, report)
        if engine.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"key": training.key, **choice.to_dict()}, sealed=True)
        engine.wait()
    found = apply_choice(plan, backbone, choice, steps)
    if not choice.overridden:
        return found
    cached = plan_cache(found, backbone, len(images.entries), cache, choose=True)
    return plan_cache(
        replace(cached, views=min(cached.views, plan.views)), backbone, len(images.entries), cache
    )


def _read_choice(path: Path, key: str) -> DepthChoice | None:
    try:
        values = read_json(path, sealed=True)
        return DepthChoice.from_dict(values) if values["key"] == key else None
    except (OSError, FileError, KeyError, TypeError, ValueError):
        return None
