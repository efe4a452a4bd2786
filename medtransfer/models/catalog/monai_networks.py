"""Networks of volumes: MONAI's, with the two methods that timm's networks have.

MONAI is imported when the first of them is built, as that takes seconds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from medtransfer.models.weights.inflation import RESNETS


@cache
def _make_classes() -> tuple[Any, Any]:
    """The classes of ResNets and of DenseNets: (batch, channel, slice, row, column)."""
    from monai.networks.nets import DenseNet121, ResNet

    class VolumeResNet(ResNet):  # type: ignore[misc]  # MONAI carries no types
        """MONAI's ResNet."""

        def forward_features(self, x: Tensor) -> Tensor:
            """Activations before the pooling."""
            x = self.maxpool(self.act(self.bn1(self.conv1(x))))
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = layer(x)
            return x

        def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:  # noqa: ARG002
            """Mean over space."""
            pooled: Tensor = self.avgpool(x)
            return pooled.flatten(1)

    class VolumeDenseNet(DenseNet121):  # type: ignore[misc]  # MONAI carries no types
        """MONAI's DenseNet-121."""

        def forward_features(self, x: Tensor) -> Tensor:
            """Activations before the pooling."""
            result: Tensor = self.class_layers.relu(self.features(x))
            return result

        def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:  # noqa: ARG002
            """Mean over space."""
            pooled: Tensor = self.class_layers.flatten(self.class_layers.pool(x))
            return pooled

    return VolumeResNet, VolumeDenseNet


class _Halve(nn.Module):
    """Mean over pairs along every axis, as MONAI's; an axis of one is left: a stack of few slices
    is not pooled to nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, slice, row, column) -> the same, halved."""
        return nn.functional.avg_pool3d(x, [min(2, n) for n in x.shape[2:]], 2)


def build_volume_network(name: str, channels: int) -> nn.Module:
    """One of `inflation.NAMES`, with random weights. Strides as in torchvision's planar networks,
    along every axis.
    """
    resnet, densenet = _make_classes()
    network: Any
    if name in RESNETS:
        from monai.networks.nets.resnet import get_inplanes

        block, layers = RESNETS[name]
        network = resnet(
            block,
            layers,
            get_inplanes(),
            n_input_channels=channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )
    else:
        network = densenet(spatial_dims=3, in_channels=channels, out_channels=1)
        network.class_layers.out = nn.Identity()
        for transition in (
            child for child in network.features.children() if hasattr(child, "pool")
        ):
            transition.pool = _Halve()
    return network  # type: ignore[no-any-return]
