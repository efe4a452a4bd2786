"""What is done to weights besides gradient steps: averages, adapted statistics, distance, and mixtures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from medtransfer.models.backbone import Backbone
from medtransfer.tasks.task import Batch
from medtransfer.training.engine import Engine

# Of the averaged weights, per step: a memory of about twenty steps.
_AVERAGE = 0.95
# Shares of the fine-tuned weights that a mixture may have; 1 is no mixture.
MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)

State = list[dict[str, Tensor]]


class Averages:
    """Exponential moving averages of weights and batch statistics (Polyak & Juditsky 1992, doi:10.1137/0330046).

    On a few hundred images single steps swing the tune loss by more than epochs improve it; the
    average does not, so that the choice of the epoch is not one of noise.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        self.backbone, self.head = copy.deepcopy(backbone), copy.deepcopy(head)
        pairs = [*zip(self._moving(self.backbone, self.head), self._moving(backbone, head), strict=True)]
        # What rests is left alone: it is most of the network where much is frozen.
        self._means, self._current = ([pair[side] for pair in pairs if pair[0].is_floating_point()] for side in (0, 1))
        self._counts, self._counted = ([pair[side] for pair in pairs if not pair[0].is_floating_point()] for side in (0, 1))

    @staticmethod
    def _moving(backbone: Backbone, head: nn.Module) -> list[Tensor]:
        stages = [backbone.stage_state(index) for index in range(len(backbone.stages)) if index not in backbone.resting]
        return [value.detach() for state in (*stages, head.state_dict(keep_vars=True)) for value in state.values()]

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the current weights; what is frozen stays exactly as it is."""
        if self._means:
            torch._foreach_lerp_(self._means, self._current, 1 - _AVERAGE)
        if self._counts:
            torch._foreach_copy_(self._counts, self._counted)

    def state(self) -> State:
        """A copy of the averaged states of backbone and head."""
        return copy_state(self.backbone, self.head)


def copy_state(*modules: nn.Module) -> State:
    """Copies of the states of modules."""
    return [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]


def load_state(state: Sequence[dict[str, Tensor]], *modules: nn.Module) -> None:
    """Writes states back into their modules."""
    for module, values in zip(modules, state, strict=True):
        module.load_state_dict(values)


@torch.no_grad()
def adapt_norms(backbone: Backbone, batches: Iterable[Batch], engine: Engine) -> bool:
    """Takes the statistics of every batch norm anew from images, in place; labels are not used.

    AdaBN (Li et al. 2016, arXiv:1603.04779): means over the batches of one pass, each layer fed by layers that
    normalise by their batch.

    Returns:
        False where the network has no batch norm, or no batch holds two images; the statistics are as before.
    """
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta, before, seen = [norm.momentum for norm in norms], copy_state(*norms), False
    backbone.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for batch in batches if norms else ():
        image = batch["features"]["image"]
        if backbone.ndim == 2 and image.ndim == 5:
            image = image[batch["present"]]  # slices one by one, without those that only pad
        if backbone.ndim == 2 and len(image) < 2:
            continue  # one image has no variance between images
        with engine.autocast():
            backbone(engine.move({"image": image}), backbone.names[-1:])
        seen = True
    if not seen:
        load_state(before, *norms)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.eval()
    return seen


class Anchor:
    """The pretrained weights of what trains, and the pull towards them (L2-SP; Li et al. 2018, arXiv:1802.01483)."""

    def __init__(self, backbone: Backbone) -> None:
        self._pairs = [(p, p.detach().clone()) for p in backbone.parameters() if p.requires_grad]

    @torch.no_grad()
    def pull(self, strength: float) -> None:
        """Adds to the gradients that of strength / 2 times the sum of squared distances; to those of weights that train now."""
        pairs = [(p, start) for p, start in self._pairs if p.grad is not None]
        if pairs:
            away = torch._foreach_sub([p.detach() for p, _ in pairs], [start for _, start in pairs])
            torch._foreach_add_([p.grad for p, _ in pairs if p.grad is not None], away, alpha=strength)


def choose_mixture(start: State, end: State, modules: Sequence[nn.Module], loss: Callable[[], float]) -> float:
    """Loads the mixture of two states with the lowest loss (WiSE-FT; Wortsman et al. 2022, arXiv:2109.01903).

    Args:
        start, end: states of `modules`: the pretrained ones with their convex head, and the fine-tuned ones.
        modules: to be left with the mixture.
        loss: of the modules as they are.

    Returns:
        The share of the fine-tuned weights, 0 to 1.
    """
    losses = []
    for share in MIXTURES:
        load_state(_mix(start, end, share), *modules)
        losses.append(loss())
    # Of equals the one that moved most: nothing is given up without a reason.
    best = max(range(len(MIXTURES)), key=lambda i: (-losses[i], MIXTURES[i]))
    load_state(_mix(start, end, MIXTURES[best]), *modules)
    return MIXTURES[best]


def _mix(start: State, end: State, share: float) -> State:
    def mix(a: Tensor, b: Tensor) -> Tensor:
        # A state that was taken up from a checkpoint lies on the CPU.
        return torch.lerp(a, b.to(a.device), share) if share < 1 and b.is_floating_point() else b

    return [{key: mix(before[key], value) for key, value in after.items()} for before, after in zip(start, end, strict=True)]
