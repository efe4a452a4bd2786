"""Regret of freezing policies on 3,200 published runs: four networks, ten MedMNIST sets, five
depths, ten seeds.

Needs the table of these runs (Tubo/MedMNIST-Fine-Tuning-Visualization,
data/all_datasets_summary.csv), as a file named in $MEDTRANSFER_GRID. Regret: points of test AUC,
mean over seeds, below the best of the five depths.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import medtransfer as mt
import numpy as np
import pandas as pd
from medtransfer.models.plan.rules import PlainCounts, cohort_size, family_of

DEPTHS = (0, 20, 40, 60, 100)
NETWORKS = ("resnet18", "densenet121", "swin_tiny_patch4_window7_224", "vit_base_patch16_224")
# Grey ultrasound, X-ray and CT; the others are photographs, microscopy and histology.
FAR = ("breastmnist", "chestmnist", "pneumoniamnist", "organamnist", "organcmnist", "organsmnist")
# Images of every class in the training parts (MedMNIST v2; of the 14 labels of chestmnist the
# positives).
COUNTS = {
    "breastmnist": (147, 399),
    "retinamnist": (486, 128, 206, 194, 66),
    "pneumoniamnist": (1214, 3494),
    "dermamnist": (228, 359, 769, 80, 779, 4693, 99),
    "bloodmnist": (852, 2181, 1085, 2026, 849, 993, 2330, 1643),
    "organcmnist": (1148, 619, 600, 600, 1088, 1170, 2986, 1002, 1022, 1173, 1567),
    "organsmnist": (1148, 630, 614, 721, 1132, 1119, 3464, 741, 803, 2004, 1556),
    "organamnist": (1956, 1390, 1357, 1474, 3963, 3817, 6164, 3919, 3929, 3031, 3561),
    "chestmnist": (
        7996,
        1950,
        9261,
        13914,
        3988,
        4375,
        978,
        3705,
        3263,
        1690,
        1799,
        1158,
        2279,
        144,
    ),
    "pathmnist": (9366, 9509, 10360, 10401, 8006, 12182, 7886, 9401, 12885),
}
# What might be the size of a cohort.
MEASURES: dict[str, Callable[[tuple[int, ...]], float]] = {
    "smallest class": min,
    "harmonic mean": lambda counts: len(counts) / sum(1 / count for count in counts),
    "geometric mean": lambda counts: cohort_size(dict(enumerate(counts))),  # type: ignore[arg-type]
    "median": lambda counts: float(np.median(counts)),
    "mean": lambda counts: sum(counts) / len(counts),
    "all": sum,
}


def read_grid(path: Path) -> pd.DataFrame:
    """Mean test AUC in points, one row per network and set, one column per depth trained from the
    top.
    """
    table = pd.read_csv(path)
    table = table[(table["direction"] == "end") | table["trainable_block_percent"].isin([0, 100])]
    cells = table.pivot_table("test_auc", ["backbone", "dataset"], "trainable_block_percent") * 100
    sizes = table.groupby("dataset")[["n_train", "n_classes"]].first()
    cells["images"] = sizes["n_train"].reindex(cells.index.get_level_values("dataset")).to_numpy()
    cells["classes"] = (
        sizes["n_classes"].reindex(cells.index.get_level_values("dataset")).to_numpy()
    )
    return cells


def nearest_depth(plan: mt.FreezePlan) -> int:
    """The depth of the grid nearest to the share of stages that a plan trains."""
    share = 100 * (plan.kept_stages - plan.frozen_stages) / plan.kept_stages
    return min(DEPTHS, key=lambda depth: abs(depth - share))


def planned() -> Callable[[tuple[str, str], pd.Series], int]:
    """The plan, for the true counts of the classes."""
    networks = {name: mt.load_backbone(name) for name in NETWORKS}

    def choose(cell: tuple[str, str], _: pd.Series) -> int:
        name, dataset = cell
        counts = PlainCounts(
            {str(i): count for i, count in enumerate(COUNTS[dataset])},
            "far" if dataset in FAR else "near",
        )
        return nearest_depth(mt.plan_freeze(counts, networks[name], transfer=True))

    return choose


def threshold(cells: pd.DataFrame, measure: str) -> Callable[[tuple[str, str], pd.Series], int]:
    """One depth below a size and one above, both and the border chosen on the nine other sets, for
    all networks of a family.
    """
    size = {dataset: MEASURES[measure](counts) for dataset, counts in COUNTS.items()}
    family = {name: family_of(mt.load_backbone(name)) for name in NETWORKS}
    members = {
        name: [other for other in NETWORKS if family[other] == family[name]] for name in NETWORKS
    }

    def cost(names: list[str], datasets: list[str], low: int, high: int, border: float) -> float:
        rows = [
            (cells.loc[name, dataset], high if size[dataset] >= border else low)
            for name in names
            for dataset in datasets
        ]
        return float(sum(row[list(DEPTHS)].max() - row[depth] for row, depth in rows))

    @cache
    def chosen(name: str, left_out: str) -> tuple[int, int, float]:
        others = [dataset for dataset in COUNTS if dataset != left_out]
        ordered = sorted(size[dataset] for dataset in others)
        borders = [0.0, *(math.sqrt(a * b) for a, b in pairwise(ordered)), math.inf]
        options = [
            (low, high, border)
            for low in DEPTHS[1:]
            for high in DEPTHS[2:]
            if high >= low
            for border in borders
        ]
        return min(options, key=lambda option: cost(members[name], others, *option))

    def choose(cell: tuple[str, str], _: pd.Series) -> int:
        name, dataset = cell
        low, high, border = chosen(name, dataset)
        return high if size[dataset] >= border else low

    return choose


def folk(_: tuple[str, str], row: pd.Series) -> int:
    """Freeze when small."""
    return (
        0
        if row["images"] < 1000
        else 20
        if row["images"] < 5000
        else 40
        if row["images"] < 20_000
        else 100
    )


def left_out(cells: pd.DataFrame) -> Callable[[tuple[str, str], pd.Series], int]:
    """Per network, the best depth of the nine other sets."""

    def choose(cell: tuple[str, str], _: pd.Series) -> int:
        name, dataset = cell
        return int(cells.loc[name].drop(dataset)[list(DEPTHS)].mean().idxmax())

    return choose


def regrets(cells: pd.DataFrame, choose: Callable[[tuple[str, str], pd.Series], int]) -> np.ndarray:
    """Points of AUC below the best depth, per cell."""
    return np.array(
        [row[list(DEPTHS)].max() - row[choose(cell, row)] for cell, row in cells.iterrows()]
    )


def main() -> None:
    path = Path(
        os.environ.get(
            "MEDTRANSFER_GRID", Path(__file__).parents[3] / "shared" / "evidence" / "depth_grid.csv"
        )
    )
    if not path.is_file():
        print(f"bench_plan_grid: skipped, {path} is not here (set MEDTRANSFER_GRID)")
        return
    cells = read_grid(path)
    policies = {
        "planned": planned(),
        **{
            f"border chosen on the other sets, size: {measure}": threshold(cells, measure)
            for measure in MEASURES
        },
        "best of the other sets, per network": left_out(cells),
        "folk rule": folk,
        **{
            f"always {name}": lambda _c, _r, d=depth: d
            for depth, name in zip(DEPTHS, ("probe", "20", "40", "60", "full"), strict=True)
        },
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
