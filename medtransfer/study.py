"""The composition root: configuration -> cohort, split, arms -> runs -> predictions -> report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medtransfer.config import CohortSection, StudyConfig, TrainSection, make_config
from medtransfer.data.audit import audit, inspect_images
from medtransfer.data.cohort import Cohort, Fingerprint, make_fingerprint
from medtransfer.data.dataset import ImageDataset, cache_folder, cache_images, make_loader
from medtransfer.data.split import Fold, Split, split_cohort
from medtransfer.data.transforms import Window
from medtransfer.errors import CohortError, ConfigError, StudyError, list_faults
from medtransfer.evaluation import EvaluationReport, evaluate, read_predictions, write_aside, write_predictions
from medtransfer.models.backbone import Backbone
from medtransfer.models.catalog import load_backbone
from medtransfer.models.freeze import FreezePlan, plan_freeze
from medtransfer.progress import Reporter
from medtransfer.report.build import build_report
from medtransfer.tasks.classification import Classification
from medtransfer.training.checkpoint import save_weights
from medtransfer.training.engine import Engine, describe_machine, make_engine, seed_everything
from medtransfer.training.loop import Budget, predict
from medtransfer.training.loop import fit as train_network

_PACKAGES = (
    "medtransfer",
    "torch",
    "torchvision",
    "timm",
    "monai",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pydicom",
    "pillow",
)
_EVAL_BATCH = 64


@dataclass(frozen=True)
class Arm:
    """One contestant of a comparison.

    Attributes:
        backbone: architecture.
        weights: source, as in `load_backbone`; None for random weights, trained from scratch.
    """

    backbone: str
    weights: str | None = None


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        folder: holds `run.json`, `metrics.jsonl`, `weights.safetensors`, `predictions.csv`.
        arm, fold, seed: which one.
        predictions: its tune and test rows.
        summary: the content of `run.json`.
    """

    folder: Path
    arm: str
    fold: int
    seed: int
    predictions: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Prepared:
    """All that is settled before training begins, with nothing written yet."""

    config: StudyConfig
    cohort: Cohort
    facts: pd.DataFrame
    split: Split
    fingerprint: Fingerprint
    plans: dict[str, FreezePlan]
    backbones: dict[str, Backbone]
    found: int
    left_out: list[tuple[str, str]]


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
    _check_folder(output, config)
    with Reporter(quiet) as reporter:
        prepared = _prepare(config, cohort, output, reporter)
        output.mkdir(parents=True, exist_ok=True)
        engines = _make_engines(config, prepared.backbones)
        _write_record(prepared, engines, output)
        entries = cache_images(
            prepared.cohort.images["path"].tolist(),
            prepared.facts["file_digest"].tolist(),
            config.image.size,
            _window(config),
            cache_folder(),
            reporter,
        )
        table = _run_all(prepared, engines, entries, output, reporter)
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
        prepared = _prepare(config, None, None, reporter)
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
    train: TrainSection | None = None,
    engine: Engine | None = None,
    entries: Sequence[Path] | None = None,
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
        size, window: of the fixed transforms.
        train: budget, precision and device; the defaults where left out.
        engine, entries: made from the above where left out; a study shares them between runs.
        quiet, reporter: progress.

    Raises:
        MedTransferError: see the parts it calls.
    """
    output, train = Path(output), train or TrainSection()
    reporter = reporter or Reporter(quiet)
    output.mkdir(parents=True, exist_ok=True)
    if entries is None:
        facts = inspect_images(cohort)
        _refuse_unreadable(facts, cohort)
        entries = cache_images(cohort.images["path"].tolist(), facts["file_digest"].tolist(), size, window, cache_folder(), reporter)
    engine = engine or make_engine(train.device, train.precision)
    seed_everything(seed)
    targets = cohort.images[list(task.labels)].to_numpy(np.float32)
    task = task.weighted(targets[fold.train])
    head = task.make_head(backbone)
    recipe = backbone.recipe

    def loader(rows: Any, draw: int | None = None) -> Any:
        batch = train.batch_size if draw is not None else _EVAL_BATCH
        return make_loader(ImageDataset(entries, targets, rows, draw), batch, recipe.mean, recipe.std)

    parts = {"tune": fold.tune, "test": fold.test}
    training = loader(fold.train, seed)
    budget = Budget(_steps(plan, train, len(training)), train.patience, train.weight_decay)
    history: list[dict[str, float]] = []

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        write_aside(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        reporter(f"{arm}, fold {fold.index}, seed {seed}", int(entry["epoch"]), epochs)

    result = train_network(backbone, head, task, training, loader(fold.train), loader(parts["tune"]), plan, budget, engine, on_epoch)
    frames = []
    for part, rows in parts.items():
        logits, truth = predict(backbone, head, task, loader(rows), engine)
        chosen = cohort.images.iloc[rows]
        frames.append(task.decode(logits, truth, chosen["image"].tolist(), chosen["patient"].tolist()).assign(part=part))
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
    return Run(output, arm, fold.index, seed, read_predictions(output / "predictions.csv"), summary)


def _prepare(config: StudyConfig, cohort: Cohort | None, output: Path | None, reporter: Reporter) -> _Prepared:
    # The network first: a misspelt backbone is found in a second, before thousands of images are read.
    backbones = {name: load_backbone(arm.backbone, arm.weights, seed=config.protocol.seeds[0]) for name, arm in config.arms.items()}
    cohort = cohort or load_cohort(config.cohort)
    if len(cohort.labels) != 1:
        raise ConfigError(f"cohort.labels: one label is studied at a time, {len(cohort.labels)} given. Run one study per label.")
    found = len(cohort)
    facts = inspect_images(cohort, reporter)
    bad = facts[facts["error"] != ""]
    if len(bad) and not config.cohort.skip_unreadable:
        _refuse_unreadable(facts, cohort)
    if len(bad):
        reporter.say(f"{len(bad)} of {found} images cannot be read and are left out; the report lists them")
        cohort = cohort.without(bad["image"].tolist())
    left_out = list(zip(bad["image"], bad["error"], strict=True))
    facts = facts[facts["error"] == ""].reset_index(drop=True)
    split = split_cohort(cohort, config.protocol.folds, config.protocol.split_seed, config.protocol.tune)
    fingerprint = _training_fingerprint(cohort, facts, split)
    fixed = {k: v for k, v in config.plan.model_dump().items() if k not in {"search", "domain"}}
    plans = {name: plan_freeze(fingerprint, backbone, config.plan.domain, **fixed) for name, backbone in backbones.items()}
    if output is not None and (output / "plan.json").is_file():
        plans = _read_plans(output / "plan.json", plans)
    # One budget for all arms: the longest any of them asks for.
    longest = max(plan.steps for plan in plans.values())
    plans = {name: _with_steps(plan, longest) for name, plan in plans.items()}
    return _Prepared(config, cohort, facts, split, fingerprint, plans, backbones, found, left_out)


def load_cohort(section: CohortSection) -> Cohort:
    """The cohort that a configuration describes."""
    if section.manifest is not None:
        return Cohort.from_csv(section.manifest, section.root, section.labels, section.positive)
    return Cohort.from_folders(section.root, section.classes, section.positive)


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
        inside = Cohort(part, cohort.labels, cohort.root, cohort.patients_known)
        prints.append(make_fingerprint(inside, facts))
    return min(prints, key=lambda print_: print_.smallest_class)


def _with_steps(plan: FreezePlan, steps: int) -> FreezePlan:
    return plan if plan.strategy == "linear_probe" else replace(plan, steps=steps)


def _steps(plan: FreezePlan, train: TrainSection, batches: int) -> int:
    if plan.strategy == "linear_probe":
        return 0
    return train.epochs * batches if train.epochs is not None else plan.steps


def _read_plans(path: Path, plans: dict[str, FreezePlan]) -> dict[str, FreezePlan]:
    """Plans from an earlier `plan.json`, perhaps edited by hand; what it does not name stays as planned."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["arms"]
        read = {name: FreezePlan(**stored[name]) if name in stored else plan for name, plan in plans.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a plan ({error}). Mend it, or remove it to have it planned anew.") from error
    for name, plan in read.items():
        fits = isinstance(plan.frozen_stages, int) and 0 <= plan.frozen_stages <= plans[name].stages and plan.stages == plans[name].stages
        if not fits or plan.strategy not in {"linear_probe", "lp_ft", "scratch"}:
            raise ConfigError(
                f"{path}: arm {name}: frozen_stages is {plan.frozen_stages} of {plan.stages}, strategy {plan.strategy}; does not fit."
            )
    return read


def _window(config: StudyConfig) -> Window:
    return config.image.window


def _make_engines(config: StudyConfig, backbones: dict[str, Backbone]) -> dict[str, Engine]:
    """One engine per architecture, so that arms of the same one train in the same precision."""
    engines: dict[str, Engine] = {}
    for backbone in backbones.values():
        if backbone.name not in engines:
            image = torch.zeros(config.train.batch_size, len(backbone.recipe.mean), config.image.size, config.image.size)
            engines[backbone.name] = make_engine(config.train.device, config.train.precision, backbone, image)
    return {arm: engines[backbone.name] for arm, backbone in backbones.items()}


def _run_all(prepared: _Prepared, engines: dict[str, Engine], entries: list[Path], output: Path, reporter: Reporter) -> pd.DataFrame:
    config = prepared.config
    jobs = [(seed, fold, arm) for seed in config.protocol.seeds for fold in range(len(prepared.split)) for arm in config.arms]
    runs: list[Run] = []
    for number, (seed, index, arm) in enumerate(jobs):
        reporter("runs", number, len(jobs))
        folder = output / "runs" / arm / f"fold-{index}" / f"seed-{seed}"
        key = _run_key(prepared, engines[arm], seed, index, arm)
        run = _finished_run(folder, key, arm, index, seed)
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
                reporter=reporter,
            )
            # Written last: a folder with run.json is a finished run.
            write_aside(folder / "run.json", json.dumps({"key": key, **run.summary}, indent=1))
            reporter.say(
                f"run {number + 1} of {len(jobs)}: {arm}, fold {index}, seed {seed}: best epoch {run.summary['best_epoch']} "
                f"of {run.summary['epochs']}, {time.monotonic() - begun:.0f} s"
            )
        runs.append(run)
    reporter("runs", len(jobs), len(jobs))
    order = {arm: i for i, arm in enumerate(config.arms)}
    runs.sort(key=lambda run: (order[run.arm], run.seed, run.fold))
    return pd.concat([run.predictions for run in runs], ignore_index=True)


def _run_key(prepared: _Prepared, engine: Engine, seed: int, fold: int, arm: str) -> str:
    """Digest of all that decides a run's numbers."""
    config, backbone = prepared.config, prepared.backbones[arm]
    content = {
        "version": metadata.version("medtransfer"),
        "torch": torch.__version__,
        "cohort": prepared.cohort.digest,
        "files": hashlib.sha256("".join(prepared.facts["file_digest"]).encode()).hexdigest(),
        "parts": prepared.split.parts[f"fold_{fold}"].tolist(),
        "image": config.image.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
        "arm": config.arms[arm].model_dump(mode="json"),
        "weights": backbone.weights.digest,
        "plan": prepared.plans[arm].to_dict(),
        "precision": engine.precision,
        "device": engine.device.type,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finished_run(folder: Path, key: str, arm: str, fold: int, seed: int) -> Run | None:
    try:
        summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if summary.pop("key") != key:
            return None
        return Run(folder, arm, fold, seed, read_predictions(folder / "predictions.csv"), summary)
    except (OSError, ValueError, KeyError):
        return None


def _check_folder(output: Path, config: StudyConfig) -> None:
    if output.exists() and not output.is_dir():
        raise StudyError(f"{output}: is a file. Choose another --output.")
    record = output / "study.yaml"
    if record.is_file():
        if record.read_text(encoding="utf-8") != config.to_yaml():
            raise StudyError(
                f"{output}: holds a study with other settings (see its study.yaml). Choose another --output, or remove the folder."
            )
    elif output.is_dir() and any(path.name != "plan.json" for path in output.iterdir()):
        raise StudyError(f"{output}: is not empty and holds no study. Choose another --output.")
    parent = output
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise StudyError(f"{parent}: cannot be written. Choose another --output.")


def _write_record(prepared: _Prepared, engines: dict[str, Engine], output: Path) -> None:
    """study.yaml, cohort.csv, audit.json, plan.json, environment.json."""
    cohort, facts = prepared.cohort, prepared.facts
    write_aside(output / "study.yaml", prepared.config.to_yaml())
    table = cohort.images.drop(columns="path").merge(facts[["image", "file_digest"]], on="image", validate="one_to_one")
    folds = [c for c in prepared.split.parts.columns if c.startswith("fold_")]
    table[folds] = prepared.split.parts[folds]
    write_aside(output / "cohort.csv", table.to_csv(index=False, lineterminator="\n"))
    flow = {
        "found": prepared.found + len(cohort.ignored),
        "images": prepared.found,
        "readable": len(cohort),
        "used": len(cohort),
        "left_out": [list(pair) for pair in [*cohort.ignored, *prepared.left_out]],
        "official_split": prepared.split.official,
        "fingerprint_of_training": prepared.fingerprint.to_dict(),
    }
    write_aside(output / "audit.json", json.dumps({**audit(cohort, facts).to_dict(), "flow": flow}, indent=1))
    plans = {"arms": {name: plan.to_dict() for name, plan in prepared.plans.items()}}
    write_aside(output / "plan.json", json.dumps(plans, indent=1))
    arms = {
        name: {
            "backbone": b.name,
            "weights": asdict(b.weights),
            "recipe": asdict(b.recipe),
            "chain": "exact" if b.exact else "one stage: no exact chain is known",
            "stages": b.names,
            **describe_machine(engines[name]),
        }
        for name, b in prepared.backbones.items()
    }
    environment = {
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "git_commit": _git_commit(),
        "arms": arms,
    }
    write_aside(output / "environment.json", json.dumps(environment, indent=1))


def _git_commit() -> str | None:
    """Commit of the folder the study was started in, where it is a checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
