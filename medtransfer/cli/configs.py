"""`medtransfer configs`: the example configurations."""

from __future__ import annotations

from typing import Annotated

import typer

from medtransfer.cli.printing import say, say_json
from medtransfer.errors import ConfigError


def configs(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of an example, to print it.")
    ] = "",
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
