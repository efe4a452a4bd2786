"""On one GPU: our training step against the bare and the bare compiled one, reduced precision
against fp32, and a study trained twice.

Usage: bench_cuda.py [step] [agreement]; both of them where left out. Ratios from one run, in turns.

The bare step is what anyone would write for speed: autocast, channels_last, fused AdamW, cuDNN's
choice by timing, images that lie on the GPU. Ours reads the image cache, makes random changes,
clips gradients, averages weights, and is deterministic.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import medtransfer as mt
import numpy as np
import pandas as pd
import torch
from bench_engine import Ready, epoch_of, in_turns, network
from medtransfer.data.grid.cache import write_entry
from medtransfer.data.grid.fixed import Fixed
from medtransfer.data.grid.source import ImageSource, NetworkInput
from medtransfer.training.batches import Loader
from medtransfer.training.device import Engine
from medtransfer.training.process import training_settings
from sklearn.metrics import roc_auc_score
from torch import nn

NAME, SIZE, STEPS = "resnet50", 224, 40
BATCHES = (32, 128)
DEVICE = "cuda"
PATIENTS, EPOCHS = 240, 8
PRECISIONS = ("fp32", "bf16", "fp16")


def bare(engine: Engine, batch: int, compiled: bool) -> Callable[[], object]:
    """Steps on one batch that lies on the device."""
    net, _ = network(NAME, SIZE, 0, engine)
    net.train()
    whole = nn.ModuleDict({"net": net, "head": nn.Linear(net.stages[-1].channels, 1)}).to(
        engine.device
    )
    optimiser = torch.optim.AdamW(whole.parameters(), lr=1e-4, fused=True)
    given, last = Ready(batch, SIZE).load(list(range(batch))), net.names[-1]
    images, targets = engine.move(given["features"]), given["targets"].to(engine.device)

    def forward(features: dict[str, torch.Tensor]) -> torch.Tensor:
        with engine.autocast():
            return whole["head"](net(features, [last])[last].mean((2, 3)))

    run = torch.compile(forward) if compiled else forward

    def epoch() -> None:
        free(True)
        for _ in range(STEPS):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(run(images).float(), targets).backward()
            optimiser.step()
        wait()

    return epoch


def free(chosen_by_timing: bool) -> None:
    """Whether cuDNN chooses its algorithms by timing, or such as are deterministic."""
    torch.use_deterministic_algorithms(not chosen_by_timing, warn_only=True)
    torch.backends.cudnn.benchmark = chosen_by_timing


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def cached_images(folder: Path, count: int) -> ImageSource:
    """Images in files as the image cache has them."""
    rng, paths = np.random.default_rng(0), []
    for place in range(count):
        paths.append(folder / f"{place}.npy")
        write_entry(paths[-1], rng.random((1, SIZE, SIZE), np.float32))
    targets = (np.arange(count) % 2).astype(np.float32)[:, None]
    return ImageSource(paths, targets, NetworkInput((0.5,) * 3, (0.25,) * 3), device=DEVICE)


def bench_step() -> None:
    with training_settings(DEVICE == "cuda"), tempfile.TemporaryDirectory() as name:
        for batch in BATCHES:
            images = cached_images(Path(name), batch * 4)
            plain = Engine(torch.device(DEVICE), "bf16", "channels_last")
            ready = Ready(batch * 4, SIZE)
            ready.images = ready.images.to(DEVICE)
            loaders, works = (
                {},
                {"bare": bare(plain, batch, False), "bare compiled": bare(plain, batch, True)},
            )
            for label, engine, source in (
                ("ours", plain, images),
                ("ours compiled", replace(plain, compiled=True), images),
                ("ours compiled, images on the GPU", replace(plain, compiled=True), ready),
            ):
                net, plan = network(NAME, SIZE, 0, engine)
                rows = list(range(batch * 4)) * (STEPS // 4)
                loaders[label] = Loader(source, rows, batch, seed=0, ahead=True)
                works[label] = ours(epoch_of(net, plan, engine, loaders[label]))
            times = in_turns(works)
            print(f"{NAME}, {SIZE} px, bf16, batches of {batch}, images per second:")
            for label, seconds in times.items():
                ratio = times["bare compiled"] / seconds
                waited = (
                    f", {share(loaders[label], works[label]):.1%} of the time waiting for data"
                    if label in loaders
                    else ""
                )
                print(
                    f"  {label}: {batch * STEPS / seconds:.0f}, {ratio:.2f} times the bare "
                    f"compiled step's{waited}",
                    flush=True,
                )


def ours(epoch: Callable[[], object]) -> Callable[[], object]:
    def work() -> None:
        free(False)
        epoch()
        wait()

    return work


def share(loader: Loader, work: Callable[[], object]) -> float:
    before, begun = loader.waited, time.perf_counter()
    work()
    return (loader.waited - before) / (time.perf_counter() - begun)


def study(folder: Path, precision: str, name: str) -> Path:
    """Two folds of the phantom, lite0 with ImageNet weights, all stages trained."""
    cohort = mt.Cohort.from_csv(
        folder / "cohort" / "manifest.csv", folder / "cohort", ["malignant"]
    )
    arms = {"imagenet": mt.Arm("tf_efficientnet_lite0", "imagenet", plan={"frozen_stages": 0})}
    settings = {
        "epochs": EPOCHS,
        "precision": precision,
        "layout": "channels_last",
        "device": DEVICE,
    }
    mt.compare(
        cohort,
        arms,
        folder / name,
        quiet=True,
        image={"size": 128},
        protocol={"folds": 2},
        train=settings,
    )
    return folder / name


def scores_of(folder: Path) -> pd.DataFrame:
    table = mt.read_predictions(folder / "predictions.csv")
    return table[table["part"] == "test"].set_index("image").sort_index()


def differ(one: pd.DataFrame, two: pd.DataFrame) -> str:
    """In AUC, and of one probability at the most."""
    auc = [roc_auc_score(table["target"], table["logit"]) for table in (one, two)]
    chance = [1 / (1 + np.exp(-table["logit"])) for table in (one, two)]
    return (
        f"AUC {auc[0]:.4f} against {auc[1]:.4f}, a probability by "
        f"{np.abs(chance[0] - chance[1]).max():.4f} at the most"
    )


def again(cohort: mt.Cohort, run: Path, precision: str) -> pd.DataFrame:
    """Logits of the test images of a run from its weights."""
    model = mt.TrainedModel.open(run, DEVICE)
    engine = Engine(torch.device(DEVICE), precision, "channels_last")
    model = replace(model, model=replace(model.model, engine=engine))
    table = mt.read_predictions(run / "predictions.csv")
    tested = table.loc[table["part"] == "test", "image"]
    rows = np.flatnonzero(cohort.images["image"].isin(tested))
    facts = mt.inspect_images(cohort, fixed=Fixed(128, "percentile"))
    targets = cohort.images[["malignant"]].to_numpy(np.float32)[rows]
    logits, truth = model.logits([Path(entry) for entry in facts["entry"].iloc[rows]], targets)
    return pd.DataFrame({"logit": logits[:, 0], "target": truth[:, 0]})


def bench_agreement() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        mt.write_phantom(folder / "cohort", PATIENTS)
        begun = time.perf_counter()
        found = {precision: study(folder, precision, precision) for precision in PRECISIONS}
        print(
            f"{PATIENTS} patients, 2 folds, {EPOCHS} epochs; {time.perf_counter() - begun:.0f} s "
            f"for {len(found)} studies"
        )
        for precision in PRECISIONS[1:]:
            print(
                f"trained in {precision} and in fp32: "
                f"{differ(scores_of(found[precision]), scores_of(found['fp32']))}"
            )
        cohort = mt.Cohort.from_csv(
            folder / "cohort" / "manifest.csv", folder / "cohort", ["malignant"]
        )
        for run in sorted(path.parent for path in found["fp32"].glob("runs/*/*/*/run.json")):
            plain = again(cohort, run, "fp32")
            for precision in PRECISIONS[1:]:
                print(
                    f"the same weights in {precision} and in fp32: "
                    f"{differ(again(cohort, run, precision), plain)}"
                )
        for precision in PRECISIONS[:2]:
            twice = study(folder, precision, f"{precision}-again")
            print(
                f"trained in {precision} twice: "
                f"{differ(scores_of(twice), scores_of(found[precision]))}",
                flush=True,
            )


BENCHES = {"step": bench_step, "agreement": bench_agreement}


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
