"""Does the runs of a study one by one, each once, under a lock, on its device."""

from __future__ import annotations

import itertools
import os
import platform
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from medtransfer.data.cohort.split import Fold
from medtransfer.errors import BusyError, FileError
from medtransfer.files import digest_of
from medtransfer.inference.description import read_description
from medtransfer.models.plan.plan import FINE_TUNING_STEPS, FreezePlan
from medtransfer.progress import Reporter
from medtransfer.records.run import Run, finished_run
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.draws import draw_fold, plan_draw
from medtransfer.study.identity import conditions, longest_steps, run_key
from medtransfer.study.jobs import Job
from medtransfer.study.planning import cache_budget, train_of
from medtransfer.study.run import Training, run_fold
from medtransfer.study.search import search_fold
from medtransfer.study.settle import Settled
from medtransfer.study.views import backbone_of, images_of
from medtransfer.training.device import Engine


@dataclass(frozen=True, eq=False)
class Worker:
    """All that a job needs; goes to other processes whole.

    Attributes:
        settled: what is settled.
        engines: by arm.
        folder: of the study.
        store: folder of the activations that are kept while the study lasts.
        workers: processes on this machine that share the runs.
    """

    settled: Settled
    engines: dict[str, Engine]
    folder: StudyFolder
    store: Path
    workers: int = 1
    _keys: dict[Job, tuple[str, FreezePlan]] = field(default_factory=dict, repr=False)

    def fold_of(self, job: Job) -> Fold:
        """Its train, tune and test images."""
        if job.size:
            return draw_fold(self.settled, job.fold, job.episode, job.size)
        return self.settled.split.fold(job.fold)

    def engine_of(self, job: Job) -> Engine:
        """That of its arm; of several GPUs, processes that work at the same time take different
        ones.
        """
        engine, count = self.engines[job.arm], torch.cuda.device_count()
        if job.size:  # few images, whose batches and depths differ from draw to draw
            engine = replace(engine, compiled=False)
        if engine.device.type != "cuda" or engine.share[1] > 1 or self.workers == 1:
            return engine
        number = _take_gpu(self.folder.locks, count)[0] if count > 1 else 0
        return replace(engine, device=torch.device("cuda", number))

    def key_of(self, job: Job) -> tuple[str, FreezePlan]:
        """Digest of all that decides the run, and its plan before a search."""
        if job not in self._keys:
            engine, plan = self.engines[job.arm], self.settled.plans[job.arm]
            key = run_key(self.settled, engine, job.seed, job.fold, job.arm)
            if job.size:
                fold = self.fold_of(job)
                plan = plan_draw(self.settled, fold)[job.arm]
                drawn = [fold.train.tolist(), fold.tune.tolist(), job.episode]
                key = digest_of([key, plan.decisive(), *drawn])
            self._keys[job] = key, plan
        return self._keys[job]

    def finished(self, job: Job, reporter: Reporter | None = None) -> Run | None:
        """Its run, where it is finished, whole, and everything that decided it is unchanged.

        Args:
            job: which.
            reporter: is told which file is damaged, where that is why there is no run.
        """

        def say(damage: str) -> None:
            if reporter is not None:
                reporter.say(f"{damage} The run is done again.")

        folder = job.folder(self.folder)
        run = finished_run(folder, self.key_of(job)[0], say)
        if run is None or job.size:
            return run
        try:
            read_description(folder)
        except FileNotFoundError:
            say(f"{folder.model}: is missing.")
            return None
        except FileError as error:
            say(str(error))
            return None
        return run

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
        lock = self.folder.lock_of(job.folder(self.folder).path)
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Held by the system for the process: a dead owner holds nothing.
            with FileLock(lock, timeout=-1 if wait or engine.share[1] > 1 else 0):
                return self.finished(job, reporter) or self._train(job, engine, reporter)
        except Timeout as error:
            raise BusyError(f"{job}: another process is doing this run.") from error

    def _train(self, job: Job, engine: Engine, reporter: Reporter) -> Run:
        settled, (_, plan) = self.settled, self.key_of(job)
        self.store.mkdir(parents=True, exist_ok=True)
        os.utime(self.store)  # it is in use
        training = self._training(job, engine)
        searches = settled.config.plan.search and settled.config.arms[job.arm].kind == "network"
        if searches and plan.strategy != "scratch" and not job.size:
            training = replace(training, plan=self._search(job, training, reporter))
        seed = job.seed + job.episode
        backbone = backbone_of(settled, job.arm, seed)
        quiet = Reporter(quiet=True)
        return run_fold(
            replace(training, backbone=backbone, seed=seed), quiet if job.size else reporter
        )

    def _training(self, job: Job, engine: Engine) -> Training:
        """The training of a job, on the backbone that all jobs of its arm share."""
        settled, (key, plan) = self.settled, self.key_of(job)
        images = images_of(settled, job.arm, self.store)
        if job.size:
            images = replace(images, train=train_of(settled.config, job.arm, draws=True))
        return Training(
            images,
            self.fold_of(job),
            settled.backbones[job.arm],
            plan,
            engine,
            job.folder(self.folder),
            job.arm,
            job.seed,
            key,
            conditions(settled),
            whole=not job.size,
            about={
                "reference": settled.fingerprint.to_dict(),
                "meaning": dict(settled.cohort.meaning),
            },
        )

    def _search(self, job: Job, training: Training, reporter: Reporter) -> FreezePlan:
        """The plan after a search; one per fold, whatever the seed."""
        settled, engine = self.settled, training.engine
        first = settled.config.protocol.seeds[0]
        path = self.folder.search(job.arm, job.fold)
        cache = cache_budget(settled.config, settled.fingerprint.ndim, len(settled.cohort))

        def report(what: str, done: int, total: int) -> None:
            reporter(f"{job.arm}, fold {job.fold}, {what}", done, total)

        arm = settled.config.arms[job.arm]
        steps = max(1, round((longest_steps(settled) or FINE_TUNING_STEPS) * arm.times))
        searched = replace(
            training,
            seed=first,
            key=run_key(settled, engine, first, job.fold, job.arm),
            # Each depth is trained for a few steps alone, which no compiling pays for.
            engine=replace(engine, compiled=False),
        )
        with FileLock(self.folder.lock_of(path)) if engine.first else nullcontext():
            plan = search_fold(searched, path, cache, steps, report)
        return replace(plan, level=arm.level and plan.strategy == "lp_ft")


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
