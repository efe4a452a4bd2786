"""Files of weights -> the one network asked for, as tensors by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medtransfer.errors import WeightsError
from medtransfer.models.weights.claims import check_tensors
from medtransfer.models.weights.formats import read_content
from medtransfer.models.weights.sources import refuse_no_file

Tensors = dict[str, Tensor]

# torch's hub names files so: the end is the beginning of their SHA-256.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|safetensors)$")
# Names in front of the tensors' names which say nothing of the network: of the attribute that holds
# it, or of a layer around it.
PREFIXES = (
    "module",
    "_orig_mod",
    "_model",
    "model",
    "backbone",
    "encoder",
    "encoder_q",
    "network",
    "net",
    "state_dict",
    "base_model",
)
# Names of networks that are kept beside others of the same kind.
_ROLE = re.compile(
    r"(?i)(.*[_.-])?(student|teacher|ema|swa|shadow|online|target|momentum|generator|discriminator"
    r"|encoder_[qk]|(query|key|base|source)_encoder|net_?[dg]\d*|[dg]_ema)(\d*|[_.-].*)"
)
# What is kept beside networks to go on with a training.
_NO_NETWORK = re.compile(
    r"(?i)(.*_)?(optim\w*|opt|(lr_)?sched\w*|(grad_)?scaler\w*|amp|args|opts?|config\w*|cfg|criterion\w*|loss\w*|loops|callbacks"
    r"|hyper_?param\w*|hparams|rng\w*|meta(_?data)?|message_hub|history|metrics?|stats|epoch|meters?)"
)
# Parts of a network behind what is transferred.
_HEAD = re.compile(
    r"(?i)(\w+_)?(head|heads|classifier|fc|projector|projection|predictor|prototypes|last_linear)(_\w+)?"
)
# The network whose tensors have no name in front, where others beside it have one.
TOP = "top"
_LOOKS = 10_000


@dataclass(frozen=True)
class Network:
    """One network of a file.

    Attributes:
        tensors: by the names they have in the file.
        name: of the network in the file; "" where the file is this network alone.
        unused: names in the file, beside its tensors, of what is no tensor or no part of it.
        changes: how it was chosen among several, in words.
    """

    tensors: Tensors
    name: str = ""
    unused: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def read_tensors(path: Path, name: str = "") -> Tensors:
    """The tensors of `read_network`."""
    return read_network(path, name).tensors


def read_network(path: Path, name: str = "") -> Network:
    """Reads a state_dict from safetensors, a torch file, or a Keras `.h5`, with whatever
    dictionaries around it.

    Args:
        path: of the file.
        name: of a network in it, where it holds several; its last parts suffice where they name one
            alone.

    Raises:
        WeightsError: no such file, damaged, holding no network or none of that name, or several and
            none is named.
    """
    refuse_no_file(path)
    content = read_content(
        path
    )  # first, as what was saved in place of the file has another digest too
    _check_digest_in_name(path)
    networks = [part for entry in _networks_in(content) for part in _split_roles(entry)]
    if not networks:
        raise WeightsError(
            f"{path}: not a plain state_dict of tensors, but {_describe(content)}. Save the "
            "network's tensors: "
            "torch.save(model.state_dict(), PATH)."
        )
    try:
        check_tensors(
            path, ((key, value) for network in networks for key, value in network.tensors.items())
        )
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return _select(path, networks, name)


def refuse_several(path: Path, counts: Mapping[str, int]) -> WeightsError:
    """The error that names the networks of a file, with their numbers of tensors, and asks for
    one.
    """
    return WeightsError(
        f"{path}: holds {len(counts)} networks: {_list(counts)}. Name the one to use, such as "
        f"weights: file:{path}#{list(counts)[-1]}."
    )


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} ({count} tensor{'s' * (count != 1)})" for name, count in counts.items()
    )


def _networks_in(
    content: Any, name: str = "", around: tuple[int, ...] = (), looks: Iterator[int] | None = None
) -> list[Network]:
    """Every dictionary that holds tensors by name, however deep. What a training needs beside them
    is passed over.
    """
    looks = looks or iter(range(_LOOKS))
    # A dictionary may hold itself, or others over and over.
    if (
        not isinstance(content, dict)
        or "param_groups" in content
        or id(content) in around
        or next(looks, None) is None
    ):
        return []
    nested: dict[Any, list[Network]] = {
        key: _networks_in(value, _join(name, key), (*around, id(content)), looks)
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, dict) and not _NO_NETWORK.fullmatch(key)
    }
    nested = {key: networks for key, networks in nested.items() if networks}
    # A figure or a state of random numbers may be a tensor too: beside networks, only what has a
    # dotted name is of one.
    tensors = {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor) and (not nested or "." in key)
    }
    largest = max((_size(networks) for networks in nested.values()), default=0)
    bodies = [
        key
        for key, networks in nested.items()
        if not _HEAD.fullmatch(key) or 3 * _size(networks) > largest
    ]
    if len(bodies) == 1 and not tensors:
        # Heads beside the one network are of it.
        aside = [
            _join(part.name, tensor)
            for key in nested
            if key not in bodies
            for part in nested[key]
            for tensor in part.tensors
        ]
        return [replace(part, unused=(*part.unused, *aside)) for part in nested[bodies[0]]]
    found = [part for networks in nested.values() for part in networks]
    if not tensors:
        return found
    aside = [str(key) for key in content if key not in tensors and key not in nested]
    return [Network(tensors, name, tuple(aside)), *found]


def _size(networks: Sequence[Network]) -> int:
    return sum(len(network.tensors) for network in networks)


def _split_roles(network: Network) -> list[Network]:
    """The networks of one state_dict whose names begin with `student.`, `teacher.` and so on,
    behind prefixes they share.
    """
    path, inside = "", network.tensors
    while True:
        groups: dict[str, Tensors] = {}
        for key, value in inside.items():
            word, dot, rest = key.partition(".")
            if dot:
                groups.setdefault(word, {})[rest] = value
        bodies = {
            word: group
            for word, group in groups.items()
            if _is_body(word) and any(value.ndim > 1 for value in group.values())
        }
        if len(bodies) > 1 and any(_ROLE.fullmatch(word) for word in bodies):
            break
        if not bodies:
            return [network]
        word = max(bodies, key=lambda body: len(bodies[body]))
        path, inside = _join(path, word), bodies[word]
    shared = f"{path}." if path else ""
    begins = tuple(f"{shared}{word}." for word in bodies)
    aside = (*network.unused, *(key for key in network.tensors if not key.startswith(begins)))
    return [
        Network(group, _join(network.name, f"{shared}{word}"), aside)
        for word, group in bodies.items()
    ]


def _is_body(word: str) -> bool:
    return word in PREFIXES or bool(_ROLE.fullmatch(word) and not _HEAD.fullmatch(word))


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _short_names(networks: Sequence[Network]) -> list[str]:
    """The names of networks without the parts that all of them begin or end with."""
    parts = [network.name.split(".") for network in networks]
    for end in (0, -1):
        while (
            len(parts) > 1
            and all(len(part) > 1 for part in parts)
            and len({part[end] for part in parts}) == 1
        ):
            for part in parts:
                part.pop(end)
    return [".".join(part) or TOP for part in parts]


def _select(path: Path, networks: Sequence[Network], asked: str) -> Network:
    names = _short_names(networks)
    counts = {name: len(network.tensors) for name, network in zip(names, networks, strict=True)}
    listed = _list(counts)
    if asked:
        exact = [i for i, name in enumerate(names) if asked in {name, networks[i].name}]
        near = exact or [
            i for i, network in enumerate(networks) if f".{asked}." in f".{network.name}."
        ]
        if len(near) == 1:
            changes = (f"network {names[near[0]]} taken, of {listed}",) if len(networks) > 1 else ()
            return replace(networks[near[0]], name=names[near[0]], changes=changes)
        behind = [part for network in networks if not near and (part := _behind(network, asked))]
        if len(behind) == 1:
            return behind[0]
        if len(networks) == 1 and not networks[0].name:
            raise WeightsError(
                f"{path}: holds no network {asked!r}, but one without a name. Leave #{asked} out."
            )
        verb = "several networks" if near else "no network"
        raise WeightsError(f"{path}: holds {verb} {asked!r}. It holds {listed}. Name one of these.")
    if len(networks) == 1:
        return replace(networks[0], name="")
    if set(names) == {"encoder_q", "encoder_k"}:  # MoCo publishes the encoder of queries
        asked, why = "encoder_q", f"network encoder_q taken, as MoCo publishes it, of {listed}"
    elif all(_same(networks[0].tensors, other.tensors) for other in networks[1:]):
        asked, why = names[0], f"network {names[0]} taken, of {listed}, which hold the same numbers"
    else:
        raise refuse_several(path, counts)
    return replace(networks[names.index(asked)], name="", changes=(why,))


def _behind(network: Network, asked: str) -> Network | None:
    """The tensors whose names have the name asked for in front, as those of networks without a role
    have.
    """
    inside: Tensors = {}
    for key, value in network.tensors.items():
        head, mark, rest = f".{key}".partition(f".{asked}.")
        if mark and all(word in PREFIXES for word in head.split(".") if word):
            inside[rest] = value
    if not any(value.ndim > 1 for value in inside.values()):
        return None
    aside = tuple(key for key in network.tensors if f".{asked}." not in f".{key}")
    return Network(
        inside,
        asked,
        (*network.unused, *aside),
        (f"network {asked} taken, of {len(inside)} tensors",),
    )


def _same(one: Tensors, other: Tensors) -> bool:
    """Whether two networks hold the same numbers under the same names, whatever prefixes these
    have.
    """
    first, second = (
        {_bare(key): value for key, value in tensors.items()} for tensors in (one, other)
    )
    whole = len(first) == len(one) and len(second) == len(other)
    return (
        whole
        and first.keys() == second.keys()
        and all(same_numbers(value, second[key]) for key, value in first.items())
    )


def _bare(key: str) -> str:
    word, dot, rest = key.partition(".")
    return _bare(rest) if dot and word in PREFIXES else key


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same in kind, shape and numbers."""
    alike = (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.layout == other.layout == torch.strided
    )
    readable = not one.is_quantized and "meta" not in {one.device.type, other.device.type}
    return alike and readable and torch.equal(one, other)


def _describe(content: Any) -> str:
    if isinstance(content, dict) and content:
        keys = ", ".join(str(key)[:40] for key in list(content)[:6]) + (
            ", ..." if len(content) > 6 else ""
        )
        return f"a dict with the keys {keys}"
    if isinstance(content, Tensor):
        return f"one tensor of shape {tuple(content.shape)} without a name"
    if isinstance(content, (list, tuple, set, dict)):
        return f"a {type(content).__name__} of {len(content)} entries"
    return f"a {type(content).__name__}"


def digest_of(path: Path) -> str:
    """SHA-256 of the file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_digest_in_name(path: Path) -> None:
    match = DIGEST_IN_NAME.search(path.name)
    # A link in the cache of a hub is named by its target: the digest of the whole file.
    target = path.resolve().name
    known = match.group(1) if match else target if re.fullmatch(r"[0-9a-f]{64}", target) else ""
    if known and not digest_of(path).startswith(known):
        raise WeightsError(
            f"{path}: damaged or changed: its SHA-256 should start with {known[:16]}, as it is "
            "named. Download it again."
        )
