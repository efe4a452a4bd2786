"""`medtransfer check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medtransfer.cli.guard import FOUND
from medtransfer.cli.options import SETTINGS, Json, LookAlikes, Quiet, Root
from medtransfer.cli.printing import say, say_json
from medtransfer.errors import ConfigError, StudyError

if TYPE_CHECKING:
    import pandas as pd

    from medtransfer.config.study_config import StudyConfig
    from medtransfer.data.audit.audit import Audit
    from medtransfer.data.cohort.cohort import Cohort


def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Manifest (CSV), folder of images or classes, MedMNIST archive, or YAML.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar=SETTINGS, help="Settings, where PATH is YAML."),
    ] = None,
    root: Root = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Label column of a manifest; those of 0 and 1 where left out."
        ),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The class that counts as 1.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="The folders below PATH are not classes.")
    ] = False,
    look_alikes: Annotated[
        LookAlikes, typer.Option(help="Whether patients such as 7 and 007 are one.")
    ] = LookAlikes.ASK,
    outside: Annotated[
        bool,
        typer.Option(
            "--outside", help="Read files outside the root, and links that lead out of it."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for check.html, with pictures, and check.json.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for what is wrong with a cohort, before anything is learnt from it.

    Exits with 1 where something needs a hand.
    """
    if output is not None and output.is_file():
        raise StudyError(f"{output}: is a file. Choose another --output.")
    if path.suffix.lower() in {".yaml", ".yml"}:
        if root is not None or label or positive is not None or flat or outside:
            raise ConfigError(
                f"{path}: says itself what the cohort is; set cohort.KEY=VALUE instead of options."
            )
        config, cohort = _read_config(path, overrides or ())
        group, shortcuts = config.protocol.group, config.audit.shortcuts
        alike = (
            look_alikes.value if look_alikes is not LookAlikes.ASK else config.cohort.look_alikes
        )
    else:
        if overrides:
            raise ConfigError(
                f"{overrides[0]!r}: only a YAML file takes settings; see `medtransfer check "
                "--help`."
            )
        from medtransfer.data.cohort.sources import open_cohort

        cohort = open_cohort(path, root, label or (), positive, flat, outside)
        group, shortcuts, alike = "patient", True, look_alikes.value
    if alike != LookAlikes.ASK:
        cohort = cohort.told_apart(alike)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)

    from medtransfer.data.audit.audit import audit
    from medtransfer.data.audit.inspection import inspect_images
    from medtransfer.progress import Reporter

    with Reporter(quiet or as_json) as reporter:
        facts = inspect_images(cohort, reporter)
        cohort = cohort.fitted(facts)
        reporter.say("looking for what would make a result wrong")
        findings = audit(cohort, facts, group=group, shortcuts=shortcuts)
    if as_json:
        say_json(findings.to_dict())
    else:
        say(str(findings))
    if output is not None:
        page = _build_page(output, path.resolve().name, findings, cohort, facts)
        say(f"\nPage: {page}", err=as_json)
    elif not as_json:
        say("\n--output FOLDER writes a page with the pictures.", err=True)
    if findings.actions:
        raise typer.Exit(FOUND)


def _read_config(path: Path, overrides: Sequence[str]) -> tuple[StudyConfig, Cohort]:
    from medtransfer.config.study_config import load_config
    from medtransfer.study.cohort import load_cohort

    config = load_config(path, overrides)
    return config, load_cohort(config.cohort)


def _build_page(
    output: Path, name: str, findings: Audit, cohort: Cohort, facts: pd.DataFrame
) -> Path:
    from medtransfer.data.audit.overlays import draw_boxes
    from medtransfer.report.sheet import build_sheet

    pictures = {
        image: picture
        for image, picture in zip(facts["image"], facts["picture"], strict=True)
        if picture is not None
    }
    return build_sheet(
        output, name, findings.to_dict(), pictures, _captions(cohort), draw_boxes(cohort)
    )


def _captions(cohort: Cohort) -> dict[str, str]:
    """Labels of each image; ids of patients are given or hashed, and shown as they are."""
    shown = cohort.images[["image", *cohort.labels]].set_index("image")
    if len(cohort.labels) > 1 and "classes" in cohort.source:
        return {
            str(image): ", ".join(label for label, value in row.items() if value == 1)
            for image, row in shown.iterrows()
        }
    return {
        str(image): ", ".join(f"{label} = {value:g}" for label, value in row.items())
        for image, row in shown.iterrows()
    }
