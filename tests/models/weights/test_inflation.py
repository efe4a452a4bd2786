"""Networks of volumes against the planar ones whose weights they take."""

from __future__ import annotations

import medtransfer as mt
import pytest
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.weights.inflation import inflate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unproved")]


@pytest.fixture(scope="module")
def planar(tmp_path_factory):
    path = tmp_path_factory.mktemp("planar") / "resnet18.pth"
    network = timm.create_model("resnet18")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # timm starts the last norm of a block at 0, and with it the block as a shortcut.
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("slices", [1, 8, 24])
def test_inflated_weights_see_what_the_planar_network_sees(planar, slices):
    """A volume constant along z: every slice of every activation is the planar one, to the
    border.
    """
    flat = mt.load_backbone("resnet18", weights=f"file:{planar}").eval()
    solid = mt.load_backbone("monai_resnet18", weights=f"file:{planar}").eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert solid.names == flat.names
    with torch.inference_mode():
        planes = flat({"image": x}, flat.names)
        volumes = solid({"image": x[:, :, None].expand(-1, -1, slices, -1, -1)}, solid.names)
    for name, plane in planes.items():
        volume = volumes[name]
        assert volume.shape[2] >= 1
        for index in range(volume.shape[2]):
            assert (volume[:, :, index] - plane).abs().max() <= 1e-5 * plane.abs().max(), name


def test_a_kernel_is_spread_over_the_slices():
    kernel = torch.randn(4, 3, 5, 5)
    inflated = inflate(kernel, 7)
    assert inflated.shape == (4, 3, 7, 5, 5)
    assert torch.allclose(inflated.sum(2), kernel, atol=1e-6)


@pytest.mark.parametrize("slices", [16, 24])
def test_every_slice_is_seen(planar, slices):
    solid = mt.load_backbone("monai_resnet18", weights=f"file:{planar}").eval()
    last = solid.names[-1]
    x = torch.randn(1, 3, slices, 48, 48)
    with torch.inference_mode():
        whole = solid({"image": x}, [last])[last]
        for index in range(slices):
            changed = x.clone()
            changed[:, :, index] = 0
            assert (
                solid({"image": changed}, [last])[last] - whole
            ).abs().max() > 1e-4 * whole.abs().max(), index


def test_grey_volumes_take_the_sum_of_the_colours(planar):
    three, one = (
        mt.load_backbone("monai_resnet18", weights=f"file:{planar}", channels=n).eval()
        for n in (3, 1)
    )
    x = torch.randn(1, 1, 8, 48, 48)
    last = three.names[-1]
    with torch.inference_mode():
        a, b = (
            three({"image": x.expand(-1, 3, -1, -1, -1)}, [last])[last],
            one({"image": x}, [last])[last],
        )
    assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_a_planar_file_that_does_not_fit_is_refused(planar):
    for name in ("monai_resnet34", "monai_resnet50", "monai_densenet121"):
        with pytest.raises(
            WeightsError,
            match="cannot be filled; nothing was loaded|is named as the weights of resnet18",
        ):
            mt.load_backbone(name, weights=f"file:{planar}")
    with pytest.raises(
        WeightsError, match="no ImageNet weights are published for monai_densenet121"
    ):
        mt.load_backbone("monai_densenet121", weights="imagenet")
