"""Names of architectures -> networks -> backbones.

timm is imported where it is used: it takes seconds, and a study reads its images first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.models.catalog.formulas import NAME as FEATURES
from medtransfer.models.catalog.formulas import build_handcrafted
from medtransfer.models.catalog.monai_networks import build_volume_network
from medtransfer.models.catalog.names import unknown_backbone
from medtransfer.models.chain.backbone import Backbone, Recipe, WeightsRecord
from medtransfer.models.chain.chain import NECK, Chain, build_chain
from medtransfer.models.weights.inflation import NAMES, SIZE
from medtransfer.models.weights.locate import fill_network, locate, published_recipe
from medtransfer.models.weights.trained import prove

RANDOM = WeightsRecord("none", "random", "")
# Slices of the stack on which the chain of a network of volumes is proved.
_DEPTH = 32


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the architectures, matched like file names (`*resnet*`): timm's for planes, MONAI's
    for volumes.
    """
    import timm

    return [*fnmatch.filter(NAMES, pattern), *(str(name) for name in timm.list_models(pattern))]


def load_backbone(
    name: str,
    weights: str | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    channels: int = 3,
    size: int | None = None,
) -> Backbone:
    """Builds a backbone, fills it with weights, proves its chain of stages and that trained weights
    arrived.

    Args:
        name: architecture of timm, such as `tf_efficientnet_lite0` or `resnet18`, or of MONAI for
            volumes (`monai_resnet18`), which takes the planar weights of its twin too, spread over
            the slices; or `features`, see `handcrafted`.
        weights: `imagenet` (the embedded file where one is installed, else timm's, from its cache
            or the hub), `timm:TAG` (other weights of timm, such as `timm:a2_in1k`), `radimagenet`
            (the hub's file) or `radimagenet:PATH` (.pt, or Keras .h5), `file:PATH` (safetensors or
            .pth state_dict, in timm's or torchvision's names, with or without prefixes),
            `study:FOLDER` (a run of a study), or None for random weights.
        recipe: mean and standard deviation of the input, in place of those that belong to the
            weights.
        seed: of random weights.
        channels: of the image. 1: the kernels of the three colours are summed, which equals the
            normalised grey image repeated three times (a recipe that differs between colours is
            averaged); more than 3: they are repeated in turn and scaled.
        size: side of the image in pixels, for architectures built for one size (ViT, Swin): their
            position embeddings are resized. Others take any size.

    Raises:
        WeightsError: unknown name, missing weights, or weights that do not fill every tensor.
    """
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise WeightsError(f"channels is {channels!r}; it is a number of channels from 1.")
    if name == FEATURES:
        if weights not in {None, "none"}:
            raise WeightsError(f"{FEATURES} are formulas and have no weights; leave weights out.")
        return build_handcrafted()
    _require_known(name)
    # Before anything is built: what is not on this machine is told at once.
    located = locate(name, weights) if weights is not None and weights != "none" else None
    chain = _chain_of(name, channels, size)
    network = _build_network(name, channels, size, seed, chain.unused)
    ndim = 3 if name in NAMES else 2
    if recipe is not None and {len(recipe.mean), len(recipe.std)} - {1, channels}:
        raise WeightsError(
            f"recipe: {len(recipe.mean)} means and {len(recipe.std)} deviations for {channels} "
            "channels; give one of each, or as many."
        )
    if weights is None or located is None:
        return Backbone(
            name,
            network,
            chain,
            _for_channels(recipe or published_recipe(name), channels),
            RANDOM,
            ndim,
            size,
        )
    neck = chain.stages[-1].owns if chain.stages[-1].name == NECK else ()
    loaded = fill_network(network, name, weights, located, channels, neck)
    used = _for_channels(recipe or loaded.recipe, channels)
    record = (
        replace(loaded.record, recipe_from="set by hand") if recipe is not None else loaded.record
    )
    backbone = Backbone(name, network, chain, used, record, ndim, size)
    proof = _proofs.get(
        key := (name, loaded.record.digest, channels, size, loaded.recipe, loaded.record.changes)
    )
    if proof is None:
        make_random = partial(_build_network, name, channels, size, seed, chain.unused)
        proof = _proofs[key] = prove(
            backbone, _for_channels(loaded.recipe, channels), size, loaded.unused, make_random
        )
    backbone.weights = replace(record, proof=proof)
    return backbone


# By architecture and file: a study loads the same weights for every fold.
_proofs: dict[Any, dict[str, Any]] = {}


@cache
def _chain_of(name: str, channels: int, size: int | None) -> Chain:
    """The chain depends on the architecture alone, so it is proved once."""
    network = _build_network(name, channels, size, 0, ())
    side = size or published_recipe(name).size
    space = (_DEPTH, SIZE, SIZE) if name in NAMES else (side, side)
    image = torch.randn(2, channels, *space, generator=torch.Generator().manual_seed(0))
    try:
        return build_chain(network, image)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error} Choose another backbone.") from error
    except Exception as error:  # an architecture refuses a size in its own way
        wanted = f" at size {size}" if size else ""
        made = f" It was made for images of {published_recipe(name).size} pixels." if size else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{name} cannot be run{wanted} ({reason}).{made}") from error


def _for_channels(recipe: Recipe, channels: int) -> Recipe:
    """Mean and deviation repeated to the number of channels; of one channel, or of many, their mean
    where they differ.
    """
    if len(recipe.mean) == channels and len(recipe.std) == channels:
        return recipe
    mean, std = (sum(values) / len(values) for values in (recipe.mean, recipe.std))
    return replace(recipe, mean=(mean,) * channels, std=(std,) * channels)


def _require_known(name: str) -> None:
    import timm

    if name not in NAMES and not timm.is_model(name):
        raise unknown_backbone(name, list_backbones())


def _build_network(
    name: str, channels: int, size: int | None, seed: int, unused: tuple[str, ...]
) -> nn.Module:
    # Forked, so that building one arm never moves the random numbers of another.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (
            build_volume_network(name, channels)
            if name in NAMES
            else _build_planar(name, channels, size)
        )
    for child in unused:
        setattr(network, child, nn.Identity())
    return network


def _build_planar(name: str, channels: int, size: int | None) -> nn.Module:
    import timm

    create: Callable[..., nn.Module] = partial(
        timm.create_model, name, pretrained=False, num_classes=0, in_chans=channels
    )
    if size is not None:
        try:
            return create(img_size=size)
        except TypeError:
            pass  # takes any size, and so has no such argument
        except (AssertionError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{name} cannot be built for images of {size} pixels "
                f"({str(error).splitlines()[0] if str(error) else 'refused'})."
            ) from error
    try:
        return create()
    except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(
            f"{name} cannot be built with {channels} channels ({type(error).__name__}: {error})."
        ) from error
