"""Names of architectures and of their weights, read without torch: a misspelt one is refused in a
moment.

They are read from timm's source, as its import takes seconds.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from medtransfer.errors import WeightsError
from medtransfer.models.weights.inflation import NAMES, PLANAR
from medtransfer.models.weights.sources import unknown_tag

_REGISTERED = re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE)
_DEPRECATED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)^\}\)", re.DOTALL | re.M)
_KEY = re.compile(r"['\"](\w+)['\"]\s*:")
_TAGGED = re.compile(r"^\s*['\"](\w+)\.([\w-]+)['\"]\s*:", re.MULTILINE)
# The tag of a configuration without weights.
_UNTRAINED = "untrained"


@dataclass(frozen=True)
class _Source:
    """What timm's source says.

    Attributes:
        text: of all its modules.
        names: of its architectures, sorted.
        former: names that they had before.
        tags: of weights by architecture; those that timm works out when it is imported are not
            among them.
    """

    text: str
    names: tuple[str, ...]
    former: tuple[str, ...]
    tags: dict[str, list[str]]


def list_names(pattern: str = "*") -> list[str]:
    """The names of architectures that match: those of `catalog.list_backbones`, in another order.

    Args:
        pattern: as for file names.
    """
    return [name for name in (*NAMES, *_read_source().names) if fnmatch.fnmatch(name, pattern)]


def refuse_unknown(name: str) -> None:
    """Refuses a name that neither timm nor MONAI has an architecture of.

    Raises:
        WeightsError: with the names that are near.
    """
    source = _read_source()
    if name not in {*NAMES, *source.names, *source.former}:
        raise unknown_backbone(name, (*NAMES, *source.names, *source.former))


def refuse_unknown_tag(name: str, weights: str) -> None:
    """Refuses `timm:TAG` where the tag is nowhere in timm's source. Whether it publishes these
    weights for this very architecture is found when they are looked for.

    Args:
        name: of the architecture.
        weights: any source of weights.

    Raises:
        WeightsError: with the tags of the architecture.
    """
    kind, _, tag = weights.partition(":")
    source = _read_source()
    tags = source.tags.get(PLANAR.get(name, name), [])
    if kind != "timm" or tag in tags:
        return
    # Some tags are put together when timm is imported, from others that are there.
    if re.search(rf"(?<!\w){re.escape(tag)}(?!\w)", source.text) is None:
        raise unknown_tag(name, tag, [other for other in tags if other != _UNTRAINED])


def unknown_backbone(name: str, names: Iterable[str]) -> WeightsError:
    """The error about a name that is none of `names`."""
    near = difflib.get_close_matches(name.lower(), names, n=4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return WeightsError(f"unknown backbone {name!r}.{hint} `medtransfer backbones` lists them all.")


@cache
def _read_source() -> _Source:
    spec = find_spec("timm")
    assert spec is not None  # it is a dependency
    assert spec.origin is not None
    files = sorted(Path(spec.origin).with_name("models").glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    former = [key for part in _DEPRECATED.findall(text) for key in _KEY.findall(part)]
    tags: dict[str, list[str]] = {}
    for name, tag in _TAGGED.findall(text):
        tags.setdefault(name, []).append(tag)
    return _Source(text, tuple(sorted(_REGISTERED.findall(text))), tuple(sorted(former)), tags)
