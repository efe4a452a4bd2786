"""`medtransfer demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medtransfer.cli.compare import run
from medtransfer.cli.options import Jobs, Quiet, StudyOutput, Task


def demo(
    output: StudyOutput = Path("studies/demo"),
    patients: Annotated[
        int, typer.Option(min=30, metavar="N", help="Patients of the phantom cohort.")
    ] = 150,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Volumes (DICOM series and NIfTI), not images.")
    ] = False,
    task: Annotated[
        Task, typer.Option(help="Malignant or not, or where lesions are.")
    ] = Task.CLASSIFICATION,
    jobs: Jobs = 1,
    quiet: Quiet = False,
) -> None:
    """Run the main job on an embedded phantom cohort of DICOM images, or of volumes.

    The cohort is written beside the folder of the study.
    """
    from medtransfer.config.sections import CohortSection
    from medtransfer.config.study_config import configs_folder, load_config
    from medtransfer.records.study_folder import StudyFolder

    # Beside the study, as the study folder itself is the record and holds no images.
    named = output if output.name else output.resolve()
    cohort = named.with_name(f"{named.name}-cohort")
    detects = task is Task.DETECTION
    learnt: dict[str, Any] = {"boxes": "boxes.csv"} if detects else {"labels": ("malignant",)}
    section = CohortSection(manifest=cohort / "manifest.csv", root=cohort, **learnt)
    name = f"demo{'_detection' if detects else ''}{'_volumes' if volumes else ''}.yaml"
    config = load_config(configs_folder() / name).model_copy(update={"cohort": section})
    StudyFolder(output).refuse_other(config)

    from medtransfer.data.phantom.planes import write_phantom

    write_phantom(cohort, patients, volumes=volumes)
    run(config, output, quiet, jobs)
