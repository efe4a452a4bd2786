"""Heads on the activations of a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medtransfer.models.backbone import Layout


def pool(activation: Tensor, layout: Layout) -> Tensor:
    """Mean over space: (batch, ...) -> float32 (batch, channel)."""
    # In float32: a mean over many positions loses digits in bfloat16.
    activation = activation.float()
    if layout == "NLC":
        return activation.mean(1)
    return activation.mean((2, 3) if layout == "NCHW" else (1, 2))


class LinearHead(nn.Module):
    """Mean over space, then one linear layer, both in float32.

    Args:
        tap: name of the activation it reads.
        channels: of that activation.
        outputs: number of logits.
        layout: axes of the activation.
    """

    def __init__(self, tap: str, channels: int, outputs: int, layout: Layout) -> None:
        super().__init__()
        self.tap = tap
        self.layout: Layout = layout
        self.linear = nn.Linear(channels, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Activations by name -> logits, float32 (batch, output)."""
        pooled = pool(features[self.tap], self.layout)
        with torch.autocast(pooled.device.type, enabled=False):
            result: Tensor = self.linear(pooled)
        return result
