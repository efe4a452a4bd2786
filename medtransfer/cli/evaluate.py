"""`medtransfer evaluate`: predictions of any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medtransfer.cli.options import Choices, Hit, Json
from medtransfer.cli.printing import say, say_json, say_renamed
from medtransfer.cli.validate import validate_study
from medtransfer.errors import ConfigError, StudyError
from medtransfer.files import refuse_unwritable

if TYPE_CHECKING:
    from medtransfer.evaluation.result import EvaluationReport
    from medtransfer.evaluation.settings import HitRule, Settings


def evaluate(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV with the columns patient, target and probability; see "
            "`medtransfer help tables`.",
        ),
    ],
    choices: Choices = None,
    on: Annotated[Path | None, typer.Option(hidden=True)] = None,
    root: Annotated[Path | None, typer.Option(hidden=True)] = None,
    label: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    positive: Annotated[str | None, typer.Option(hidden=True)] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Boxes that a detector found: CSV with image, x0, y0, x1, y1, probability.",
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Boxes of the lesions: CSV with image, x0, y0, x1, y1."),
    ] = None,
    hit: Annotated[
        Hit,
        typer.Option(
            help="What counts as a hit: boxes that overlap, or a candidate's "
            "centre in the lesion's box."
        ),
    ] = Hit.OVERLAP,
    overlap: Annotated[
        float,
        typer.Option(metavar="IOU", help="Least intersection over union that counts as a hit."),
    ] = 0.5,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for the page, tables and figures."
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=100, metavar="N", help="Resamples of the bootstrap.")
    ] = 2000,
    seed: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Seed of the bootstrap, which makes it repeatable."),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Evaluate the predictions of any model: AUC, calibration, decisions, and arm against arm."""
    from medtransfer.config.study_config import make_choices, make_rule
    from medtransfer.records.study_folder import StudyFolder

    if output is not None:
        refuse_unwritable(output)
    settings = make_choices({"bootstrap": bootstrap, "seed": seed}, choices or ())
    rule = make_rule({"hit": hit.value, "overlap": overlap})
    if (candidates is None) != (boxes is None) or (candidates is not None and on is not None):
        raise ConfigError("--candidates are judged against --boxes; give both, and no --on.")
    if on is not None:
        say_renamed("evaluate STUDY --on COHORT", "`medtransfer validate STUDY COHORT`")
        if output is None:
            raise ConfigError(
                "--on writes predictions, tables and a page; name their folder with --output."
            )
        validate_study(table, on, output, settings, root, label, positive, as_json)
        return
    if root is not None or label or positive is not None:
        raise ConfigError(
            "--root, --label and --positive describe a second cohort; name it with --on."
        )
    if output is not None and StudyFolder(output).is_study:
        raise StudyError(
            f"{output}: holds a study, whose report would be overwritten. Choose another --output."
        )
    report = _evaluate(table, candidates, boxes, settings, rule)
    page = None
    if output is not None:
        from medtransfer.report.build import build_report

        output.mkdir(parents=True, exist_ok=True)
        report.save(StudyFolder(output).report)
        page = build_report(output)
    if as_json:
        say_json(report.to_dict())
        return
    say(str(report))
    if page is not None:
        say(f"\nReport: {page}")


def _evaluate(
    table: Path, candidates: Path | None, boxes: Path | None, settings: Settings, rule: HitRule
) -> EvaluationReport:
    from medtransfer.evaluation.evaluate import evaluate as evaluate_table
    from medtransfer.evaluation.result import EvaluationReport

    report = evaluate_table(table, **settings.model_dump())
    if candidates is None or boxes is None:
        return report
    from medtransfer.evaluation.analyses.lesions import evaluate_boxes

    draws, seed = settings.bootstrap, settings.seed
    detection = evaluate_boxes(table, candidates, boxes, draws, seed, **rule.model_dump())
    return EvaluationReport({**report.data, "detection": detection})
