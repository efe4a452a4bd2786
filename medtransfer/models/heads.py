"""Heads on the activations of a backbone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medtransfer.models.chain import Stage, mean_over_space

Pooling = Literal["attention", "mean", "max"]
# Width of the attention network, as in its paper.
_HIDDEN = 128


class LinearHead(nn.Module):
    """Mean over space, then over the slices of a volume, then one linear layer, all in float32.

    Over slices: `mean`; `max` of every channel; or `attention`: the gated attention of Ilse et al. 2018
    (arXiv:1802.04712, equation 9), which starts as the mean and learns which slices matter. Slices that only
    pad a short volume do not count.

    Args:
        stage: whose activation it reads.
        outputs: number of logits.
        pooling: of slices; without effect where there are none.
    """

    def __init__(self, stage: Stage, outputs: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.tap = stage.name
        self.layout = stage.layout
        self.pooling = pooling
        self.linear = nn.Linear(stage.channels, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if pooling == "attention":
            self.values, self.gates = nn.Linear(stage.channels, _HIDDEN), nn.Linear(stage.channels, _HIDDEN)
            self.scores = nn.Linear(_HIDDEN, 1, bias=False)
            nn.init.zeros_(self.scores.weight)

    def forward(self, features: dict[str, Tensor], present: Tensor | None = None) -> Tensor:
        """Activations by name and the slices that count, bool (batch, slice; all of them) -> logits, float32 (batch, output)."""
        pooled = self.pool(features[self.tap], present)
        with torch.autocast(pooled.device.type, enabled=False):
            result: Tensor = self.linear(pooled)
        return result

    def pool(self, activation: Tensor, present: Tensor | None = None) -> Tensor:
        """An activation (batch, ...) or (batch, slice, ...) -> float32 (batch, channel)."""
        if activation.ndim == len(self.layout):
            return mean_over_space(activation, self.layout)
        slices = mean_over_space(activation.flatten(0, 1), self.layout).view(*activation.shape[:2], -1)
        if present is None:
            present = torch.ones(slices.shape[:2], dtype=torch.bool)
        # A volume without a single slice is pooled over all of them: nothing is divided by 0.
        present = (present | ~present.any(1, keepdim=True)).to(slices.device)
        if self.pooling == "max":
            return slices.masked_fill(~present[..., None], -torch.inf).amax(1)
        weights: Tensor = self._attend(slices, present)
        return (weights[..., None] * slices).sum(1)

    def _attend(self, slices: Tensor, present: Tensor) -> Tensor:
        """Weights of the slices (batch, slice), which add up to 1."""
        scores = torch.zeros_like(slices[..., 0])
        if self.pooling == "attention":
            with torch.autocast(slices.device.type, enabled=False):
                scores = self.scores(torch.tanh(self.values(slices)) * torch.sigmoid(self.gates(slices)))[..., 0]
        return scores.masked_fill(~present, -torch.inf).softmax(1)
