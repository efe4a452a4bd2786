"""Whether trained weights arrived: what random weights cannot produce, measured after loading."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import skimage.data
import torch
from skimage.transform import resize
from torch import Tensor, nn

from medtransfer.models.chain.backbone import Backbone, Recipe
from medtransfer.models.chain.chain import mean_over_space
from medtransfer.models.weights.files import Tensors

# Pictures that come with scikit-image, so that nothing is downloaded; for three of them, what they
# show, in ImageNet's numbering: cats, coffee mug or espresso, missile or projectile.
_PICTURES = ("chelsea", "coffee", "rocket", "astronaut", "brick", "coins", "moon", "page")
_CLASSES = ({281, 282, 283, 284, 285}, {504, 967}, {657, 744})
_IMAGENET_CLASSES = 1000
# Features of a random network hardly differ between pictures. Effective rank over the eight
# pictures, measured: random 1.0 to 1.5 (convolutional) and 2 to 3.3 (transformers, ConvNeXt);
# trained on ImageNet about 7.
_MORE_THAN_RANDOM = 1.6
_DEPTH = 16


def prove(
    backbone: Backbone,
    recipe: Recipe,
    size: int | None,
    unused: Tensors,
    make_random: Callable[[], nn.Module],
) -> dict[str, Any]:
    """Measures whether the weights are trained ones.

    With the classifier of ImageNet in the file: the pictures it knows among its first five guesses.
    Otherwise the effective rank of the pooled features of eight pictures (exponential of the
    entropy of the eigenvalues of their Gram matrix, Roy & Vetterli 2007, EUSIPCO) against a network
    of random weights, and the share of the norms' weights and of biases that are not at the
    constants which random initialisations give them.

    Args:
        backbone: with the weights loaded.
        recipe: of the weights. The pictures have its size, which the study's images need not have.
        size: side in pixels of the only images that the network takes, where it was built for one
            size.
        unused: tensors of the file that have no place in it.
        make_random: the same network with random weights.

    Returns:
        `passed` and the statistics: `known_pictures` of `pictures` (where there is a classifier),
        `rank`, `rank_random`, `moved` (0 to 1), and `sentence` in words.
    """
    pictures, features, native = _look(backbone, recipe, size)
    if not torch.isfinite(features).all():
        return {"passed": False, "sentence": "the features of test pictures are not finite"}
    rank = _effective_rank(features)
    moved = _moved(backbone.network)
    classifier = _classifier(unused, features.shape[1])
    proof: dict[str, Any] = {"rank": round(rank, 2), "moved": round(moved, 3)}
    if classifier is not None:
        weight, bias = classifier
        guesses = (features[: len(_CLASSES)] @ weight.T + bias).topk(5).indices.tolist()
        known = sum(
            bool(right & set(guess)) for right, guess in zip(_CLASSES, guesses, strict=True)
        )
        proof |= {"known_pictures": known, "pictures": len(_CLASSES)}
        # At another size, or in other colours, than it was trained on, a classifier may fail and
        # its features be good.
        if known >= 2 or native:
            return proof | {
                "passed": known >= 2,
                "sentence": f"its classifier knows {known} of {len(_CLASSES)} test pictures",
            }
    rank_random = _effective_rank(_features(backbone, make_random(), pictures))
    passed = moved >= 0.5 and rank > _MORE_THAN_RANDOM * rank_random
    sentence = (
        f"features of {len(pictures)} test pictures have effective rank {rank:.1f}, of random "
        f"weights {rank_random:.1f}"
    )
    if moved < 0.5:
        sentence = (
            f"{100 * (1 - moved):.0f} % of the norms and biases are as a random initialisation "
            "leaves them"
        )
    return proof | {"rank_random": round(rank_random, 2), "passed": passed, "sentence": sentence}


def _look(backbone: Backbone, recipe: Recipe, size: int | None) -> tuple[Tensor, Tensor, bool]:
    """The pictures, their features, and whether they are as in training: in colour and of that
    size.
    """
    colour = backbone.ndim == 2 and len(recipe.mean) == 3
    try:
        pictures = _pictures(recipe, recipe.size, backbone.ndim)
        return pictures, _features(backbone, backbone.network, pictures), colour
    except Exception:  # built for another size, which each architecture says in its own way
        if size is None or size == recipe.size:
            raise
        pictures = _pictures(recipe, size, backbone.ndim)
        return pictures, _features(backbone, backbone.network, pictures), False


def _features(backbone: Backbone, network: nn.Module, pictures: Tensor) -> Tensor:
    last = backbone.stages[-1]
    kept, mode = backbone.network, backbone.training
    backbone.network = network
    backbone.eval()
    try:
        with torch.inference_mode():
            return mean_over_space(
                backbone({"image": pictures}, [last.name])[last.name], last.layout
            )
    finally:
        backbone.network = kept
        backbone.train(mode)


def _effective_rank(features: Tensor) -> float:
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    values = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp_min(1e-12)
    return float(torch.exp(-(values * values.log()).sum()))


def _moved(network: nn.Module) -> float:
    """Share of vectors (weights of norms, biases) that are not one constant of 0 or 1. Statistics
    move without learning.
    """
    vectors = [value for value in network.parameters() if value.ndim == 1 and len(value) > 1]
    at_start = [bool((value == 0).all() or (value == 1).all()) for value in vectors]
    return 1.0 - sum(at_start) / len(at_start) if at_start else 1.0


def _classifier(unused: Tensors, channels: int) -> tuple[Tensor, Tensor] | None:
    for key, weight in unused.items():
        bias = unused.get(f"{key.removesuffix('weight')}bias")
        if (
            key.endswith("weight")
            and bias is not None
            and bias.shape == (_IMAGENET_CLASSES,)
            and weight.numel() == len(bias) * channels
        ):
            return weight.reshape(len(bias), channels).float(), bias.float()
    return None


def _pictures(recipe: Recipe, size: int, ndim: int) -> Tensor:
    images, channels = _squares(size), len(recipe.mean)
    if channels != images.shape[1]:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    shape = (1, -1, 1, 1)
    images = (images - torch.tensor(recipe.mean).view(shape)) / torch.tensor(recipe.std).view(shape)
    return images if ndim == 2 else images[:, :, None].expand(-1, -1, _DEPTH, -1, -1)


@cache
def _squares(size: int) -> Tensor:
    squares = []
    for name in _PICTURES:
        picture = getattr(skimage.data, name)()
        picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        # The whole picture, squeezed: what it shows stays in sight.
        squares.append(
            np.moveaxis(resize(picture[..., :3], (size, size), anti_aliasing=True), -1, 0)
        )
    return torch.from_numpy(np.stack(squares)).float()
