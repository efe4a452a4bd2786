"""Arguments and options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Task(StrEnum):
    """What the demo learns."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"


class Domain(StrEnum):
    """How near images are to photographs."""

    NEAR = "near"
    FAR = "far"


class Hit(StrEnum):
    """When a candidate counts as a hit of a lesion."""

    OVERLAP = "overlap"
    CENTRE = "centre"


class LookAlikes(StrEnum):
    """Whether patients such as 7 and 007 are one."""

    ASK = "ask"
    SAME = "same"
    DIFFERENT = "different"


SETTINGS = "[KEY=VALUE]..."

ConfigFile = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="YAML file; `medtransfer configs` lists examples."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar=SETTINGS, help="Such as image.size=224.")
]
Choices = Annotated[
    list[str] | None,
    typer.Argument(metavar=SETTINGS, help="Such as margin=0.05, subgroups=[sex,site]."),
]
StudyOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Folder of the study: new, or that of the same study, which goes on.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder that a manifest's images are relative to; its own where left out.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, metavar="N", help="Processes here, which divide the cores."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
