"""What a report fitted for each model, handed to the model: recalibration and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medtransfer.errors import FileError
from medtransfer.inference.description import read_description
from medtransfer.records.run import Run
from medtransfer.records.study_folder import StudyFolder


def write_decisions(
    folder: StudyFolder,
    runs: Sequence[Run],
    report: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Adds to the `model.json` of each run what the report fitted on its tune patients.

    Args:
        folder: of the study.
        runs: that were compared.
        report: of the study.
        say: is told which model is damaged.
    """
    label = str(report["label"])
    for run in runs:
        files = folder.run(run.arm, run.fold, run.seed)
        decisions = {label: _decisions_of(report["arms"][run.arm], run)}
        try:
            description, digests = read_description(files)
        except FileNotFoundError:  # a run of an earlier version, without a model
            continue
        except FileError as error:
            say(f"{error} The model is left without thresholds and recalibration.")
            continue
        if description.decisions != decisions:
            replace(description, decisions=decisions).write(files, digests)


def _decisions_of(arm: Mapping[str, Any], run: Run) -> dict[str, Any]:
    def of_run(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        cells = [e for e in entries if (e["seed"], e["fold"]) == (run.seed, run.fold)]
        return {k: v for k, v in cells[0].items() if k not in {"seed", "fold"}} if cells else {}

    recalibrated = arm.get("recalibrated") or {}
    parameters = of_run(recalibrated.get("maps", ()))
    thresholds = [
        {"rule": point["rule"], "aim": point["aim"], **of_run(point["thresholds"])}
        for point in arm.get("operating_points", ())
    ]
    recalibration = None
    if parameters:
        steps = parameters.pop("steps", None)
        recalibration = {"method": recalibrated["method"], "parameters": parameters, "steps": steps}
    return {"recalibration": recalibration, "thresholds": thresholds}
