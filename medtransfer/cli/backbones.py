"""`medtransfer backbones`: the architectures that can be chosen."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medtransfer.cli.options import Json
from medtransfer.cli.printing import say
from medtransfer.errors import ConfigError

_LINE = "{:<44} {:>8} {:>6} {:>5} {:>6} {:<6} {:<10} {}"
_HEADER = ("name", "M param.", "stages", "input", "GB", "speed", "here now", "weights")
# Sources of weights in a row; --json prints all.
_SHOWN = 4


def backbones(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN", help="Names, with * for any letters, such as '*resnet*'."
        ),
    ] = "*",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure time and memory on this machine now; takes seconds for each."
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="List only those with weights on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the architectures that can be transferred, what they cost, and their weights."""
    from medtransfer.models.catalog.names import list_names

    if not list_names(pattern):  # told before torch is loaded, which takes seconds
        raise _no_match(pattern)

    from medtransfer.models.catalog.measured import describe_backbones

    rows = [row for row in describe_backbones(pattern, measure) if row["offline"] or not offline]
    if not rows:
        raise _no_match(pattern, " with weights on this machine")
    if as_json:
        say(json.dumps(rows))
        return
    say(_LINE.format(*_HEADER))
    for row in rows:
        say(_LINE.format(*_cells(row)))
    say(
        "\nGB: to train all of it on 32 images (8 volumes). Speed: of training, against resnet18. "
        "'?': not measured, use --measure."
    )


def _no_match(pattern: str, where: str = "") -> ConfigError:
    return ConfigError(f"no architecture matches {pattern!r}{where}. Try '*resnet*'.")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """What a line shows of one architecture."""
    parameters, memory, speed = (
        "?" if row[key] is None else str(row[key]) for key in ("parameters", "memory_gb", "speed")
    )
    stages = "?" if row["stages"] is None else str(row["stages"]) if row["exact"] else "one"
    more = len(row["weights"]) - _SHOWN
    weights = ", ".join(row["weights"][:_SHOWN]) or "-"
    weights += f" and {more} more (--json)" if more > 0 else ""
    offline = ", ".join(row["offline"]) or "-"
    side = str(row["input_size"])
    return row["name"], parameters, stages, side, memory, speed, offline, weights
