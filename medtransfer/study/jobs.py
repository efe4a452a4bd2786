"""The runs of a study: which there are, and which of them can be compared."""

from __future__ import annotations

from dataclasses import dataclass

from medtransfer.config.study_config import StudyConfig
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.schedule import cycles_of
from medtransfer.records.run import Run
from medtransfer.records.run_folder import RunFolder
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.settle import Settled


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

    def folder(self, study: StudyFolder) -> RunFolder:
        """Of the run, within the study."""
        if self.size:
            return study.draw(self.arm, self.fold, self.size, self.episode)
        return study.run(self.arm, self.fold, self.seed)


def list_jobs(settled: Settled) -> list[Job]:
    """All of a study, what says most first: all arms on one fold after the other, seed by seed;
    then the learning curve draw by draw.

    Of the arms, those that take longest go first, so that several processes end at about the same
    time.
    """
    arms = sorted(settled.config.arms, key=lambda arm: -_operations(settled, arm))
    return name_jobs(settled.config, len(settled.split), arms)


def name_jobs(config: StudyConfig, folds: int, arms: list[str]) -> list[Job]:
    """All jobs of these arms, on so many folds."""
    curve, first = config.learning_curve, config.protocol.seeds[0]
    jobs = [
        Job(arm, fold, seed)
        for seed in config.protocol.seeds
        for fold in range(folds)
        for arm in arms
    ]
    episodes = range(1, curve.episodes + 1) if curve.sizes else ()
    return jobs + [
        Job(arm, fold, first, size, episode)
        for episode in episodes
        for size in curve.sizes
        for fold in range(folds)
        for arm in arms
    ]


def _operations(settled: Settled, arm: str) -> int:
    """Multiply-accumulate operations of the stages that train, about what a run takes."""
    backbone, plan = settled.backbones[arm], settled.plans[arm]
    costs = measure_stages(
        backbone,
        settled.config.image.size,
        settled.config.image.slices if backbone.ndim == 3 else 1,
    )
    macs = (
        0
        if plan.strategy == "linear_probe"
        else sum(cost.macs for cost in costs[plan.frozen_stages :])
    )
    return round(macs * settled.config.arms[arm].times * cycles_of(plan)[-1])


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
