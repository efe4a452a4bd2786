"""Names of the networks of volumes, and how they take planar weights; the networks are in
`volume_networks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# MONAI's blocks and layers per stage.
RESNETS: dict[str, tuple[str, list[int]]] = {
    "monai_resnet10": ("basic", [1, 1, 1, 1]),
    "monai_resnet18": ("basic", [2, 2, 2, 2]),
    "monai_resnet34": ("basic", [3, 4, 6, 3]),
    "monai_resnet50": ("bottleneck", [3, 4, 6, 3]),
}
NAMES = (*RESNETS, "monai_densenet121")
# The planar network of timm whose weights a network of volumes can take: same blocks, same names.
PLANAR = {"monai_resnet18": "resnet18", "monai_resnet34": "resnet34", "monai_resnet50": "resnet50"}
SIZE = 96


def inflate(kernel: Tensor, depth: int) -> Tensor:
    """A planar kernel (out, in, row, column) -> (out, in, depth, row, column), an equal part on
    every slice.

    A volume that is constant along z gives what the planar network gives (Carreira & Zisserman
    2017, doi:10.1109/CVPR.2017.502, section 2.4), to the border too where the ends are continued.
    Put in the middle of the kernel instead, the strides along z would skip most slices.
    """
    return (kernel[:, :, None] / depth).expand(-1, -1, depth, -1, -1).contiguous()
