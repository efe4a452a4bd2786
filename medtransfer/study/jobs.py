"""The runs of a study one by one: which there are, what each does, and which are finished."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from medtransfer.data.cohort.split import Fold
from medtransfer.errors import StudyError
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.plan import FINE_TUNING_STEPS, FreezePlan
from medtransfer.models.plan.schedule import cycles_of
from medtransfer.progress import Reporter
from medtransfer.study.draws import draw_fold, plan_draw
from medtransfer.study.folder import LOCKS, lock_path, run_folder
from medtransfer.study.record import Prepared, Run, finished_run, longest_steps, run_key
from medtransfer.study.run import run_fold, search_fold
from medtransfer.study.settle import cache_budget, train_of
from medtransfer.study.views import backbone_of, images_of, task_of
from medtransfer.tasks.classification import Classification
from medtransfer.training.device import Engine


@dataclass(frozen=True)
class Job:
    """One training: of an arm, on a fold, from a seed; on a draw of some patients where `size` is
    not 0.
    """

    arm: str
    fold: int
    seed: int
    size: int = 0
    episode: int = 0

    def __str__(self) -> str:
        draw = (
            f", {self.size} patients per class, draw {self.episode}"
            if self.size
            else f", seed {self.seed}"
        )
        return f"{self.arm}, fold {self.fold}{draw}"

    def folder(self, output: Path) -> Path:
        """Of the run, within the study."""
        if self.size:
            return (
                output
                / "curve"
                / self.arm
                / f"fold-{self.fold}"
                / f"size-{self.size}"
                / f"episode-{self.episode}"
            )
        return run_folder(output, self.arm, self.fold, self.seed)


class BusyError(StudyError):
    """Another process is doing this run; not seen outside of a study."""


def list_jobs(prepared: Prepared) -> list[Job]:
    """All of a study, what says most first: all arms on one fold after the other, seed by seed;
    then the learning curve draw by draw.

    Of the arms, those that take longest go first, so that several processes end at about the same
    time.
    """
    config, folds = prepared.config, range(len(prepared.split))
    arms, curve = (
        sorted(config.arms, key=lambda arm: -_operations(prepared, arm)),
        config.learning_curve,
    )
    jobs = [
        Job(arm, fold, seed) for seed in config.protocol.seeds for fold in folds for arm in arms
    ]
    first = config.protocol.seeds[0]
    episodes = range(1, curve.episodes + 1) if curve.sizes else ()
    return jobs + [
        Job(arm, fold, first, size, e)
        for e in episodes
        for size in curve.sizes
        for fold in folds
        for arm in arms
    ]


def _operations(prepared: Prepared, arm: str) -> int:
    """Multiply-accumulate operations of the stages that train, about what a run takes."""
    backbone, plan = prepared.backbones[arm], prepared.plans[arm]
    costs = measure_stages(
        backbone,
        prepared.config.image.size,
        prepared.config.image.slices if backbone.ndim == 3 else 1,
    )
    macs = (
        0
        if plan.strategy == "linear_probe"
        else sum(cost.macs for cost in costs[plan.frozen_stages :])
    )
    return round(macs * prepared.config.arms[arm].times * cycles_of(plan)[-1])


@dataclass(frozen=True, eq=False)
class Study:
    """All that a job needs; goes to other processes whole.

    Attributes:
        prepared: what is settled.
        engines: by arm.
        output: folder of the study. store: of the activations that are kept while it lasts.
        workers: processes on this machine that share the runs.
    """

    prepared: Prepared
    engines: dict[str, Engine]
    output: Path
    store: Path
    workers: int = 1

    @property
    def note(self) -> Path:
        """Is there while the processes of the study are asked to end."""
        return self.output / LOCKS / "end"

    def fold_of(self, job: Job) -> Fold:
        """Its train, tune and test images."""
        if job.size:
            return draw_fold(self.prepared, job.fold, job.episode, job.size)
        return self.prepared.split.fold(job.fold)

    def engine_of(self, job: Job) -> Engine:
        """That of its arm; of several GPUs, processes that work at the same time take different
        ones.
        """
        engine, count = self.engines[job.arm], torch.cuda.device_count()
        if job.size:  # few images, whose batches and depths differ from draw to draw
            engine = replace(engine, compiled=False)
        if engine.device.type != "cuda" or engine.share[1] > 1 or self.workers == 1:
            return engine
        return replace(
            engine,
            device=torch.device(
                "cuda", _take_gpu(self.output / LOCKS, count)[0] if count > 1 else 0
            ),
        )

    @cached_property
    def _keys(self) -> dict[Job, tuple[str, FreezePlan]]:
        return {}

    def key_of(self, job: Job) -> tuple[str, FreezePlan]:
        """Digest of all that decides the run, and its plan before a search."""
        if job not in self._keys:
            key, plan = (
                run_key(self.prepared, self.engines[job.arm], job.seed, job.fold, job.arm),
                self.prepared.plans[job.arm],
            )
            if job.size:
                fold = self.fold_of(job)
                plan = plan_draw(self.prepared, fold)[job.arm]
                decided = [
                    key,
                    plan.decisive(),
                    fold.train.tolist(),
                    fold.tune.tolist(),
                    job.episode,
                ]
                key = hashlib.sha256(json.dumps(decided).encode()).hexdigest()
            self._keys[job] = key, plan
        return self._keys[job]

    def finished(self, job: Job) -> Run | None:
        """Its run, where it is finished and everything that decided it is unchanged."""
        return finished_run(
            job.folder(self.output), self.key_of(job)[0], job.arm, job.fold, job.seed
        )

    def do(self, job: Job, reporter: Reporter, wait: bool = True) -> Run:
        """Trains, predicts and writes, unless that was done; no two processes do so at once.

        Args:
            job: which.
            reporter: progress.
            wait: for another process that is at it; else `BusyError`.

        Raises:
            MedTransferError: see `run_fold`.
        """
        engine = self.engine_of(job)
        if not engine.first:
            return self.finished(job) or self._train(job, engine, reporter)
        lock = lock_path(self.output, job.folder(self.output))
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Held by the system for the process: a dead owner holds nothing.
            with FileLock(lock, timeout=-1 if wait or engine.share[1] > 1 else 0):
                return self.finished(job) or self._train(job, engine, reporter)
        except Timeout as error:
            raise BusyError(f"{job}: another process is doing this run.") from error

    def _train(self, job: Job, engine: Engine, reporter: Reporter) -> Run:
        prepared, fold, (key, plan) = self.prepared, self.fold_of(job), self.key_of(job)
        self.store.mkdir(parents=True, exist_ok=True)
        os.utime(self.store)  # it is in use
        images, task = images_of(prepared, job.arm, self.store), task_of(prepared, job.arm)
        kind = prepared.config.arms[job.arm].kind
        if (
            prepared.config.plan.search
            and plan.strategy != "scratch"
            and kind == "network"
            and not job.size
        ):
            plan = self._search(job, fold, plan, reporter)
        seed = job.seed + job.episode
        if job.size:
            images = replace(images, train=train_of(prepared.config, job.arm, draws=True))
        return run_fold(
            images,
            fold,
            task,
            backbone_of(prepared, job.arm, seed),
            plan,
            job.folder(self.output),
            seed,
            job.arm,
            engine,
            key,
            reporter if not job.size else Reporter(quiet=True),
            whole=not job.size,
        )

    def _search(self, job: Job, fold: Fold, plan: FreezePlan, reporter: Reporter) -> FreezePlan:
        """One search per fold, whatever the seed."""
        prepared, engine = self.prepared, self.engine_of(job)
        first = prepared.config.protocol.seeds[0]
        path = job.folder(self.output).parent / "depth.json"
        key = run_key(prepared, engine, first, job.fold, job.arm)
        cache = cache_budget(prepared.config, prepared.fingerprint.ndim, len(prepared.cohort))

        def report(what: str, done: int, total: int) -> None:
            reporter(f"{job.arm}, fold {job.fold}, {what}", done, total)

        steps = max(
            1,
            round(
                (longest_steps(prepared) or FINE_TUNING_STEPS) * prepared.config.arms[job.arm].times
            ),
        )
        images, task = images_of(prepared, job.arm, self.store), task_of(prepared, job.arm)
        assert isinstance(task, Classification)  # the configuration refuses a search for detection
        with FileLock(lock_path(self.output, path)) if engine.first else nullcontext():
            # Each depth is trained for a few steps alone, which no compiling pays for.
            engine = replace(engine, compiled=False)
            found = search_fold(
                images,
                fold,
                task,
                prepared.backbones[job.arm],
                plan,
                path,
                first,
                engine,
                key,
                cache,
                steps,
                report,
            )
        return replace(
            found, level=prepared.config.arms[job.arm].level and found.strategy == "lp_ft"
        )


@lru_cache(maxsize=1)
def _take_gpu(locks: Path, count: int) -> tuple[int, FileLock]:
    """A GPU for as long as this process lives, one that as few others as possible have, and what
    shows that it is taken.

    Each process keeps to one, as every GPU that it touches holds a context of some hundred
    megabytes.
    """
    locks.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():  # over all of them once, then for a second process on each
        lock = FileLock(locks / f"gpu-{platform.node()}-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return number % count, lock
    raise AssertionError  # the numbers do not end


def complete(runs: dict[Job, Run], arms: list[str]) -> dict[Job, Run]:
    """The runs that can be compared: the most folds and seeds such that every arm has every seed on
    every fold.

    Of the learning curve, the draws that every arm has.
    """
    main = {(job.arm, job.fold, job.seed) for job in runs if not job.size}
    cells = {
        (fold, seed) for _, fold, seed in main if all((arm, fold, seed) in main for arm in arms)
    }
    by_seed = {seed: frozenset(fold for fold, other in cells if other == seed) for _, seed in cells}
    best: set[tuple[int, int]] = set()
    for folds in by_seed.values():
        block = {(fold, seed) for seed, own in by_seed.items() if own >= folds for fold in folds}
        best = max(best, block, key=len)
    draws = {(job.arm, job.fold, job.size, job.episode) for job in runs if job.size}

    def belongs(job: Job) -> bool:
        if job.size:
            return all((arm, job.fold, job.size, job.episode) in draws for arm in arms)
        return (job.fold, job.seed) in best

    return {job: run for job, run in runs.items() if belongs(job)}
