"""Tensors of a file -> tensors of a network: all of them, or the reasons why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medtransfer.errors import WeightsError, list_faults
from medtransfer.models.weights.files import PREFIXES, TOP, Tensors, same_numbers
from medtransfer.models.weights.inflation import inflate
from medtransfer.models.weights.publishers import Named, candidates

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Tables that networks compute for themselves, and counts of batches.
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked")
_CLASSIFIERS = {"fc", "classifier", "head", "heads", "last_linear"}


def fit(
    tensors: Tensors, network: nn.Module, name: str, channels: int, neck: Sequence[str]
) -> Named:
    """The tensors under the names of the network, every one of it filled.

    Args:
        tensors: of the file.
        network: not changed.
        name: of its architecture.
        channels: of the image.
        neck: children behind the trunk, where a classifier may lie.

    Raises:
        WeightsError: with the tensors that are missing, of another shape or kind, twice in the
            file, or not finite.
    """
    chosen: Named | None = None
    fewest: list[str] = []
    for candidate in candidates(tensors, network, name):
        adapted = _adapt(candidate, network, channels)
        faults = _misfits(network, adapted.tensors) + _doubles(network, adapted, neck)
        if chosen is None or len(faults) < len(fewest):
            chosen, fewest = adapted, faults
        if not faults:
            break
    assert chosen is not None  # the file as it is comes first
    wanted = network.state_dict()
    fewest = fewest or _strays(network, chosen.tensors, neck)
    fewest = fewest or [
        f"{key}: holds NaN or infinite values"
        for key in wanted
        if key in chosen.tensors and not _finite(chosen.tensors[key])
    ]
    if fewest:
        raise WeightsError(
            list_faults(
                f"{len(fewest)} of {len(wanted)} tensors of {name} cannot be filled; nothing was "
                "loaded",
                fewest,
                f"The file holds {len(tensors)} tensors, the first is {next(iter(tensors))}. "
                "Check that it belongs to this architecture. "
                "Prefixes that come off by themselves: "
                f"{', '.join(f'{word}.' for word in PREFIXES)}",
                shown=8,
            )
        )
    return chosen


def _misfits(network: nn.Module, tensors: Tensors) -> list[str]:
    faults: list[str] = []
    for key, value in network.state_dict().items():
        # Counts the batches seen in training; files written before torch 0.4.1 lack it and nothing
        # reads it.
        counts = key.endswith("num_batches_tracked")
        if key not in tensors:
            faults += [] if counts else [f"{key}: missing in the file"]
        elif tensors[key].shape != value.shape:
            faults.append(
                f"{key}: shape {tuple(tensors[key].shape)} in the file, {tuple(value.shape)} in "
                "the network"
            )
        elif not _same_kind(tensors[key], value) and not (counts and tensors[key].dtype in _FLOATS):
            faults.append(f"{key}: {_kind(tensors[key])} in the file, {value.dtype} in the network")
    return faults


def _same_kind(given: Tensor, wanted: Tensor) -> bool:
    if given.layout != torch.strided or given.is_quantized or given.device.type == "meta":
        return False
    if wanted.is_floating_point():
        return given.dtype in _FLOATS
    return (
        not given.is_floating_point()
        and not given.is_complex()
        and (given.dtype == torch.bool) == (wanted.dtype == torch.bool)
    )


def _kind(value: Tensor) -> str:
    """What sort of tensor no network here can take, in words."""
    if value.device.type == "meta":
        return "a name and a shape without numbers (a tensor on the device meta)"
    if value.layout != torch.strided:
        return f"a sparse tensor ({value.layout}; save it with to_dense())"
    if value.is_quantized:
        return (
            f"quantised numbers of the kind {value.dtype} (save the network as it was before it "
            "was quantised)"
        )
    return f"numbers of the kind {value.dtype}"


def find_twins(tensors: Tensors, prefix: str) -> dict[str, int]:
    """The parts of a file that hold as much as the part behind `prefix`, by the same names and in
    the same shapes.

    Returns:
        The number of tensors by name of the part, without parts of the same numbers. One where
        there is no other.
    """
    inside = {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
    parts = {prefix: len(inside)}
    ends = [f".{key}" for key, value in inside.items() if value.ndim > 1]
    starts = {
        key[: len(key) + 1 - len(end)] for key in tensors for end in ends if f".{key}".endswith(end)
    }
    for start in sorted(starts):
        beside = {
            key: value
            for key, value in inside.items()
            if start == prefix or not f"{prefix}{key}".startswith(start)
        }
        pairs = [
            (value, tensors[f"{start}{key}"])
            for key, value in beside.items()
            if f"{start}{key}" in tensors
        ]
        alike = sum(one.shape == other.shape for one, other in pairs)
        if (
            start != prefix
            and alike > 0.9 * len(beside)
            and not all(same_numbers(*pair) for pair in pairs)
        ):
            parts[prefix] = min(parts[prefix], len(beside))
            parts[start] = sum(key.startswith(start) for key in tensors)
    return {start.removesuffix(".") or TOP: count for start, count in parts.items()}


def _doubles(network: nn.Module, named: Named, neck: Sequence[str]) -> list[str]:
    """Names that a prefix alone tells apart, outside of classifiers: nobody can say which of the
    two tensors is meant.
    """
    wanted, heads = network.state_dict(), _heads(network, neck) | _CLASSIFIERS
    return [
        f"{pair[-1]}: is in the file twice, as {' and '.join(pair)}, with different numbers"
        for pair in named.twice
        if (shortest := min(pair, key=len)) in wanted or shortest.split(".")[0] not in heads
    ]


def _heads(network: nn.Module, neck: Sequence[str]) -> set[str]:
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return {
        name.split(".")[0]
        for name in ((classifier,) if isinstance(classifier, str) else classifier)
    } | set(neck)


def _strays(network: nn.Module, tensors: Tensors, neck: Sequence[str]) -> list[str]:
    """Tensors of the file that belong inside the trunk and have no place: it is of a larger network
    of the same family.
    """
    wanted = network.state_dict()
    trunk = {key.split(".")[0] for key in wanted} - _heads(network, neck)
    return [
        f"{key}: is in the file, and has no place in the network"
        for key in tensors
        if key not in wanted
        and key.split(".")[0] in trunk
        and "." in key
        and not key.endswith(_COMPUTED)
    ]


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value.float()).all())


def _adapt(named: Named, network: Any, channels: int) -> Named:
    """Planar kernels for a network of volumes, and the first convolution for another number of
    channels.

    One channel: the kernels of the three are summed, as if the normalised grey image had been
    repeated. More than three: they are repeated in turn and scaled by 3 / channels, so that
    activations keep their size.
    """
    wanted = network.state_dict()
    tensors, changes = dict(named.tensors), list(named.changes)
    flat = [
        key
        for key, value in tensors.items()
        if value.ndim == 4
        and key in wanted
        and wanted[key].ndim == 5
        and _same_kind(value, wanted[key])
    ]
    for key in flat:
        tensors[key] = inflate(tensors[key], wanted[key].shape[2])
    preparations = named.preparations
    if flat:
        changes.append("planar kernels spread over the slices")
        preparations = (*preparations, "first and last slice continued at the border")
    # Named by their shape: all fits but the axis of input channels.
    for key, value in wanted.items():
        given = tensors.get(key)
        if (
            given is None
            or value.ndim < 4
            or not _same_kind(given, value)
            or given.ndim != value.ndim
            or given.shape == value.shape
        ):
            continue
        if (
            given.shape[1] == 3
            and value.shape[1] == channels
            and (given.shape[0], *given.shape[2:]) == (value.shape[0], *value.shape[2:])
        ):
            from timm.models import adapt_input_conv  # takes seconds to import

            planar = given.flatten(2, -2) if given.ndim == 5 else given
            tensors[key] = adapt_input_conv(channels, planar).reshape(value.shape)
            changes.append(
                "first convolution summed over the colours"
                if channels == 1
                else f"first convolution spread over {channels} channels"
            )
    return replace(named, tensors=tensors, changes=tuple(changes), preparations=preparations)
