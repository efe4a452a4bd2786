"""The composition root: configuration -> cohort, split, arms -> runs -> predictions -> report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medtransfer.config import StudyConfig, TrainSection, make_config
from medtransfer.data.cohort import Cohort
from medtransfer.data.dataset import ImageDataset, make_loader
from medtransfer.data.inspection import inspect_images
from medtransfer.data.slices import Slices
from medtransfer.data.split import Fold
from medtransfer.data.transforms import Fixed
from medtransfer.data.windows import Window
from medtransfer.evaluation import EvaluationReport, evaluate, read_predictions, write_aside, write_predictions
from medtransfer.models.backbone import Backbone
from medtransfer.models.plan import FreezePlan, refuse_random_prefix
from medtransfer.models.heads import Pooling
from medtransfer.prepare import batch_size, count_steps, fixed_of, load_arm, prepare, refuse_unreadable
from medtransfer.progress import Reporter
from medtransfer.record import (
    Prepared,
    Run,
    check_folder,
    describe_backbone,
    finished_run,
    recorded_precision,
    run_key,
    write_record,
)
from medtransfer.report.build import build_report
from medtransfer.tasks.classification import Classification
from medtransfer.training.checkpoint import Checkpoints, save_weights
from medtransfer.training.engine import Engine, make_engine, seed_everything
from medtransfer.training.loop import Budget, predict
from medtransfer.training.loop import fit as train_network

# Planes that are predicted at once.
_EVAL_BATCH = 32


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
    """

    backbone: str
    weights: str | None = None
    channels: int = 3
    pooling: Pooling = "attention"
    slab: int = 1
    recipe: Mapping[str, Any] | None = None


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
        engines = _make_engines(config, prepared.backbones, output)
        output.mkdir(parents=True, exist_ok=True)
        write_record(prepared, engines, output)
        table = _run_all(prepared, engines, output, reporter)
        write_predictions(table, output / "predictions.csv")
        reporter.say(f"evaluating {len(table)} predictions")
        # Read back, so that the report is what anyone gets from the file alone.
        report = evaluate(read_predictions(output / "predictions.csv"), config.evaluate.bootstrap, config.evaluate.seed)
        report.save(output / "report.json")
        page = build_report(output)
    return EvaluationReport(report.data, page)


def plan_study(config: StudyConfig, quiet: bool = False) -> dict[str, tuple[FreezePlan, Backbone]]:
    """The plans that `run_study` would follow, and nothing else."""
    with Reporter(quiet) as reporter:
        prepared = prepare(config, None, None, reporter, None)
    return {name: (plan, prepared.backbones[name]) for name, plan in prepared.plans.items()}


def fit(
    cohort: Cohort,
    fold: Fold,
    task: Classification,
    backbone: Backbone,
    plan: FreezePlan,
    output: str | Path,
    seed: int = 0,
    arm: str = "model",
    size: int = 128,
    window: Window = "percentile",
    spacing: float | tuple[float, ...] | None = None,
    slices: Slices | None = None,
    slab: int = 1,
    train: TrainSection | None = None,
    engine: Engine | None = None,
    entries: Sequence[Path] | None = None,
    key: str = "",
    quiet: bool = True,
    reporter: Reporter | None = None,
) -> Run:
    """Trains one network on one fold and predicts its tune and test images.

    Args:
        cohort, fold: images, and which are train, tune and test.
        task: what is learnt; class weights come from the training part.
        backbone: with its weights; changed in place.
        plan: what is frozen and how fast the rest learns.
        output: folder of the run.
        seed: of batch order and random transforms.
        arm: name in the predictions table.
        size, window, spacing, slices: of the fixed transforms; see `Fixed`.
        slab: neighbouring slices of a volume that become the channels of each.
        train: budget, precision and device; the defaults where left out.
        engine, entries: made from the above where left out; a study shares them between runs.
        key: digest of all that decides the result, by which a study knows the run again.
        quiet, reporter: progress.

    Raises:
        MedTransferError: see the parts it calls.
    """
    output, train, slices = Path(output), train or TrainSection(), slices or Slices()
    refuse_random_prefix(backbone, plan)
    reporter = reporter or Reporter(quiet)
    output.mkdir(parents=True, exist_ok=True)
    if entries is None:
        facts = inspect_images(cohort, reporter, Fixed(size, window, spacing, slices))
        refuse_unreadable(facts, cohort)
        entries = [Path(entry) for entry in facts["entry"]]
    engine = engine or make_engine(train.device, train.precision)
    seed_everything(seed)
    targets = cohort.images[list(task.labels)].to_numpy(np.float32)
    backbone.truncate(plan.dropped_stages)
    task = replace(task.weighted(targets[fold.train]), read=plan.read)
    head = task.make_head(backbone)
    recipe = backbone.recipe

    def loader(rows: Any, draw: int | None = None) -> Any:
        dataset = ImageDataset(entries, targets, rows, draw, slices.plane)
        planes = 1 if len(dataset.shape) == 2 else slices.count
        batch = batch_size(train, len(dataset.shape)) if draw is not None else max(1, _EVAL_BATCH // planes)
        return make_loader(dataset, batch, recipe.mean, recipe.std, backbone.ndim, slab)

    training = loader(fold.train, seed)
    budget = Budget(count_steps(plan, train, len(training)), train.patience, train.weight_decay)
    history: list[dict[str, float]] = []

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        write_aside(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        reporter(f"{arm}, fold {fold.index}, seed {seed}, epochs", int(entry["epoch"]), epochs)

    groups = pd.factorize(cohort.units)[0].astype(np.int64)
    decided = [key, plan.to_dict(), asdict(budget), engine.precision, seed, size, backbone.name, backbone.weights.digest]
    rows = [part.tolist() for part in (fold.train, fold.tune)]
    checkpoints = Checkpoints(output / "unfinished.pt", hashlib.sha256(json.dumps([*decided, *rows, cohort.digest]).encode()).hexdigest())
    result = train_network(
        backbone, head, task, training, loader(fold.train), loader(fold.tune), plan, budget, engine, groups, on_epoch, checkpoints
    )
    frames = []
    for part, rows in (("tune", fold.tune), ("test", fold.test)):
        logits, truth = predict(backbone, head, task, loader(rows), engine)
        chosen = cohort.images.iloc[rows]
        frames.append(task.decode(logits, truth, chosen["image"].tolist(), cohort.units.iloc[rows].tolist()).assign(part=part))
    table = pd.concat(frames, ignore_index=True).assign(arm=arm, seed=seed, fold=fold.index)
    save_weights(output / "weights.safetensors", backbone, head, {**describe_backbone(backbone), "tap": ", ".join(head.taps)})
    write_predictions(table, output / "predictions.csv")
    summary = {
        "arm": arm,
        "fold": fold.index,
        "seed": seed,
        "plan": plan.to_dict(),
        "budget": asdict(budget),
        "positive_weights": list(task.positive_weights),
        "images": {"train": len(fold.train), "tune": len(fold.tune), "test": len(fold.test)},
        **{key: value for key, value in asdict(result).items() if key != "history"},
        "epochs": len(result.history) - 1,
    }
    # Written last: a folder with run.json is a finished run.
    write_aside(output / "run.json", json.dumps({"key": key, **summary}, indent=1))
    checkpoints.clear()
    return Run(output, arm, fold.index, seed, read_predictions(output / "predictions.csv"), summary)


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
    entries = [Path(entry) for entry in prepared.facts["entry"]]
    jobs = [(seed, fold, arm) for seed in config.protocol.seeds for fold in range(len(prepared.split)) for arm in config.arms]
    runs: list[Run] = []
    for number, (seed, index, arm) in enumerate(jobs):
        folder = output / "runs" / arm / f"fold-{index}" / f"seed-{seed}"
        key = run_key(prepared, engines[arm], seed, index, arm)
        run = finished_run(folder, key, arm, index, seed)
        if run is None:
            begun = time.monotonic()
            section = config.arms[arm]
            backbone = deepcopy(prepared.backbones[arm]) if section.weights else load_arm(section, config.image.size, seed)
            sliced = prepared.fingerprint.ndim > backbone.ndim
            run = fit(
                prepared.cohort,
                prepared.split.fold(index),
                Classification(prepared.cohort.labels, pooling=section.pooling if sliced else "mean"),
                backbone,
                prepared.plans[arm],
                folder,
                seed,
                arm,
                slices=fixed_of(config).slices,
                slab=section.slab,
                train=config.train,
                engine=engines[arm],
                entries=entries,
                key=key,
                reporter=reporter,
            )
            trained = f"best epoch {run.summary['best_epoch']} of {run.summary['epochs']}" if run.summary["epochs"] else "a linear probe"
            reporter.say(f"run {number + 1} of {len(jobs)}: {arm}, fold {index}, seed {seed}: {trained}, {time.monotonic() - begun:.0f} s")
        runs.append(run)
    order = {arm: i for i, arm in enumerate(config.arms)}
    runs.sort(key=lambda run: (order[run.arm], run.seed, run.fold))
    return pd.concat([run.predictions for run in runs], ignore_index=True)
