"""Which device, precision and layout the arms of a study train in."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from medtransfer.data.cache import cache_folder
from medtransfer.errors import StudyError
from medtransfer.prepare import batch_size
from medtransfer.record import Prepared, recorded_engine
from medtransfer.training.engine import Engine, make_engine


def choose_engines(prepared: Prepared, output: Path) -> dict[str, Engine]:
    """One engine per architecture, so that arms of the same one train alike; measured on the one that trains most of it."""
    config = prepared.config
    engines: dict[str, Engine] = {}
    for name in dict.fromkeys(backbone.name for backbone in prepared.backbones.values()):
        arms = [arm for arm, backbone in prepared.backbones.items() if backbone.name == name]
        arm = min(arms, key=lambda arm: prepared.plans[arm].frozen_stages)
        plan, backbone = prepared.plans[arm], deepcopy(prepared.backbones[arm])
        backbone.truncate(plan.dropped_stages)
        backbone.freeze(plan.frozen_stages, plan.norm_policy, plan.tuned)
        # Of any of them: an arm that was added trains as those before it did.
        recorded = next((found for other in (arm, *arms) if (found := recorded_engine(output, other))), {})
        precision, layout = (
            getattr(config.train, field) if getattr(config.train, field) != "auto" else recorded.get(field, "auto")
            for field in ("precision", "layout")
        )
        space = (config.image.size,) * 2 if backbone.ndim == 2 else (config.image.slices, config.image.size, config.image.size)
        # What is measured is a ratio, and more images take long.
        count = min(16, batch_size(config.train, 2, config.task == "detection")) if backbone.ndim == 2 else 2
        image = torch.zeros(count, len(backbone.recipe.mean), *space)
        engine = make_engine(config.train.device, precision, backbone, image, layout, cache_folder() / "engines.json")
        engines |= dict.fromkeys(arms, engine)
    return {arm: engines[arm] for arm in prepared.backbones}


def recorded_engines(prepared: Prepared, output: Path) -> dict[str, Engine]:
    """As the runs were made, wherever the report is."""
    engines = {}
    for arm in prepared.backbones:
        stored = recorded_engine(output, arm)
        if not stored:
            raise StudyError(f"{output / 'environment.json'}: does not say how arm {arm} was trained. Run the study again.")
        engines[arm] = Engine(torch.device(stored["device"]), stored["precision"], stored["layout"])  # type: ignore[arg-type]  # written by this program
    return engines


def engines_here(engines: dict[str, Engine]) -> dict[str, Engine]:
    """For this process alone, on the device that is here."""
    alone = {arm: replace(engine, share=(0, 1)) for arm, engine in engines.items()}
    return {arm: engine if _is_here(engine) else make_engine(precision="fp32") for arm, engine in alone.items()}


def _is_here(engine: Engine) -> bool:
    return engine.device.type != "cuda" or (torch.cuda.is_available() and (engine.device.index or 0) < torch.cuda.device_count())
