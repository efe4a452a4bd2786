"""The training engine against the bare PyTorch step, the arithmetic ceiling of a frozen prefix, and
itself on more images and jobs.

Usage: bench_engine.py [step] [freed] [prefix] [growth] [memory] [jobs]; all of them where left out.
Medians of five, ratios from one run.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import medtransfer as mt
import numpy as np
import psutil
import torch
import yaml
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training.batches import Loader
from medtransfer.training.device import Engine
from medtransfer.training.features import FeatureSource, Store
from medtransfer.training.predicting import Model
from medtransfer.training.process import use_threads
from medtransfer.training.timing import make_engine
from medtransfer.training.trainer import Progress, Trainer
from torch import nn

REPEATS = 5
# Network, pixels, images at a step.
NETWORKS = (("resnet18", 224, 16), ("tf_efficientnet_lite0", 128, 32))


class Ready:
    """Images that lie in memory, so that what is timed is the step alone."""

    def __init__(self, count: int, size: int, labels: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, size, size, generator=generator)
        self.labels = labels

    def prepare(self, rows, view):  # noqa: ARG002
        return None

    def load(self, rows, view=None):  # noqa: ARG002
        targets = torch.tensor([[float(row % 2)] * self.labels for row in rows])
        present = torch.ones(len(rows), 1, dtype=torch.bool)
        return {
            "features": {"image": self.images[rows]},
            "present": present,
            "targets": targets,
            "rows": torch.tensor(rows),
        }


def network(name: str, size: int, frozen: int, engine: Engine) -> tuple[mt.Backbone, mt.FreezePlan]:
    net = mt.load_backbone(name, seed=0, size=size)
    plan = mt.plan_freeze(
        PlainCounts({"0": 500, "1": 500}, "near"), net, transfer=True, frozen_stages=frozen
    )
    plan = replace(plan, norm_policy="train", views=0, cache_cut="")
    engine.place(net).freeze(frozen, plan.norm_policy)
    return net, plan


def in_turns(works: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each, one after the other in every round, so that a busy moment hits all
    alike.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            begun = time.perf_counter()
            told = work()  # a study tells its own time
            times[name].append(told if isinstance(told, float) else time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def epoch_of(
    net: mt.Backbone, plan: mt.FreezePlan, engine: Engine, loader: Loader
) -> Callable[[], object]:
    """One epoch of the trainer: everything but the score on the tune part."""
    task = mt.Classification(("y",))
    head = task.make_head(net).to(engine.device)
    trainer = Trainer(Model(net, head, task, engine), plan, 0.05, [10**6])
    progress = Progress([{}], [], 0, math.inf, {})

    def epoch() -> None:
        trainer.run_epoch(loader, progress)
        progress.history.append({})

    return epoch


def bare_epoch(
    net: mt.Backbone, engine: Engine, source: Ready, batch: int, count: int
) -> Callable[[], object]:
    """What anyone would write: forward, loss, backward, AdamW."""
    head = nn.Linear(net.stages[-1].channels, 1).to(engine.device)
    optimiser = torch.optim.AdamW(
        [p for p in [*net.parameters(), *head.parameters()] if p.requires_grad], lr=1e-4
    )
    last = net.names[-1]

    def epoch() -> None:
        net.train()
        for at in range(0, count, batch):
            given = source.load(list(range(at, at + batch)))
            optimiser.zero_grad()
            with engine.autocast():
                features = net(engine.move(given["features"]), [last])[last]
            logits = head(features.float().mean((2, 3)))
            nn.functional.binary_cross_entropy_with_logits(
                logits, given["targets"].to(engine.device)
            ).backward()
            optimiser.step()

    return epoch


def bench_step() -> None:
    for name, size, batch in NETWORKS:
        probe = mt.load_backbone(name, seed=0, size=size)
        measured = make_engine("auto", "auto", probe, torch.zeros(batch, 3, size, size))
        best = min(measured.seconds.values())
        chosen = measured.seconds[f"{measured.precision} {measured.layout}"]
        print(
            f"{name}, {size} px: chosen {measured.precision} {measured.layout}, "
            f"{chosen / best:.2f} times the fastest candidate's time"
        )
        for candidate, seconds in sorted(measured.seconds.items(), key=lambda item: item[1]):
            print(f"  {candidate}: {seconds * 1e3:.0f} ms")
        for precision in dict.fromkeys((measured.precision, "fp32")):
            engine = Engine(measured.device, precision, measured.layout)
            source, count = Ready(4 * batch, size), 4 * batch
            net, plan = network(name, size, 0, engine)
            bare, _ = network(name, size, 0, engine)
            ours = epoch_of(net, plan, engine, Loader(source, range(count), batch, seed=0))
            times = in_turns({"ours": ours, "bare": bare_epoch(bare, engine, source, batch, count)})
            ratio = times["bare"] / times["ours"]
            print(
                f"  {precision}: our step has {ratio:.2f} times the throughput of the bare one "
                f"({times['ours'] * 250:.0f} ms a step)"
            )


def epoch_seconds(name: str, size: int, batch: int, keeps: bool) -> float:
    """Of all stages, in a process of its own, as what malloc does is settled once."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bench_engine import *\n"
        "from medtransfer.training.process import keep_freed_memory\n"
        "if sys.argv[5] == 'True': keep_freed_memory()\n"
        "engine, (name, size, batch) = make_engine('cpu', 'fp32'), (sys.argv[2], "
        "int(sys.argv[3]), int(sys.argv[4]))\n"
        "net, plan = network(name, size, 0, engine)\n"
        "epoch = epoch_of(net, plan, engine, Loader(Ready(2 * batch, size), range(2 * batch), "
        "batch, 0))\n"
        "print(in_turns({'epoch': epoch})['epoch'])"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parent),
        name,
        str(size),
        str(batch),
        str(keeps),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def bench_freed() -> None:
    for name, size, batch in NETWORKS:
        pairs = [
            (epoch_seconds(name, size, batch, True), epoch_seconds(name, size, batch, False))
            for _ in range(3)
        ]
        kept, returned = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name}, {size} px, steps of {batch}: with freed memory kept {returned / kept:.2f} "
            "times as fast as glibc's default"
        )


def bench_prefix() -> None:
    """Epochs from kept activations against epochs of the whole network, and the share of operations
    left.
    """
    for name, size, batch in NETWORKS:
        net = mt.load_backbone(name, seed=0, size=size)
        costs = measure_stages(net, size)
        cuts = [7] if name == "resnet18" else [len(costs) - 3, len(costs) - 2]
        for precision in ("fp32", "bf16"):
            engine = Engine(torch.device("cpu"), precision, "channels_last")
            source, count = Ready(4 * batch, size), 4 * batch
            whole, whole_plan = network(name, size, 0, engine)
            works = {
                "whole": epoch_of(
                    whole, whole_plan, engine, Loader(source, range(count), batch, seed=0)
                )
            }
            with tempfile.TemporaryDirectory() as folder:
                for frozen in cuts:
                    net, plan = network(name, size, frozen, engine)
                    kept = FeatureSource(
                        net,
                        source,
                        net.names[frozen - 1],
                        [net.names[-1]],
                        engine,
                        Store(Path(folder), count),
                    )
                    works[str(frozen)] = epoch_of(
                        net, plan, engine, Loader(kept, range(count), batch, seed=0, views=1)
                    )
                times = in_turns(works)
            for frozen in cuts:
                ceiling = 1 / (1 - sum(cost.share for cost in costs[:frozen]))
                gain = times["whole"] / times[str(frozen)]
                print(
                    f"{name}, {size} px, {precision}, cut behind {costs[frozen - 1].name}: "
                    f"{gain:.2f} times as fast as the whole network, "
                    f"{gain / ceiling:.2f} of the ceiling {ceiling:.1f}"
                )


def bench_memory() -> None:
    """Resident memory while training from kept activations, for 500 and 5,000 images."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_engine as b; "
        "print(b.resident(int(sys.argv[2])))"
    )
    found = {}
    for count in (500, 5000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        found[count] = float(done.stdout)
    print(
        f"resident memory: {found[500]:.0f} MiB with 500 images, {found[5000]:.0f} MiB with 5,000 "
        f"({found[5000] / found[500]:.2f} times)"
    )


class Drawn(Ready):
    """Images that are made when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size, self.labels = size, 1

    def load(self, rows, view=None):
        self.images = torch.zeros(len(rows), 3, self.size, self.size)
        return {**super().load(list(range(len(rows))), view), "rows": torch.tensor(rows)}


def resident(count: int) -> float:
    """MiB held at the end of an epoch and a prediction."""
    use_threads()
    engine = Engine(torch.device("cpu"), "fp32", "channels_last")
    net, plan = network("tf_efficientnet_lite0", 96, 12, engine)
    with tempfile.TemporaryDirectory() as folder:
        kept = FeatureSource(
            net, Drawn(96), net.names[11], [net.names[-1]], engine, Store(Path(folder), count)
        )
        epoch_of(net, plan, engine, Loader(kept, range(count), 32, seed=0, views=1))()
        return psutil.Process().memory_info().rss / 2**20


LITE = {
    "imagenet": {"backbone": "tf_efficientnet_lite0", "weights": "imagenet"},
    "scratch": {"backbone": "tf_efficientnet_lite0"},
}
RESNET = {"one": {"backbone": "resnet18"}, "two": {"backbone": "resnet18", "pooling": "max"}}


def study(
    folder: Path, patients: int, jobs: int, threads: int, epochs: int = 6, arms: Any = None
) -> float:
    """Seconds of the runs of a study, of lite0 where no other arms are given; images are in the
    cache.
    """
    cohort = folder / f"cohort-{patients}"
    if not cohort.exists():
        mt.write_phantom(cohort, patients)
    values = {
        "cohort": {
            "manifest": str(cohort / "manifest.csv"),
            "root": str(cohort),
            "labels": ["malignant"],
        },
        "image": {"size": 96},
        "arms": arms or LITE,
        "protocol": {"folds": 4},
        "train": {"epochs": epochs, "precision": "fp32", "layout": "channels_last"},
        "evaluate": {"bootstrap": 100},
    }
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump(values))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [
            sys.executable,
            "-m",
            "medtransfer",
            "compare",
            str(config),
            "--output",
            f"{out}/s",
            "--jobs",
            str(jobs),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
        line = next(line for line in done.stderr.splitlines() if " runs in " in line)
        return float(line.split(" runs in ")[1].split()[0])


def bench_growth() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        seconds = {}
        for patients in (80, 160, 320):
            study(Path(name), patients, 1, 2, 1)  # decodes
            seconds[patients] = study(Path(name), patients, 1, 2)
        slope = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
        shown = ", ".join(f"{patients}: {value:.0f} s" for patients, value in seconds.items())
        print(
            f"runs of a study by patients ({shown}): seconds grow with their number to the power "
            f"{slope:.2f}"
        )


def bench_jobs() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        study(Path(name), 120, 1, 1, 1)
        # Once each, and long enough that the start of the workers does not decide.
        for network, arms, epochs in (
            ("tf_efficientnet_lite0", LITE, 12),
            ("resnet18", RESNET, 12),
        ):
            one, two = (study(Path(name), 120, jobs, 1, epochs, arms) for jobs in (1, 2))
            print(
                f"two jobs, {network}: {one / two:.2f} times as fast as one, a thread each "
                f"({two:.0f} s against {one:.0f} s)",
                flush=True,
            )


BENCHES = {
    "step": bench_step,
    "freed": bench_freed,
    "prefix": bench_prefix,
    "growth": bench_growth,
    "memory": bench_memory,
    "jobs": bench_jobs,
}


def main() -> None:
    use_threads()
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
