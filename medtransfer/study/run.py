"""One run of a study: a network, a fold, a seed; and the search for the depth before it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.box_grid import place_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.laterality import allowed_changes
from medtransfer.data.cohort.split import Fold
from medtransfer.data.grid.cache import feature_folder
from medtransfer.data.grid.fixed import Fixed
from medtransfer.data.grid.settings import Augment
from medtransfer.data.grid.slices import Slices
from medtransfer.data.images.windows import Window
from medtransfer.errors import ConfigError
from medtransfer.evaluation import write_predictions
from medtransfer.evaluation.metrics.recalibration import adjust_prevalence
from medtransfer.evaluation.tables.candidates import CANDIDATES, write_candidates
from medtransfer.files import write_aside
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.plan.plan import CacheBudget, FreezePlan, plan_cache, refuse_random_prefix
from medtransfer.progress import Reporter
from medtransfer.study.folder import AT_BUDGET
from medtransfer.study.prediction import measure_typicality, predict_parts
from medtransfer.study.record import Run, describe_backbone, read_run
from medtransfer.study.settle import count_steps, refuse_unreadable
from medtransfer.study.views import Images, Report
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.detection import Detection
from medtransfer.training.averages import State, copy_state, load_state
from medtransfer.training.batches import Loader, Source
from medtransfer.training.checkpoint import Checkpoints, save_weights
from medtransfer.training.choice import DepthChoice, apply_choice
from medtransfer.training.depth import search_depth
from medtransfer.training.device import Engine, describe_machine, make_engine, seed_everything
from medtransfer.training.loop import Budget, Parts, settle
from medtransfer.training.loop import fit as train_network
from medtransfer.training.settings import TrainSettings
from medtransfer.training.tracking import tracking

# Training images from which averaged weights take the statistics of batch norms, after every epoch.
_NORM_IMAGES = 256


def _load(
    source: Source, rows: Any, engine: Engine, batch: int, seed: int | None = None, views: int = 0
) -> Loader:
    return Loader(
        source, rows, batch, seed, views, engine.share, ahead=engine.device.type == "cuda"
    )


def fit(
    cohort: Cohort,
    fold: Fold,
    task: Classification | Detection,
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
    train: TrainSettings | None = None,
    augment: Augment | None = None,
    engine: Engine | None = None,
    key: str = "",
    quiet: bool = True,
    reporter: Reporter | None = None,
) -> Run:
    """Trains one network on one fold and predicts its tune and test images.

    A run that was interrupted goes on from its last finished epochs, and ends as if it had not
    been.

    Args:
        cohort, fold: images, and which are train, tune and test.
        task: what is learnt; class weights, or anchors, come from the training part.
        backbone: with its weights; changed in place.
        plan: what is frozen and how fast the rest learns.
        output: folder of the run.
        seed: of batch order and random transforms.
        arm: name in the predictions table.
        size, window, spacing, slices: of the fixed transforms; see `Fixed`.
        slab: neighbouring slices of a volume that become the channels of each.
        train: budget, precision and device; the defaults where left out.
        augment: which random changes the labels allow; left out, the defaults, without flips where
            a label names a side.
        engine: made from the above where left out.
        key: digest of all that decides the result, by which a study knows the run again.
        quiet, reporter: progress.

    Raises:
        MedTransferError: see the parts it calls.
    """
    output, train = Path(output), train or TrainSettings()
    reporter = reporter or Reporter(quiet)
    output.mkdir(parents=True, exist_ok=True)
    fixed = Fixed(size, window, spacing, slices or Slices())
    facts = inspect_images(cohort, reporter, fixed)
    refuse_unreadable(facts, cohort)
    cohort = cohort.fitted(facts)
    entries = [Path(entry) for entry in facts["entry"]]
    engine = engine or make_engine(
        train.device, train.precision, layout=train.layout, compiled=train.compile
    )
    with TemporaryDirectory(dir=feature_folder()) as store:
        placements = place_images(fixed, facts) if cohort.detects else ()
        kept = Path(store) if train.cache_gb else None
        images = Images(
            cohort,
            entries,
            slices or Slices(),
            slab,
            train,
            kept,
            placements,
            augment or allowed_changes(cohort),
        )
        return run_fold(
            images, fold, task, backbone, plan, output, seed, arm, engine, key, reporter
        )


def run_fold(
    images: Images,
    fold: Fold,
    task: Classification | Detection,
    backbone: Backbone,
    plan: FreezePlan,
    output: Path,
    seed: int,
    arm: str,
    engine: Engine,
    key: str,
    reporter: Reporter,
    whole: bool = True,
) -> Run:
    """Trains, predicts and writes the folder of a run; see `fit`.

    `whole`: False for draws of a learning curve, of which neither weights are kept nor how typical
    the images are.
    """
    begun = time.perf_counter()
    refuse_random_prefix(backbone, plan)
    output.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    backbone.truncate(plan.dropped_stages)
    task = _fit_task(task, images, fold, plan)
    engine = engine.in_fp32() if plan.strategy == "linear_probe" else engine
    head = task.make_head(backbone)
    source = images.source(backbone, engine, seed)
    step, at_once = images.batches(source, engine)
    settle(backbone, head, plan, engine, Loader(source, fold.train, max(step, at_once)))
    name = f"{arm}, fold {fold.index}, seed {seed}"

    def report(what: str, done: int, total: int) -> None:
        reporter(f"{name}, {what}", done, total)

    probe = plan.strategy == "linear_probe"
    kept: Source = (
        images.keep(backbone, engine, plan.cache_cut, head.taps, seed, probe, report)
        if plan.cache_cut
        else source
    )
    training = _load(kept if plan.views else source, fold.train, engine, step, seed, plan.views)
    plain, tune, test = (
        _load(kept, rows, engine, at_once) for rows in (fold.train, fold.tune, fold.test)
    )
    budget = Budget(
        count_steps(plan, images.train, len(training)),
        images.train.patience,
        images.train.weight_decay,
    )
    history: list[dict[str, float]] = []

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        if engine.first:
            write_aside(
                output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history)
            )
            log({key: value for key, value in entry.items() if key != "epoch"}, int(entry["epoch"]))
        report("epochs", int(entry["epoch"]), epochs)

    state_key = _state_key(images, fold, backbone, plan, budget, seed, engine, key)
    checkpoints = Checkpoints(output / "unfinished.pt", state_key, writes=engine.first)
    parts = Parts(training, plain, tune, _sample(kept, fold.train, max(step, at_once)))

    with tracking(images.train.track if engine.first else None, name, output) as log:
        say = partial(_say, reporter, name)
        result = train_network(
            backbone,
            head,
            task,
            parts,
            plan,
            budget,
            engine,
            images.groups,
            on_epoch,
            checkpoints,
            say,
        )

    def load(rows: NDArray[np.int64]) -> Loader:
        return _load(kept, rows, engine, at_once)

    def predict_test() -> tuple[pd.DataFrame, ...]:
        table, candidates = predict_parts(
            images, backbone, head, task, engine, fold, load, seed if probe else None
        )
        table = table if whole else _balance(table, images.targets[fold.train])
        return tuple(
            rows.assign(arm=arm, seed=seed, fold=fold.index).reset_index(drop=True)
            for rows in (table, candidates)
        )

    written = {output: predict_test()}
    if whole and isinstance(head, LinearHead):
        written[output][0]["typical"] = measure_typicality(
            backbone, head, engine, plain, tune, test
        )
    summary = {
        "arm": arm,
        "fold": fold.index,
        "seed": seed,
        "plan": plan.to_dict(),
        "budget": asdict(budget),
        "positive_weights": list(task.positive_weights),
        "task": asdict(task),
        "images": {"train": len(fold.train), "tune": len(fold.tune), "test": len(fold.test)},
        **{
            key: value for key, value in vars(result).items() if key not in {"history", "at_budget"}
        },
        "epochs": len(result.history) - 1,
        "engine": describe_machine(engine),
        "wall_seconds": time.perf_counter() - begun,
    }
    if engine.first and whole:
        save_weights(
            output / "weights.safetensors",
            backbone,
            head,
            {**describe_backbone(backbone), "tap": ", ".join(head.taps)},
        )
    if result.at_budget is not None:
        written[output / AT_BUDGET] = _as_it_was(result.at_budget, (backbone, head), predict_test)
    if engine.first:
        _write_tables(written)
        # Written last: a folder with run.json is a finished run.
        write_aside(output / "run.json", json.dumps({"key": key, **summary}, indent=1))
        checkpoints.clear()
    engine.wait()
    return read_run(output, arm, fold.index, seed, summary)


def _as_it_was(
    state: State, modules: Sequence[nn.Module], predict: Callable[[], tuple[pd.DataFrame, ...]]
) -> tuple[pd.DataFrame, ...]:
    """What modules predict in an earlier state; they are left as they are."""
    last = copy_state(*modules)
    load_state(state, *modules)
    tables = predict()
    load_state(last, *modules)
    return tables


def _say(reporter: Reporter, name: str, text: str) -> None:
    reporter.say(f"{name}: {text}")


def _write_tables(tables: Mapping[Path, tuple[pd.DataFrame, ...]]) -> None:
    """Predictions, and candidates where there are any, by folder."""
    for folder, (rows, candidates) in tables.items():
        folder.mkdir(exist_ok=True)
        write_predictions(rows, folder / "predictions.csv")
        if "image" in candidates.columns:
            write_candidates(candidates, folder / CANDIDATES)


def _sample(source: Source, rows: NDArray[np.int64], most: int) -> Loader:
    """Batches, as alike in size as can be, of some of the rows, always the same, and the same in
    every process.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:_NORM_IMAGES])
    pieces = math.ceil(len(chosen) / most)
    return Loader(source, chosen, math.ceil(len(chosen) / pieces))


def _balance(table: pd.DataFrame, targets: NDArray[Any]) -> pd.DataFrame:
    """The rows of a draw, for a prevalence of one half: it holds as many patients of either class,
    but maybe not as many images.
    """
    logit = adjust_prevalence(table["logit"].to_numpy(np.float64), float(targets.mean()), 0.5)
    return table.assign(logit=logit, probability=expit(logit))


def _fit_task(
    task: Classification | Detection, images: Images, fold: Fold, plan: FreezePlan
) -> Classification | Detection:
    """The task with what it takes from the training part, and from the plan."""
    if isinstance(task, Detection) and task.space != images.space:
        raise ConfigError(
            f"the task is for images of {task.space} pixels, these are seen with {images.space}. "
            "Make both alike."
        )
    if isinstance(task, Detection) != bool(plan.finest):
        made, remedy = (
            ("boxes", "Leave finest of plan_freeze out")
            if plan.finest
            else ("whole images", "Give plan_freeze finest=8")
        )
        raise ConfigError(f"the plan is for {made}, the task is not. {remedy}.")
    task = replace(task, finest=plan.finest) if isinstance(task, Detection) else task
    return replace(task.fitted(images.targets[fold.train]), read=plan.read)


def _state_key(
    images: Images,
    fold: Fold,
    backbone: Backbone,
    plan: FreezePlan,
    budget: Budget,
    seed: int,
    engine: Engine,
    key: str,
) -> str:
    """Digest of all that decides a training, for its checkpoints."""
    rows = [part.tolist() for part in (fold.train, fold.tune)]
    entries = [entry.name for entry in images.entries]
    decided = [
        key,
        plan.decisive(),
        asdict(budget),
        engine.precision,
        engine.layout,
        engine.compiled,
        seed,
        backbone.name,
        backbone.weights.digest,
        images.slab,
    ]
    decided += [
        images.train.batch_size,
        images.augment.model_dump(),
        entries,
        images.targets.tolist(),
        rows,
    ]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


def search_fold(
    images: Images,
    fold: Fold,
    task: Classification,
    backbone: Backbone,
    plan: FreezePlan,
    path: Path,
    seed: int,
    engine: Engine,
    key: str,
    cache: CacheBudget,
    steps: int,
    report: Report,
) -> FreezePlan:
    """The plan of a fold after a search on its train and tune patients; what was found is kept in
    `path`.

    `steps` are those of a fine-tuning, should the plan be a probe and the search find a better
    depth.

    Raises:
        MedTransferError: see the parts it calls.
    """
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    batches = images.batches(images.source(backbone, engine), engine)
    per_epoch = len(Loader(images.source(backbone, engine), rows, batches[0], seed))
    steps = count_steps(
        replace(plan, strategy="lp_ft", steps=plan.steps or steps), images.train, per_epoch
    )
    choice = _read_choice(path, key)
    if choice is None:
        seed_everything(seed)
        weighted = replace(task.fitted(images.targets[rows]), read=plan.read)
        budget = Budget(steps, None, images.train.weight_decay)
        costs = measure_stages(backbone, cache.size, images.slices.count)

        def keep(network: Backbone, cut: str, taps: Sequence[str], pooled: bool = False) -> Source:
            return images.keep(network, engine, cut, taps, seed, pooled, report)

        choice = search_depth(
            backbone,
            weighted,
            keep,
            rows,
            batches,
            plan,
            budget,
            engine,
            images.groups,
            costs,
            seed,
            report,
        )
        if engine.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, json.dumps({"key": key, **choice.to_dict()}, indent=1))
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
        values = json.loads(path.read_text(encoding="utf-8"))
        return DepthChoice.from_dict(values) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
