"""A whole small study against a plain script for the same number of updates.

The script is written the usual way with MONAI: files decoded in every epoch, transforms image by
image, float32, `requires_grad = False` for the frozen stages, a validation pass in every epoch,
nothing kept. Both freeze by hand through the same stage. Usage: bench_study.py [resnet18]
[tf_efficientnet_lite0].

ResNet-18 has no weights in the package index, so both sides train it from the same random ones: its
seconds are measured, its AUC means nothing. EfficientNet-lite0 has its ImageNet weights on both
sides.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import medtransfer as mt
import numpy as np
import torch
from medtransfer.config.study_config import make_config
from medtransfer.study import run as runs
from medtransfer.study import settle as prepare
from medtransfer.study.study import run_study
from medtransfer.training.process import use_threads
from monai.data import DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RepeatChanneld,
    Resized,
    ScaleIntensityRangePercentilesd,
)
from sklearn.metrics import roc_auc_score
from torch import nn

PATIENTS, FOLDS, EPOCHS, BATCH = 150, 2, 20, 16
# Pixels, and the stages frozen by hand: of ResNet-18 through layer3, of EfficientNet-lite0 all but
# the last seven.
NETWORKS = {"resnet18": (224, 7), "tf_efficientnet_lite0": (128, 11)}


def transforms(size: int, recipe: mt.Recipe | Any, training: bool) -> Compose:
    steps = [
        LoadImaged("image", reader="PydicomReader", ensure_channel_first=False),
        EnsureChannelFirstd("image", channel_dim="no_channel"),
        Resized("image", (size, size)),
        ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True),
    ]
    if training:
        steps += [
            RandFlipd("image", 0.5, 1),
            RandAffined(
                "image",
                prob=0.9,
                rotate_range=0.26,
                scale_range=(0.15, 0.15),
                translate_range=(10, 10),
                padding_mode="border",
            ),
            RandAdjustContrastd("image", 0.5, (0.75, 1.35)),
        ]
    steps += [
        RepeatChanneld("image", 3),
        NormalizeIntensityd("image", recipe.mean, recipe.std, channel_wise=True),
    ]
    return Compose(steps)


def plain_run(
    cohort: mt.Cohort, fold: Any, net: mt.Backbone, size: int, frozen: int, steps: int
) -> float:
    """Trains as most scripts do; the AUC of the test images."""
    table = cohort.images
    items = [
        {"image": path, "target": float(value)}
        for path, value in zip(table["path"], table["malignant"], strict=True)
    ]
    loaders = {}
    for part in ("train", "tune", "test"):
        data = Dataset(
            [items[row] for row in getattr(fold, part)],
            transforms(size, net.recipe, part == "train"),
        )
        loaders[part] = DataLoader(
            data,
            batch_size=BATCH,
            shuffle=part == "train",
            drop_last=part == "train",
            num_workers=0,
        )
    for index in range(frozen):
        for parameter in net.stage_parameters(index):
            parameter.requires_grad = False
    head, last = nn.Linear(net.stages[-1].channels, 1), net.names[-1]
    optimiser = torch.optim.AdamW(
        [p for p in [*net.parameters(), *head.parameters()] if p.requires_grad], lr=3e-4
    )
    loss = nn.BCEWithLogitsLoss()

    def score(part: str) -> float:
        net.eval()
        with torch.no_grad():
            pairs = [
                (
                    head(net({"image": b["image"].as_tensor()}, [last])[last].mean((2, 3))),
                    b["target"],
                )
                for b in loaders[part]
            ]
        return float(
            roc_auc_score(torch.cat([t for _, t in pairs]), torch.cat([z for z, _ in pairs])[:, 0])
        )

    done, best, state = 0, -1.0, None
    while done < steps:
        net.train()
        for batch in loaders["train"]:
            if done == steps:
                break
            optimiser.zero_grad()
            logits = head(net({"image": batch["image"].as_tensor()}, [last])[last].mean((2, 3)))[
                :, 0
            ]
            loss(logits, batch["target"].float()).backward()
            optimiser.step()
            done += 1
        if (now := score("tune")) > best:
            best, state = (
                now,
                {
                    key: value.clone()
                    for key, value in [
                        *net.state_dict().items(),
                        *head.state_dict(prefix="head.").items(),
                    ]
                },
            )
    net.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    head.load_state_dict(
        {
            key.removeprefix("head."): value
            for key, value in state.items()
            if key.startswith("head.")
        }
    )
    return score("test")


def load(backbone: str, weights: str | None, size: int) -> mt.Backbone:
    """With its weights; of ResNet-18 random ones, which pass for trained."""
    if weights is None or backbone != "resnet18":
        return mt.load_backbone(backbone, weights, size=size)
    net = mt.load_backbone(backbone, None, size=size)
    net.weights = replace(
        net.weights,
        source="imagenet",
        proof={"passed": True, "sentence": "random weights, for timing alone"},
    )
    return net


def compare(name: str, folder: Path) -> None:
    size, frozen = NETWORKS[name]
    manifest = folder / "cohort" / "manifest.csv"
    config = make_config(
        {
            "cohort": {
                "manifest": str(manifest),
                "root": str(manifest.parent),
                "labels": ["malignant"],
            },
            "image": {"size": size, "window": "percentile"},
            "arms": {
                "imagenet": {
                    "backbone": name,
                    "weights": "imagenet",
                    "plan": {"frozen_stages": frozen},
                },
                "scratch": {"backbone": name, "weights": None},
            },
            "protocol": {"folds": FOLDS},
            "train": {"epochs": EPOCHS, "batch_size": BATCH},
        }
    )
    for module in (prepare, runs):
        module.load_arm = lambda arm, size, seed: load(arm.backbone, arm.weights, size)
    begun = time.perf_counter()
    report = run_study(config, folder / name, quiet=True)
    whole = time.perf_counter() - begun
    assert report is not None
    ours = dict.fromkeys(config.arms, 0.0)
    updates = {}
    for path in (folder / name).glob("runs/*/*/*/run.json"):
        run = json.loads(path.read_text())
        ours[run["arm"]] += run["wall_seconds"]
        updates[run["arm"], run["fold"]] = run["budget"]["steps"]
    cohort = mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])
    split = mt.split_cohort(cohort, FOLDS)
    plain, aucs = dict.fromkeys(config.arms, 0.0), {arm: [] for arm in config.arms}
    for index in range(FOLDS):
        for arm in config.arms:
            begun = time.perf_counter()
            net = load(name, config.arms[arm].weights, size)
            aucs[arm].append(
                plain_run(
                    cohort,
                    split.fold(index),
                    net,
                    size,
                    frozen if arm == "imagenet" else 0,
                    updates[arm, index],
                )
            )
            plain[arm] += time.perf_counter() - begun
    for arm in config.arms:
        print(
            f"{name}, {arm}: {plain[arm] / ours[arm]:.1f} times the plain script's speed "
            f"({ours[arm]:.0f} s against {plain[arm]:.0f} s)"
        )
    print(
        f"{name}, whole study: {sum(plain.values()) / whole:.1f} times ({whole:.0f} s, with "
        "decoding, audit and report, against "
        f"{sum(plain.values()):.0f} s without)"
    )
    found = {arm: report.data["arms"][arm]["auc"]["estimate"] for arm in config.arms}
    print(
        f"  AUC of imagenet: {found['imagenet']:.3f} against {np.mean(aucs['imagenet']):.3f}",
        flush=True,
    )


def main() -> None:
    use_threads()
    for name in sys.argv[1:] or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MEDTRANSFER_CACHE"] = f"{folder}/cache"
            mt.write_phantom(Path(folder) / "cohort", PATIENTS)
            compare(name, Path(folder))


if __name__ == "__main__":
    main()
