"""A backbone is an ordered chain of stages; freezing, tapping and caching follow from the chain."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtransfer.errors import WeightsError

Layout = Literal["NCHW", "NHWC", "NLC"]


@dataclass(frozen=True)
class Recipe:
    """The input that weights were trained on; it belongs to the weights, not to the user's images.

    Attributes:
        mean, std: per channel, of intensities in 0..1.
        size: side in pixels the weights saw in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


@dataclass(frozen=True)
class WeightsRecord:
    """Where the weights came from.

    Attributes:
        source: as asked for: imagenet, file:..., or none.
        origin: file or hub name that was read, without folders.
        digest: SHA-256 of the file, or of the tensors where there is no file; "" for random weights.
        unused: tensors of the file that the backbone has no place for (such as the classifier).
    """

    source: str
    origin: str
    digest: str
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One link of the chain.

    Attributes:
        name: of the stage and of the activation it gives.
        operations: dotted paths inside the network, applied in order.
        channels: of its output.
        reduction: input side divided by output side (1 where the output has no rows and columns).
    """

    name: str
    operations: tuple[str, ...]
    channels: int
    reduction: int


class Backbone(nn.Module):
    """A network without its classifier, as a chain of stages.

    A batch carries named activations; the image is the activation `"image"`, before stage 0.

    Attributes:
        name: of the architecture.
        stages: the ordered chain.
        exact: True where the chain equals the network bit for bit; otherwise there is one single stage.
        frozen: the first `frozen` stages are in eval mode, carry no gradient, and never change.
        weights: where the weights came from.
        recipe: the input they expect.
        layout: axes of the activations.
    """

    ndim = 2

    def __init__(self, name: str, network: nn.Module, stages: Sequence[Stage], exact: bool, recipe: Recipe, weights: WeightsRecord) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.stages = tuple(stages)
        self.exact = exact
        self.recipe = recipe
        self.weights = weights
        self.layout: Layout = _layout(network)
        self.frozen = 0
        self.norm_policy: Literal["train", "eval"] = "train"

    @property
    def names(self) -> list[str]:
        """Names of the stages in order."""
        return [stage.name for stage in self.stages]

    def forward(self, features: dict[str, Tensor], taps: Sequence[str]) -> dict[str, Tensor]:
        """Continues from the deepest activation present and returns the activations asked for.

        Args:
            features: activations by stage name, or `"image"`: (batch, channel, row, column), normalised by `recipe`.
            taps: names of stages.

        Raises:
            WeightsError: an activation or tap that is no stage, or a tap before the deepest activation.
        """
        names = ["image", *self.names]
        unknown = [name for name in (*features, *taps) if name not in names]
        if unknown:
            raise WeightsError(f"{self.name} has no stage {', '.join(unknown)}. Stages: {', '.join(self.names)}.")
        start = max(names.index(name) for name in features)
        last = max(names.index(tap) for tap in taps)
        wanted = {tap: features[tap] for tap in taps if tap in features}
        missed = [tap for tap in taps if tap not in features and names.index(tap) < start]
        if missed:
            raise WeightsError(f"tap {', '.join(missed)} lies before {names[start]}, the deepest activation given.")
        x = features[names[start]]
        for index in range(start, last):
            # Stage i gives the activation names[i + 1].
            with torch.no_grad() if index < self.frozen else nullcontext():
                for operation in self.stages[index].operations:
                    x = operator.attrgetter(operation)(self.network)(x)
            if names[index + 1] in taps:
                wanted[names[index + 1]] = x
        return wanted

    def freeze(self, stages: int, norm_policy: Literal["train", "eval"] = "train") -> None:
        """Freezes the first `stages` stages and sets how batch norm of the others behaves in training.

        Args:
            stages: 0 to len(self.stages).
            norm_policy: train: batch norm uses and updates batch statistics; eval: it keeps its statistics.
        """
        if not 0 <= stages <= len(self.stages):
            raise WeightsError(f"{self.name} has {len(self.stages)} stages; {stages} cannot be frozen.")
        self.frozen = stages
        self.norm_policy = norm_policy
        for index in range(len(self.stages)):
            for parameter in self.stage_parameters(index):
                parameter.requires_grad_(index >= stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As in torch, but frozen stages stay in eval mode, and so does batch norm under norm_policy eval."""
        super().train(mode)
        # An architecture without a chain is frozen as a whole; its modules outside the operations go with it.
        for module in self._modules_at_rest():
            module.eval()
        return self

    def stage_parameters(self, index: int) -> list[nn.Parameter]:
        """Parameters of stage `index`."""
        return [parameter for name, parameter in self.network.named_parameters() if self._stage_of(name) == index]

    def _modules_at_rest(self) -> Iterator[nn.Module]:
        for name, module in self.network.named_modules():
            at_rest = bool(name) and self._stage_of(name) < self.frozen
            if at_rest or (self.norm_policy == "eval" and isinstance(module, nn.modules.batchnorm._BatchNorm)):
                yield module

    def _stage_of(self, name: str) -> int:
        """Index of the stage that a parameter or module belongs to; what belongs to none belongs to the first."""
        for index, stage in enumerate(self.stages):
            for operation in stage.operations:
                if name == operation or name.startswith(f"{operation}."):
                    return index
        # A container of stages (`blocks`) is not itself part of one; its mode has no effect.
        inside = any(operation.startswith(f"{name}.") for stage in self.stages for operation in stage.operations)
        return len(self.stages) if inside else 0


def build_chain(network: nn.Module, size: int) -> tuple[list[Stage], bool]:
    """Finds the chain of a timm network and proves it.

    The chain is run against `network.forward_features` on a random input and must agree bit for bit;
    otherwise the network becomes one stage.

    Args:
        network: timm model made with `num_classes=0, global_pool=""`.
        size: side of a square input it accepts.

    Returns:
        The stages and whether the chain is exact.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, size, size, generator=generator)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            expected = operator.attrgetter("forward_features")(network)(image)
            links = _links(network)
            stages, x = _trace(network, links, image)
            exact = x is not None and x.shape == expected.shape and bool(torch.equal(x, expected))
            if not exact:
                stages, _ = _trace(network, [("whole", ("forward_features",))], image)
    finally:
        network.train(was_training)
    return stages, exact


def _trace(network: nn.Module, links: list[tuple[str, tuple[str, ...]]], image: Tensor) -> tuple[list[Stage], Tensor | None]:
    stages: list[Stage] = []
    layout = _layout(network)
    x = image
    for name, operations in links:
        try:
            for operation in operations:
                x = operator.attrgetter(operation)(network)(x)
        except Exception:  # a wrong guess of the structure can fail in any way; the caller falls back to one stage
            return stages, None
        spatial = x.shape[2:] if layout == "NCHW" else x.shape[1:3]
        channels = x.shape[1] if layout == "NCHW" else x.shape[-1]
        # Unpadded convolutions (299 -> 8) lose a rim; the stride is a power of two all the same.
        reduction = 2 ** round(math.log2(image.shape[-1] / spatial[-1])) if x.ndim == 4 else 1
        stages.append(Stage(name, operations, int(channels), reduction))
    return stages, x


# Children that are not part of the feature chain.
_HEADS = {"global_pool", "head", "fc", "classifier", "head_drop", "fc_norm", "attn_pool", "pre_logits", "drop", "conv_head_pool"}


def _links(network: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Structural rules: children in order, containers of blocks unrolled, small leading modules as one stem.

    Transformers with a position embedding start with the methods timm runs before the blocks.
    """
    if hasattr(network, "_pos_embed"):
        start = tuple(name for name in ("patch_embed", "_pos_embed", "patch_drop", "norm_pre") if hasattr(network, name))
        links: list[tuple[str, tuple[str, ...]]] = [("stem", start)]
        children = [(name, child) for name, child in network.named_children() if name not in {*start, "pos_drop", *_HEADS}]
    else:
        links = []
        children = [(name, child) for name, child in network.named_children() if name not in _HEADS]
    pending: list[str] = []
    for path in _unrolled(children):
        module = network.get_submodule(path)
        if not list(module.children()) or isinstance(module, nn.modules.batchnorm._BatchNorm):
            pending.append(path)
            # A network of plain layers (VGG) has no blocks: each resolution becomes a stage.
            if isinstance(module, nn.MaxPool2d) and (len(pending) > 1 or not links):
                links.append(_link(pending, links))
                pending = []
            continue
        if pending and links:
            links[-1] = (links[-1][0], (*links[-1][1], *pending))
        elif pending:
            links.append(_link(pending, links))
        pending = []
        links.append((path, (path,)))
    if pending:
        links.append(_link(pending, links))
    return links


def _link(layers: list[str], before: list[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    return (layers[0] if before else "stem", tuple(layers))


def _unrolled(children: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    for name, child in children:
        parts = list(child.named_children())
        is_container = type(child) in {nn.Sequential, nn.ModuleList} or type(child).__name__ in {"RegStage", "ResStage"}
        is_stage = any(part == "blocks" for part, _ in parts) and {part for part, _ in parts} <= {"downsample", "blocks"}
        if (is_container or is_stage) and parts:
            yield from (f"{name}.{path}" for path in _unrolled(parts))
        else:
            yield name


def _layout(network: Any) -> Layout:
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        return "NHWC"
    return "NLC" if hasattr(network, "_pos_embed") else "NCHW"
