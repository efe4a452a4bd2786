"""Names of architectures, read without torch: a misspelt one is refused in a moment."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from medtransfer.errors import WeightsError
from medtransfer.models.weights.inflation import NAMES

_REGISTERED = re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE)
_DEPRECATED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)^\}\)", re.DOTALL | re.M)
_KEY = re.compile(r"['\"](\w+)['\"]\s*:")


def refuse_unknown(name: str) -> None:
    """Refuses a name that neither timm nor MONAI has an architecture of.

    Raises:
        WeightsError: with the names that are near.
    """
    planar = _planar_names()
    if name not in NAMES and name not in planar:
        raise unknown_backbone(name, (*NAMES, *planar))


def unknown_backbone(name: str, names: Iterable[str]) -> WeightsError:
    """The error about a name that is none of `names`."""
    near = difflib.get_close_matches(name.lower(), names, n=4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return WeightsError(f"unknown backbone {name!r}.{hint} `medtransfer backbones` lists them all.")


@cache
def _planar_names() -> tuple[str, ...]:
    """The names that timm registers, the deprecated ones behind the others, from its source: to
    import timm takes seconds.
    """
    spec = find_spec("timm")
    assert spec is not None  # it is a dependency
    assert spec.origin is not None
    files = sorted(Path(spec.origin).with_name("models").glob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in files]
    names = [name for text in texts for name in _REGISTERED.findall(text)]
    former = [
        key for text in texts for part in _DEPRECATED.findall(text) for key in _KEY.findall(part)
    ]
    return (*sorted(names), *sorted(former))
