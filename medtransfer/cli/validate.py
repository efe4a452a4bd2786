"""`medtransfer validate`: the models of a study on a second cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medtransfer.cli.options import Choices, Json, Root
from medtransfer.cli.printing import say, say_json
from medtransfer.files import refuse_unwritable

if TYPE_CHECKING:
    from medtransfer.evaluation.settings import Settings


def validate(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="Folder of a finished study, as `compare` writes it."),
    ],
    cohort: Annotated[
        Path,
        typer.Argument(
            metavar="COHORT",
            help="Second cohort: manifest (CSV), folder of classes, or MedMNIST archive (.npz).",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for predictions, tables and the page; not that of a study.",
        ),
    ],
    choices: Choices = None,
    root: Root = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Label column of the second cohort; by default the name of the study's.",
        ),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Class of the second cohort that counts as 1."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate the models of a study, as they are, on the patients of a second cohort.

    KEY=VALUE replaces a setting of the study's evaluation, such as bootstrap=500.
    """
    from medtransfer.config.study_config import make_choices

    settings = make_choices({}, choices or ())
    validate_study(study, cohort, output, settings, root, label, positive, as_json)


def validate_study(
    study: Path,
    path: Path,
    output: Path,
    settings: Settings,
    root: Path | None,
    label: list[str] | None,
    positive: str | None,
    as_json: bool,
) -> None:
    """Evaluates the models of a study on the cohort in `path` and prints the report.

    Args:
        study, path, output, root, label, positive, as_json: as the options of `validate`.
        settings: of evaluation; those that were set replace the study's.
    """
    from medtransfer.study.second_cohort import open_on, refuse_study_folder

    refuse_unwritable(output)
    refuse_study_folder(output)
    cohort = open_on(study, path, root, label or (), positive)

    from medtransfer.study.external import validate as validate_on

    given = settings.model_dump(exclude_unset=True)
    report = validate_on(study, cohort, output, as_json, **given)
    if as_json:
        say_json(report.to_dict())
    else:
        say(f"{report}\n\nReport: {report.page}")
