"""Heads on the activations of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medtransfer.models.chain.chain import Stage, mean_over_space

Pooling = Literal["attention", "mean", "max"]
# Width of the attention network, as in its paper.
_HIDDEN = 128


class Head(nn.Module):
    """Abstract. What a training loop knows of a head.

    Attributes:
        taps: names of the activations it reads.
        dropout: of the features, in training; off until its `p` is set.
    """

    taps: list[str]
    dropout: nn.Dropout


class LinearHead(Head):
    """Mean over space, then over the slices of a volume, then one linear layer, all in float32.

    Over slices: `mean`; `max` of every channel; or `attention`: the gated attention of Ilse et al.
    2018 (arXiv:1802.04712, equation 9), which starts as the mean and learns which slices matter.
    Slices that only pad a short volume do not count.

    Args:
        stages: whose activations it reads; the means of several stand side by side.
        outputs: number of logits.
        pooling: of slices; without effect where there are none.
    """

    def __init__(
        self, stages: Stage | Sequence[Stage], outputs: int, pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        stages = [stages] if isinstance(stages, Stage) else list(stages)
        self.layouts = {stage.name: stage.layout for stage in stages}
        self.taps = list(self.layouts)
        self.pooling = pooling
        self.dropout = nn.Dropout(0.0)
        channels = sum(stage.channels for stage in stages)
        self.linear = nn.Linear(channels, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if pooling == "attention":
            self.values, self.gates = nn.Linear(channels, _HIDDEN), nn.Linear(channels, _HIDDEN)
            self.scores = nn.Linear(_HIDDEN, 1, bias=False)
            nn.init.zeros_(self.scores.weight)

    def forward(self, features: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
        """Activations by name and the slices that count, bool (batch, slice; all of them) ->
        logits, float32 (batch, output).
        """
        pooled = self.dropout(self.pool(features, present))
        with torch.autocast(pooled.device.type, enabled=False):
            result: Tensor = self.linear(pooled)
        return result

    def pool(self, features: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
        """Activations (batch, ...) or (batch, slice, ...) by name -> float32 (batch, channel)."""
        means, sliced = [], False
        for name, layout in self.layouts.items():
            activation = features[name]
            sliced = activation.ndim > len(layout)
            mean = mean_over_space(activation.flatten(0, 1) if sliced else activation, layout)
            means.append(mean.view(*activation.shape[:2], -1) if sliced else mean)
        slices = torch.cat(means, -1)
        if not sliced:
            return slices
        if present is None:
            present = torch.ones(slices.shape[:2], dtype=torch.bool)
        # A volume without a single slice is pooled over all of them: nothing is divided by 0.
        present = (present | ~present.any(1, keepdim=True)).to(slices.device, non_blocking=True)
        if self.pooling == "max":
            return slices.masked_fill(~present[..., None], -torch.inf).amax(1)
        weights: Tensor = self._attend(slices, present)
        return (weights[..., None] * slices).sum(1)

    def _attend(self, slices: Tensor, present: Tensor) -> Tensor:
        """Weights of the slices (batch, slice), which add up to 1."""
        scores = torch.zeros_like(slices[..., 0])
        if self.pooling == "attention":
            with torch.autocast(slices.device.type, enabled=False):
                scores = self.scores(
                    torch.tanh(self.values(slices)) * torch.sigmoid(self.gates(slices))
                )[..., 0]
        return scores.masked_fill(~present, -torch.inf).softmax(1)
