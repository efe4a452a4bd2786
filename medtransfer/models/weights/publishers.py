"""Names of tensors in other people's files -> names in the network, and what else differs.

Every rule here says how a publisher names the tensors of a network that is otherwise the same. A
rule may find a file that is not its own; whether all fits is decided afterwards, by name and shape.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.models.weights.files import PREFIXES, Tensors, same_numbers


@dataclass(frozen=True)
class Named:
    """Tensors under the network's names.

    Attributes:
        tensors: by name; what has no place keeps the name it has in the file.
        changes: what was done, in words, beyond renaming.
        preparations: names in `preparations.PREPARATIONS`: changes of the network to what the file
            was made for.
        prefix: that was removed.
        twice: pairs of names that differ in a prefix alone, of different tensors.
    """

    tensors: Tensors
    changes: tuple[str, ...] = ()
    preparations: tuple[str, ...] = ()
    prefix: str = ""
    twice: tuple[tuple[str, ...], ...] = ()


def candidates(tensors: Tensors, network: nn.Module, name: str) -> Iterator[Named]:
    """The file as each publisher would name it, as it is and with its prefixes removed, in every
    order.
    """
    rules: tuple[Callable[[Tensors, nn.Module], Tensors | Named | None], ...] = (
        _from_timm,
        _from_torchvision_densenet,
        _from_torchvision_swin,
        _from_torchvision_mobilenet,
        _from_children,
        _from_lite,
        partial(_from_torchvision_efficientnet, name=name),
        _from_keras,
    )
    for plain in _without_prefixes(tensors, network):
        yield plain
        for rule in rules:
            try:
                renamed = rule(plain.tensors, network)
            except WeightsError:
                raise
            except (
                Exception
            ):  # not a file of this publisher; timm's rules fail on others' in many ways
                continue
            if isinstance(renamed, Named):
                yield replace(renamed, prefix=plain.prefix, twice=plain.twice)
            elif renamed is not None:
                yield replace(plain, tensors=renamed)


# Layers around a layer, anywhere in a network: torch.compile, DataParallel, FSDP, checkpointing of
# activations.
_AROUND = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_MOST_ORDERS = 48


def _without_prefixes(tensors: Tensors, network: nn.Module) -> Iterator[Named]:
    """The tensors as they are, and with the words in front of their names removed one after the
    other.

    A word comes off where it is a known prefix, or where most of what the network needs stands
    behind it. Names without it stay as they are; so do both of two names that would become one,
    unless their numbers are the same.
    """
    waiting = [Named(tensors)]
    met: set[frozenset[str]] = set()
    children = {key for key, _ in network.named_children()}
    most = sum(not key.endswith("num_batches_tracked") for key in network.state_dict()) // 2
    while waiting and len(met) < _MOST_ORDERS:
        state = waiting.pop(0)
        if (names := frozenset(state.tensors)) in met:
            continue
        met.add(names)
        yield state
        if any(not _AROUND.isdisjoint(key.split(".")[1:-1]) for key in names):
            waiting.append(
                _rename(
                    state,
                    {
                        key: ".".join(word for word in key.split(".") if word not in _AROUND)
                        for key in names
                    },
                )
            )
        sizes = Counter(key.partition(".")[0] for key in state.tensors if "." in key)
        for word, size in sizes.most_common():
            if word in PREFIXES or (size > most and word not in children):
                stripped = _rename(
                    state, {key: key.removeprefix(f"{word}.") for key in state.tensors}
                )
                waiting.append(replace(stripped, prefix=f"{state.prefix}{word}."))


def _rename(state: Named, names: dict[str, str]) -> Named:
    groups: dict[str, list[str]] = {}
    for old, new in names.items():
        groups.setdefault(new, []).append(old)
    renamed: Tensors = {}
    twice = state.twice
    for new, keys in groups.items():
        first = state.tensors[keys[0]]
        if all(same_numbers(first, state.tensors[key]) for key in keys[1:]) and new not in renamed:
            renamed[new] = first
        else:
            renamed |= {key: state.tensors[key] for key in keys}
            twice = (*twice, tuple(keys))
    return replace(state, tensors=renamed, twice=twice)


def _from_timm(tensors: Tensors, network: nn.Module) -> Tensors | None:
    """timm's own rule for older and original names, which resizes position embeddings to the image
    too.
    """
    module = sys.modules[type(network).__module__]
    rule = getattr(module, "checkpoint_filter_fn", None)
    if rule is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of speed, while tables are resized
        return {
            key: value
            for key, value in rule(dict(tensors), network).items()
            if isinstance(value, torch.Tensor)
        }


def _from_torchvision_densenet(tensors: Tensors, _: nn.Module) -> Tensors | None:
    """Published files still say `norm.1` where the network says `norm1`."""
    pattern = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {pattern.sub(r"\1\2.", key): value for key, value in tensors.items()}


def _from_torchvision_efficientnet(tensors: Tensors, network: Any, name: str) -> Named | None:
    """`features.S.B.block.K` -> `blocks.S-1.B.LAYER`; torchvision counts convolutions, timm names
    them.

    Raises:
        WeightsError: the network pads as TensorFlow does: the same tensors would give other
            features.
    """
    if "features.0.0.weight" not in tensors or not any(".block.0." in key for key in tensors):
        return None
    if not hasattr(network, "conv_stem") or not hasattr(network, "blocks"):
        return None
    if any(type(module).__name__ == "Conv2dSame" for module in network.modules()):
        plain = name.removeprefix("tf_")
        raise WeightsError(
            f"is torchvision's, which pads evenly; {name} pads as TensorFlow does. Use {plain}."
        )
    last = 1 + len(network.blocks)
    outer = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        f"features.{last}.0": "conv_head",
        f"features.{last}.1": "bn2",
    }
    squeeze = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}
    renamed: Tensors = {}
    for key, value in tensors.items():
        parts = key.split(".")
        head = ".".join(parts[:3])
        if head in outer:
            renamed[".".join([outer[head], *parts[3:]])] = value
            continue
        if len(parts) < 7 or parts[0] != "features" or parts[3] != "block":
            renamed[key] = value
            continue
        stage, block, unit, layer = int(parts[1]) - 1, int(parts[2]), int(parts[4]), parts[5]
        if stage >= len(network.blocks) or block >= len(network.blocks[stage]):
            renamed[key] = value
            continue
        units = _units(network.blocks[stage][block])
        if layer in squeeze:
            new = squeeze[layer]
        elif unit < len(units) and layer in {"0", "1"}:
            new = units[unit][int(layer)]
        else:
            renamed[key] = value
            continue
        renamed[".".join([f"blocks.{stage}.{block}", new, *parts[6:]])] = value
    # torchvision's own choice for its larger networks and for the second version.
    coarse = bool(re.search(r"efficientnetv2|_b[5-9]", name))
    return Named(renamed, (), ("epsilon of batch norm 1e-3",) if coarse else ())


def _units(block: nn.Module) -> list[tuple[str, str]]:
    """Names of convolution and norm of a block, in torchvision's count; the squeeze keeps its place
    in it.
    """
    known = {
        "InvertedResidual": [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("", ""), ("conv_pwl", "bn3")],
        "DepthwiseSeparableConv": [("conv_dw", "bn1"), ("", ""), ("conv_pw", "bn2")],
        "EdgeResidual": [("conv_exp", "bn1"), ("conv_pwl", "bn2")],
        "ConvBnAct": [("conv", "bn1")],
    }
    return known.get(type(block).__name__, [])


def _from_torchvision_mobilenet(tensors: Tensors, network: Any) -> Tensors | None:
    """MobileNet-V2: `features.N.conv.I` -> `blocks.S.B.LAYER`; torchvision counts blocks through
    all stages, timm within each.

    Inside a block the order of convolutions and norms is the same, whether activations between them
    are counted (`conv.3`, as in older files) or lie with them in a layer of their own (`conv.1.0`).
    """
    if "features.0.0.weight" not in tensors or not any(
        re.match(r"features\.1\.conv\.0\.", key) for key in tensors
    ):
        return None
    blocks = [
        (f"blocks.{s}.{b}", block)
        for s, stage in enumerate(network.blocks)
        for b, block in enumerate(stage)
    ]
    last = len(blocks) + 1
    places = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        f"features.{last}.0": "conv_head",
        f"features.{last}.1": "bn2",
    }
    for index, (place, block) in enumerate(blocks, 1):
        start = f"features.{index}.conv."
        layers = {
            key.removeprefix(start).rpartition(".")[0] for key in tensors if key.startswith(start)
        }
        ordered = sorted(layers, key=lambda layer: [int(part) for part in layer.split(".")])
        ours = [layer for unit in _units(block) for layer in unit if layer]
        places |= {
            f"{start}{layer}": f"{place}.{new}" for layer, new in zip(ordered, ours, strict=True)
        }
    split = {key: key.rpartition(".") for key in tensors}
    return {
        ".".join([places.get(stem, stem), part]) if stem else part: tensors[key]
        for key, (stem, _, part) in split.items()
    }


def _from_torchvision_swin(tensors: Tensors, network: nn.Module) -> Tensors | None:
    """`features.0` is the embedding; stages and merging layers alternate behind it."""
    if "features.0.0.weight" not in tensors or not hasattr(network, "patch_embed"):
        return None
    # The relative position index is computed, not learnt; timm computes its own.
    renamed: Tensors = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] != "features":
            renamed[key] = value
            continue
        index, rest = int(parts[1]), ".".join(parts[2:])
        if index == 0:
            new = (
                rest.replace("0.", "patch_embed.proj.", 1)
                if rest.startswith("0.")
                else rest.replace("2.", "patch_embed.norm.", 1)
            )
        elif index % 2:
            block, _, layer = rest.partition(".")
            layer = re.sub(r"^mlp\.0\.", "mlp.fc1.", re.sub(r"^mlp\.3\.", "mlp.fc2.", layer))
            new = f"layers.{index // 2}.blocks.{block}.{layer}"
        else:
            new = f"layers.{index // 2}.downsample.{rest}"
        renamed[new] = value
    renamed = _split_biases(renamed, network)
    # For another size of image than the file was made for, timm's rule resizes the tables.
    return _from_timm(renamed, network) or renamed


def _split_biases(tensors: Tensors, network: nn.Module) -> Tensors:
    """Swin v2 has no bias on keys: torchvision zeroes its part of one vector, timm keeps two
    vectors.
    """
    wanted = network.state_dict()
    result: Tensors = {}
    for key, value in tensors.items():
        stem = key.removesuffix("qkv.bias")
        if stem != key and f"{stem}q_bias" in wanted:
            query, _, content = value.chunk(3)
            result |= {f"{stem}q_bias": query, f"{stem}v_bias": content}
        elif key.endswith("logit_scale") and key in wanted:
            result[key] = value.view_as(wanted[key])
        else:
            result[key] = value
    return result


def _from_children(tensors: Tensors, network: nn.Module) -> Tensors | None:
    """A torchvision network saved as `nn.Sequential(*children)`, as RadImageNet is: children are
    counted.

    Whether the children without tensors (pooling) and the auxiliary head of Inception are counted
    differs between files, so Inception is matched by order, each child by the names and shapes
    inside it.
    """
    if not tensors or not all(key.split(".")[0].isdigit() for key in tensors):
        return None
    counted: dict[int, Tensors] = {}
    for key, value in tensors.items():
        index, _, rest = key.partition(".")
        counted.setdefault(int(index), {})[rest] = value
    if hasattr(network, "Mixed_7c"):
        return _match_in_order(counted, network)
    if hasattr(network, "layer4"):
        places = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}
    elif hasattr(network, "features"):
        places = {0: "features"} if any("denseblock" in key for key in tensors) else {}
        if not places:
            return {f"features.{key}": value for key, value in tensors.items()}
    else:
        return None
    named = {
        f"{places.get(index, index)}.{rest}": value
        for index, group in counted.items()
        for rest, value in group.items()
    }
    return _from_torchvision_densenet(named, network)


def _match_in_order(counted: dict[int, Tensors], network: nn.Module) -> Tensors:
    targets = {
        name: child.state_dict() for name, child in network.named_children() if child.state_dict()
    }
    renamed: Tensors = {}
    waiting = list(targets)
    for index in sorted(counted):
        group = counted[index]
        if waiting and _same_shapes(group, targets[waiting[0]]):
            place = waiting.pop(0)
            renamed |= {f"{place}.{rest}": value for rest, value in group.items()}
        else:
            renamed |= {f"{index}.{rest}": value for rest, value in group.items()}
    return renamed


def _same_shapes(group: Tensors, target: Tensors) -> bool:
    # Without the axis of input channels: the first convolution may be about to be adapted to
    # another number of them.
    shapes = [
        {
            key: (*value.shape[:1], *value.shape[2:])
            for key, value in part.items()
            if not key.endswith("num_batches_tracked")
        }
        for part in (group, target)
    ]
    return shapes[0] == shapes[1]


def _from_lite(tensors: Tensors, network: Any) -> Tensors | None:
    """EfficientNet-lite names of `efficientnet_lite_pytorch`. Blocks are counted through the
    stages.
    """
    if "_conv_stem.weight" not in tensors:
        return None
    blocks = [
        f"blocks.{stage}.{i}" for stage, part in enumerate(network.blocks) for i in range(len(part))
    ]
    outer = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed: Tensors = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            block = blocks[int(parts[1])]
            layer = (first if block.startswith("blocks.0.") else later)[parts[2]]
            renamed[".".join([block, layer, *parts[3:]])] = value
        else:
            renamed[".".join([outer[parts[0]], *parts[1:]])] = value
    return renamed


_KERAS_LAYER = re.compile(r"^conv(\d)_block(\d+)_(\d)_(conv|bn)$")
_KERAS_PARTS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _from_keras(tensors: Tensors, network: nn.Module) -> Named | None:
    """ResNet50 and DenseNet121 of Keras's applications (`notop`), in torch's axes.

    Keras's ResNet has biases on its convolutions, folded here into the mean of the batch norm
    behind them (exact in eval mode), and strides on the first convolution of a block, where torch's
    has them on the second.
    """
    if not any(key.endswith("/kernel") for key in tensors):
        return None
    dense = hasattr(network, "features")
    renamed: Tensors = {}
    biases: Tensors = {}
    for key, value in tensors.items():
        layer, _, part = key.rpartition("/")
        place = _place_of_keras(layer.replace("/", "_"), dense)
        if place is None or (part not in _KERAS_PARTS and part != "bias"):
            renamed[key] = value
        elif part == "bias":
            biases[place] = value
        else:
            # Kernels are (row, column, in, out) in Keras.
            renamed[f"{place}.{_KERAS_PARTS[part]}"] = (
                value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
            )
    for place, bias in biases.items():
        mean = f"{_norm_behind(place)}.running_mean"
        if mean not in renamed or renamed[mean].shape != bias.shape:
            return None
        renamed[mean] = renamed[mean] - bias
    if dense:
        return Named(renamed, (), ("epsilon of batch norm 1.001e-5",))
    return Named(
        renamed,
        ("biases folded into batch norm",),
        ("epsilon of batch norm 1.001e-5", "strides on the first convolution of a block"),
    )


def _place_of_keras(layer: str, dense: bool) -> str | None:
    root = (
        {"conv1_conv": "conv0", "conv1_bn": "norm0", "bn": "norm5"}
        if dense
        else {"conv1_conv": "conv1", "conv1_bn": "bn1"}
    )
    if layer in root:
        return f"features.{root[layer]}" if dense else root[layer]
    pooled = re.match(r"^pool(\d)_(conv|bn)$", layer)
    if dense and pooled:
        kind = "conv" if pooled.group(2) == "conv" else "norm"
        return f"features.transition{int(pooled.group(1)) - 1}.{kind}"
    found = _KERAS_LAYER.match(layer)
    if found is None:
        return None
    stage, block, unit, kind = (
        int(found.group(1)) - 1,
        int(found.group(2)),
        int(found.group(3)),
        found.group(4),
    )
    if dense:
        # Keras counts 0_bn, 1_conv, 1_bn, 2_conv; torch norm1, conv1, norm2, conv2.
        return f"features.denseblock{stage}.denselayer{block}." + (
            f"conv{unit}" if kind == "conv" else f"norm{unit + 1}"
        )
    if unit == 0:
        return f"layer{stage}.{block - 1}.downsample." + ("0" if kind == "conv" else "1")
    return f"layer{stage}.{block - 1}." + (f"conv{unit}" if kind == "conv" else f"bn{unit}")


def _norm_behind(convolution: str) -> str:
    if convolution.endswith("downsample.0"):
        return f"{convolution.removesuffix('0')}1"
    head, _, last = convolution.rpartition("conv")
    return f"{head}bn{last}"
