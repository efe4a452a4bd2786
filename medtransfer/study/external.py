"""External validation: the models of a finished study on a second cohort, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.config.study_config import StudyConfig
from medtransfer.data.audit.audit import tell_meaning
from medtransfer.data.audit.fingerprint import make_fingerprint
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.classes import match_classes
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.sources import BESIDE
from medtransfer.data.grid.fixed import fixed_of
from medtransfer.errors import CohortError, FileError, LeakageError, StudyError, WeightsError
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.metrics.discrimination import auc_within
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.evaluation.tables.predictions import write_predictions
from medtransfer.inference.model import TrainedModel, read_model
from medtransfer.progress import Reporter
from medtransfer.records.run import Run, read_run
from medtransfer.records.study_folder import StudyFolder, images_of_study
from medtransfer.report.build import build_report
from medtransfer.study.second_cohort import label_of, read_compared, refuse_study_folder
from medtransfer.study.settle import refuse_unreadable
from medtransfer.tasks.kinds import make_task
from medtransfer.training.device import uses_cuda
from medtransfer.training.process import training_settings

_OWN = "development: "


def validate(
    study: str | Path, cohort: Cohort, output: str | Path, quiet: bool = False, **choices: Any
) -> EvaluationReport:
    """Evaluates every model of a study on a second cohort, with what was fitted in the study:
    weights, recalibration, thresholds.

    Each model (a fold and a seed of an arm) is evaluated by itself, as in the study. Figures are
    means over these models, with intervals over patients; single models and their spread stand
    below.

    Args:
        study: folder of a finished study.
        cohort: the second one, with the study's label.
        output: folder for predictions.csv, report.json and the page; must hold no study.
        quiet: no progress.
        **choices: fields of `evaluation.settings.Settings` in place of the study's.

    Raises:
        StudyError: no finished study there, or the output holds one.
        CohortError: the second cohort lacks the label, or has images that cannot be read.
        LeakageError: an image of the second cohort is one that the models, or models before them,
            have seen.
    """
    development, files = StudyFolder(Path(study)), StudyFolder(Path(output))
    config = development.read_config()
    if not make_task(config.task, (), ()).convex:
        raise StudyError(
            f"{study}: looks for boxes; --on is for studies that classify. Train on the first "
            "cohort, test on the second: cohort.parts."
        )
    refuse_study_folder(files.path)
    compared = read_compared(development)
    label = _shared_label(compared, config, cohort)
    runs = _read_runs(development, compared)
    cohort = replace(cohort, labels=(label,))
    on_cuda = uses_cuda(config.train.device)
    with training_settings(on_cuda, jobs=1), Reporter(quiet) as reporter:
        reporter.say(tell_meaning(label, config.cohort.positive or label))
        for name in (name for name, reason in cohort.ignored if reason == BESIDE):
            reporter.say(f"{name} is left out: {BESIDE}")
        facts = inspect_images(cohort, reporter, fixed_of(config.image))
        if not config.cohort.skip_unreadable:
            refuse_unreadable(facts, cohort)
        bad = facts.loc[facts["error"] != "", "image"].tolist()
        cohort = cohort.without(bad) if bad else cohort
        facts = facts[facts["error"] == ""].reset_index(drop=True)
        _refuse_images_seen(development, facts, cohort)
        before = _training_images(development)
        frames = []
        for arm, runs_of_arm in runs.items():
            for number, run in enumerate(runs_of_arm):
                reporter(f"{arm}, models", number, len(runs_of_arm))
                frames.append(_predict(config, run, cohort, facts, number))
        files.path.mkdir(parents=True, exist_ok=True)
        table = pd.concat(frames, ignore_index=True)
        if columns := [c for c in config.evaluate.subgroups if c in cohort.images.columns]:
            table = table.join(cohort.images.set_index("image")[columns], on="image")
        write_predictions(table, files.predictions)
        reporter.say(f"evaluating {len(table)} predictions")
        settings = {
            **config.evaluate.model_dump(),
            "subgroups": columns,
            "models": "given",
            "leave_out": None,
            "arms": list(runs),
            **choices,
        }
        report = evaluate(files.predictions, **settings)
    first = next(iter(runs))
    shift = describe_shift(before, compared, cohort, facts, table[table["arm"] == first])
    kind = (
        f"External validation of the {len(runs[first])} models of each arm as they are: figures "
        "are means over these models, intervals "
        "are over patients of the second cohort. Recalibration and thresholds come from tune "
        "patients of the study."
    )
    also = [
        f"Arm {arm} is left out: the study has not compared it yet."
        for arm in config.arms
        if arm not in runs
    ]
    if not cohort.patients_known:
        also.append(
            "The second cohort has no patient ids: every image counts as a patient, and intervals "
            "are too narrow where some have several."
        )
    others = report.data["warnings"]
    about = {
        "shift": shift,
        "meaning": {label: config.cohort.positive or label},
        "warnings": [kind, *also, *others],
    }
    report = EvaluationReport({**report.data, **about})
    report.save(files.report)
    return EvaluationReport(report.data, build_report(files.path, config.report.figures))


def _shared_label(table: pd.DataFrame, config: StudyConfig, cohort: Cohort) -> str:
    """The label of both, whose 1 must mean the same."""
    label = label_of(table)
    if label not in cohort.labels:
        raise CohortError(
            f"the second cohort has the labels {', '.join(cohort.labels) or 'none'}, the study "
            f"has {label}. Labels are matched by name: "
            "call its label as the study's, where 1 means the same."
        )
    classes = cohort.source.get("classes") or ()
    if classes and config.cohort.classes:
        match_classes(config.cohort.classes, classes, str(cohort.root))
    return label


def _read_runs(study: StudyFolder, table: pd.DataFrame) -> dict[str, list[Run]]:
    """By arm the runs that the study compared: the same seeds and folds of all, in the same order.

    Raises:
        StudyError: one of them is missing or damaged.
    """
    cells = sorted(set(zip(table["seed"], table["fold"], strict=True)))
    runs: dict[str, list[Run]] = {}
    for arm in dict.fromkeys(table["arm"]):
        for seed, fold in cells:
            folder = study.run(arm, fold, seed)
            try:
                runs.setdefault(arm, []).append(read_run(folder))
                read_model(folder)
            except FileNotFoundError as error:
                raise StudyError(
                    f"{folder.path}: lacks {folder.summary.name}. Run the study again with compare."
                ) from error
            except (FileError, WeightsError) as error:
                raise StudyError(f"{error} Run the study again with compare.") from error
    return runs


def _refuse_images_seen(study: StudyFolder, facts: pd.DataFrame, cohort: Cohort) -> None:
    seen = images_of_study(study.path)
    again = facts["file_digest"].isin(seen["file_digest"]) | facts["pixel_digest"].isin(
        seen["pixel_digest"].dropna()
    )
    if again.any():
        raise LeakageError(
            f"{int(again.sum())} of {len(facts)} images of {cohort.root} belong to the study in "
            f"{study.path} (first: {facts.loc[again, 'image'].iloc[0]}). Its models know them: "
            "leave them out."
        )


def _predict(
    config: StudyConfig, run: Run, cohort: Cohort, facts: pd.DataFrame, number: int
) -> pd.DataFrame:
    """Test rows of the second cohort, and the tune rows of the run as it left them; both under the
    number of the model as their seed.
    """
    model = TrainedModel.open(run.folder, config.train.device)
    labels = cohort.images[list(model.labels)].to_numpy(np.float32)
    logits, truth = model.logits([Path(entry) for entry in facts["entry"]], labels)
    images, units = cohort.images["image"].tolist(), cohort.units.tolist()
    test = model.description.task.decode(logits, truth, images, units).assign(part="test")
    tune = run.predictions[run.predictions["part"] == "tune"]
    tune = tune.assign(image=_OWN + tune["image"], patient=_OWN + tune["patient"])[[*test.columns]]
    table = pd.concat([tune, test], ignore_index=True)
    return table.assign(arm=run.arm, seed=number, fold=0)


def _training_images(study: StudyFolder) -> dict[str, Any]:
    """The fingerprint of the images that the models were trained on.

    Raises:
        StudyError: it is not recorded.
    """
    flow = study.read(study.audit).get("flow")
    fingerprint = flow.get("fingerprint_of_training") if isinstance(flow, dict) else None
    if not isinstance(fingerprint, dict):
        raise StudyError(
            f"{study.audit}: does not describe the training images. Run the study again with "
            "compare."
        )
    return fingerprint


def describe_shift(
    before: Mapping[str, Any],
    compared: pd.DataFrame,
    cohort: Cohort,
    facts: pd.DataFrame,
    scores: pd.DataFrame,
) -> dict[str, Any]:
    """How the second cohort differs from the first: counts, prevalence, pixels, and the scores of
    either class.

    The scores are those of one arm: the share of pairs, one image of each cohort and both of one
    class and scored by the same model, in which the second has the higher score; 0.5 where nothing
    moved. It is a description, not a test.

    Returns:
        `sentence`, and `facts`, rows `fact, development, second` in words.
    """
    now = make_fingerprint(cohort, facts).to_dict()
    developed = compared[(compared["part"] == "test") & (compared["arm"] == scores["arm"].iloc[0])]
    new = scores[scores["part"] == "test"]
    moved = {}
    # Scores of a model are compared with the same model's: models are numbered in the order of
    # their seeds and folds.
    numbers = {
        pair: number
        for number, pair in enumerate(
            sorted(set(zip(developed["seed"], developed["fold"], strict=True)))
        )
    }
    developed = developed.assign(
        model=[numbers[pair] for pair in zip(developed["seed"], developed["fold"], strict=True)]
    )
    both = pd.concat(
        [developed.assign(second=0), new.assign(model=new["seed"], second=1)], ignore_index=True
    )
    for target, name in ((0, "negatives"), (1, "positives")):
        rows_of = both[both["target"] == target]
        share = auc_within(
            rows_of["logit"].to_numpy(), rows_of["second"].to_numpy(), rows_of["model"].to_numpy()
        )
        if np.isfinite(share):
            moved[name] = share
    # Of images, as they are trained on and tested.
    prevalence = [
        float(rows.drop_duplicates("image")["target"].mean()) for rows in (developed, new)
    ]
    rows = [
        ("Images", f"{developed['image'].nunique()}", f"{len(cohort)}"),
        ("Patients", f"{developed['patient'].nunique()}", f"{cohort.units.nunique()}"),
        ("Prevalence, of images", *(f"{100 * p:.1f} %" for p in prevalence)),
        ("Modality", before["modality"], now["modality"]),
        ("Colour", *("yes" if print_["colour"] else "no" for print_ in (before, now))),
        ("Pixels (least, median, most)", *(_axes(print_["shape"]) for print_ in (before, now))),
        ("Spacing, mm", *(_axes(print_["spacing"]) or "not stated" for print_ in (before, now))),
        (
            "99th percentile of intensity",
            *(", ".join(f"{v:.3g}" for v in print_["intensity"]) for print_ in (before, now)),
        ),
        *(
            (f"Scores of {name}: higher in the second", "0.50", f"{value:.2f}")
            for name, value in moved.items()
        ),
    ]
    sentence = (
        f"Of the images, {100 * prevalence[1]:.1f} % are positive in the second cohort and "
        f"{100 * prevalence[0]:.1f} % in the first"
    )
    for name, value in moved.items():
        sentence += (
            f"; the scores of its {name} are higher than those of the first in {100 * value:.0f} "
            "% of pairs"
        )
    return {
        "sentence": f"{sentence}.",
        "facts": [dict(zip(("fact", "development", "second"), row, strict=True)) for row in rows],
    }


def _axes(quantiles: Any) -> str:
    return " × ".join(", ".join(f"{value:.4g}" for value in axis) for axis in quantiles)
