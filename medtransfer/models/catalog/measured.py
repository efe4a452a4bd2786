"""What a backbone costs: measured on this machine, or looked up in the table that was measured
before.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from medtransfer.models.catalog.catalog import list_backbones, load_backbone
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.weights.inflation import NAMES
from medtransfer.models.weights.locate import is_here, published_recipe, sources_of

Speed = Literal["fast", "medium", "slow"]
TABLE = Path(__file__).with_name("measured.csv")
# A training step against that of ResNet-18 on images of 224 pixels, in the same minute.
BASELINE = "resnet18"
_CLASSES: tuple[tuple[float, Speed], ...] = ((0.5, "fast"), (0.15, "medium"), (0.0, "slow"))
_BATCH = 4
_ROUNDS = 3
_SLICES = 24


@dataclass(frozen=True)
class Cost:
    """What training a backbone costs, at the size of image it was made for.

    Attributes:
        parameters: in millions, without a classifier.
        stages: of the chain.
        exact: whether the chain is exact; otherwise it is one stage.
        size: side of the image in pixels; of volumes of 24 slices.
        memory: GB to train all of it on 32 images in float32 with AdamW (8 for volumes): weights,
            gradients, both moments, and the activations kept for the backward pass.
        speed: images per second in training, as a multiple of ResNet-18's.
    """

    parameters: float
    stages: int
    exact: bool
    size: int
    memory: float
    speed: float

    @property
    def speed_class(self) -> Speed:
        """fast from half of ResNet-18's speed, medium from 0.15 of it, else slow."""
        return next(name for least, name in _CLASSES if self.speed >= least)


def describe_backbones(pattern: str = "*", measure: bool = False) -> Iterator[dict[str, Any]]:
    """One description per architecture that matches.

    Args:
        pattern: as for file names.
        measure: on this machine, now, in place of the table.

    Yields:
        `name`, `ndim`, `parameters` (millions), `stages`, `exact`, `input_size`, `memory_gb`,
        `relative_speed`, `speed` (these None where never measured), `weights` (published sources)
        and `offline` (those usable without a network).
    """
    for name in list_backbones(pattern):
        cost = measure_backbone(name) if measure else read_table().get(name)
        sources = sources_of(name)
        yield {
            "name": name,
            "ndim": 3 if name in NAMES else 2,
            "parameters": cost.parameters if cost else None,
            "stages": cost.stages if cost else None,
            "exact": cost.exact if cost else None,
            "input_size": cost.size if cost else published_recipe(name).size,
            "memory_gb": cost.memory if cost else None,
            "relative_speed": cost.speed if cost else None,
            "speed": cost.speed_class if cost else None,
            "weights": sources,
            "offline": [source for source in sources if is_here(name, source)],
        }


@cache
def read_table() -> dict[str, Cost]:
    """The costs measured before, by name; see tests/benchmarks/bench_catalog.py."""
    if not TABLE.is_file():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return {
            row["name"]: Cost(
                float(row["parameters"]),
                int(row["stages"]),
                row["exact"] == "True",
                int(row["size"]),
                float(row["memory"]),
                float(row["speed"]),
            )
            for row in csv.DictReader(stream)
        }


def write_table(costs: dict[str, Cost]) -> None:
    """Writes the table, sorted by name."""
    with TABLE.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["name", *Cost.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"name": name, **asdict(costs[name])} for name in sorted(costs))


def measure_backbone(name: str) -> Cost:
    """Measures an architecture with random weights, against ResNet-18 in the same minute."""
    backbone = load_backbone(name)
    baseline = load_backbone(BASELINE)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    batch = 8 if backbone.ndim == 3 else 32
    # In turn, and the best of each: what else the machine does meets both.
    rounds = [[_seconds_per_image(net) for net in (baseline, backbone)] for _ in range(_ROUNDS)]
    known, found = (min(times) for times in zip(*rounds, strict=True))
    return Cost(
        parameters=round(parameters / 1e6, 2),
        stages=len(backbone.stages),
        exact=backbone.exact,
        size=backbone.recipe.size,
        memory=round((16 * parameters + batch * _kept_bytes(backbone)) / 1e9, 2),
        speed=round(known / found, 3),
    )


def _image(backbone: Backbone, batch: int) -> torch.Tensor:
    side = backbone.recipe.size
    space = (side, side) if backbone.ndim == 2 else (_SLICES, side, side)
    return torch.randn(
        batch, len(backbone.recipe.mean), *space, generator=torch.Generator().manual_seed(0)
    )


def _kept_bytes(backbone: Backbone) -> float:
    """Bytes that one image's forward pass keeps for the backward pass, of which the parameters are
    none.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    last = backbone.names[-1]
    backbone.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = backbone({"image": _image(backbone, 2)}, [last])[last]
        del out
    return sum(kept.values()) / 2


def _seconds_per_image(backbone: Backbone) -> float:
    """Of one training step."""
    backbone.train()
    last = backbone.names[-1]
    image = _image(backbone, _BATCH)
    begun = time.perf_counter()
    backbone({"image": image}, [last])[last].float().mean().backward()
    seconds = (time.perf_counter() - begun) / _BATCH
    backbone.zero_grad(set_to_none=True)
    return seconds
