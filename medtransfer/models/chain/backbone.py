"""A backbone is an ordered chain of stages; freezing, tapping and caching follow from the chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtransfer.errors import WeightsError
from medtransfer.models.chain.chain import Chain, Stage, run

NormPolicy = Literal["train", "eval"]
# Which of the stages that are not frozen train: those behind the frozen ones; those before them
# (surgical fine-tuning); or of those behind, the scale and shift of norms alone.
Tuned = Literal["last", "first", "norms"]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


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
        source: as asked for, without folders: imagenet, radimagenet:FILE, file:FILE and so on, or
            none.
        origin: file that was read, without folders, and what it came from where that is known.
        digest: SHA-256 of the file; "" for random weights.
        unused: tensors of the file that the backbone has no place for (such as the classifier).
        changes: what was done to the tensors so that they fit, in words.
        preparations: what was changed in the network for them; see `preparations`.
        recipe_from: how the input recipe is known.
        proof: what was measured to see that trained weights were loaded; see `proof.prove`. Empty
            for random weights.
    """

    source: str
    origin: str
    digest: str
    unused: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    preparations: tuple[str, ...] = ()
    recipe_from: str = ""
    proof: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether trained weights were seen to arrive."""
        return bool(self.proof.get("passed", False))


class Backbone(nn.Module):
    """A network without its classifier, as a chain of stages.

    A batch carries named activations; the image is the activation `"image"`, before stage 0. A
    network of planes takes volumes as (batch, slice, ...) too: every slice runs through the same
    chain.

    Attributes:
        name: of the architecture.
        stages: the ordered chain.
        dropped: stages cut off its top by `truncate`; they keep their weights and never run.
        exact: True where the chain equals the network bit for bit; otherwise there is one single
            stage (and the neck).
        ndim: axes of space of its input: 2, or 3 for networks of volumes.
        size: side in pixels it was built for; None: any it accepts.
        frozen: the first `frozen` stages are in eval mode, carry no gradient, and never change.
        resting: indices of all stages that never change.
        weights: where the weights came from.
        recipe: the input they expect.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        chain: Chain,
        recipe: Recipe,
        weights: WeightsRecord,
        ndim: int = 2,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.stages: tuple[Stage, ...] = chain.stages
        self.dropped: tuple[Stage, ...] = ()
        self.exact = chain.exact
        self.ndim = ndim
        self.size = size
        self.recipe = recipe
        self.weights = weights
        self.frozen = 0
        self.resting = range(0)
        self.norm_policy: NormPolicy = "train"
        self._still: list[nn.Module] = []
        self._places: dict[str, int | None] = {}

    @property
    def names(self) -> list[str]:
        """Names of the stages in order."""
        return [stage.name for stage in self.stages]

    def forward(self, features: dict[str, Tensor], taps: Sequence[str]) -> dict[str, Tensor]:
        """Continues from the deepest activation present and returns the activations asked for.

        Args:
            features: activations by stage name, or `"image"`: (batch, channel, *space), normalised
                by `recipe`; all with one more axis (batch, slice, ...) where a network of planes
                sees volumes.
            taps: names of stages.

        Returns:
            Activations by name, with the axis of slices where the input has it.

        Raises:
            WeightsError: an activation or tap that is no stage, or a tap before the deepest
                activation.
        """
        names = ["image", *self.names]
        unknown = [name for name in (*features, *taps) if name not in names]
        if unknown:
            raise WeightsError(
                f"{self.name} has no stage {', '.join(unknown)}. Stages: {', '.join(self.names)}."
            )
        start = max(names.index(name) for name in features)
        last = max(names.index(tap) for tap in taps)
        activations = {tap: features[tap] for tap in taps if tap in features}
        missed = [tap for tap in taps if tap not in features and names.index(tap) < start]
        if missed:
            raise WeightsError(
                f"tap {', '.join(missed)} lies before {names[start]}, the deepest activation given."
            )
        x = features[names[start]]
        plain = self.ndim + 2 if start == 0 else len(self.stages[start - 1].layout)
        slices = x.shape[:2] if x.ndim == plain + 1 and self.ndim == 2 else None
        x = x if slices is None else x.flatten(0, 1)
        for index in range(start, last):
            # Stage i gives the activation names[i + 1].
            with torch.no_grad() if index < self.frozen else nullcontext():
                x = run(self.network, self.stages[index].operations, x)
            if names[index + 1] in taps:
                activations[names[index + 1]] = x if slices is None else x.unflatten(0, slices)
        return activations

    def truncate(self, stages: int) -> None:
        """Cuts the last `stages` stages off; what stays ends earlier, with the same weights.

        For labels that show in texture, which the top of a network no longer tells apart
        (Peng et al. 2021, arXiv:2106.05152). The weights of the dropped stages stay in
        `state_dict`.
        """
        if not 0 <= stages < len(self.stages):
            raise WeightsError(
                f"{self.name} has {len(self.stages)} stages; {stages} cannot be dropped, one must "
                "stay."
            )
        if stages:
            self.stages, self.dropped = (
                self.stages[:-stages],
                (*self.stages[-stages:], *self.dropped),
            )
            self.freeze(min(self.frozen, len(self.stages)), self.norm_policy)

    def freeze(self, stages: int, norm_policy: NormPolicy = "train", tuned: Tuned = "last") -> None:
        """Freezes `stages` stages and sets how batch norm of the others behaves in training.

        Args:
            stages: 0 to len(self.stages): the first ones, or with tuned="first" the last ones.
            norm_policy: train: batch norm uses and updates batch statistics; eval: it keeps its
                statistics.
            tuned: which stages train; see `Tuned`.
        """
        total = len(self.stages)
        if not 0 <= stages <= total:
            raise WeightsError(f"{self.name} has {total} stages; {stages} cannot be frozen.")
        self.resting = range(total - stages, total) if tuned == "first" else range(stages)
        self.frozen = total if stages == total else 0 if tuned == "first" else stages
        self.norm_policy = norm_policy
        affine = self.norm_parameters()
        for name, parameter in self.network.named_parameters():
            trains = self._trains(name) and (tuned != "norms" or id(parameter) in affine)
            parameter.requires_grad_(trains)
        self._still = list(self._modules_at_rest())
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As in torch, but frozen stages stay in eval mode, and so does batch norm under
        norm_policy eval.
        """
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def stage_parameters(self, index: int) -> list[nn.Parameter]:
        """Parameters of stage `index`."""
        return [
            parameter
            for name, parameter in self.network.named_parameters()
            if self._stage_of(name) == index
        ]

    def moving_norms(self) -> list[nn.Module]:
        """The batch norms whose statistics change in training: not those of stages at rest, nor any
        under norm_policy eval.
        """
        still = set(map(id, self._still))
        return [norm for norm in self.batch_norms() if id(norm) not in still]

    def batch_norms(self) -> list[nn.Module]:
        """All batch norms with statistics of their own."""
        return [
            m
            for m in self.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]

    def norm_parameters(self) -> set[int]:
        """Scale and shift of every norm, by `id`."""
        return {
            id(p)
            for module in self.network.modules()
            if isinstance(module, _NORMS)
            for p in module.parameters(recurse=False)
        }

    def stage_state(self, index: int) -> dict[str, Tensor]:
        """Parameters and buffers of stage `index`, by their names in `network`; not copied."""
        return {
            name: value
            for name, value in self.network.state_dict(keep_vars=True).items()
            if self._stage_of(name) == index
        }

    def _trains(self, name: str) -> bool:
        stage = self._stage_of(name)
        return stage is not None and stage < len(self.stages) and stage not in self.resting

    def _modules_at_rest(self) -> Iterator[nn.Module]:
        for name, module in self.network.named_modules():
            at_rest = bool(name) and self._stage_of(name) is not None and not self._trains(name)
            if at_rest or (
                self.norm_policy == "eval" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            ):
                yield module

    def _stage_of(self, name: str) -> int | None:
        """Index of the stage that a parameter or module belongs to; what belongs to none belongs to
        the first.

        Dropped stages count on from the last. A container of stages (`blocks`) is not itself part
        of one: None.
        """
        if name not in self._places:  # asked for often, and where a network is cut off changes none
            self._places[name] = self._find_stage(name)
        return self._places[name]

    def _find_stage(self, name: str) -> int | None:
        chain = (*self.stages, *self.dropped)
        for index, stage in enumerate(chain):
            if any(name == owned or name.startswith(f"{owned}.") for owned in stage.owns):
                return index
        return (
            None
            if any(owned.startswith(f"{name}.") for stage in chain for owned in stage.owns)
            else 0
        )
