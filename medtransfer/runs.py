"""One run of a study: a network, a fold, a seed; and the search for the depth before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.config import TrainSection
from medtransfer.data.cohort import Cohort
from medtransfer.data.dataset import ImageDataset, make_loader
from medtransfer.data.inspection import inspect_images
from medtransfer.data.slices import Slices
from medtransfer.data.split import Fold
from medtransfer.data.transforms import Fixed
from medtransfer.data.windows import Window
from medtransfer.evaluation import read_predictions, write_aside, write_predictions
from medtransfer.models.backbone import Backbone
from medtransfer.models.costs import measure_stages
from medtransfer.models.plan import CacheBudget, FreezePlan, plan_cache, refuse_random_prefix
from medtransfer.prepare import batch_size, count_steps, load_arm, refuse_unreadable
from medtransfer.progress import Reporter
from medtransfer.record import Prepared, Run, describe_backbone
from medtransfer.tasks.classification import Classification
from medtransfer.training.checkpoint import Checkpoints, save_weights
from medtransfer.training.choice import DepthChoice, apply_choice
from medtransfer.training.depth import search_depth
from medtransfer.training.engine import Engine, make_engine, seed_everything
from medtransfer.training.loop import Budget, predict
from medtransfer.training.loop import fit as train_network

# Planes that are predicted at once.
_EVAL_BATCH = 32


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a cohort as they lie in the cache, and how a network is given them.

    Attributes:
        cohort: the images.
        entries: files of the image cache, one per image.
        slices: of volumes. `slab`: neighbouring slices that become the channels of each.
        train: batch size and budget.
    """

    cohort: Cohort
    entries: Sequence[Path]
    slices: Slices
    slab: int
    train: TrainSection

    @property
    def targets(self) -> NDArray[np.float32]:
        """(image, label), 0 or 1."""
        return self.cohort.images[list(self.cohort.labels)].to_numpy(np.float32)

    @property
    def groups(self) -> NDArray[np.int64]:
        """(image,), a number per patient, or per cluster where these are kept together."""
        codes: NDArray[np.int64] = np.asarray(pd.factorize(self.cohort.units)[0], np.int64)
        return codes

    def loader(self, rows: Any, backbone: Backbone, draw: int | None = None) -> Any:
        """Batches in the recipe of the weights; with `draw`, shuffled and randomly transformed."""
        dataset = ImageDataset(self.entries, self.targets, rows, draw, self.slices.plane)
        ndim = len(dataset.shape)
        planes = 1 if ndim == 2 else self.slices.count
        batch = batch_size(self.train, ndim) if draw is not None else max(1, _EVAL_BATCH // planes)
        return make_loader(dataset, batch, backbone.recipe.mean, backbone.recipe.std, backbone.ndim, self.slab)


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

    A run that was interrupted goes on from its last finished epochs, and ends as if it had not been.

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
    output, train = Path(output), train or TrainSection()
    reporter = reporter or Reporter(quiet)
    output.mkdir(parents=True, exist_ok=True)
    if entries is None:
        facts = inspect_images(cohort, reporter, Fixed(size, window, spacing, slices or Slices()))
        refuse_unreadable(facts, cohort)
        entries = [Path(entry) for entry in facts["entry"]]
    images = Images(cohort, entries, slices or Slices(), slab, train)
    return run_fold(
        images, fold, task, backbone, plan, output, seed, arm, engine or make_engine(train.device, train.precision), key, reporter
    )


def run_fold(
    images: Images,
    fold: Fold,
    task: Classification,
    backbone: Backbone,
    plan: FreezePlan,
    output: Path,
    seed: int,
    arm: str,
    engine: Engine,
    key: str,
    reporter: Reporter,
    keep_weights: bool = True,
) -> Run:
    """Trains, predicts and writes the folder of a run; see `fit`."""
    refuse_random_prefix(backbone, plan)
    output.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    backbone.truncate(plan.dropped_stages)
    task = replace(task.weighted(images.targets[fold.train]), read=plan.read)
    head = task.make_head(backbone)
    training = images.loader(fold.train, backbone, seed)
    budget = Budget(count_steps(plan, images.train, len(training)), images.train.patience, images.train.weight_decay)
    history: list[dict[str, float]] = []

    def on_epoch(entry: dict[str, float], epochs: int) -> None:
        history.append(entry)
        write_aside(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        reporter(f"{arm}, fold {fold.index}, seed {seed}, epochs", int(entry["epoch"]), epochs)

    checkpoints = Checkpoints(output / "unfinished.pt", _state_key(images, fold, backbone, plan, budget, seed, engine, key))
    plain, tune = images.loader(fold.train, backbone), images.loader(fold.tune, backbone)
    result = train_network(backbone, head, task, training, plain, tune, plan, budget, engine, images.groups, on_epoch, checkpoints)
    frames = []
    for part, rows in (("tune", fold.tune), ("test", fold.test)):
        logits, truth = predict(backbone, head, task, images.loader(rows, backbone), engine)
        chosen = images.cohort.images.iloc[rows]
        patients = images.cohort.units.iloc[rows].tolist()
        frames.append(task.decode(logits, truth, chosen["image"].tolist(), patients).assign(part=part))
    table = pd.concat(frames, ignore_index=True).assign(arm=arm, seed=seed, fold=fold.index)
    if keep_weights:
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


def _state_key(
    images: Images, fold: Fold, backbone: Backbone, plan: FreezePlan, budget: Budget, seed: int, engine: Engine, key: str
) -> str:
    """Digest of all that decides a training, for its checkpoints."""
    rows = [part.tolist() for part in (fold.train, fold.tune)]
    entries = [entry.name for entry in images.entries]
    decided = [key, plan.decisive(), asdict(budget), engine.precision, seed, backbone.name, backbone.weights.digest, images.slab]
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
    report: Callable[[str, int, int], None],
) -> FreezePlan:
    """The plan of a fold after a search on its train and tune patients; what was found is kept in `path`.

    `steps` are those of a fine-tuning, should the plan be a probe and the search find a better depth.

    Raises:
        MedTransferError: see the parts it calls.
    """
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    train, plain = images.loader(rows, backbone, seed), images.loader(rows, backbone)
    steps = count_steps(replace(plan, strategy="lp_ft", steps=plan.steps or steps), images.train, len(train))
    choice = _read_choice(path, key)
    if choice is None:
        seed_everything(seed)
        weighted = replace(task.weighted(images.targets[rows]), read=plan.read)
        budget = Budget(steps, None, images.train.weight_decay)
        costs = measure_stages(backbone, cache.size, images.slices.count)
        path.parent.mkdir(parents=True, exist_ok=True)
        choice = search_depth(backbone, weighted, train, plain, plan, budget, engine, images.groups, costs, seed, path.parent, report)
        write_aside(path, json.dumps({"key": key, **choice.to_dict()}, indent=1))
    found = apply_choice(plan, backbone, choice, steps)
    if not choice.overridden:
        return found
    cached = plan_cache(found, backbone, len(fold.train), cache, choose=True)
    return plan_cache(replace(cached, views=min(cached.views, plan.views)), backbone, len(fold.train), cache)


def _read_choice(path: Path, key: str) -> DepthChoice | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return DepthChoice.from_dict(values) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def images_of(prepared: Prepared, arm: str) -> Images:
    """The images of a study as one of its arms sees them."""
    config = prepared.config
    entries, image = [Path(entry) for entry in prepared.facts["entry"]], config.image
    slices = Slices(image.slices, image.slice_spacing, image.plane)
    return Images(prepared.cohort, entries, slices, config.arms[arm].slab, config.train)


def backbone_of(prepared: Prepared, arm: str, seed: int) -> Backbone:
    """The backbone of an arm before training: a copy, as training changes it in place; scratch is drawn anew from every seed."""
    section = prepared.config.arms[arm]
    return deepcopy(prepared.backbones[arm]) if section.weights else load_arm(section, prepared.config.image.size, seed)


def task_of(prepared: Prepared, arm: str) -> Classification:
    """What an arm learns; slices are pooled where a network of planes sees volumes."""
    sliced = prepared.fingerprint.ndim > prepared.backbones[arm].ndim
    return Classification(prepared.cohort.labels, pooling=prepared.config.arms[arm].pooling if sliced else "mean")
