"""Regret of freezing policies on 3,200 published runs: four networks, ten MedMNIST sets, five depths, ten seeds.

Needs the table of these runs (Tubo/MedMNIST-Fine-Tuning-Visualization, data/all_datasets_summary.csv), as a file named
in $MEDTRANSFER_GRID. Regret: points of test AUC, mean over seeds, below the best of the five depths.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import medtransfer as mt
import numpy as np
import pandas as pd
from medtransfer.models.freeze import PlainCounts

DEPTHS = (0, 20, 40, 60, 100)
NETWORKS = ("resnet18", "densenet121", "swin_tiny_patch4_window7_224", "vit_base_patch16_224")
# Grey ultrasound, X-ray and CT; the others are photographs, microscopy and histology.
FAR = ("breastmnist", "chestmnist", "pneumoniamnist", "organamnist", "organcmnist", "organsmnist")
# Of breastmnist the count is known; of the others the mean of the classes, which the smallest cannot exceed.
SMALLEST = {"breastmnist": 147}


def read_grid(path: Path) -> pd.DataFrame:
    """Mean test AUC in points, one row per network and set, one column per depth trained from the top."""
    table = pd.read_csv(path)
    table = table[(table["direction"] == "end") | table["trainable_block_percent"].isin([0, 100])]
    cells = table.pivot_table("test_auc", ["backbone", "dataset"], "trainable_block_percent") * 100
    sizes = table.groupby("dataset")[["n_train", "n_classes"]].first()
    cells["images"] = sizes["n_train"].reindex(cells.index.get_level_values("dataset")).to_numpy()
    cells["classes"] = sizes["n_classes"].reindex(cells.index.get_level_values("dataset")).to_numpy()
    return cells


def nearest_depth(plan: mt.FreezePlan) -> int:
    """The depth of the grid nearest to the share of stages that a plan trains."""
    share = 100 * (plan.kept_stages - plan.frozen_stages) / plan.kept_stages
    return min(DEPTHS, key=lambda depth: abs(depth - share))


def planned(shrink: float = 1.0) -> Callable[[tuple[str, str], pd.Series], int]:
    """The plan; `shrink` takes the smallest class as that share of the mean one."""
    networks = {name: mt.load_backbone(name) for name in NETWORKS}

    def choose(cell: tuple[str, str], row: pd.Series) -> int:
        name, dataset = cell
        units = max(1, round(shrink * SMALLEST.get(dataset, row["images"] / row["classes"])))
        counts = PlainCounts({"0": units, "1": max(units, int(row["images"]) - units)}, "far" if dataset in FAR else "near")
        return nearest_depth(mt.plan_freeze(counts, networks[name], transfer=True))

    return choose


def folk(_: tuple[str, str], row: pd.Series) -> int:
    """Freeze when small."""
    return 0 if row["images"] < 1000 else 20 if row["images"] < 5000 else 40 if row["images"] < 20_000 else 100


def left_out(cells: pd.DataFrame) -> Callable[[tuple[str, str], pd.Series], int]:
    """Per network, the best depth of the nine other sets."""

    def choose(cell: tuple[str, str], _: pd.Series) -> int:
        name, dataset = cell
        return int(cells.loc[name].drop(dataset)[list(DEPTHS)].mean().idxmax())

    return choose


def regrets(cells: pd.DataFrame, choose: Callable[[tuple[str, str], pd.Series], int]) -> np.ndarray:
    """Points of AUC below the best depth, per cell."""
    return np.array([row[list(DEPTHS)].max() - row[choose(cell, row)] for cell, row in cells.iterrows()])


def main() -> None:
    path = Path(os.environ.get("MEDTRANSFER_GRID", Path(__file__).parents[3] / "shared" / "evidence" / "depth_grid.csv"))
    if not path.is_file():
        print(f"bench_plan_grid: skipped, {path} is not here (set MEDTRANSFER_GRID)")
        return
    cells = read_grid(path)
    policies = {
        "planned": planned(),
        "planned, were the smallest class half the mean one": planned(0.5),
        "planned, were it a quarter": planned(0.25),
        "best of the other sets, per network": left_out(cells),
        "folk rule": folk,
        **{f"always {name}": lambda _c, _r, d=depth: d for depth, name in zip(DEPTHS, ("probe", "20", "40", "60", "full"), strict=True)},
    }
    print(f"{len(cells)} cells; regret in points of AUC: mean, largest")
    for name, choose in policies.items():
        found = regrets(cells, choose)
        print(f"{name:<52} {found.mean():6.2f} {found.max():6.2f}")
    found = regrets(cells, planned())
    print(
        "planned, by set left out of the mean: "
        + ", ".join(
            f"{dataset} {found[cells.index.get_level_values('dataset') != dataset].mean():.2f}"
            for dataset in dict.fromkeys(cells.index.get_level_values("dataset"))
        )
    )


if __name__ == "__main__":
    main()
