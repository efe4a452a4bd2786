"""Finds the chain of stages of a network by watching it run, and proves it.

No list of names: a network is run once, and what its modules are called with is recorded. A module
is taken apart where the modules it calls hand their output, untouched, from one to the next, and at
least one of them sits in a container of blocks; whatever does more than that (a residual block, a
dense block) is a link of its own. The links are then run in order and must give what the network
gives, bit for bit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtransfer.errors import WeightsError

Layout = Literal["NCHW", "NHWC", "NLC", "NCDHW", "NC"]
WHOLE, STEM, NECK = "whole", "stem", "neck"


@dataclass(frozen=True)
class Stage:
    """One link of the chain.

    Attributes:
        name: of the stage and of the activation it gives.
        operations: dotted paths inside the network, applied in order.
        channels: of its output.
        reduction: input side divided by output side (1 where the output has no rows and columns).
        layout: axes of its output.
        owns: dotted paths of the modules and parameters that belong to it.
    """

    name: str
    operations: tuple[str, ...]
    channels: int
    reduction: int
    layout: Layout
    owns: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """The stages of a network, whether they are exact, and the children of it that no stage
    runs.
    """

    stages: tuple[Stage, ...]
    exact: bool
    unused: tuple[str, ...]


def build_chain(network: nn.Module, image: Tensor) -> Chain:
    """Finds the chain of a network and proves it.

    Args:
        network: with `forward_features` and `forward_head(x, pre_logits=True)`, as timm's models
            have them.
        image: (batch, channel, *space), of a size it accepts.

    Returns:
        The chain. Where none is exact, the network is one single stage. Where the network pools by
        more than a mean over space (a class token; a norm or a convolution behind the mean), that
        is the last stage, `neck`.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            calls, expected = watch(network, lambda: run(network, (WHOLE,), image))
            stages, result = _trace(network, _links(network, calls, image, expected), image)
            if exact := _equal(result, expected):
                stages.extend(_find_neck(network, stages, expected))
                unused = _unused(network, stages, image)
            else:
                stages, unused = _one_stage(network, image), ()
    finally:
        network.train(was_training)
    return Chain(tuple(stages), exact, unused)


def _equal(result: Any, expected: Any) -> bool:
    return (
        isinstance(result, Tensor)
        and isinstance(expected, Tensor)
        and torch.equal(result, expected)
    )


def _one_stage(network: nn.Module, image: Tensor) -> list[Stage]:
    """All or nothing; where the features are not one tensor (several resolutions at once), pooled
    as in training.
    """
    owns = tuple(name for name, _ in network.named_children())
    for operations in ((WHOLE,), (WHOLE, NECK)):
        stages, result = _trace(network, [(WHOLE, operations)], image)
        if result is not None:
            stages = [replace(stages[0], owns=owns)]
            return (
                stages
                if operations != (WHOLE,)
                else [*stages, *_find_neck(network, stages, result)]
            )
    raise WeightsError(
        "gives no features that a head could read: neither one tensor, nor a vector per image."
    )


def run(network: nn.Module, operations: Sequence[str], x: Any) -> Any:
    """Applies the operations of a stage in order."""
    for operation in operations:
        if operation == NECK:
            # In float32 throughout: a mean over many positions loses digits in bfloat16.
            x = x.float() if isinstance(x, Tensor) else x
            with torch.autocast(next(network.parameters()).device.type, enabled=False):
                x = operator.attrgetter("forward_head")(network)(x, pre_logits=True)
        else:
            x = operator.attrgetter("forward_features" if operation == WHOLE else operation)(
                network
            )(x)
    return x


def mean_over_space(activation: Tensor, layout: Layout) -> Tensor:
    """Mean over space: (batch, ...) -> float32 (batch, channel)."""
    activation = activation.float()
    if layout == "NC":
        return activation
    if layout == "NLC":
        return activation.mean(1)
    return activation.mean((1, 2) if layout == "NHWC" else tuple(range(2, activation.ndim)))


def channels_first(activation: Tensor, layout: Layout) -> Tensor:
    """An activation in space -> (batch, channel, *space); tokens that are no place of the image
    stand in front and are left out.
    """
    if layout == "NHWC":
        return activation.permute(0, 3, 1, 2)
    if layout == "NLC":
        side = math.isqrt(activation.shape[1])
        return (
            activation[:, activation.shape[1] - side * side :]
            .transpose(1, 2)
            .reshape(len(activation), -1, side, side)
        )
    return activation


@dataclass
class Call:
    """One call of a module, or of a method of the network, while it runs."""

    path: str
    inputs: Any  # None unless they are a single tensor: only then can it be a link of a chain
    output: Any = None
    inner: list[Call] = field(default_factory=list)


# Methods in which timm's transformers add the position embedding, between two modules.
_METHODS = ("_pos_embed",)


def watch(network: nn.Module, work: Callable[[], Tensor]) -> tuple[list[Call], Tensor]:
    """Runs `work` and records the calls it makes, nested as they were made."""
    root = Call("", None)
    stack = [root]

    def begin(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plain = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
        call = Call(path, args[0] if plain else None)
        stack[-1].inner.append(call)
        stack.append(call)

    def end(result: Any) -> None:
        stack.pop().output = result

    handles = []
    for path, module in network.named_modules():
        if path:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, a, k, path=path: begin(path, a, k), with_kwargs=True
                )
            )
            handles.append(module.register_forward_hook(lambda *call: end(call[-1])))
    with _watched_methods(network, begin, end):
        try:
            result = work()
        finally:
            for handle in handles:
                handle.remove()
    return root.inner, result


@contextmanager
def _watched_methods(
    network: nn.Module, begin: Callable[..., None], end: Callable[[Any], None]
) -> Iterator[None]:
    names = [name for name in _METHODS if hasattr(network, name)]

    def wrap(name: str) -> Callable[..., Any]:
        method = getattr(network, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            begin(name, args, kwargs)
            result = method(*args, **kwargs)
            end(result)
            return result

        return call

    for name in names:
        object.__setattr__(network, name, wrap(name))
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(network, name)


Links = list[tuple[str, tuple[str, ...]]]


def _links(network: nn.Module, calls: list[Call], inputs: Any, output: Any) -> Links:
    """Blocks in order, each with the small layers that belong to it: (name, operations)."""
    links: Links = []
    pending: list[str] = []
    for call in _flatten(network, calls, inputs, output):
        path = call.path
        if _is_layer(network, call):
            pending.append(path)
            # A network of plain layers (VGG) has no blocks: each resolution becomes a stage.
            pooled = path not in _METHODS and isinstance(network.get_submodule(path), nn.MaxPool2d)
            if pooled and (len(pending) > 1 or not links):
                links.append((pending[0], tuple(pending)))
                pending = []
            continue
        if pending and links:
            links[-1] = (links[-1][0], (*links[-1][1], *pending))
        elif pending:
            links.append((pending[0], tuple(pending)))
        pending = []
        links.append((path, (path,)))
    if pending:
        links.append((pending[0], tuple(pending)))
    return [
        (STEM if index == 0 else name, operations) for index, (name, operations) in enumerate(links)
    ]


def _flatten(network: nn.Module, calls: list[Call], inputs: Any, output: Any) -> list[Call]:
    """Calls of the blocks in order; empty unless they lead from `inputs` to `output`."""
    current = inputs
    for call in calls:
        if call.inputs is None or call.inputs is not current:
            return []
        current = call.output
    if current is not output:
        return []
    blocks: list[Call] = []
    for call in calls:
        inner = (
            _flatten(network, call.inner, call.inputs, call.output)
            if _holds_blocks(network, call)
            else []
        )
        blocks.extend(inner or [call])
    return blocks


def _holds_blocks(network: nn.Module, call: Call) -> bool:
    """A container, or a module that runs one."""
    if call.path in _METHODS:
        return False
    containers = (nn.Sequential, nn.ModuleList)
    if isinstance(network.get_submodule(call.path), containers):
        return True
    for inner in call.inner:
        parts = inner.path.split(".")
        above = [
            ".".join(parts[:depth]) for depth in range(call.path.count(".") + 2, len(parts) + 1)
        ]
        if any(isinstance(network.get_submodule(path), containers) for path in above):
            return True
    # Blocks that hang in their stage without a container (RegNet): all of one kind, each made of
    # layers with parts.
    kinds = {type(network.get_submodule(inner.path)) for inner in call.inner}
    return len(kinds) == 1 and all(
        any(not _is_layer(network, part) for part in inner.inner) for inner in call.inner
    )


def _is_layer(network: nn.Module, call: Call) -> bool:
    """A method, a module without parts, or a norm (whose activation may be a part of it)."""
    if call.path in _METHODS:
        return True
    module = network.get_submodule(call.path)
    return not list(module.children()) or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _trace(network: nn.Module, links: Links, image: Tensor) -> tuple[list[Stage], Tensor | None]:
    stages: list[Stage] = []
    x = image
    for name, operations in links:
        try:
            x = run(network, operations, x)
        except (
            Exception
        ):  # a wrong guess of the structure can fail in any way; the caller falls back to one stage
            return stages, None
        if not isinstance(x, Tensor) or not 2 <= x.ndim <= 5:
            return stages, None
        layout = _layout(network, x)
        stages.append(
            Stage(
                name,
                operations,
                _channels(x, layout),
                _reduction(image, x, layout),
                layout,
                operations,
            )
        )
    return stages, x if links else None


def _layout(network: Any, x: Tensor) -> Layout:
    if x.ndim != 4:
        return {2: "NC", 3: "NLC", 5: "NCDHW"}[x.ndim]  # type: ignore[return-value]  # its values are layouts
    # The input is square: two equal axes are rows and columns.
    first, last = x.shape[1] == x.shape[2], x.shape[2] == x.shape[3]
    if first == last:
        return "NHWC" if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC") else "NCHW"
    return "NHWC" if first else "NCHW"


def _channels(x: Tensor, layout: Layout) -> int:
    return int(x.shape[-1] if layout in {"NHWC", "NLC", "NC"} else x.shape[1])


def _reduction(image: Tensor, x: Tensor, layout: Layout) -> int:
    if layout in {"NLC", "NC"}:
        return 1
    side = x.shape[2] if layout == "NHWC" else x.shape[-1]
    # Unpadded convolutions (299 -> 8) lose a rim; the stride is a power of two all the same.
    ratio = image.shape[-1] / side
    return int(ratio) if ratio.is_integer() else int(2 ** round(math.log2(ratio)))


def _find_neck(network: nn.Module, stages: list[Stage], activation: Tensor) -> list[Stage]:
    """The pooling that the network was trained with, where it is more than a mean and lighter than
    the trunk.
    """
    try:
        calls, vector = watch(network, lambda: run(network, (NECK,), activation))
    except Exception:  # a head without this step: the mean is used
        return []
    if not isinstance(vector, Tensor) or vector.ndim != 2 or len(vector) != len(activation):
        return []
    mean = mean_over_space(activation, stages[-1].layout)
    owners = sorted({call.path.split(".")[0] for call in calls})
    weight = sum(_size(network.get_submodule(owner)) for owner in owners)
    same = vector.shape == mean.shape and torch.allclose(vector, mean, rtol=1e-4, atol=1e-5)
    # Fully connected layers that outweigh the trunk (VGG) are left behind, as in most transfer
    # work.
    heavy = weight > sum(
        _size(network.get_submodule(o)) for stage in stages for o in stage.owns if o not in _METHODS
    )
    if (same and weight == 0) or heavy:
        return []
    return [Stage(NECK, (NECK,), int(vector.shape[1]), 1, "NC", tuple(owners))]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _unused(network: nn.Module, stages: Sequence[Stage], image: Tensor) -> tuple[str, ...]:
    """Children with parameters that no stage runs, such as an auxiliary classifier: without them
    all is the same.
    """
    owned = [owner for stage in stages for owner in stage.owns]
    spare = {
        name: child
        for name, child in network.named_children()
        if _size(child)
        and not any(owner == name or owner.startswith(f"{name}.") for owner in owned)
    }
    if not spare:
        return ()
    operations = [operation for stage in stages for operation in stage.operations]
    whole = run(network, operations, image)
    try:
        for name in spare:
            setattr(network, name, nn.Identity())
        same = _equal(run(network, operations, image), whole)
    except Exception:  # one of them is used after all
        same = False
    finally:
        for name, child in spare.items():
            setattr(network, name, child)
    return tuple(spare) if same else ()
