"""The composition root: configuration -> cohort, split, arms -> runs -> predictions -> report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medtransfer.config import StudyConfig, make_config
from medtransfer.data.cohort import Cohort
from medtransfer.episodes import refuse_large_sizes, run_episodes
from medtransfer.evaluation import EvaluationReport, evaluate, read_predictions, write_predictions
from medtransfer.models.backbone import Backbone
from medtransfer.models.heads import Pooling
from medtransfer.models.plan import FINE_TUNING_STEPS, FreezePlan
from medtransfer.prepare import batch_size, cache_budget, fixed_of, prepare
from medtransfer.progress import Reporter
from medtransfer.record import Prepared, Run, check_folder, finished_run, recorded_precision, run_key, write_record
from medtransfer.report.build import build_report
from medtransfer.reused import write_reuse
from medtransfer.runs import backbone_of, images_of, run_fold, search_fold, task_of
from medtransfer.training.engine import Engine, make_engine


@dataclass(frozen=True)
class Arm:
    """One contestant of a comparison.

    Attributes:
        backbone: architecture.
        weights: source, as in `load_backbone`; None for random weights, trained from scratch.
        channels: of the input: 3, or 1 for grey images whose first convolution is summed over the colours.
        pooling: how the slices of a volume become one case: attention, mean or max.
        slab: odd number of neighbouring slices that are the channels of each (2.5D).
        recipe: `{"mean": 0.5, "std": 0.5}`, one number or one per channel, in place of the recipe of the weights.
        plan: fields of `FreezePlan` set by hand for this arm, such as `{"frozen_stages": 9}`.
    """

    backbone: str
    weights: str | None = None
    channels: int = 3
    pooling: Pooling = "attention"
    slab: int = 1
    recipe: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)


def compare(
    cohort: Cohort, arms: Mapping[str, Arm], output: str | Path, quiet: bool = False, **sections: Mapping[str, Any]
) -> EvaluationReport:
    """Trains every arm on the same patients, folds and seeds, and compares them on the test patients.

    Args:
        cohort: the images.
        arms: contestants by name; pairs are compared in this order.
        output: folder of the study; an unfinished study with the same settings is continued.
        quiet: no progress.
        **sections: `image`, `protocol`, `plan`, `train`, `evaluate`: the sections of a configuration, such as
            `protocol={"folds": 3, "seeds": [0, 1]}`.

    Raises:
        MedTransferError: see `run_study`.
    """
    values = {"cohort": cohort.source, "arms": {name: asdict(arm) for name, arm in arms.items()}, **sections}
    return run_study(make_config(values, "compare"), output, cohort, quiet)


def run_study(config: StudyConfig, output: str | Path, cohort: Cohort | None = None, quiet: bool = False) -> EvaluationReport:
    """Carries out a configuration; the main job.

    Everything is checked before the folder is touched. Finished runs of an earlier, interrupted study
    with the same settings are taken as they are.

    Raises:
        ConfigError, CohortError, LeakageError, WeightsError: found before anything is written.
        StudyError: the folder holds another study or cannot be written, or training diverged.
    """
    output = Path(output)
    check_folder(output, config)
    with Reporter(quiet) as reporter:
        prepared = prepare(config, cohort, output, reporter, fixed_of(config))
        refuse_large_sizes(prepared)
        engines = _make_engines(config, prepared.backbones, output)
        output.mkdir(parents=True, exist_ok=True)
        write_record(prepared, engines, output)
        table = _run_all(prepared, engines, output, reporter)
        if (curve := run_episodes(prepared, engines, output, reporter)) is not None:
            table = pd.concat([table.assign(size=0, episode=0), curve], ignore_index=True)
        write_predictions(table, output / "predictions.csv")
        reporter.say(f"evaluating {len(table)} predictions")
        # Read back, so that the report is what anyone gets from the file alone.
        report = evaluate(read_predictions(output / "predictions.csv"), config.evaluate.bootstrap, config.evaluate.seed)
        report.save(output / "report.json")
        write_reuse(prepared, engines, output, report.data["comparisons"], reporter)
        page = build_report(output)
    return EvaluationReport(report.data, page)


def plan_study(config: StudyConfig, quiet: bool = False) -> dict[str, tuple[FreezePlan, Backbone]]:
    """The plans that `run_study` would follow, and nothing else."""
    with Reporter(quiet) as reporter:
        prepared = prepare(config, None, None, reporter, None)
    return {name: (plan, prepared.backbones[name]) for name, plan in prepared.plans.items()}


def _make_engines(config: StudyConfig, backbones: dict[str, Backbone], output: Path) -> dict[str, Engine]:
    """One engine per architecture, so that arms of the same one train in the same precision."""
    engines: dict[str, Engine] = {}
    for arm, backbone in backbones.items():
        if backbone.name not in engines:
            precision = config.train.precision
            if precision == "auto":
                precision = recorded_precision(output, arm) or precision  # type: ignore[assignment]  # written by this program
            space = (config.image.size,) * 2 if backbone.ndim == 2 else (config.image.slices, config.image.size, config.image.size)
            # Of volumes two: what is measured is a ratio, and a batch of them takes long.
            image = torch.zeros(batch_size(config.train, 2) if backbone.ndim == 2 else 2, len(backbone.recipe.mean), *space)
            engines[backbone.name] = make_engine(config.train.device, precision, backbone, image)
    return {arm: engines[backbone.name] for arm, backbone in backbones.items()}


def _run_all(prepared: Prepared, engines: dict[str, Engine], output: Path, reporter: Reporter) -> pd.DataFrame:
    config = prepared.config
    jobs = [(seed, fold, arm) for seed in config.protocol.seeds for fold in range(len(prepared.split)) for arm in config.arms]
    runs: list[Run] = []
    for number, (seed, index, arm) in enumerate(jobs):
        folder = output / "runs" / arm / f"fold-{index}" / f"seed-{seed}"
        key = run_key(prepared, engines[arm], seed, index, arm)
        run = finished_run(folder, key, arm, index, seed)
        if run is None:
            begun = time.monotonic()
            run = _run_one(prepared, engines[arm], folder, seed, index, arm, reporter)
            trained = f"best epoch {run.summary['best_epoch']} of {run.summary['epochs']}" if run.summary["epochs"] else "a linear probe"
            reporter.say(f"run {number + 1} of {len(jobs)}: {arm}, fold {index}, seed {seed}: {trained}, {time.monotonic() - begun:.0f} s")
        runs.append(run)
    order = {arm: i for i, arm in enumerate(config.arms)}
    runs.sort(key=lambda run: (order[run.arm], run.seed, run.fold))
    return pd.concat([run.predictions for run in runs], ignore_index=True)


def _run_one(prepared: Prepared, engine: Engine, folder: Path, seed: int, index: int, arm: str, reporter: Reporter) -> Run:
    """Searches for the depth, where that is asked for, and trains."""
    config, fold = prepared.config, prepared.split.fold(index)
    images, task = images_of(prepared, arm), task_of(prepared, arm)
    key, plan = run_key(prepared, engine, seed, index, arm), prepared.plans[arm]
    if config.plan.search and plan.strategy != "scratch":
        # One search per fold, whatever the seed.
        first = config.protocol.seeds[0]
        path, again = folder.parent / "depth.json", run_key(prepared, engine, first, index, arm)
        cache = cache_budget(config, prepared.fingerprint.ndim)

        def report(what: str, done: int, total: int) -> None:
            reporter(f"{arm}, fold {index}, {what}", done, total)

        steps = max(other.steps for other in prepared.plans.values()) or FINE_TUNING_STEPS
        plan = search_fold(images, fold, task, prepared.backbones[arm], plan, path, first, engine, again, cache, steps, report)
    return run_fold(images, fold, task, backbone_of(prepared, arm, seed), plan, folder, seed, arm, engine, key, reporter)
