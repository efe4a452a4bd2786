"""The composition root: configuration -> cohort, split, arms -> runs -> predictions -> report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medtransfer.config import CohortSection, StudyConfig, TrainSection, make_config
from medtransfer.data.audit import audit
from medtransfer.data.cohort import Cohort
from medtransfer.data.dataset import ImageDataset, make_loader
from medtransfer.data.fingerprint import Fingerprint, make_fingerprint
from medtransfer.data.inspection import inspect_images
from medtransfer.data.medmnist import is_archive
from medtransfer.data.split import Fold, Split, split_cohort
from medtransfer.data.transforms import Fixed
from medtransfer.data.windows import Window, parse_window
from medtransfer.errors import CohortError, ConfigError, StudyError, list_faults
from medtransfer.evaluation import EvaluationReport, evaluate, read_predictions, write_aside, write_predictions
from medtransfer.models.backbone import Backbone
from medtransfer.models.catalog import load_backbone
from medtransfer.models.freeze import FreezePlan, plan_freeze
from medtransfer.progress import Reporter
from medtransfer.record import (
    Prepared,
    Run,
    check_folder,
    finished_run,
    read_plans,
    read_salt,
    recorded_precision,
    refuse_edited_steps,
    run_key,
    write_record,
)
from medtransfer.report.build import build_report
from medtransfer.tasks.classification import Classification
from medtransfer.training.checkpoint import save_weights
from medtransfer.training.engine import Engine, make_engine, seed_everything
from medtransfer.training.loop import Budget, predict
from medtransfer.training.loop import fit as train_network

_EVAL_BATCH = 32


@dataclass(frozen=True)
class Arm:
    """One contestant of a comparison.

    Attributes:
        backbone: architecture.
        weights: source, as in `load_backbone`; None for random weights, trained from scratch.
    """

    backbone: str
    weights: str | None = None


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
        fixed = Fixed(config.image.size, parse_window(config.image.window), config.image.spacing)
        prepared = _prepare(config, cohort, output, reporter, fixed)
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
        prepared = _prepare(config, None, None, reporter, None)
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
        size, window, spacing: of the fixed transforms; see `Fixed`.
        train: budget, precision and device; the defaults where left out.
        engine, entries: made from the above where left out; a study shares them between runs.
        key: digest of all that decides the result, by which a study knows the run again.
        quiet, reporter: progress.

    Raises:
        MedTransferError: see the parts it calls.
    """
    output, train = Path(output), train or TrainSection()
    reporter = reporter or Reporter(quiet)
    output.mkdir(parents=True, exist_ok=True)
    if entries is None:
        facts = inspect_images(cohort, reporter, Fixed(size, window, spacing))
        _refuse_unreadable(facts, cohort)
        entries = [Path(entry) for entry in facts["entry"]]
    engine = engine or make_engine(train.device, train.precision)
    seed_everything(seed)
    targets = cohort.images[list(task.labels)].to_numpy(np.float32)
    task = task.weighted(targets[fold.train])
    head = task.make_head(backbone)
    recipe = backbone.recipe

    def loader(rows: Any, draw: int | None = None) -> Any:
        batch = train.batch_size if draw is not None else _EVAL_BATCH
        return make_loader(ImageDataset(entries, targets, rows, draw), batch, recipe.mean, recipe.std)

    training = loader(fold.train, seed)
    budget = Budget(_steps(plan, train, len(training)), train.patience, train.weight_decay)
    history: list[dict[str, float]] = []

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        write_aside(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        reporter(f"{arm}, fold {fold.index}, seed {seed}, epochs", int(entry["epoch"]), epochs)

    result = train_network(backbone, head, task, training, loader(fold.train), loader(fold.tune), plan, budget, engine, on_epoch)
    frames = []
    for part, rows in (("tune", fold.tune), ("test", fold.test)):
        logits, truth = predict(backbone, head, task, loader(rows), engine)
        chosen = cohort.images.iloc[rows]
        frames.append(task.decode(logits, truth, chosen["image"].tolist(), cohort.units.iloc[rows].tolist()).assign(part=part))
    table = pd.concat(frames, ignore_index=True).assign(arm=arm, seed=seed, fold=fold.index)
    save_weights(output / "weights.safetensors", backbone, head, {"backbone": backbone.name, "tap": task.taps(backbone)[0]})
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
    return Run(output, arm, fold.index, seed, read_predictions(output / "predictions.csv"), summary)


def _prepare(config: StudyConfig, cohort: Cohort | None, output: Path | None, reporter: Reporter, fixed: Fixed | None) -> Prepared:
    # The network first: a misspelt backbone is found in a second, before thousands of images are read.
    backbones = {name: load_backbone(arm.backbone, arm.weights, seed=config.protocol.seeds[0]) for name, arm in config.arms.items()}
    for backbone in backbones.values():
        _require_size(backbone, config.image.size)
    cohort = _with_kept_salt(config.cohort, cohort, output)
    if len(cohort.labels) != 1:
        raise ConfigError(f"cohort.labels: one label is studied at a time, {len(cohort.labels)} given. Run one study per label.")
    # A split that cannot be made is found now too, before thousands of images are read.
    split_cohort(cohort, config.protocol.folds, config.protocol.split_seed, config.protocol.tune)
    facts = inspect_images(cohort, reporter, fixed)
    bad = facts[facts["error"] != ""]
    if not config.cohort.skip_unreadable:
        _refuse_unreadable(facts, cohort)
    reporter.say("looking for duplicates, near-duplicates and shortcuts")
    findings = audit(cohort, facts, group=config.protocol.group)
    if len(bad):
        reporter.say(f"{len(bad)} of {len(cohort)} images cannot be read and are left out; the report lists them")
        cohort = cohort.without(bad["image"].tolist())
    facts = facts[facts["error"] == ""].reset_index(drop=True)
    if config.protocol.group == "cluster":
        used = set(cohort.images["image"])
        cohort = cohort.grouped([(a, b) for a, b in findings.near_duplicates if a in used and b in used])
    split = split_cohort(cohort, config.protocol.folds, config.protocol.split_seed, config.protocol.tune)
    fingerprint = _training_fingerprint(cohort, facts, split)
    if fingerprint.ndim != 2:
        raise ConfigError("cohort: these images are volumes. They can be read and checked; networks are trained on planes only so far.")
    by_hand = {k: v for k, v in config.plan.model_dump().items() if k not in {"search", "domain"}}
    plans = {name: plan_freeze(fingerprint, backbone, config.plan.domain, **by_hand) for name, backbone in backbones.items()}
    edited = output / "plan.json" if output is not None else None
    if edited is not None and edited.is_file():
        plans = read_plans(edited, plans, backbones)
    # One budget for all arms: the one that is set, or the longest any of them asks for.
    smallest = min(len(split.fold(index).train) for index in range(len(split)))
    batches = max(1, smallest // config.train.batch_size)
    steps = max(_steps(plan, config.train, batches) for plan in plans.values())
    plans = {name: plan if plan.strategy == "linear_probe" else replace(plan, steps=steps) for name, plan in plans.items()}
    if edited is not None and edited.is_file():
        refuse_edited_steps(edited, plans)
    return Prepared(config, cohort, facts, split, fingerprint, plans, backbones, findings)


def _require_size(backbone: Backbone, size: int) -> None:
    """Some architectures (ViT, Swin) take images of one size only."""
    backbone.eval()
    try:
        with torch.inference_mode():
            backbone({"image": torch.zeros(1, len(backbone.recipe.mean), size, size)}, [backbone.names[-1]])
    except Exception as error:  # each architecture refuses in its own way
        raise ConfigError(
            f"image.size is {size}, which {backbone.name} does not take ({error}). It was made for image.size={backbone.recipe.size}."
        ) from error


def load_cohort(section: CohortSection, salt: str | None = None) -> Cohort:
    """The cohort that a configuration describes; ids from DICOM headers are hashed with the salt."""
    if section.manifest is not None and is_archive(section.manifest):
        return Cohort.from_medmnist(section.manifest, section.positive)
    if section.manifest is not None:
        return Cohort.from_csv(section.manifest, section.root, section.labels, section.positive, salt)
    return Cohort.from_folders(section.root, section.classes, section.positive, salt)


def _with_kept_salt(section: CohortSection, cohort: Cohort | None, output: Path | None) -> Cohort:
    """A study that goes on calls its patients as it did before."""
    kept = read_salt(output) if output is not None else None
    if cohort is None:
        return load_cohort(section, kept)
    if kept is None or cohort.salt in {"", kept}:
        return cohort
    again = load_cohort(section, kept)
    missing = sorted(set(again.images["image"]) - set(cohort.images["image"]))
    again = again.without(missing) if missing else again
    columns = ["image", *cohort.labels]
    if again.labels != cohort.labels or not again.images[columns].equals(cohort.images[columns]):
        raise StudyError(f"{output}: was made with other images or labels. Choose another output.")
    return again


def _refuse_unreadable(facts: pd.DataFrame, cohort: Cohort) -> None:
    bad = facts[facts["error"] != ""]
    if len(bad):
        faults = [f"{image}: {error}" for image, error in zip(bad["image"], bad["error"], strict=True)]
        remedy = "Mend or remove them, or set cohort.skip_unreadable=true to leave them out and have them listed in the report."
        raise CohortError(list_faults(f"{cohort.root}: {len(bad)} of {len(cohort)} images cannot be read", faults, remedy))


def _training_fingerprint(cohort: Cohort, facts: pd.DataFrame, split: Split) -> Fingerprint:
    """Fingerprint of the training part with the fewest patients in its smaller class: the plan sees no test image."""
    prints = []
    for index in range(len(split)):
        part = cohort.images.iloc[split.fold(index).train].reset_index(drop=True)
        inside = replace(cohort, images=part)
        prints.append(make_fingerprint(inside, facts))
    return min(prints, key=lambda print_: print_.smallest_class)


def _steps(plan: FreezePlan, train: TrainSection, batches: int) -> int:
    if plan.strategy == "linear_probe":
        return 0
    return train.epochs * batches if train.epochs is not None else plan.steps


def _make_engines(config: StudyConfig, backbones: dict[str, Backbone], output: Path) -> dict[str, Engine]:
    """One engine per architecture, so that arms of the same one train in the same precision."""
    engines: dict[str, Engine] = {}
    for arm, backbone in backbones.items():
        if backbone.name not in engines:
            precision = config.train.precision
            if precision == "auto":
                precision = recorded_precision(output, arm) or precision  # type: ignore[assignment]  # written by this program
            image = torch.zeros(config.train.batch_size, len(backbone.recipe.mean), config.image.size, config.image.size)
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
            backbone = load_backbone(config.arms[arm].backbone, config.arms[arm].weights, seed=seed)
            run = fit(
                prepared.cohort,
                prepared.split.fold(index),
                Classification(prepared.cohort.labels),
                backbone,
                prepared.plans[arm],
                folder,
                seed,
                arm,
                train=config.train,
                engine=engines[arm],
                entries=entries,
                key=key,
                reporter=reporter,
            )
            reporter.say(
                f"run {number + 1} of {len(jobs)}: {arm}, fold {index}, seed {seed}: best epoch {run.summary['best_epoch']} "
                f"of {run.summary['epochs']}, {time.monotonic() - begun:.0f} s"
            )
        runs.append(run)
    order = {arm: i for i, arm in enumerate(config.arms)}
    runs.sort(key=lambda run: (order[run.arm], run.seed, run.fold))
    return pd.concat([run.predictions for run in runs], ignore_index=True)
