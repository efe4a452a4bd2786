"""Damaged configurations: seeded mutations of a valid one, for the tests and the fuzz benchmark.

Nothing may come of them but a configuration or an error of the configuration, and no setting may be
lost without a word.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtransfer.config.study_config import StudyConfig, load_config, make_config
from medtransfer.errors import ConfigError
from medtransfer.text.yaml import parse

SLOWEST_SECONDS = 5.0

# One setting to a line, none at its default, so that the loss of any is seen.
CONFIG = """\
task: classification
cohort:
  root: data/breast
  classes: [benign, malignant]
  positive: malignant
  skip_unreadable: true
image:
  size: 96
  spacing: [0.5, 0.5]
  slices: 12
  slice_spacing: 2.5
  plane: coronal
  window: [40, 400]
augment:
  flip: none
  rotate: 5
arms:
  imagenet:
    backbone: resnet18
    weights: imagenet
    budget: 2
    recipe:
      mean: 0.4
      std: 0.2
    plan:
      frozen_stages: 2
      adapt_norm: yes
  scratch:
    backbone: resnet34
    channels: 1
    budget: level
protocol:
  folds: 4
  seeds: [3, 7]
  group: cluster
plan:
  search: on
  domain: far
train:
  epochs: 9
  weight_decay: 1e-3
  compile: off
learning_curve:
  sizes: [5, 10]
  episodes: 2
evaluate:
  bootstrap: 500
  threshold: 0.25
  prevalences: [0.01, 0.1]
  subgroups: [sex, site]
report:
  figures: svg
  gallery: false
"""
_VALUES = (
    *(
        "",
        "~",
        "null",
        "yes",
        "no",
        "off",
        "0",
        "-1",
        "7",
        "1e3",
        "1_000",
        "007",
        "0x10",
        ".inf",
        ".nan",
        "nan",
        "12:30:45",
        "2020-01-01",
    ),
    *(
        "[]",
        "{}",
        "[1",
        "{a: b",
        "]",
        "- 1",
        "'",
        '"',
        '"\\d"',
        "&a",
        "*a",
        "!!int x",
        "!!bool x",
        "!!python/name:os.system",
        "|",
        ">",
    ),
    *(
        "a: b",
        "<<: *a",
        "?",
        "---",
        "%",
        "@",
        "`",
        "=",
        "<<",
        "\t1",
        "[[[[1]]]]",
        "{a: {b: {c: d}}}",
        "9" * 400,
        "é",
        "\ufeff",
        "\x00",
    ),
)
_CHARACTERS = [*": \n\t-[]{},#&*!|'\"%@\\\xa0a"]


@dataclass(frozen=True)
class Mutant:
    """A damaged configuration.

    Attributes:
        content: of the file.
        change: what was done to it.
        lost: the setting whose line is gone or has another key, in parts; empty where that is not
            known.
        renamed: its new key, where it has one.
    """

    content: bytes
    change: str
    lost: tuple[str, ...] = ()
    renamed: str = ""


def yaml_mutants(seed: int, count: int) -> Iterator[Mutant]:
    """`count` damaged configurations, each kind of damage in its turn."""
    rng = random.Random(seed)
    kinds = (_remove, _rename, _flip, _replace, _duplicate, _indent, _damage_bytes)
    for number in range(count):
        yield kinds[number % len(kinds)](rng)


def settings() -> dict[int, tuple[str, ...]]:
    """The setting of every line that holds one, by the number of the line; sections are none."""
    found: dict[int, tuple[str, ...]] = {}
    above: list[str] = []
    for number, line in enumerate(CONFIG.splitlines()):
        key, _, value = line.strip().partition(":")
        above = [*above[: (len(line) - len(line.lstrip())) // 2], key]
        if value:
            found[number] = tuple(above)
    return found


def try_mutant(mutant: Mutant, folder: Path) -> str:
    """Reads a damaged configuration as the product would; "" where all is well, else what is wrong
    with the product.
    """
    path = folder / "mutant.yaml"
    path.write_bytes(mutant.content)
    begun = time.monotonic()
    try:
        config = load_config(path)
    except ConfigError as error:
        named = not mutant.lost or (mutant.renamed or mutant.lost[-1]) in str(error)
        fault = (
            ""
            if str(path) in str(error) and named
            else f"the error names neither file nor key: {error}"
        )
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    else:
        fault = _keeps_silent(config, mutant)
    if time.monotonic() - begun > SLOWEST_SECONDS:
        fault = f"took {time.monotonic() - begun:.1f} s"
    return f"{mutant.change}: {fault}" if fault else ""


def _keeps_silent(config: StudyConfig, mutant: Mutant) -> str:
    """Whether a setting that is gone is anything but its default, another was changed by that, or
    an unknown key was taken.
    """
    if not mutant.lost:
        return ""
    if mutant.renamed:
        return f"the unknown key {mutant.renamed} was taken"
    section: Any = config
    for part in mutant.lost[:-1]:
        section = section[part] if isinstance(section, dict) else getattr(section, part)
    name = mutant.lost[-1]
    if getattr(section, name) != type(section).model_fields[name].get_default():
        return f"{'.'.join(mutant.lost)} is {getattr(section, name)!r} though its line is gone"
    changed, before = config.model_dump(), make_config(parse(CONFIG, "CONFIG")).model_dump()
    for values in (changed, before):
        for part in mutant.lost[:-1]:
            values = values[part]  # noqa: PLW2901
        del values[name]
    return (
        "" if changed == before else f"without {'.'.join(mutant.lost)} other settings are changed"
    )


def _lines() -> list[str]:
    return CONFIG.splitlines(keepends=True)


def _encode(lines: list[str]) -> bytes:
    return "".join(lines).encode()


def _remove(rng: random.Random) -> Mutant:
    number, lost = rng.choice([*settings().items()])
    lines = _lines()
    del lines[number]
    return Mutant(_encode(lines), f"without {'.'.join(lost)}", lost)


def _rename(rng: random.Random) -> Mutant:
    number, lost = rng.choice([*settings().items()])
    lines, key = _lines(), lost[-1]
    at = rng.randrange(len(key))
    known = {path[-1] for path in settings().values()}
    renamed = rng.choice(
        [
            key[:at] + key[at + 1 :],
            key[: at + 1] + key[at:],
            key[:at] + "x" + key[at + 1 :],
            key.upper(),
        ]
    )
    renamed = renamed if renamed and renamed not in known else f"{key}_x"
    lines[number] = lines[number].replace(f"{key}:", f"{renamed}:", 1)
    return Mutant(_encode(lines), f"{'.'.join(lost)} is called {renamed}", lost, renamed)


def _flip(rng: random.Random) -> Mutant:
    text = list(CONFIG)
    places = [rng.randrange(len(text)) for _ in range(rng.randint(1, 4))]
    for place in places:
        text[place] = rng.choice(_CHARACTERS)
    return Mutant(_encode(text), f"other characters at {places}")


def _replace(rng: random.Random) -> Mutant:
    number, setting = rng.choice([*settings().items()])
    lines, value = _lines(), rng.choice(_VALUES)
    lines[number] = f"{lines[number].partition(':')[0]}: {value}\n"
    return Mutant(_encode(lines), f"{'.'.join(setting)} is {value[:40]!r}")


def _duplicate(rng: random.Random) -> Mutant:
    lines = _lines()
    begun = rng.randrange(len(lines))
    block = lines[begun : begun + rng.randint(1, 6)]
    at = rng.randrange(len(lines))
    return Mutant(
        _encode([*lines[:at], *block, *lines[at:]]),
        f"lines {begun + 1} to {begun + len(block)} again behind line {at}",
    )


def _indent(rng: random.Random) -> Mutant:
    lines = _lines()
    number = rng.randrange(len(lines))
    before = rng.choice(["", " ", "   ", "    ", "\t", "  \t", "- ", "\xa0\xa0"])
    lines[number] = before + lines[number].lstrip()
    return Mutant(_encode(lines), f"line {number + 1} begins with {before!r}")


def _damage_bytes(rng: random.Random) -> Mutant:
    content = bytearray(_encode(_lines()))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(content))
        kind = rng.randrange(4)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + rng.randint(1, 64)]
        else:
            content[at:at] = content[at : at + rng.randint(1, 64)]
    return Mutant(bytes(content), "other bytes")
