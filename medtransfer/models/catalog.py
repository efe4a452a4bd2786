"""Names of architectures -> networks -> backbones."""

from __future__ import annotations

import difflib

import timm
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.models.backbone import Backbone, Recipe, build_chain
from medtransfer.models.weights import default_recipe, load_weights


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the architectures, matched like file names (`*resnet*`)."""
    return [str(name) for name in timm.list_models(pattern)]


def load_backbone(name: str, weights: str | None = None, recipe: Recipe | None = None, seed: int = 0) -> Backbone:
    """Builds a backbone, fills it with weights, and proves its chain of stages.

    Args:
        name: timm architecture, such as `tf_efficientnet_lite0` or `resnet18`.
        weights: `imagenet` (the embedded file where one is installed, else timm's, from its cache or
            hub), `file:PATH` (safetensors or .pth state_dict in timm naming), or None for random weights.
        recipe: mean and standard deviation of the input, in place of the one that belongs to the weights.
        seed: of random weights.

    Raises:
        WeightsError: unknown name, missing weights, or weights that do not fill every tensor.
    """
    network = _build_network(name, seed)
    record = load_weights(network, name, weights)
    recipe = recipe or default_recipe(name, network)
    stages, exact = build_chain(network, recipe.size)
    return Backbone(name, network, stages, exact, recipe, record)


def _build_network(name: str, seed: int) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise WeightsError(f"unknown backbone {name!r}.{hint} `medtransfer backbones` lists them all.")
    import torch

    # Forked, so that building one arm never moves the random numbers of another.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
        except (TypeError, AssertionError, RuntimeError):
            # Some architectures do not take global_pool; their features come from forward_features all the same.
            network = timm.create_model(name, pretrained=False, num_classes=0)
    return network
