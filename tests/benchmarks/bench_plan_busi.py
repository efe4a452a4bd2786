"""The planned strategy against fixed ones on small draws from breast ultrasound: BUSI at
$MEDTRANSFER_DATA/busi.

One test fold is fixed; the others are drawn from, by cluster of near-duplicates. All strategies get
the same draws and the same number of steps. Usage: bench_plan_busi.py [SIZES [REPEATS [STEPS]]],
such as `10,25,50,100,200 4 150`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import medtransfer as mt
import numpy as np
from medtransfer.data.cohort.split import Fold
from medtransfer.data.grid.fixed import Fixed
from medtransfer.models.plan.rules import PlainCounts
from sklearn.metrics import roc_auc_score

BACKBONE, PIXELS, TEST = "tf_efficientnet_lite0", 96, 0
FIXED = {"probe": 0.0, "last 40 %": 0.4, "full": 1.0}


def draw(cohort: mt.Cohort, pool: np.ndarray, test: np.ndarray, size: int, repeat: int) -> Fold:
    """`size` clusters of each class (or all there are), a fifth of them to tune on."""
    rng = np.random.default_rng([size, repeat])
    units, target = cohort.units.to_numpy()[pool], cohort.images["malignant"].to_numpy(int)[pool]
    parts: dict[str, list[int]] = {"train": [], "tune": []}
    for value in (0, 1):
        known = [unit for unit in dict.fromkeys(units) if target[units == unit].max() == value]
        chosen = list(rng.permutation(known))[:size]
        held = max(2, round(0.2 * len(chosen)))
        for name, some in (("tune", chosen[:held]), ("train", chosen[held:])):
            parts[name] += pool[np.isin(units.astype(str), np.array(some, str))].tolist()
    return Fold(TEST, np.sort(parts["train"]), np.sort(parts["tune"]), test)


def plans(net: mt.Backbone, cohort: mt.Cohort, fold: Fold, steps: int) -> dict[str, mt.FreezePlan]:
    """Fixed depths with a head on the last stage, and the plan for the patients of the training
    part.
    """
    table = (
        cohort.images.assign(unit=cohort.units).iloc[fold.train].groupby("unit")["malignant"].max()
    )
    counts = PlainCounts({str(value): int((table == value).sum()) for value in (0, 1)}, "far")
    total = len(net.stages)
    plain = {
        "read": "last",
        "unfreeze": "at_once",
        "l2_sp": 0.0,
        "mix": False,
        "norm_policy": "eval",
        "head_lr": 1e-3,
        "backbone_lr": 3e-4,
    }
    found = {
        name: mt.plan_freeze(
            counts, net, frozen_stages=total - int(np.ceil(share * total)), **plain
        )
        for name, share in FIXED.items()
    }
    found["planned"] = mt.plan_freeze(counts, net)
    # Fields that change at 150 patients a class, on either side of that border.
    few = {"read": "all", "unfreeze": "gradual"}
    many = {"read": "last", "unfreeze": "at_once", "l2_sp": 0.0}
    found |= {
        name: mt.plan_freeze(counts, net, mix=False, **fields)
        for name, fields in (("as of few", few), ("as of many", many))
    }
    return {
        name: plan if plan.strategy == "linear_probe" else replace(plan, steps=steps)
        for name, plan in found.items()
    }


def main() -> None:
    data = (
        Path(os.environ.get("MEDTRANSFER_DATA", Path(__file__).parents[3] / "shared" / "data"))
        / "busi"
    )
    if not data.is_dir():
        print(f"bench_plan_busi: skipped, {data} is not here (set MEDTRANSFER_DATA)")
        return
    arguments = sys.argv[1:] + ["10,25,50,100,200", "4", "150"][len(sys.argv) - 1 :]
    sizes, repeats, steps = (
        [int(size) for size in arguments[0].split(",")],
        int(arguments[1]),
        int(arguments[2]),
    )
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        cohort = mt.Cohort.from_folders(data, ("benign", "malignant"), "malignant")
        facts = mt.inspect_images(cohort, fixed=Fixed(PIXELS))
        cohort = cohort.grouped(mt.audit(cohort, facts, group="cluster").near_duplicates)
        test = mt.split_cohort(cohort, 5).fold(TEST).test
        pool = np.setdiff1d(np.arange(len(cohort)), test)
        gaps: list[float] = []
        for size in sizes:
            aucs: dict[str, list[float]] = {}
            for repeat in range(repeats):
                fold = draw(cohort, pool, test, size, repeat)
                for strategy, plan in plans(
                    mt.load_backbone(BACKBONE, "imagenet"), cohort, fold, steps
                ).items():
                    net, task = (
                        mt.load_backbone(BACKBONE, "imagenet"),
                        mt.Classification(cohort.labels),
                    )
                    section = mt.TrainSettings(batch_size=16, device="cpu", precision="fp32")
                    folder = f"{name}/{size}-{repeat}-{strategy}"
                    run = mt.fit(
                        cohort,
                        fold,
                        task,
                        net,
                        plan,
                        folder,
                        seed=repeat,
                        image=mt.ImageSettings(size=PIXELS),
                        train=section,
                    )
                    rows = run.predictions[run.predictions["part"] == "test"]
                    aucs.setdefault(strategy, []).append(
                        float(roc_auc_score(rows["target"], rows["logit"]))
                    )
            best = max(FIXED, key=lambda strategy: float(np.mean(aucs[strategy])))
            gap = np.array(aucs["planned"]) - np.array(aucs[best])
            error = gap.std(ddof=1) / np.sqrt(repeats)
            gaps += (np.array(aucs["planned"]) - np.array(aucs["full"])).tolist()
            spread = np.std(aucs[best], ddof=1) / np.sqrt(repeats)
            shown = ", ".join(
                f"{strategy} {np.mean(values):.3f}" for strategy, values in aucs.items()
            )
            print(
                f"{size} per class, {repeats} draws: AUC {shown}; planned minus {best}: "
                f"{gap.mean():+.3f}",
                end=" ",
            )
            print(f"(SE paired {error:.3f}, of {best} alone {spread:.3f})", flush=True)
        error = np.std(gaps, ddof=1) / np.sqrt(len(gaps))
        print(f"planned minus full, mean of all: {np.mean(gaps):+.3f} (SE {error:.3f})")


if __name__ == "__main__":
    main()
