"""`medtransfer backbones` and `medtransfer configs`: what can be chosen from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medtransfer.cli.options import Json
from medtransfer.cli.printing import say, say_json
from medtransfer.errors import ConfigError

_LINE = "{:<44} {:>8} {:>6} {:>5} {:>6} {:<6} {:<10} {}"
_HEADER = ("name", "M param.", "stages", "input", "GB", "speed", "here now", "weights")
# Sources of weights in a row; --json prints all.
_SHOWN = 4


def backbones(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Names as in a shell, such as '*resnet*'.")
    ] = "*",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure on this machine, now; some seconds each.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only those with weights on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the architectures that can be transferred, what they cost, and their weights."""
    from medtransfer.models.catalog.measured import describe_backbones

    rows = [row for row in describe_backbones(pattern, measure) if row["offline"] or not offline]
    if not rows:
        raise ConfigError(
            "no architecture matches "
            f"{pattern!r}{' with weights on this machine' if offline else ''}. Try '*resnet*'."
        )
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


def configs(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Print this example.")] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a configuration.")
    ] = False,
) -> None:
    """List the example configurations, print one, or print the schema."""
    from medtransfer.config.study_config import StudyConfig, configs_folder

    files = {path.stem: path for path in sorted(configs_folder().glob("*.yaml"))}
    if schema:
        say_json(StudyConfig.model_json_schema())
    elif not name:
        say("\n".join(str(path) for path in files.values()))
    elif name.removesuffix(".yaml") in files:
        say(files[name.removesuffix(".yaml")].read_text(encoding="utf-8"), nl=False)
    else:
        raise ConfigError(f"no example {name!r}. There are: {', '.join(files)}.")
