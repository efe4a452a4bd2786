"""Speeds as ratios against a named baseline, measured in one run. `make bench` prints them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import medtransfer as mt
import numpy as np
from medtransfer.data.grid.cache import read_entry
from medtransfer.data.grid.fixed import Fixed
from medtransfer.data.grid.monai import fixed_transforms
from medtransfer.evaluation.intervals import influence

REPEATS = 5


def median_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def report(name: str, ours: float, baseline: float) -> None:
    print(
        f"{name}: {baseline / ours:.2f} times the baseline's speed ({ours * 1e3:.0f} ms against "
        f"{baseline * 1e3:.0f} ms)",
        flush=True,
    )


def bench_image_cache(cohort: mt.Cohort) -> None:
    paths = cohort.images["path"].tolist()
    pipeline = fixed_transforms(96)
    entries = mt.inspect_images(cohort, fixed=Fixed(96))["entry"].tolist()
    cached = median_seconds(lambda: [read_entry(Path(entry)) for entry in entries])
    report(
        "reading cached images against decoding them",
        cached,
        median_seconds(lambda: [pipeline({"image": p}) for p in paths]),
    )


def bench_delong() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 6000)
    score = rng.normal(size=6000) + target

    def definition() -> float:
        x, y = score[target == 1], score[target == 0]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        return float(psi.mean(1).var(ddof=1) / len(x) + psi.mean(0).var(ddof=1) / len(y))

    patients, weight = np.arange(6000), np.ones(6000)
    report(
        "fast DeLong of 6,000 images against its definition",
        median_seconds(
            lambda: (
                influence.estimate(
                    score[None], target, weight, patients, 6000, influence.auc
                ).variance
            )
        ),
        median_seconds(definition),
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        manifest = mt.write_phantom(f"{name}/phantom", 60)
        cohort = mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])
        bench_delong()
        bench_image_cache(cohort)


if __name__ == "__main__":
    main()
