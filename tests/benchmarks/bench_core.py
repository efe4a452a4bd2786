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
import torch
from medtransfer.data.dataset import ImageDataset, make_loader
from medtransfer.data.transforms import Fixed, fixed_transforms
from medtransfer.evaluation.discrimination import delong_covariance
from medtransfer.models.freeze import PlainCounts
from medtransfer.training.engine import make_engine
from medtransfer.training.loop import Budget, fit

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
    print(f"{name}: {baseline / ours:.2f} times the baseline's speed ({ours * 1e3:.0f} ms against {baseline * 1e3:.0f} ms)", flush=True)


def bench_training_epoch(cohort: mt.Cohort) -> None:
    """`fit` for one epoch, with random transforms and the tune score, against the bare PyTorch step on ready batches."""
    entries = [Path(entry) for entry in mt.inspect_images(cohort, fixed=Fixed(96))["entry"]]
    targets = cohort.images[["malignant"]].to_numpy(np.float32)
    fold = mt.split_cohort(cohort, 3).fold(0)
    engine = make_engine("cpu", "fp32")

    def network() -> tuple[mt.Backbone, mt.FreezePlan]:
        net = mt.load_backbone("tf_efficientnet_lite0", "imagenet")
        return net, mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net)

    net, plan = network()
    recipe = net.recipe
    loaders = [
        make_loader(ImageDataset(entries, targets, rows, seed), 16, recipe.mean, recipe.std)
        for rows, seed in ((fold.train, 0), (fold.train[:16], None), (fold.tune[:16], None))
    ]
    task = mt.Classification(cohort.labels).weighted(targets)
    ready = [batch["features"]["image"].contiguous(memory_format=torch.channels_last) for batch in loaders[0]]
    bare, _ = network()
    bare.to(memory_format=torch.channels_last).freeze(plan.frozen_stages, plan.norm_policy)
    optimiser = torch.optim.AdamW([p for p in bare.parameters() if p.requires_grad], lr=1e-5)
    last = bare.names[-1]

    def bare_epoch() -> None:
        bare.train()
        for image in ready:
            optimiser.zero_grad()
            bare({"image": image}, [last])[last].float().mean().backward()
            optimiser.step()

    head = task.make_head(net)
    ours = median_seconds(lambda: fit(net, head, task, *loaders, plan, Budget(len(ready), None, 0.05), engine))
    report("one epoch of fit, all included, against bare PyTorch steps", ours, median_seconds(bare_epoch))


def bench_image_cache(cohort: mt.Cohort) -> None:
    paths = cohort.images["path"].tolist()
    pipeline = fixed_transforms(96)
    entries = mt.inspect_images(cohort, fixed=Fixed(96))["entry"].tolist()
    cached = median_seconds(lambda: [np.load(entry) for entry in entries])
    report("reading cached images against decoding them", cached, median_seconds(lambda: [pipeline({"image": p}) for p in paths]))


def bench_delong() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 6000)
    score = rng.normal(size=6000) + target

    def definition() -> float:
        x, y = score[target == 1], score[target == 0]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        return float(psi.mean(1).var(ddof=1) / len(x) + psi.mean(0).var(ddof=1) / len(y))

    patients = np.arange(6000)
    report(
        "fast DeLong of 6,000 images against its definition",
        median_seconds(lambda: delong_covariance([score[None]], target, patients)),
        median_seconds(definition),
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        manifest = mt.write_phantom(f"{name}/phantom", 60)
        cohort = mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])
        bench_delong()
        bench_image_cache(cohort)
        bench_training_epoch(cohort)


if __name__ == "__main__":
    main()
