"""The head of detection: a pyramid over activations of any chain, and on it boxes and how likely
each is a lesion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtransfer.errors import WeightsError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.chain import Layout, Stage, channels_first
from medtransfer.models.heads.linear import Head

# Channels of the pyramid.
_WIDTH = 64
# Two layers of a convolution, a norm and an activation each.
_DEPTH = 6
# What a candidate's side can grow by, as in Faster R-CNN.
_MOST_GROWTH = float(np.log(1000 / 16))


class DetectionHead(Head):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002) on a feature pyramid, MONAI's heads, for planes
    or volumes.

    Slices of a volume that a network of planes saw one by one are stacked again: the pyramid and
    the heads see all of them.

    Args:
        stages: one per level, finest first, see `choose_levels`; a stage may stand for several
            levels and is then resampled.
        space: pixels of the input along rows and columns, or slices, rows and columns.
        anchors: (level, shape, axis), sides of the boxes to start from, in pixels of the input.
        outputs: number of logits of each box.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        space: Sequence[int],
        anchors: NDArray[np.float64],
        outputs: int = 1,
    ) -> None:
        # Takes seconds, which only detectors need.
        from monai.apps.detection.networks.retinanet_network import (
            RetinaNetClassificationHead,
            RetinaNetRegressionHead,
        )
        from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork

        super().__init__()
        self.levels = [stage.name for stage in stages]
        self.layouts: dict[str, Layout] = {stage.name: stage.layout for stage in stages}
        self.taps = list(self.layouts)
        self.space, self.outputs = tuple(space), outputs
        self.dropout = nn.Dropout(0.0)
        axes = len(self.space)
        self.register_buffer("shapes", torch.tensor(np.asarray(anchors), dtype=torch.float32))
        per_place = self.shapes.shape[1]
        self.pyramid = FeaturePyramidNetwork(axes, [stage.channels for stage in stages], _WIDTH)
        self.scores = RetinaNetClassificationHead(_WIDTH, per_place, outputs, axes)
        self.sides = RetinaNetRegressionHead(_WIDTH, per_place, axes)
        for tower in (self.scores, self.sides):
            tower.conv = tower.conv[:_DEPTH]

    shapes: Tensor

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Tensor | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Activations by name -> `logits` (batch, anchor, output), `moves` (batch, anchor, 2 x
        axes), `anchors` (anchor, 2 x axes), all float32, and `places`, positions per level.

        Anchors have lower and then upper ends along the axes of the input.
        """
        maps = {name: self._spread(features[name], layout) for name, layout in self.layouts.items()}
        rows = [maps[name] for name in self.levels]
        repeats = [self.levels[:place].count(name) for place, name in enumerate(self.levels)]
        rows = [_coarser(row, times) for row, times in zip(rows, repeats, strict=True)]
        levels = list(
            self.pyramid({str(place): self.dropout(row) for place, row in enumerate(rows)}).values()
        )
        shapes = [tuple(level.shape[2:]) for level in levels]
        return {
            "logits": _join(
                _run_tower(self.scores.conv, self.scores.cls_logits, levels), self.outputs
            ),
            "moves": _join(
                _run_tower(self.sides.conv, self.sides.bbox_reg, levels), 2 * len(self.space)
            ),
            "anchors": self.place_anchors(shapes),
            "places": [int(np.prod(shape)) for shape in shapes],
        }

    def place_anchors(self, maps: Sequence[tuple[int, ...]]) -> Tensor:
        """Boxes about the middle of every position of maps of these shapes, float32 (anchor, 2 x
        axes).
        """
        anchors = []
        for shape, sides in zip(maps, self.shapes, strict=True):
            middles = [
                (torch.arange(count, device=sides.device, dtype=torch.float32) + 0.5)
                * (whole / count)
                for count, whole in zip(shape, self.space, strict=True)
            ]
            grid = torch.stack(torch.meshgrid(*middles, indexing="ij"), -1).reshape(
                -1, 1, len(shape)
            )
            anchors.append(
                torch.cat([grid - sides / 2, grid + sides / 2], -1).reshape(-1, 2 * len(shape))
            )
        return torch.cat(anchors)

    def _spread(self, activation: Tensor, layout: Layout) -> Tensor:
        """An activation -> (batch, channel, *space of the input's axes)."""
        sliced = activation.ndim > len(layout)
        x = activation.flatten(0, 1) if sliced else activation
        x = channels_first(x, layout)
        return x.view(*activation.shape[:2], *x.shape[1:]).transpose(1, 2) if sliced else x


def _run_tower(conv: nn.Module, last: nn.Module, levels: Sequence[Tensor]) -> list[Tensor]:
    """The maps of a head of MONAI's, without its looks at every map for numbers that are not
    finite: the loss shows them.

    The last layer runs in float32: scores of reduced precision would tie, and boxes would be a
    pixel off.
    """
    features = [conv(level) for level in levels]
    with torch.autocast(levels[0].device.type, enabled=False):
        return [last(x.float()) for x in features]


def _coarser(x: Tensor, times: int) -> Tensor:
    """Halved so often along rows and columns, for levels that a network has no stage for."""
    for _ in range(times):
        x = (
            nn.functional.max_pool2d(x, 2)
            if x.ndim == 4
            else nn.functional.max_pool3d(x, (1, 2, 2))
        )
    return x


def _join(levels: Sequence[Tensor], width: int) -> Tensor:
    """Maps (batch, anchors x width, *space) -> float32 (batch, anchor, width), position by
    position, level by level.
    """
    return torch.cat(
        [
            level.float().flatten(2).transpose(1, 2).reshape(len(level), -1, width)
            for level in levels
        ],
        1,
    )


def choose_levels(backbone: Backbone, finest: int, levels: int = 3) -> list[Stage]:
    """The stages a pyramid stands on, finest first: of each stride the last one, or the nearest
    finer or else coarser.

    Args:
        backbone: any chain with activations in space.
        finest: stride of the finest level; each level doubles it.
        levels: how many.

    Raises:
        WeightsError: no stage has an activation in space, as of a network that is one single stage
            and pools.
    """
    last = {
        stage.reduction: stage
        for stage in backbone.stages
        if stage.layout not in {"NC", "NLC"} and stage.reduction >= 2
    }
    plain = [stage for stage in backbone.stages if stage.layout == "NLC"]
    if not last and plain:  # of a plain transformer, whose stages all have one size, the last
        last = {finest: plain[-1]}
    if not last:
        raise WeightsError(
            f"{backbone.name}: no stage has an activation in space that boxes could be read from. "
            "Take another backbone."
        )
    strides = [finest * 2**level for level in range(levels)]
    return [last[max((r for r in last if r <= stride), default=min(last))] for stride in strides]


def decode_boxes(anchors: Tensor, moves: Tensor) -> Tensor:
    """Anchors moved by shares of their sides, and grown by factors whose logarithm is given
    (Girshick et al. 2014, arXiv:1311.2524, appendix C).

    The numbers are those of MONAI's `BoxCoder` to the last bit, in a third of the time.

    Args:
        anchors: (..., 2 x axes), lower and then upper ends.
        moves: (..., 2 x axes), of the middle and then of the sides.
    """
    axes = anchors.shape[-1] // 2
    sides = anchors[..., axes:] - anchors[..., :axes]
    middle = (anchors[..., :axes] + anchors[..., axes:]) / 2 + moves[..., :axes] * sides
    half = sides * moves[..., axes:].clamp(max=_MOST_GROWTH).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union (GIoU) of pairs of boxes, (pair,), -1 to 1 (Rezatofighi
    et al. 2019, doi:10.1109/CVPR.2019.00075).

    MONAI's `box_pair_giou` differs in the last bits of its gradients and takes three times as long.

    Args:
        first: (pair, 2 x axes), lower and then upper ends.
        second: as `first`.
    """
    axes = first.shape[-1] // 2
    low, high = (
        torch.maximum(first[:, :axes], second[:, :axes]),
        torch.minimum(first[:, axes:], second[:, axes:]),
    )
    shared = (high - low).clamp(min=0).prod(-1)
    sizes = [(boxes[:, axes:] - boxes[:, :axes]).prod(-1) for boxes in (first, second)]
    union = sizes[0] + sizes[1] - shared
    hull = (
        torch.maximum(first[:, axes:], second[:, axes:])
        - torch.minimum(first[:, :axes], second[:, :axes])
    ).prod(-1)
    return shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)
