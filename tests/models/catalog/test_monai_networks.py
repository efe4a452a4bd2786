"""Networks of volumes against MONAI's own."""

from __future__ import annotations

import pytest
import torch
from medtransfer.models.catalog.monai_networks import build_volume_network
from monai.networks.nets import DenseNet121, resnet18

pytestmark = pytest.mark.slow


def test_the_networks_are_monais():
    theirs = resnet18(
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
        shortcut_type="B",
    ).eval()
    ours = build_volume_network("monai_resnet18", 1).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 1, 32, 48, 48)
    with torch.inference_mode():
        assert torch.equal(ours.forward_head(ours.forward_features(x)), theirs(x))
    dense = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1).eval()
    dense.class_layers.out = torch.nn.Identity()
    ours = build_volume_network("monai_densenet121", 1).eval()
    ours.load_state_dict(dense.state_dict())
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours.forward_head(ours.forward_features(x)), dense(x))
        # Few slices, of which MONAI's own network makes none.
        assert ours.forward_features(x[:, :, :5]).shape[2:] == (1, 1, 1)
