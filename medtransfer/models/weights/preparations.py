"""What is changed in a network, besides its tensors, so that it computes what a file of weights was
made for.

By name, so that a model trained from such a file says so, and is built in the same way again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from medtransfer.errors import WeightsError


def prepare_network(network: nn.Module, names: Sequence[str]) -> None:
    """Applies preparations, in place.

    Raises:
        WeightsError: one that this version does not know.
    """
    for name in names:
        if name not in PREPARATIONS:
            raise WeightsError(
                f"asks for {name!r}, which this version does not know. Use the version that wrote "
                "it."
            )
        PREPARATIONS[name](network)


def _set_epsilon(value: float, network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = value


def _move_strides(network: nn.Module) -> None:
    """Keras's ResNet halves in the first convolution of a block, torch's in the second."""
    blocks: list[Any] = [
        block for block in network.modules() if hasattr(block, "conv3") and hasattr(block, "bn3")
    ]
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _continue_borders(network: nn.Module) -> None:
    """Beyond the first and last slice the volume goes on as they are, so that a constant volume
    stays constant.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.register_forward_pre_hook(_repeat_ends)
            module.padding = (0, *module.padding[1:])


def _repeat_ends(module: Any, given: tuple[Tensor, ...]) -> Tensor:
    depth = module.kernel_size[0] // 2
    return nn.functional.pad(given[0], (0, 0, 0, 0, depth, depth), mode="replicate")


PREPARATIONS: dict[str, Callable[[nn.Module], None]] = {
    "epsilon of batch norm 1e-3": partial(_set_epsilon, 1e-3),
    "epsilon of batch norm 1.001e-5": partial(_set_epsilon, 1.001e-5),
    "strides on the first convolution of a block": _move_strides,
    "first and last slice continued at the border": _continue_borders,
}
