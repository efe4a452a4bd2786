"""Whether training from scratch is trained as well as it can be. Usage: bench_scratch.py averages |
rates | yardstick [COHORT ...].

averages: BreastMNIST, 128 training images of 64 pixels, five seeds: the product against the same
training whose raw weights alone are candidates, and whose epoch is that of the lowest tune loss.
rates: inner folds of BUSI and the phantom, one training per family and learning rate. yardstick:
the product against a plain script (logistic regression on the last layer, full fine-tuning,
training from scratch, each with its best of three rates by tune loss), on busi, breastmnist and
phantom.

BUSI and BreastMNIST are at $MEDTRANSFER_DATA; without them these are skipped.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import medtransfer as mt
import numpy as np
import torch
from medtransfer.data.cohort.split import Fold
from medtransfer.data.grid.fixed import Fixed
from medtransfer.evaluation.metrics.recalibration import fit_map, log_losses
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import loop
from medtransfer.training.probe import inner_folds
from medtransfer.training.trainer import Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

DATA = Path(os.environ.get("MEDTRANSFER_DATA", Path(__file__).parents[3] / "shared" / "data"))
BACKBONE, PIXELS, BATCH = "tf_efficientnet_lite0", 64, 16
RATES = {
    "tf_efficientnet_lite0": (1e-3, 3e-3, 6e-3),
    "resnet18": (3e-4, 1e-3, 3e-3),
    "densenet121": (3e-4, 1e-3, 3e-3),
    "convnext_atto": (3e-4, 1e-3, 3e-3),
    "vit_tiny_patch16_224": (1e-4, 3e-4, 1e-3),
    "swin_tiny_patch4_window7_224": (1e-4, 3e-4, 1e-3),
}
PLAIN_RATES = {"fine-tuning": (1e-4, 3e-4, 1e-3), "scratch": (3e-4, 1e-3, 3e-3)}


@dataclass
class Images:
    """A cohort, its pixels in memory, and the rows that train, choose and test."""

    cohort: mt.Cohort
    pixels: torch.Tensor
    fold: Fold

    @property
    def label(self) -> np.ndarray:
        return self.cohort.images[self.cohort.labels[0]].to_numpy(int)


def open_cohort(name: str, folder: Path, few: bool = False) -> Images | None:
    """One of the three, with one split; `few`: of BreastMNIST 128 training images."""
    if name == "phantom":
        path = mt.write_phantom(folder / "phantom", patients=150, seed=5)
        cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    elif not (DATA / {"busi": "busi", "breastmnist": "medmnist/breastmnist.npz"}[name]).exists():
        return print(
            f"bench_scratch: {name} skipped, {DATA} does not hold it (set MEDTRANSFER_DATA)"
        )
    elif name == "busi":
        cohort = mt.Cohort.from_folders(DATA / "busi", ("benign", "malignant"), "malignant")
    else:
        cohort = mt.Cohort.from_medmnist(DATA / "medmnist" / "breastmnist.npz")
    facts = mt.inspect_images(cohort, fixed=Fixed(PIXELS))
    if name == "busi":
        cohort = cohort.grouped(mt.audit(cohort, facts, group="cluster").near_duplicates)
    fold = mt.split_cohort(cohort, 5).fold(0)
    if few:
        label, rng = (
            cohort.images[cohort.labels[0]].to_numpy(int)[fold.train],
            np.random.default_rng(0),
        )
        chosen = [
            rng.permutation(fold.train[label == value])[:count]
            for value, count in ((1, 38), (0, 90))
        ]
        fold = replace(fold, train=np.sort(np.concatenate(chosen)))
    pixels = [
        torch.from_numpy(np.load(entry).astype(np.float32)).expand(3, -1, -1)
        for entry in facts["entry"]
    ]
    return Images(cohort, torch.stack(pixels) * 2 - 1, fold)


def product(
    images: Images,
    weights: str | None,
    seed: int,
    epochs: int,
    folder: Path,
    level: bool,
    backbone: str = BACKBONE,
) -> tuple[float, float, float]:
    """Test AUC, tune log-loss at the best temperature, and seconds of one run of the product."""
    fold, label = images.fold, images.label
    net = mt.load_backbone(backbone, weights, seed=seed)
    counts = PlainCounts(
        {str(value): int((label[fold.train] == value).sum()) for value in (0, 1)}, "far"
    )
    plan = replace(mt.plan_freeze(counts, net, batch=BATCH), level=level)
    begun = time.perf_counter()
    section = mt.TrainSettings(epochs=epochs, batch_size=BATCH, device="cpu", precision="fp32")
    run = mt.fit(
        images.cohort,
        fold,
        mt.Classification(images.cohort.labels),
        net,
        plan,
        folder,
        seed=seed,
        image=mt.ImageSettings(size=PIXELS),
        train=section,
    )
    return *scores(run.predictions), time.perf_counter() - begun


def scores(table) -> tuple[float, float]:
    test, tune = (table[table["part"] == part] for part in ("test", "tune"))
    return float(roc_auc_score(test["target"], test["logit"])), tempered(
        tune["logit"].to_numpy(), tune["target"].to_numpy()
    )


def tempered(logit: np.ndarray, label: np.ndarray) -> float:
    return float(log_losses(fit_map("temperature", logit, label).apply(logit), label).mean())


def averages(folder: Path) -> None:
    images = open_cohort("breastmnist", folder, few=True)
    if images is None:
        return
    for name, weights, epochs in (
        ("scratch", None, 8),
        ("scratch", None, 24),
        (BACKBONE, "imagenet", 8),
    ):
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(5):
            raw = mock.patch.multiple(
                Trainer, candidates=lambda self, _: [(self.backbone, self.head)]
            )
            for kind, patches in (
                ("product", []),
                ("raw weights", [raw, mock.patch.object(loop, "GAIN", -1e9)]),
            ):
                for patch in patches:
                    patch.start()
                found.setdefault(kind, []).append(
                    product(
                        images,
                        weights,
                        seed,
                        epochs,
                        folder / f"{name}-{epochs}-{seed}-{kind}",
                        False,
                    )[:2]
                )
                mock.patch.stopall()
        for kind, values in found.items():
            aucs, losses = zip(*values, strict=True)
            shown = ", ".join(f"{auc:.3f}" for auc in aucs)
            print(
                f"{name}, {8 * epochs} steps, {kind}: AUC {np.mean(aucs):.3f} ({shown}), tune "
                f"log-loss {np.mean(losses):.3f}",
                flush=True,
            )


def rates(folder: Path) -> None:
    for name in ("busi", "phantom"):
        images = open_cohort(name, folder)
        if images is None:
            continue
        rows = np.sort(np.concatenate([images.fold.train, images.fold.tune]))
        groups = np.unique(images.cohort.units.to_numpy()[rows], return_inverse=True)[1]
        folds = list(inner_folds(images.label[rows], groups, 4, 1))[:2]
        for backbone, candidates in RATES.items():
            for rate in candidates:
                found = []
                for seed, (inside, held) in enumerate(folds):
                    inner = replace(images, fold=Fold(0, rows[inside], rows[held], rows[held]))
                    with mock.patch(
                        "medtransfer.models.plan.rules.scratch_rate", return_value=rate
                    ):
                        found.append(
                            product(
                                inner,
                                None,
                                seed,
                                7,
                                folder / f"{name}-{backbone}-{rate}-{seed}",
                                False,
                                backbone,
                            )
                        )
                auc, loss, _ = np.mean(found, axis=0)
                print(
                    f"{name}, {backbone}, {rate:g}: AUC {auc:.3f}, log-loss {loss:.3f}", flush=True
                )


# The plain script: nothing of the product but the network.
def plain(
    images: Images, weights: str | None, rate: float, epochs: int, seed: int
) -> tuple[float, float]:
    torch.manual_seed(seed)
    net = mt.load_backbone(BACKBONE, weights, seed=seed)
    model = torch.nn.Sequential(net.network, torch.nn.Flatten(), torch.nn.LazyLinear(1))
    train, tune, test = images.fold.train, images.fold.tune, images.fold.test
    x, y = images.pixels, torch.from_numpy(images.label).float()
    model.eval()(x[train[:2]])
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    best, kept = np.inf, None
    for _ in range(epochs):
        model.train()
        for rows in torch.from_numpy(np.random.default_rng(seed).permutation(train)).split(BATCH):
            batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, x[rows], x[rows].flip(3))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch)[:, 0], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss = tempered(predict(model, x[tune]), images.label[tune])
        if loss < best:
            best, kept = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best, float(roc_auc_score(images.label[test], predict(model, x[test])))


@torch.inference_mode()
def predict(model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    model.eval()
    return torch.cat([model(part)[:, 0] for part in x.split(32)]).double().numpy()


def logistic(images: Images) -> float:
    net = mt.load_backbone(BACKBONE, "imagenet").eval()
    with torch.inference_mode():
        features = torch.cat(
            [net.network(part).flatten(1) for part in images.pixels.split(32)]
        ).numpy()
    train, test = images.fold.train, images.fold.test
    scale = StandardScaler().fit(features[train])
    model = LogisticRegression(C=1e-2, max_iter=1000).fit(
        scale.transform(features[train]), images.label[train]
    )
    return float(
        roc_auc_score(images.label[test], model.decision_function(scale.transform(features[test])))
    )


def yardstick(folder: Path, names: list[str], epochs: int = 12) -> None:
    for name in names or ["busi", "breastmnist", "phantom"]:
        images = open_cohort(name, folder)
        if images is None:
            continue
        label = images.label[images.fold.test]
        positives, negatives = label.sum(), len(label) - label.sum()
        print(
            f"{name}: {len(images.fold.train)} training images, {positives} of {len(label)} test "
            "images positive",
            flush=True,
        )
        print(
            f"  plain logistic regression on the last layer: AUC {logistic(images):.3f}", flush=True
        )
        for kind, weights in (("fine-tuning", "imagenet"), ("scratch", None)):
            begun = time.perf_counter()
            auc = min(plain(images, weights, rate, epochs, 0) for rate in PLAIN_RATES[kind])[1]
            seconds = time.perf_counter() - begun
            # Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747
            q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
            error = np.sqrt(
                (
                    auc * (1 - auc)
                    + (positives - 1) * (q1 - auc**2)
                    + (negatives - 1) * (q2 - auc**2)
                )
                / (positives * negatives)
            )
            ours, _, spent = product(
                images, weights, 0, epochs, folder / f"{name}-{kind}", level=weights is None
            )
            print(
                f"  {kind}: plain AUC {auc:.3f} (SE {error:.3f}, best of three rates, "
                f"{seconds:.0f} s), product {ours:.3f} ({spent:.0f} s)",
                flush=True,
            )


def main() -> None:
    kind, *names = sys.argv[1:] or ["averages"]
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        if kind == "yardstick":
            yardstick(Path(name), names)
        else:
            {"averages": averages, "rates": rates}[kind](Path(name))


if __name__ == "__main__":
    main()
