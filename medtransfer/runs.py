"""One run of a study: a network, a fold, a seed; and the search for the depth before it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.arms import Images, Report
from medtransfer.data.cache import feature_folder
from medtransfer.data.cohort import Cohort
from medtransfer.data.inspection import inspect_images
from medtransfer.data.slices import Slices
from medtransfer.data.split import Fold
from medtransfer.data.transforms import Fixed
from medtransfer.data.windows import Window
from medtransfer.errors import ConfigError
from medtransfer.evaluation import read_predictions, write_aside, write_predictions
from medtransfer.evaluation.candidates import CANDIDATES, write_candidates
from medtransfer.evaluation.recalibration import adjust_prevalence
from medtransfer.lesions import drop_padding, list_candidates, place_images
from medtransfer.models.backbone import Backbone
from medtransfer.models.costs import measure_stages
from medtransfer.models.heads import Head, LinearHead
from medtransfer.models.plan import CacheBudget, FreezePlan, plan_cache, refuse_random_prefix
from medtransfer.prepare import count_steps, refuse_unreadable
from medtransfer.progress import Reporter
from medtransfer.record import Run, describe_backbone
from medtransfer.sections import TrainSection
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.detection import Detection
from medtransfer.training.batches import Loader, Source
from medtransfer.training.checkpoint import Checkpoints, save_weights
from medtransfer.training.choice import DepthChoice, apply_choice
from medtransfer.training.depth import search_depth
from medtransfer.training.engine import Engine, describe_machine, make_engine, seed_everything
from medtransfer.training.loop import Budget, Parts, settle
from medtransfer.training.loop import fit as train_network
from medtransfer.training.outliers import typicality
from medtransfer.training.predicting import predict
from medtransfer.training.probe import fit_head, pooled_features, solve_without
from medtransfer.training.tracking import tracking

Load = Callable[[NDArray[np.int64]], Loader]
# Pieces of the tune part that are left out in turn where a probe predicts them.
_PIECES = 5


def _load(source: Source, rows: Any, engine: Engine, batch: int, seed: int | None = None, views: int = 0) -> Loader:
    return Loader(source, rows, batch, seed, views, engine.share, ahead=engine.device.type == "cuda")


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
    train: TrainSection | None = None,
    engine: Engine | None = None,
    key: str = "",
    quiet: bool = True,
    reporter: Reporter | None = None,
) -> Run:
    """Trains one network on one fold and predicts its tune and test images.

    A run that was interrupted goes on from its last finished epochs, and ends as if it had not been.

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
        engine: made from the above where left out.
        key: digest of all that decides the result, by which a study knows the run again.
        quiet, reporter: progress.

    Raises:
        MedTransferError: see the parts it calls.
    """
    output, train = Path(output), train or TrainSection()
    reporter = reporter or Reporter(quiet)
    output.mkdir(parents=True, exist_ok=True)
    fixed = Fixed(size, window, spacing, slices or Slices())
    facts = inspect_images(cohort, reporter, fixed)
    refuse_unreadable(facts, cohort)
    cohort = cohort.fitted(dict(zip(facts["image"], facts["shape"], strict=True)))
    entries = [Path(entry) for entry in facts["entry"]]
    engine = engine or make_engine(train.device, train.precision, layout=train.layout, compiled=train.compile)
    with TemporaryDirectory(dir=feature_folder()) as store:
        placements = place_images(fixed, facts) if cohort.detects else ()
        images = Images(cohort, entries, slices or Slices(), slab, train, Path(store) if train.cache_gb else None, placements)
        return run_fold(images, fold, task, backbone, plan, output, seed, arm, engine, key, reporter)


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

    `whole`: False for draws of a learning curve, of which neither weights are kept nor how typical the images are.
    """
    begun = time.perf_counter()
    refuse_random_prefix(backbone, plan)
    output.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    backbone.truncate(plan.dropped_stages)
    task = _fit_task(task, images, fold, plan)
    head = task.make_head(backbone)
    source = images.source(backbone, engine, seed)
    step, at_once = images.batches(source, engine)
    settle(backbone, head, plan, engine, Loader(source, fold.train, at_once))
    name = f"{arm}, fold {fold.index}, seed {seed}"

    def report(what: str, done: int, total: int) -> None:
        reporter(f"{name}, {what}", done, total)

    probe = plan.strategy == "linear_probe"
    kept: Source = images.keep(backbone, engine, plan.cache_cut, head.taps, probe, report) if plan.cache_cut else source
    training = _load(kept if plan.views else source, fold.train, engine, step, seed, plan.views)
    plain, tune, test = (_load(kept, rows, engine, at_once) for rows in (fold.train, fold.tune, fold.test))
    budget = Budget(count_steps(plan, images.train, len(training)), images.train.patience, images.train.weight_decay)
    history: list[dict[str, float]] = []

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        if engine.first:
            write_aside(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
            log({key: value for key, value in entry.items() if key != "epoch"}, int(entry["epoch"]))
        report("epochs", int(entry["epoch"]), epochs)

    state_key = _state_key(images, fold, backbone, plan, budget, seed, engine, key)
    checkpoints = Checkpoints(output / "unfinished.pt", state_key, writes=engine.first)
    parts = Parts(training, plain, tune)

    def say(text: str) -> None:
        reporter.say(f"{name}: {text}")

    with tracking(images.train.track if engine.first else None, name, output) as log:
        result = train_network(backbone, head, task, parts, plan, budget, engine, images.groups, on_epoch, checkpoints, say)

    def load(rows: NDArray[np.int64]) -> Loader:
        return _load(kept, rows, engine, at_once)

    table, candidates = _predict_parts(images, backbone, head, task, engine, fold, load, probe)
    if whole and isinstance(head, LinearHead):
        table["typical"] = _typicality(backbone, head, engine, plain, tune, test)
    table = (table if whole else _balance(table, images.targets[fold.train])).assign(arm=arm, seed=seed, fold=fold.index)
    table = table.reset_index(drop=True)
    summary = {
        "arm": arm,
        "fold": fold.index,
        "seed": seed,
        "plan": plan.to_dict(),
        "budget": asdict(budget),
        "positive_weights": list(task.positive_weights),
        "task": asdict(task),
        "images": {"train": len(fold.train), "tune": len(fold.tune), "test": len(fold.test)},
        **{key: value for key, value in asdict(result).items() if key != "history"},
        "epochs": len(result.history) - 1,
        "engine": describe_machine(engine),
        "wall_seconds": time.perf_counter() - begun,
    }
    if engine.first:
        if whole:
            save_weights(output / "weights.safetensors", backbone, head, {**describe_backbone(backbone), "tap": ", ".join(head.taps)})
        write_predictions(table, output / "predictions.csv")
        if images.boxes is not None:
            write_candidates(candidates.assign(arm=arm, seed=seed, fold=fold.index), output / CANDIDATES)
        # Written last: a folder with run.json is a finished run.
        write_aside(output / "run.json", json.dumps({"key": key, **summary}, indent=1))
        checkpoints.clear()
    engine.wait()
    return Run(output, arm, fold.index, seed, read_predictions(output / "predictions.csv"), summary)


def _balance(table: pd.DataFrame, targets: NDArray[Any]) -> pd.DataFrame:
    """The rows of a draw, for a prevalence of one half: it holds as many patients of either class, but maybe not as many images."""
    logit = adjust_prevalence(table["logit"].to_numpy(np.float64), float(targets.mean()), 0.5)
    return table.assign(logit=logit, probability=expit(logit))


def _fit_task(task: Classification | Detection, images: Images, fold: Fold, plan: FreezePlan) -> Classification | Detection:
    """The task with what it takes from the training part, and from the plan."""
    if isinstance(task, Detection) and task.space != images.space:
        raise ConfigError(f"the task is for images of {task.space} pixels, these are seen with {images.space}. Make both alike.")
    if isinstance(task, Detection) != bool(plan.finest):
        made, remedy = ("boxes", "Leave finest of plan_freeze out") if plan.finest else ("whole images", "Give plan_freeze finest=8")
        raise ConfigError(f"the plan is for {made}, the task is not. {remedy}.")
    task = replace(task, finest=plan.finest) if isinstance(task, Detection) else task
    return replace(task.fitted(images.targets[fold.train]), read=plan.read)


def _typicality(backbone: Backbone, head: LinearHead, engine: Engine, plain: Loader, tune: Loader, test: Loader) -> NDArray[np.float64]:
    """Of the tune images, then of the test images, against the training images."""
    seen, known, new = (pooled_features(backbone, head, batches, engine) for batches in (plain, tune, test))
    return np.concatenate([typicality(seen, known, of) for of in (known, new)])


def _predict_parts(
    images: Images, backbone: Backbone, head: Head, task: Classification | Detection, engine: Engine, fold: Fold, load: Load, probe: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the tune and the test part, and their candidates.

    The head of a probe has no epoch to choose, so that it is solved again on both the training and the tune part before it is tested. Tune
    images are then predicted by heads that were solved without a fifth of them each, as alike to the tested one as can be.
    """
    if probe:
        tune = _predict_held_out(images, backbone, cast(LinearHead, head), task, engine, fold, load)
    else:
        tune = _predict_part(images, backbone, head, task, engine, "tune", fold.tune, load(fold.tune))
    test = _predict_part(images, backbone, head, task, engine, "test", fold.test, load(fold.test))
    table, candidates = (pd.concat(column, ignore_index=True) for column in zip(tune, test, strict=True))
    return table, candidates


def _predict_held_out(
    images: Images, backbone: Backbone, head: LinearHead, task: Classification | Detection, engine: Engine, fold: Fold, load: Load
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tune rows, each by a head that did not see its patient; leaves the head solved on all of the training and the tune part."""
    features = pooled_features(backbone, head, load(np.sort(np.concatenate([fold.train, fold.tune]))), engine)
    weights = task.positive_weights
    penalties = fit_head(head, features, images.groups[features.rows], weights)["penalty"]
    units = images.groups[fold.tune]
    # In turn, those of one class after the other, so that no piece takes all of a class with it.
    positive = pd.Series(images.targets[fold.tune].sum(1)).groupby(units).max().sort_values(kind="stable")
    pieces = []
    for piece in range(min(_PIECES, len(positive))):
        rows = fold.tune[np.isin(units, positive.index[piece::_PIECES])]
        solve_without(head, features, rows, weights, penalties)
        pieces.append(_predict_part(images, backbone, head, task, engine, "tune", rows, load(rows))[0])
    solve_without(head, features, np.zeros(0, np.int64), weights, penalties)
    order = images.cohort.images["image"].iloc[fold.tune].tolist()
    table = pd.concat(pieces, ignore_index=True)
    return table.set_index("image").loc[order].reset_index()[table.columns.tolist()], pd.DataFrame()


def _predict_part(
    images: Images,
    backbone: Backbone,
    head: Head,
    task: Classification | Detection,
    engine: Engine,
    part: str,
    rows: NDArray[np.int64],
    batches: Loader,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a part, and where boxes are looked for, its candidates; else an empty table."""
    predictions, truth = predict(backbone, head, task, batches, engine)
    about = images.cohort.images["image"].iloc[rows].tolist(), images.cohort.units.iloc[rows].tolist()
    candidates = pd.DataFrame()
    if images.boxes is not None:
        placements, plane = [images.placements[row] for row in rows], images.slices.plane
        predictions = drop_padding(predictions, placements, plane)
        candidates = list_candidates(predictions, *about, placements, plane).assign(part=part)
    return task.decode(predictions, truth, *about).assign(part=part), candidates


def _state_key(
    images: Images, fold: Fold, backbone: Backbone, plan: FreezePlan, budget: Budget, seed: int, engine: Engine, key: str
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
    return hashlib.sha256(json.dumps([*decided, images.train.batch_size, entries, images.targets.tolist(), rows]).encode()).hexdigest()


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
    """The plan of a fold after a search on its train and tune patients; what was found is kept in `path`.

    `steps` are those of a fine-tuning, should the plan be a probe and the search find a better depth.

    Raises:
        MedTransferError: see the parts it calls.
    """
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    batches = images.batches(images.source(backbone, engine), engine)
    per_epoch = len(Loader(images.source(backbone, engine), rows, batches[0], seed))
    steps = count_steps(replace(plan, strategy="lp_ft", steps=plan.steps or steps), images.train, per_epoch)
    choice = _read_choice(path, key)
    if choice is None:
        seed_everything(seed)
        weighted = replace(task.fitted(images.targets[rows]), read=plan.read)
        budget = Budget(steps, None, images.train.weight_decay)
        costs = measure_stages(backbone, cache.size, images.slices.count)

        def keep(network: Backbone, cut: str, taps: Sequence[str], pooled: bool = False) -> Source:
            return images.keep(network, engine, cut, taps, pooled, report)

        choice = search_depth(backbone, weighted, keep, rows, batches, plan, budget, engine, images.groups, costs, seed, report)
        if engine.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, json.dumps({"key": key, **choice.to_dict()}, indent=1))
        engine.wait()
    found = apply_choice(plan, backbone, choice, steps)
    if not choice.overridden:
        return found
    cached = plan_cache(found, backbone, len(images.entries), cache, choose=True)
    return plan_cache(replace(cached, views=min(cached.views, plan.views)), backbone, len(images.entries), cache)


def _read_choice(path: Path, key: str) -> DepthChoice | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return DepthChoice.from_dict(values) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
