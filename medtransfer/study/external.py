"""External validation: the models of a finished study on a second cohort, as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.config.arm import Arm
from medtransfer.config.study_config import StudyConfig, load_config
from medtransfer.data.audit.audit import tell_meaning
from medtransfer.data.audit.fingerprint import make_fingerprint
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.classes import match_classes
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.sources import BESIDE, open_second
from medtransfer.data.grid.slices import Slices
from medtransfer.errors import CohortError, LeakageError, StudyError
from medtransfer.evaluation import EvaluationReport, evaluate, read_predictions, write_predictions
from medtransfer.evaluation.analyses.budgets import split_budgets
from medtransfer.evaluation.metrics.discrimination import auc_within
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.chain.backbone import Backbone
from medtransfer.progress import Reporter
from medtransfer.report.build import build_report
from medtransfer.study.folder import run_folder
from medtransfer.study.record import images_of_study
from medtransfer.study.settle import fixed_of, refuse_unreadable
from medtransfer.study.views import Images
from medtransfer.tasks.classification import Classification
from medtransfer.training.checkpoint import load_weights
from medtransfer.training.device import make_engine, use_threads, uses_cuda
from medtransfer.training.predicting import predict

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
    study, output = Path(study), Path(output)
    config = _read_config(study)
    if config.task == "detection":
        raise StudyError(
            f"{study}: looks for boxes; --on is for studies that classify. Train on the first "
            "cohort, test on the second: cohort.parts."
        )
    if (output / "study.yaml").is_file() or output.is_file():
        raise StudyError(f"{output}: holds a study, or is a file. Choose another --output.")
    compared = _read_compared(study)
    label = _shared_label(compared, config, cohort)
    models = _list_models(study, compared)
    use_threads()
    with Reporter(quiet) as reporter:
        reporter.say(tell_meaning(label, config.cohort.positive or label))
        for name in (name for name, reason in cohort.ignored if reason == BESIDE):
            reporter.say(f"{name} is left out: {BESIDE}")
        facts = inspect_images(cohort, reporter, fixed_of(config))
        if not config.cohort.skip_unreadable:
            refuse_unreadable(facts, cohort)
        bad = facts.loc[facts["error"] != "", "image"].tolist()
        cohort = cohort.without(bad) if bad else cohort
        facts = facts[facts["error"] == ""].reset_index(drop=True)
        _refuse_known_images(study, facts, cohort)
        frames = []
        for arm, runs in models.items():
            for number, run in enumerate(runs):
                reporter(f"{arm}, models", number, len(runs))
                frames.append(_predict(config, arm, run, cohort, facts, label, number))
        output.mkdir(parents=True, exist_ok=True)
        table = pd.concat(frames, ignore_index=True)
        if columns := [c for c in config.evaluate.subgroups if c in cohort.images.columns]:
            table = table.join(cohort.images.set_index("image")[columns], on="image")
        write_predictions(table, output / "predictions.csv")
        reporter.say(f"evaluating {len(table)} predictions")
        settings = {
            **config.evaluate.model_dump(),
            "subgroups": columns,
            "models": "given",
            "leave_out": None,
            "arms": list(models),
            **choices,
        }
        report = evaluate(output / "predictions.csv", **settings)
    first = next(iter(models))
    shift = describe_shift(study, compared, cohort, facts, table[table["arm"] == first])
    known = (
        f"External validation of the {len(models[first])} models of each arm as they are: figures "
        "are means over these models, intervals "
        "are over patients of the second cohort. Recalibration and thresholds come from tune "
        "patients of the study."
    )
    also = [
        f"Arm {arm} is left out: the study has not compared it yet."
        for arm in config.arms
        if arm not in models
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
        "warnings": [known, *also, *others],
    }
    report = EvaluationReport({**report.data, **about})
    report.save(output / "report.json")
    return EvaluationReport(report.data, build_report(output, config.report.figures))


def _read_config(study: Path) -> StudyConfig:
    record = study / "study.yaml"
    if not record.is_file():
        raise StudyError(
            f"{study}: holds no study (no study.yaml). Name the folder that `compare` wrote."
        )
    return load_config(record)


def open_on(
    study: str | Path,
    path: str | Path,
    root: str | Path | None = None,
    labels: Sequence[str] = (),
    positive: str | None = None,
) -> Cohort:
    """A second cohort for the models of a study: its classes are matched by name, see
    `sources.open_second`.

    Raises:
        StudyError: no study there.
        CohortError: the names do not fit, and nobody said which is which.
    """
    known = _read_config(Path(study)).cohort
    label = _label_of(_read_compared(Path(study)))
    return open_second(path, label, known.classes, known.positive or label, root, labels, positive)


def _read_compared(study: Path) -> pd.DataFrame:
    """The predictions of the models that the study left, without the draws of a learning curve and
    what they were before.
    """
    table = read_predictions(study / "predictions.csv", apart=True)
    return split_budgets(table[table["size"] == 0] if "size" in table.columns else table, ())[0]


def _label_of(table: pd.DataFrame) -> str:
    return str(table["label"].iloc[0])


def _shared_label(table: pd.DataFrame, config: StudyConfig, cohort: Cohort) -> str:
    """The label of both, whose 1 must mean the same."""
    label = _label_of(table)
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


def _list_models(study: Path, table: pd.DataFrame) -> dict[str, list[Path]]:
    """By arm the folders of the runs that the study compared: the same seeds and folds of all, in
    the same order.

    Raises:
        StudyError: one of them is not there any more.
    """
    cells = sorted(set(zip(table["seed"], table["fold"], strict=True)))
    models = {
        arm: [run_folder(study, arm, fold, seed) for seed, fold in cells]
        for arm in dict.fromkeys(table["arm"])
    }
    for run in (run for runs in models.values() for run in runs):
        if not ((run / "run.json").is_file() and (run / "weights.safetensors").is_file()):
            raise StudyError(
                f"{run}: lacks run.json or weights.safetensors. Run the study again with compare."
            )
    return models


def _refuse_known_images(study: Path, facts: pd.DataFrame, cohort: Cohort) -> None:
    seen = images_of_study(study)
    again = facts["file_digest"].isin(seen["file_digest"]) | facts["pixel_digest"].isin(
        seen["pixel_digest"].dropna()
    )
    if again.any():
        raise LeakageError(
            f"{int(again.sum())} of {len(facts)} images of {cohort.root} belong to the study in "
            f"{study} (first: "
            f"{facts.loc[again, 'image'].iloc[0]}). Its models know them: leave them out."
        )


def _predict(
    config: StudyConfig,
    arm: str,
    run: Path,
    cohort: Cohort,
    facts: pd.DataFrame,
    label: str,
    number: int,
) -> pd.DataFrame:
    """Test rows of the second cohort, and the tune rows of the run as it left them; both under the
    number of the model as their seed.
    """
    summary, section, image = (
        json.loads((run / "run.json").read_text(encoding="utf-8")),
        config.arms[arm],
        config.image,
    )
    backbone = _load(section, run, image.size)
    backbone.truncate(summary["plan"]["dropped_stages"])
    ndim = make_fingerprint(cohort, facts).ndim
    pooling = section.pooling if ndim > backbone.ndim else "mean"
    task = Classification(
        (label,), tuple(summary["positive_weights"]), pooling=pooling, read=summary["plan"]["read"]
    )
    head = task.make_head(backbone)
    load_weights(run / "weights.safetensors", backbone, head)
    made = summary["engine"]
    alike = str(made["device"]).startswith("cuda") == uses_cuda(config.train.device)
    engine = make_engine(
        config.train.device, made["precision"] if alike else "fp32", layout=made["layout"]
    )
    engine.place(backbone)
    head.to(engine.device)
    slices = Slices(image.slices, image.slice_spacing, image.plane)
    images = Images(
        cohort, [Path(entry) for entry in facts["entry"]], slices, section.slab, config.train
    )
    logits, truth = predict(
        backbone, head, task, images.plain(np.arange(len(facts)), backbone, engine), engine
    )
    test = task.decode(
        logits, truth, cohort.images["image"].tolist(), cohort.units.tolist()
    ).assign(part="test")
    tune = read_predictions(run / "predictions.csv", apart=True)
    tune = tune[tune["part"] == "tune"].assign(label=label)
    tune = tune.assign(image=_OWN + tune["image"], patient=_OWN + tune["patient"])[[*test.columns]]
    return pd.concat([tune, test], ignore_index=True).assign(arm=arm, seed=number, fold=0)


def _load(section: Arm, run: Path, size: int) -> Backbone:
    if section.kind == "features":
        return load_backbone(section.backbone)
    channels = section.slab if section.slab > 1 else section.channels
    return load_backbone(section.backbone, f"study:{run}", channels=channels, size=size)


def describe_shift(
    study: Path, compared: pd.DataFrame, cohort: Cohort, facts: pd.DataFrame, scores: pd.DataFrame
) -> dict[str, Any]:
    """How the second cohort differs from the first: counts, prevalence, pixels, and the scores of
    either class.

    The scores are those of one arm: the share of pairs, one image of each cohort and both of one
    class and scored by the same model, in which the second has the higher score; 0.5 where nothing
    moved. It is a description, not a test.

    Returns:
        `sentence`, and `facts`, rows `fact, development, second` in words.
    """
    before = json.loads((study / "audit.json").read_text(encoding="utf-8"))["flow"][
        "fingerprint_of_training"
    ]
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
