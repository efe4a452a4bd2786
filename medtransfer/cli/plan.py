"""`medtransfer plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medtransfer.cli.options import Domain, Json, Overrides
from medtransfer.cli.printing import say, say_json
from medtransfer.errors import ConfigError, StudyError
from medtransfer.files import refuse_unwritable

if TYPE_CHECKING:
    from medtransfer.models.chain.backbone import Backbone
    from medtransfer.models.plan.plan import FreezePlan


def plan(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="YAML file of a study; or give --backbone and --counts."
        ),
    ] = None,
    overrides: Overrides = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Architecture, to plan without a CONFIG.")
    ] = "",
    counts: Annotated[
        str,
        typer.Option(metavar="N,N", help="Patients of each class in training, such as 399,147."),
    ] = "",
    domain: Annotated[
        Domain,
        typer.Option(
            help="How like photographs the images are. near: colour "
            "photographs, histology; far: grey ultrasound, MR, CT."
        ),
    ] = Domain.FAR,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for plan.json, which can be edited; `compare` with the "
            "same folder follows it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how much of the backbone would be frozen, and why. Trains nothing."""
    if output is not None:
        refuse_unwritable(output)

        from medtransfer.records.study_folder import StudyFolder

        if StudyFolder(output).is_study:
            raise StudyError(
                f"{output}: holds a study; edit its plan.json. Choose another --output."
            )
    if config is not None:
        from medtransfer.config.study_config import load_config
        from medtransfer.study.cohort import read_cohort
        from medtransfer.study.refusals import refuse_arms

        loaded = load_config(config, overrides or ())
        refuse_arms(loaded)
        cohort = read_cohort(loaded, None, None)

        from medtransfer.study.study import plan_study

        planned, size = plan_study(loaded, cohort), loaded.image.size
    else:
        planned, size = {backbone: _plan_from_counts(backbone, counts, domain)}, None
    plans = {name: plan for name, (plan, _) in planned.items()}
    if output is not None:
        from medtransfer.study.planning import write_plans

        output.mkdir(parents=True, exist_ok=True)
        path = StudyFolder(output).plan
        write_plans(plans, path)
        say(
            f"{path} can be edited; `medtransfer compare` into {output} follows it.",
            err=True,
        )
    if as_json:
        answer = {name: plan.to_dict() for name, plan in plans.items()}
        say_json(answer if config is not None else answer[backbone])
        return
    from medtransfer.models.plan.describe import describe_plan

    for name, (arm_plan, network) in planned.items():
        say("\n".join(describe_plan(name, arm_plan, network, size)))


def _plan_from_counts(name: str, counts: str, domain: Domain) -> tuple[FreezePlan, Backbone]:
    if not name or not counts:
        raise ConfigError(
            "give a CONFIG, or --backbone NAME with --counts N,N (patients per class in training)."
        )
    try:
        numbers = [int(part) for part in counts.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--counts {counts!r}: expected whole numbers such as 399,147."
        ) from error
    if len(numbers) < 2 or min(numbers) < 1:
        raise ConfigError(f"--counts {counts!r}: expected at least two counts, each at least 1.")
    from medtransfer.models.catalog.names import refuse_unknown

    refuse_unknown(name)  # before torch is loaded, which takes seconds

    from medtransfer.models.catalog.catalog import load_backbone
    from medtransfer.models.plan.rules import PlainCounts, plan_freeze

    classes = {str(index): number for index, number in enumerate(numbers)}
    backbone = load_backbone(name)
    return plan_freeze(PlainCounts(classes, domain.value), backbone, transfer=True), backbone
