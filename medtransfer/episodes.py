"""The learning curve of a study: every arm on small draws from the training patients of every fold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.data.split import Fold
from medtransfer.errors import ConfigError
from medtransfer.models.plan import FreezePlan
from medtransfer.prepare import batch_size, plan_arm, share_steps
from medtransfer.progress import Reporter
from medtransfer.record import Prepared, finished_run, run_key
from medtransfer.runs import backbone_of, images_of, run_fold, task_of
from medtransfer.training.engine import Engine


def refuse_large_sizes(prepared: Prepared) -> None:
    """Every size must be there to be drawn from every fold.

    Raises:
        ConfigError: a fold has fewer patients of a class, or a plan set by hand does not fit a size.
    """
    sizes = prepared.config.learning_curve.sizes
    if not sizes:
        return
    fewest = min(len(units) for index in range(len(prepared.split)) for units in _units_by_class(prepared, index))
    if sizes[-1] > fewest:
        raise ConfigError(
            f"learning_curve: {sizes[-1]} patients per class are asked for, but a training part (with its tune part) has {fewest} of a "
            f"class. Give sizes up to {fewest}."
        )
    for size in sizes:
        _plan_draw(prepared, draw_fold(prepared, 0, 1, size))


def run_episodes(prepared: Prepared, engines: dict[str, Engine], output: Path, reporter: Reporter) -> pd.DataFrame | None:
    """Trains every arm on every draw and predicts the test images of the fold.

    Draws of one episode are nested: the smaller ones lie within the larger. Each has the plan that its own number of
    patients gives, as a cohort of that size would.

    Returns:
        Test rows with `size` and `episode` (from 1); None where no curve is asked for.
    """
    config, curve = prepared.config, prepared.config.learning_curve
    if not curve.sizes:
        return None
    seed = config.protocol.seeds[0]
    jobs = [(i, e, n) for n in curve.sizes for i in range(len(prepared.split)) for e in range(1, curve.episodes + 1)]
    frames = []
    for number, (index, episode, size) in enumerate(jobs):
        fold = draw_fold(prepared, index, episode, size)
        for arm, plan in _plan_draw(prepared, fold).items():
            folder = output / "curve" / arm / f"fold-{index}" / f"size-{size}" / f"episode-{episode}"
            decided = [run_key(prepared, engines[arm], seed, index, arm), plan.decisive(), fold.train.tolist(), fold.tune.tolist()]
            key = hashlib.sha256(json.dumps(decided).encode()).hexdigest()
            run = finished_run(folder, key, arm, index, seed)
            if run is None:
                backbone = backbone_of(prepared, arm, seed + episode)
                images, task, engine = images_of(prepared, arm), task_of(prepared, arm), engines[arm]
                quiet = Reporter(quiet=True)
                run = run_fold(images, fold, task, backbone, plan, folder, seed + episode, arm, engine, key, quiet, keep_weights=False)
            rows = run.predictions[run.predictions["part"] == "test"]
            frames.append(rows.assign(seed=seed, size=size, episode=episode))
        reporter("learning curve, draws", number + 1, len(jobs))
    return pd.concat(frames, ignore_index=True)


def draw_fold(prepared: Prepared, index: int, episode: int, size: int) -> Fold:
    """A fold whose train and tune parts hold `size` patients of each class; its test part is whole."""
    fold, units = prepared.split.fold(index), prepared.cohort.units.to_numpy()
    rng = np.random.default_rng([prepared.config.protocol.split_seed, index, episode])
    held = max(1, round(prepared.config.protocol.tune * size))
    parts: dict[str, list[object]] = {"tune": [], "train": []}
    for known in _units_by_class(prepared, index):
        drawn = rng.permutation(len(known))[:size]
        chosen = [known[i] for i in drawn]
        parts["tune"] += chosen[:held]
        parts["train"] += chosen[held:]
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    train, tune = (rows[pd.Series(units[rows]).isin(parts[name]).to_numpy()] for name in ("train", "tune"))
    return Fold(index, train, tune, fold.test)


def _units_by_class(prepared: Prepared, index: int) -> list[list[object]]:
    """Patients (or clusters) of the train and tune parts, negative and positive; one with both counts as positive."""
    fold = prepared.split.fold(index)
    rows = np.sort(np.concatenate([fold.train, fold.tune]))
    labels = prepared.cohort.images[prepared.cohort.labels[0]].to_numpy(int)[rows]
    by_unit = pd.Series(labels).groupby(prepared.cohort.units.to_numpy()[rows], sort=False).max()
    return [by_unit.index[by_unit == value].tolist() for value in (0, 1)]


def _plan_draw(prepared: Prepared, fold: Fold) -> dict[str, FreezePlan]:
    """The plans of all arms for the training part of a draw, with one budget."""
    config, cohort = prepared.config, prepared.cohort
    labels = cohort.images[cohort.labels[0]].to_numpy(int)[fold.train]
    by_unit = pd.Series(labels).groupby(cohort.units.to_numpy()[fold.train]).max()
    counts = replace(
        prepared.fingerprint,
        patients_per_class={str(value): int((by_unit == value).sum()) for value in (0, 1)},
        images_per_class={str(value): int((labels == value).sum()) for value in (0, 1)},
    )
    plans = {name: plan_arm(config, name, backbone, counts, counts.ndim) for name, backbone in prepared.backbones.items()}
    return share_steps(plans, config.train, max(1, len(fold.train) // batch_size(config.train, counts.ndim)))
