"""What each stage of a chain costs: parameters, computation, and the memory of its activation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.chain import run


@dataclass(frozen=True)
class StageCost:
    """One stage, for one image (or one slice of a volume).

    Attributes:
        name: of the stage.
        parameters: numbers in it.
        macs: multiply-accumulate operations of its forward pass.
        share: of the forward pass of the whole chain, 0 to 1.
        bytes: of its activation in float32.
        pooled_bytes: of its activation in float32, pooled over space.
    """

    name: str
    parameters: int
    macs: int
    share: float
    bytes: int
    pooled_bytes: int


# Shapes and operations depend on the architecture alone.
_known: dict[tuple[str, tuple[str, ...], int, int, int], tuple[StageCost, ...]] = {}


def measure_stages(
    backbone: Backbone, size: int | None = None, depth: int = 1
) -> tuple[StageCost, ...]:
    """Runs one empty image through the chain and counts.

    Args:
        backbone: any; left as it is.
        size: side of the image in pixels; left out: that it was built for, or that of the recipe.
        depth: slices of the block that a network of volumes sees.
    """
    size = size or backbone.size or backbone.recipe.size
    key = (backbone.name, tuple(backbone.names), len(backbone.recipe.mean), size, depth)
    if key not in _known:
        _known[key] = _measure(backbone, size, depth)
    return _known[key]


def _measure(backbone: Backbone, size: int, depth: int) -> tuple[StageCost, ...]:
    training = backbone.training
    backbone.eval()
    space = (size, size) if backbone.ndim == 2 else (depth, size, size)
    x = torch.zeros(1, len(backbone.recipe.mean), *space, device=next(backbone.parameters()).device)
    sizes, macs, activations = [], [], []
    for index, stage in enumerate(backbone.stages):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = run(backbone.network, stage.operations, x)
        macs.append(counter.get_total_flops() // 2)
        sizes.append(sum(parameter.numel() for parameter in backbone.stage_parameters(index)))
        activations.append(math.prod(x.shape) * 4)
    backbone.train(training)
    total = max(1, sum(macs))
    rows = zip(backbone.stages, sizes, macs, activations, strict=True)
    return tuple(
        StageCost(stage.name, size, mac, mac / total, size_in_bytes, 4 * stage.channels)
        for stage, size, mac, size_in_bytes in rows
    )
