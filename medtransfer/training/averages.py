"""What is done to weights besides gradient steps: averages, adapted statistics, distance, and
mixtures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head
from medtransfer.tasks.task import Batch
from medtransfer.training.device import Engine

# Decay of the averaged weights per step, a memory of about twenty steps; less at first, so that
# random weights are soon forgotten.
_DECAY, _FORGETTING = 0.95, 10
# Shares of the fine-tuned weights that a mixture may have; 1 is no mixture.
MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)

State = list[dict[str, Tensor]]


class Averages:
    """Exponential moving averages of weights (Polyak & Juditsky 1992, doi:10.1137/0330046), of
    which batch norm has its own statistics.

    On a few hundred images single steps swing the tune loss by more than epochs improve it; the
    average does not. The decay warms up, min(0.95, (1 + n) / (10 + n)) at step n, or the weights of
    the start would be half of the average of a short training. Means of batch statistics are no
    statistics of averaged weights: `refresh` takes them anew.

    It does what `torch.optim.swa_utils.AveragedModel` does, for what trains alone and without a
    copy of every buffer at every step: 0.8 against 5.9 ms a step of EfficientNet-lite0 on one core,
    where a step from kept activations takes 50.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        self.backbone, self.head = copy.deepcopy(backbone), copy.deepcopy(head)
        # What rests is left alone: it is most of the network where much is frozen.
        means, current = self._moving(self.backbone, self.head), self._moving(backbone, head)
        self._means, self._buffers = self._divide(means)
        self._current, self._buffered = self._divide(current)

    @staticmethod
    def _divide(values: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights, and buffers."""
        weights: list[Tensor] = [value for value in values if isinstance(value, nn.Parameter)]
        return weights, [value for value in values if not isinstance(value, nn.Parameter)]

    @staticmethod
    def _moving(backbone: Backbone, head: nn.Module) -> list[Tensor]:
        stages = [
            backbone.stage_state(index)
            for index in range(len(backbone.stages))
            if index not in backbone.resting
        ]
        return [
            value
            for state in (*stages, head.state_dict(keep_vars=True))
            for value in state.values()
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the weights after optimiser step `step`, counted from 1; what is frozen
        stays exactly as it is.
        """
        if self._means:
            torch._foreach_lerp_(
                self._means, self._current, 1 - min(_DECAY, (1 + step) / (_FORGETTING + step))
            )

    @torch.no_grad()
    def refresh(self, batches: Iterable[Batch], engine: Engine) -> None:
        """Gives the averaged weights the buffers of the current ones, and batch norms that train
        their statistics anew, from images.
        """
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._buffered)
        adapt_norms(self.backbone, batches, engine, self.backbone.moving_norms())


def copy_state(*modules: nn.Module) -> State:
    """Copies of the states of modules."""
    return [
        {name: value.clone() for name, value in module.state_dict().items()} for module in modules
    ]


def load_state(state: Sequence[dict[str, Tensor]], *modules: nn.Module) -> None:
    """Writes states back into their modules."""
    for module, values in zip(modules, state, strict=True):
        module.load_state_dict(values)


@torch.no_grad()
def adapt_norms(
    backbone: Backbone,
    batches: Iterable[Batch],
    engine: Engine,
    norms: Sequence[nn.Module] | None = None,
) -> bool:
    """Takes the statistics of batch norms anew from images, or what is kept of them, in place;
    labels are not used.

    AdaBN (Li et al. 2016, arXiv:1603.04779), and for averaged weights as SWA does (Izmailov et al.
    2018, arXiv:1803.05407): means over the batches of one pass, each layer fed by layers that
    normalise by their batch.

    Args:
        backbone: left in eval mode.
        batches: of images as they are.
        engine: device and precision.
        norms: those that are meant; None: all.

    Returns:
        False where there are none, or no batch holds two images; the statistics are as before.
    """
    norms = backbone.batch_norms() if norms is None else norms
    momenta, before, measured = [norm.momentum for norm in norms], copy_state(*norms), False
    backbone.eval()
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]  # a batch norm
        norm.momentum = None  # type: ignore[assignment]  # the plain mean over all batches
        norm.train()
    for batch in batches if norms else ():
        features = batch["features"]
        if backbone.ndim == 2 and batch["present"].shape[1] > 1:
            # Slices one by one, without those that only pad.
            features = {name: x[batch["present"]] for name, x in features.items()}
        if backbone.ndim == 2 and len(next(iter(features.values()))) < 2:
            continue  # one image has no variance between images
        with engine.autocast():
            backbone(engine.move(features), backbone.names[-1:])
        measured = True
    if not measured:
        load_state(before, *norms)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.eval()
    return measured


class Anchor:
    """The pretrained weights of what trains, and the pull towards them (L2-SP; Li et al. 2018,
    arXiv:1802.01483).
    """

    def __init__(self, backbone: Backbone) -> None:
        self._pairs = [(p, p.detach().clone()) for p in backbone.parameters() if p.requires_grad]

    @torch.no_grad()
    def pull(self, strength: float) -> None:
        """Adds to the gradients that of strength / 2 times the sum of squared distances; to those
        of weights that train now.
        """
        pairs = [(p, start) for p, start in self._pairs if p.grad is not None]
        if pairs:
            away = torch._foreach_sub([p.detach() for p, _ in pairs], [start for _, start in pairs])
            torch._foreach_add_(
                [p.grad for p, _ in pairs if p.grad is not None], away, alpha=strength
            )


def choose_mixture(
    start: State, end: State, modules: Sequence[nn.Module], loss: Callable[[], float]
) -> float:
    """Loads the mixture of two states with the lowest loss (WiSE-FT; Wortsman et al. 2022,
    arXiv:2109.01903).

    Args:
        start, end: states of `modules`: the pretrained ones with their convex head, and the
            fine-tuned ones.
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

    return [
        {key: mix(before[key], value) for key, value in after.items()}
        for before, after in zip(start, end, strict=True)
    ]
