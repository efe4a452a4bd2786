"""Where a classifier looked: Grad-CAM on the activations of a stage."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import label as connected
from torch import Tensor, nn

from medtransfer.errors import WeightsError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.chain import Layout, channels_first
from medtransfer.models.heads.linear import LinearHead
from medtransfer.tasks.task import Batch
from medtransfer.training.device import Engine

Float = NDArray[np.float32]
# Of its peak, what of a map is taken for the lesion.
_SHARE = 0.5


def heat_maps(
    backbone: Backbone,
    head: LinearHead,
    batches: Iterable[Batch],
    engine: Engine,
    stage: str | None = None,
) -> Float:
    """Grad-CAM (Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74): what in an activation speaks for
    the label.

    The chain is run up to the stage, and on from there with gradients; with a network of planes
    each slice of a volume has its own map.

    Args:
        backbone, head: in eval mode; the backbone is left with nothing frozen.
        batches: images. engine: device; computed in float32.
        stage: whose activation is looked at; the last one in space where left out.

    Returns:
        (image, row, column), of volumes (image, slice, row, column), as the network sees them: 0 to
        1, 1 where the map is highest; 0 throughout where nothing speaks for the label.

    Raises:
        WeightsError: the network has no activation in space.
    """
    spatial = {s.name: s.layout for s in backbone.stages if s.layout != "NC"}
    if not spatial:
        raise WeightsError(
            f"{backbone.name}: no stage has an activation in space, so there is no map of it."
        )
    name = stage or list(spatial)[-1]
    backbone.freeze(0, "eval")
    backbone.eval()
    head.eval()
    place = backbone.names.index(name)
    before = [tap for tap in head.taps if backbone.names.index(tap) < place]
    after = [tap for tap in head.taps if backbone.names.index(tap) >= place]
    found = []
    for batch in batches:
        features = engine.move(batch["features"])
        size = features["image"].shape[-2:] if backbone.ndim == 2 else features["image"].shape[-3:]
        with torch.no_grad():
            given = backbone(features, [*before, name])
        seen = given[name].float().clone().requires_grad_()
        logits = head(
            {**{tap: given[tap] for tap in before}, **backbone({name: seen}, after)},
            batch["present"],
        )
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), seen)
        found.append(_weigh(seen.detach(), gradient, spatial[name], tuple(size)).cpu().numpy())
    maps = np.concatenate(found)
    highest = maps.reshape(len(maps), -1).max(1).reshape(-1, *[1] * (maps.ndim - 1))
    return np.asarray(
        np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0), np.float32
    )


def _weigh(seen: Tensor, gradient: Tensor, layout: Layout, size: tuple[int, ...]) -> Tensor:
    """Channels weighted by their mean gradient, what is negative left out, at the size of the
    image.
    """
    sliced = seen.ndim > len(layout)
    a, g = (channels_first(x.flatten(0, 1) if sliced else x, layout) for x in (seen, gradient))
    space = tuple(range(2, a.ndim))
    map_ = (a * g.mean(space, keepdim=True)).sum(1, keepdim=True).clamp(min=0)
    map_ = nn.functional.interpolate(
        map_, size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False
    )[:, 0]
    return map_.view(*seen.shape[:2], *size) if sliced else map_


def read_map(heat: Float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle of the highest pixel, (axis,), and the box around what is connected with it at
    half its height, lower and upper ends.

    NaN where the map is 0 throughout.
    """
    if heat.max() <= 0:
        return np.full(heat.ndim, np.nan), np.full(2 * heat.ndim, np.nan)
    peak = np.unravel_index(int(np.argmax(heat)), heat.shape)
    parts = connected(heat >= _SHARE * heat[peak])
    inside = np.argwhere(parts == parts[peak])
    return np.array(peak, float) + 0.5, np.concatenate([inside.min(0), inside.max(0) + 1]).astype(
        float
    )
