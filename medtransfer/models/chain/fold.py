"""Batch norm folded into the convolutions before it: the same function with fewer passes over
memory, for networks at rest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.chain import Call, run, watch

# Of the largest activation; folding changes the order of a few products in float32.
_TOLERANCE = 1e-4


def fold_norms(backbone: Backbone, stages: int, image: Tensor) -> Backbone:
    """A copy whose first stages have their batch norms folded, in eval mode.

    A norm is folded where its input is the untouched output of a convolution. The copy must give
    what the network gives on `image`; otherwise nothing is folded.

    Args:
        backbone: left as it is.
        stages: how many.
        image: (batch, channel, *space), for the proof.
    """
    plain = copy.deepcopy(backbone).eval()
    operations = [operation for stage in plain.stages[:stages] for operation in stage.operations]
    with torch.inference_mode(), _in_float32():
        outer, expected = watch(plain.network, lambda: run(plain.network, operations, image))
    calls = list(_flatten(outer))
    folded = copy.deepcopy(plain)
    convolutions = {
        id(call.output): call.path
        for call in calls
        if isinstance(_module(plain, call.path), nn.Conv2d | nn.Conv3d)
    }
    for call in calls:
        if id(call.inputs) in convolutions and isinstance(
            _module(plain, call.path), nn.BatchNorm2d | nn.BatchNorm3d
        ):
            _fold(folded.network, convolutions[id(call.inputs)], call.path)
    with torch.inference_mode(), _in_float32():
        outputs = run(folded.network, operations, image)
    return (
        folded
        if torch.allclose(
            outputs, expected, rtol=0.0, atol=_TOLERANCE * float(expected.abs().max())
        )
        else plain
    )


def _in_float32() -> AbstractContextManager[None]:
    """Convolutions without TF32, whose rounding is larger than what the proof allows."""
    cudnn = torch.backends.cudnn
    settings = {
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "allow_tf32": False,
    }
    context: AbstractContextManager[None] = cudnn.flags(**settings)
    return context


def _flatten(calls: Iterable[Call]) -> Iterator[Call]:
    for call in calls:
        yield call
        yield from _flatten(call.inner)


def _module(backbone: Backbone, path: str) -> nn.Module | None:
    try:
        return backbone.network.get_submodule(path)
    except AttributeError:  # a method that is watched
        return None


def _fold(network: nn.Module, conv: str, norm: str) -> None:
    module = network.get_submodule(norm)
    network.set_submodule(conv, fuse_conv_bn_eval(network.get_submodule(conv), module))  # type: ignore[type-var, arg-type]  # a convolution and a norm
    # timm's norms carry their activation.
    rest = [part for name in ("drop", "act") if (part := getattr(module, name, None)) is not None]
    network.set_submodule(norm, nn.Sequential(*rest))
