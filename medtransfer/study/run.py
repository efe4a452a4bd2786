"""One training: a network, a fold, a seed; and what it leaves in its folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from medtransfer.data.audit.fingerprint import make_fingerprint
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.box_grid import place_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.laterality import allowed_changes
from medtransfer.data.cohort.split import Fold
from medtransfer.data.grid.cache import feature_folder
from medtransfer.data.grid.fixed import fixed_of
from medtransfer.data.grid.settings import Augment, ImageSettings
from medtransfer.evaluation.metrics.recalibration import adjust_prevalence
from medtransfer.evaluation.tables.candidates import write_candidates
from medtransfer.evaluation.tables.predictions import write_predictions
from medtransfer.files import digest_of
from medtransfer.inference.description import describe
from medtransfer.inference.typicality import Reach, measure_typicality
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.plan import FreezePlan, refuse_random_prefix
from medtransfer.progress import Reporter
from medtransfer.records.run import Run, read_run
from medtransfer.records.run_folder import RunFolder
from medtransfer.study.planning import count_steps
from medtransfer.study.prediction import Predictor
from medtransfer.study.settle import refuse_unreadable
from medtransfer.study.views import Images
from medtransfer.tasks.kinds import describe_task
from medtransfer.tasks.task import Task
from medtransfer.training.averages import State, copy_state, load_state
from medtransfer.training.batches import Loader, Source
from medtransfer.training.checkpoint import Checkpoints, save_weights
from medtransfer.training.device import Engine, describe_machine
from medtransfer.training.loop import Budget, FitResult, Parts
from medtransfer.training.loop import fit as train_network
from medtransfer.training.loop import settle as prepare_network
from medtransfer.training.predicting import Model
from medtransfer.training.process import seed_everything, training_settings
from medtransfer.training.settings import TrainSettings
from medtransfer.training.timing import make_engine
from medtransfer.training.tracking import tracking

# Rows of the tune and the test part, and the candidates of a detector.
Tables = tuple[pd.DataFrame, pd.DataFrame]
# Training images from which averaged weights take the statistics of batch norms, after every epoch.
_NORM_IMAGES = 256


class FitSettings(TypedDict, total=False):
    """What else `fit` takes.

    Attributes:
        image: how pixels become the input.
        train: budget, precision and device.
        augment: which random changes the labels allow; left out, the defaults, without flips where
            a label names a side.
        slab: odd number of neighbouring slices of a volume that become the channels of each.
        seed: of batch order and random transforms.
        arm: name in the predictions table.
        quiet: no progress.
    """

    image: ImageSettings
    train: TrainSettings
    augment: Augment
    slab: int
    seed: int
    arm: str
    quiet: bool


@dataclass(frozen=True, eq=False)
class Training:
    """One training: of what, on which images, and where it is written.

    Attributes:
        images: of the cohort, with the task.
        fold: which of them are train, tune and test.
        backbone: with its weights; changed in place.
        plan: what is frozen, and how fast the rest learns.
        engine: device and precision.
        folder: of the run.
        arm: name in the predictions table.
        seed: of batch order and random transforms.
        key: digest of all that decides the result, by which a study knows the run again.
        conditions: digest of what all runs of a study share, see `identity.conditions`.
        whole: False for draws of a learning curve, which leave neither weights nor how typical
            their images are.
        about: what the model is to know of its cohort: `reference`, the distribution of the input,
            and `meaning`, of the labels.
    """

    images: Images
    fold: Fold
    backbone: Backbone
    plan: FreezePlan
    engine: Engine
    folder: RunFolder
    arm: str
    seed: int
    key: str = ""
    conditions: str = ""
    whole: bool = True
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In messages."""
        return f"{self.arm}, fold {self.fold.index}, seed {self.seed}"

    @property
    def is_probe(self) -> bool:
        """Whether the head alone is solved."""
        return self.plan.strategy == "linear_probe"


def fit(
    cohort: Cohort,
    fold: Fold,
    task: Task,
    backbone: Backbone,
    plan: FreezePlan,
    output: str | Path,
    **settings: Unpack[FitSettings],
) -> Run:
    """Trains one network on one fold and predicts its tune and test images.

    A run that was interrupted goes on from its last finished epochs, and ends as if it had not
    been. The folder that it leaves can be opened with `load_model`.

    Args:
        cohort: the images.
        fold: which of them are train, tune and test.
        task: what is learnt; class weights, or anchors, come from the training part.
        backbone: with its weights; changed in place.
        plan: what is frozen and how fast the rest learns.
        output: folder of the run.
        **settings: `image`, `train`, `augment`, `slab`, `seed`, `arm`, `quiet`; see `FitSettings`.

    Raises:
        TypeError: no such setting.
        MedTransferError: see the parts it calls.
    """
    unknown = sorted(settings.keys() - FitSettings.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"fit() has no setting {unknown[0]!r}. It has {', '.join(FitSettings.__annotations__)}."
        )
    image, train = settings.get("image", ImageSettings()), settings.get("train", TrainSettings())
    reporter = Reporter(settings.get("quiet", True))
    folder = RunFolder(Path(output))
    folder.path.mkdir(parents=True, exist_ok=True)
    fixed = fixed_of(image)
    facts = inspect_images(cohort, reporter, fixed)
    refuse_unreadable(facts, cohort)
    cohort = cohort.fitted(facts)
    engine = make_engine(train.device, train.precision, layout=train.layout, compiled=train.compile)
    reference = make_fingerprint(cohort, facts).to_dict()
    on_cuda = engine.device.type == "cuda"
    with training_settings(on_cuda), TemporaryDirectory(dir=feature_folder()) as store:
        images = Images(
            cohort,
            [Path(entry) for entry in facts["entry"]],
            task,
            image,
            settings.get("slab", 1),
            train,
            Path(store) if train.cache_gb else None,
            place_images(fixed, facts) if cohort.boxes is not None else (),
            settings.get("augment", allowed_changes(cohort)),
        )
        training = Training(
            images,
            fold,
            backbone,
            plan,
            engine,
            folder,
            settings.get("arm", "model"),
            settings.get("seed", 0),
            about={"reference": reference, "meaning": dict(cohort.meaning)},
        )
        return run_fold(training, reporter)


def run_fold(training: Training, reporter: Reporter) -> Run:
    """Trains, predicts and writes the folder of a run; see `fit`."""
    begun = time.perf_counter()
    images, fold, plan, backbone = (
        training.images,
        training.fold,
        training.plan,
        training.backbone,
    )
    refuse_random_prefix(backbone, plan)
    training.folder.path.mkdir(parents=True, exist_ok=True)
    if training.engine.first:  # until this training is finished, there is none in the folder
        training.folder.summary.unlink(missing_ok=True)
    seed_everything(training.seed)
    backbone.truncate(plan.dropped_stages)
    task = images.task.planned(plan).fitted(images.targets[fold.train])
    engine = training.engine.in_fp32() if training.is_probe else training.engine
    model = Model(backbone, task.make_head(backbone), task, engine)
    batches = _make_batches(training, model, reporter)
    result, budget = _train(training, model, batches, reporter)
    predictor = Predictor(images, model)

    def predict_test() -> tuple[pd.DataFrame, pd.DataFrame]:
        return _predict(training, predictor, batches)

    tables, reach = {training.folder: predict_test()}, None
    if training.whole and task.convex:
        parts = (batches.plain, batches.tune, batches.test)
        shares, reach = measure_typicality(model, parts)
        tables[training.folder][0]["typical"] = shares
    summary = {
        "arm": training.arm,
        "fold": fold.index,
        "seed": training.seed,
        "plan": plan.to_dict(),
        "budget": asdict(budget),
        "positive_weights": list(task.positive_weights),
        "task": describe_task(task),
        "images": {"train": len(fold.train), "tune": len(fold.tune), "test": len(fold.test)},
        **{k: value for k, value in vars(result).items() if k not in {"history", "at_budget"}},
        "epochs": len(result.history) - 1,
        "engine": describe_machine(engine),
        "wall_seconds": time.perf_counter() - begun,
    }
    if engine.first and training.whole:
        _write_model(training, model, reach)
    if result.at_budget is not None:
        early = _as_it_was(result.at_budget, model.modules, predict_test)
        tables[training.folder.at_budget] = early
    if engine.first:
        for folder, (rows, candidates) in tables.items():
            _write_tables(folder, rows, candidates)
        identity = {"key": training.key, "conditions": training.conditions}
        training.folder.finish({**identity, **summary})
        batches.checkpoints.clear()
    engine.wait()
    return read_run(training.folder)


@dataclass(frozen=True)
class _Batches:
    """The batches of a training, from images or from what is kept of them.

    Attributes:
        train: shuffled, with random transforms. plain: the same images as they are. tune: those
            that choose. test: those that are tested. norms: training images for the statistics of
            batch norms.
        source: of all but `train`. at_once: images at once in prediction.
        checkpoints: the state of the training while it is unfinished.
    """

    train: Loader
    plain: Loader
    tune: Loader
    test: Loader
    norms: Loader
    source: Source
    at_once: int
    checkpoints: Checkpoints


def _make_batches(training: Training, model: Model, reporter: Reporter) -> _Batches:
    """Settles how the network computes, then what it is given."""
    images, fold, plan = training.images, training.fold, training.plan
    backbone, head, engine = model.backbone, model.head, model.engine
    source = images.source(backbone, engine, training.seed)
    step, at_once = images.batches(source, engine)
    first = Loader(source, fold.train, max(step, at_once))
    prepare_network(backbone, head, plan, engine, first)

    def report(what: str, done: int, total: int) -> None:
        reporter(f"{training.name}, {what}", done, total)

    plain: Source = source
    if plan.cache_cut:
        plain = images.keep(
            backbone, engine, plan.cache_cut, head.taps, training.seed, training.is_probe, report
        )
    shuffled = _load(
        plain if plan.views else source, fold.train, engine, step, training.seed, plan.views
    )
    of_train, tune, test = (
        _load(plain, rows, engine, at_once) for rows in (fold.train, fold.tune, fold.test)
    )
    checkpoints = Checkpoints(
        training.folder.checkpoint, _state_key(training, shuffled, engine), writes=engine.first
    )
    norms = _sample(plain, fold.train, max(step, at_once))
    return _Batches(shuffled, of_train, tune, test, norms, plain, at_once, checkpoints)


def _budget_of(training: Training, train: Loader) -> Budget:
    settings = training.images.train
    steps = count_steps(training.plan, settings, len(train))
    return Budget(steps, settings.patience, settings.weight_decay)


def _train(
    training: Training, model: Model, batches: _Batches, reporter: Reporter
) -> tuple[FitResult, Budget]:
    """Trains the network, epoch by epoch into the history of the run."""
    budget, history = _budget_of(training, batches.train), []
    first = model.engine.first
    track = training.images.train.track if first else None

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        if first:
            training.folder.add_epoch("".join(json.dumps(row) + "\n" for row in history))
            log({key: value for key, value in entry.items() if key != "epoch"}, int(entry["epoch"]))
        reporter(f"{training.name}, epochs", int(entry["epoch"]), epochs)

    parts = Parts(batches.train, batches.plain, batches.tune, batches.norms)
    with tracking(track, training.name, training.folder.path) as log:
        result = train_network(
            model,
            parts,
            training.plan,
            budget,
            training.images.groups,
            on_epoch,
            batches.checkpoints,
            partial(_say, reporter, training.name),
        )
    return result, budget


def _predict(
    training: Training, predictor: Predictor, batches: _Batches
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the tune and the test part, and the candidates of a detector."""

    def load(rows: NDArray[np.int64]) -> Loader:
        return _load(batches.source, rows, predictor.model.engine, batches.at_once)

    probe_seed = training.seed if training.is_probe else None
    rows, candidates = predictor.predict_parts(training.fold, load, probe_seed)
    if not training.whole:
        rows = _balance(rows, training.images.targets[training.fold.train])
    about: dict[str, Any] = {
        "arm": training.arm,
        "seed": training.seed,
        "fold": training.fold.index,
    }
    return (
        rows.assign(**about).reset_index(drop=True),
        candidates.assign(**about).reset_index(drop=True),
    )


def _load(
    source: Source, rows: Any, engine: Engine, batch: int, seed: int | None = None, views: int = 0
) -> Loader:
    return Loader(
        source, rows, batch, seed, views, engine.share, ahead=engine.device.type == "cuda"
    )


def _write_model(training: Training, model: Model, reach: Reach | None) -> None:
    """The trained model: its tensors, what it is, and how far its training images reach."""
    folder = training.folder
    facts = {**describe_backbone(training.backbone), "tap": ", ".join(model.head.taps)}
    save_weights(folder.weights, *model.modules, facts)
    if reach is not None:
        reach.save(folder.typicality)
    describe(
        model,
        training.plan,
        arm=training.arm,
        fold=training.fold.index,
        seed=training.seed,
        image=training.images.image,
        slab=training.images.slab,
        **training.about,
    ).write(folder)


def _write_tables(folder: RunFolder, rows: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Predictions, and candidates where there are any."""
    folder.path.mkdir(exist_ok=True)
    write_predictions(rows, folder.predictions)
    if "image" in candidates.columns:
        write_candidates(candidates, folder.candidates)


def _as_it_was(state: State, modules: Sequence[nn.Module], predict: Callable[[], Tables]) -> Tables:
    """What modules predict in an earlier state; they are left as they are."""
    last = copy_state(*modules)
    load_state(state, *modules)
    tables = predict()
    load_state(last, *modules)
    return tables


def _say(reporter: Reporter, name: str, text: str) -> None:
    reporter.say(f"{name}: {text}")


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


def _state_key(training: Training, train: Loader, engine: Engine) -> str:
    """Digest of all that decides a training, for its checkpoints."""
    images, fold, backbone = training.images, training.fold, training.backbone
    return digest_of(
        [
            training.key,
            training.plan.decisive(),
            asdict(_budget_of(training, train)),
            engine.precision,
            engine.layout,
            engine.compiled,
            training.seed,
            backbone.name,
            backbone.weights.digest,
            asdict(backbone.recipe),
            describe_task(images.task),
            images.slab,
            images.train.batch_size,
            images.augment.model_dump(),
            [entry.name for entry in images.entries],
            images.targets.tolist(),
            [part.tolist() for part in (fold.train, fold.tune)],
        ]
    )


def describe_backbone(backbone: Backbone) -> dict[str, str]:
    """What a file of trained weights says of itself, so that `study:FOLDER` can load it again."""
    recipe, weights = backbone.recipe, backbone.weights
    return {
        "backbone": backbone.name,
        "mean": ",".join(map(str, recipe.mean)),
        "std": ",".join(map(str, recipe.std)),
        "size": str(recipe.size),
        "weights": f"{weights.source} {weights.digest[:16]}".strip(),
        "preparations": "; ".join(weights.preparations),
    }
