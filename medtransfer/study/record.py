"""The study folder: what is written into it, and what of an earlier run of the study is taken up
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.config.study_config import StudyConfig
from medtransfer.data.audit.audit import Audit
from medtransfer.data.audit.fingerprint import Fingerprint
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.split import Split
from medtransfer.errors import ConfigError, WeightsError
from medtransfer.evaluation.tables.predictions import read_predictions
from medtransfer.files import write_aside
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.overrides import fix_plan
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.study.folder import AT_BUDGET, added_later
from medtransfer.text.tables import read_table, write_table
from medtransfer.training.device import Engine, describe_machine

_PACKAGES = (
    "medtransfer",
    "torch",
    "torchvision",
    "timm",
    "monai",
    "accelerate",
    "joblib",
    "nibabel",
    "simpleitk",
    "imagecodecs",
    "tifffile",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pydicom",
    "pillow",
)


_SETTINGS = "study.yaml"
# Kept apart, so that a study can be handed on without it: with it, ids could be guessed at.
_SALT = "patient-salt.txt"
# Images that the weights of earlier studies were trained on.
_SEEN = "seen-before.csv"
# Fields of a plan that follow from the others, or only describe.
_DERIVED = {
    "trainable_fraction",
    "reason",
    "evidence",
    "stages",
    "steps",
    "level",
    "cache_cut",
    "bytes_per_image",
}


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        folder: holds `run.json`, `metrics.jsonl`, `weights.safetensors`, `predictions.csv`.
        arm, fold, seed: which one.
        predictions: its tune and test rows.
        summary: the content of `run.json`.
        at_budget: the rows as predicted at the end of the budget, where training went on until
            level.
    """

    folder: Path
    arm: str
    fold: int
    seed: int
    predictions: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)
    at_budget: pd.DataFrame | None = None


@dataclass(frozen=True)
class Prepared:
    """All that is settled before training begins, with nothing written yet.

    `cohort` and `facts` hold the images in use; `findings` is about these and the unreadable ones;
    `seen` are the images that weights of earlier studies were trained on.
    """

    config: StudyConfig
    cohort: Cohort
    facts: pd.DataFrame
    split: Split
    fingerprint: Fingerprint
    plans: dict[str, FreezePlan]
    backbones: dict[str, Backbone]
    findings: Audit
    seen: pd.DataFrame


def read_plans(
    path: Path, plans: dict[str, FreezePlan], backbones: dict[str, Backbone]
) -> dict[str, FreezePlan]:
    """The plans with what was edited in `plan.json`; what it does not name stays as planned.

    Raises:
        ConfigError: not a plan, or an edit that does not fit.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["arms"]
        edits = {
            name: {k: v for k, v in stored.get(name, {}).items() if k not in _DERIVED}
            for name in plans
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a plan ({type(error).__name__}: {error}). Mend it, or remove it to have "
            "it planned anew."
        ) from error
    read = {}
    for name, plan in plans.items():
        planned = plan.to_dict()
        unknown = sorted(set(edits[name]) - set(planned))
        if unknown:
            raise ConfigError(f"{path}: arm {name}: unknown field {unknown[0]}.")
        changed = {key: value for key, value in edits[name].items() if value != planned[key]}
        try:
            read[name] = fix_plan(plan, backbones[name], **changed)
        except ConfigError as error:
            raise ConfigError(f"{path}: arm {name}: {error}") from error
    return read


def refuse_edited_steps(path: Path, plans: dict[str, FreezePlan]) -> None:
    """The budget is one for all arms, so that none is favoured unseen; it is set in the
    configuration.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))["arms"]
    for name, plan in plans.items():
        # A file from `plan` may name a strategy that was edited since; its steps follow.
        same = stored.get(name, {}).get("strategy") == plan.strategy
        steps = stored.get(name, {}).get("steps", plan.steps)
        level = stored.get(name, {}).get("level", plan.level)
        if same and level != plan.level:
            raise ConfigError(
                f"{path}: arm {name}: level is {level!r}, not {plan.level}. Set "
                f"arms.{name}.budget (level, or 1) instead."
            )
        if same and steps != plan.steps:
            raise ConfigError(
                f"{path}: arm {name}: steps is {steps!r}, not {plan.steps}; the budget is one for "
                "all arms. Set train.epochs, or "
                f"arms.{name}.budget, instead. Where an arm that was added asks for more steps "
                "than the others had, start another study."
            )


def write_plans(plans: dict[str, FreezePlan], path: Path) -> None:
    """Writes `plan.json`, which `read_plans` takes up again."""
    write_aside(
        path, json.dumps({"arms": {name: plan.to_dict() for name, plan in plans.items()}}, indent=1)
    )


def write_record(prepared: Prepared, engines: dict[str, Engine], output: Path) -> None:
    """study.yaml, cohort.csv, audit.json, plan.json, environment.json."""
    cohort, facts = prepared.cohort, prepared.facts
    record, later = output / _SETTINGS, added_later(output, prepared.config)
    if not record.is_file():  # first, so that a folder that is left half-written is known again
        write_aside(record, prepared.config.to_yaml())
    write_salt(cohort, output)
    table = cohort.images.drop(columns="path").merge(
        facts[["image", "file_digest", "pixel_digest"]], on="image", validate="one_to_one"
    )
    if len(prepared.seen):
        write_table(prepared.seen, output / _SEEN)
    folds = [c for c in prepared.split.parts.columns if c.startswith("fold_")]
    table[folds] = prepared.split.parts[folds]
    write_table(table, output / "cohort.csv")
    write_plans(prepared.plans, output / "plan.json")
    arms = {
        name: {
            "backbone": b.name,
            "weights": asdict(b.weights),
            "recipe": asdict(b.recipe),
            "chain": "exact" if b.exact else "one stage: no exact chain is known",
            "stages": b.names,
            "slices": _describe_slices(prepared, name),
            "input": _describe_input(prepared, name),
            **describe_machine(engines[name]),
        }
        for name, b in prepared.backbones.items()
    }
    environment = {
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "git_commit": _git_commit(),
        "arms": arms,
        "added_later": later,
    }
    write_aside(output / "environment.json", json.dumps(environment, indent=1))
    # Last: until then it says which arms the other files know of.
    write_audit_and_settings(prepared, output)


def write_audit_and_settings(prepared: Prepared, output: Path) -> None:
    """audit.json and study.yaml: what may change in a study that is finished, as no number follows
    from it.
    """
    cohort, findings = prepared.cohort, prepared.findings
    flow = {
        "found": findings.found + len(cohort.ignored),
        "images": findings.found,
        "readable": len(cohort),
        "used": len(cohort),
        "left_out": [list(pair) for pair in [*findings.ignored, *findings.unreadable]],
        "group": prepared.config.protocol.group,
        "units": int(cohort.units.nunique()),
        "official_split": prepared.split.official,
        "fingerprint_of_training": prepared.fingerprint.to_dict(),
    }
    write_aside(output / "audit.json", json.dumps({**findings.to_dict(), "flow": flow}, indent=1))
    write_aside(output / _SETTINGS, prepared.config.to_yaml())


def _describe_slices(prepared: Prepared, name: str) -> str:
    """How this arm sees volumes, in words; "" for images."""
    image, arm, backbone = (
        prepared.config.image,
        prepared.config.arms[name],
        prepared.backbones[name],
    )
    if prepared.fingerprint.ndim == 2:
        return ""
    apart = f", {image.slice_spacing:g} mm apart" if image.slice_spacing is not None else ""
    grid = f"up to {image.slices} {image.plane} slices{apart}"
    if backbone.ndim == 3:
        return f"{grid}, as one volume"
    pooled: str = arm.pooling
    if pooled == "attention" and prepared.plans[name].strategy == "linear_probe":
        pooled = "attention, in a linear probe the mean"
    return (
        f"{grid}{f', with neighbours ({arm.slab} as channels)' if arm.slab > 1 else ''}; pooled "
        f"by {pooled}"
    )


def _describe_input(prepared: Prepared, name: str) -> str:
    """What reaches the network, in words."""
    channels, window = len(prepared.backbones[name].recipe.mean), prepared.config.image.window
    grey = not prepared.fingerprint.colour and prepared.config.arms[name].slab == 1
    repeated = (
        f", grey repeated to {channels} channels"
        if grey and channels > 1 and not isinstance(window, tuple)
        else ""
    )
    return f"window {window if isinstance(window, str) else list(window)}{repeated}"


def longest_steps(prepared: Prepared) -> int:
    """The most steps of any arm, where an arm's own budget is left aside."""
    return max(
        round(plan.steps / prepared.config.arms[name].times)
        for name, plan in prepared.plans.items()
    )


def run_key(prepared: Prepared, engine: Engine, seed: int, fold: int, arm: str) -> str:
    """Digest of all that decides a run's numbers."""
    config, backbone = prepared.config, prepared.backbones[arm]
    content = {
        "code": code_digest(),
        "versions": {
            name: metadata.version(name)
            for name in ("torch", "timm", "monai", "accelerate", "scikit-learn")
        },
        "cohort": prepared.cohort.digest,
        # Named by the bytes of the file, the settings, and the code and libraries that decoded it.
        "images": hashlib.sha256(
            "".join(Path(entry).name for entry in prepared.facts["entry"]).encode()
        ).hexdigest(),
        "parts": prepared.split.parts[f"fold_{fold}"].tolist(),
        "image": config.image.model_dump(mode="json"),
        "augment": config.augment.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude={"track"}),
        "ndim": prepared.fingerprint.ndim,
        "task": config.task,
        "arm": config.arms[arm].model_dump(mode="json"),
        "weights": backbone.weights.digest,
        "plan": prepared.plans[arm].decisive(),
        # A probe that is fine-tuned after the search takes the steps of the others.
        "search": config.plan.search and longest_steps(prepared),
        "precision": engine.precision,
        "layout": engine.layout,
        "compiled": engine.compiled,
        "device": engine.device.type,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Packages that decide a run's numbers, whole, so that no module can be forgotten.
DECISIVE = (
    "config",
    "data",
    "evaluation/intervals",
    "evaluation/metrics",
    "evaluation/tables",
    "inference",
    "models",
    "study",
    "tasks",
    "text",
    "training",
)


@cache
def code_digest() -> str:
    """Digest of the modules that decide a run's numbers."""
    package = Path(__file__).parents[1]
    files = sorted(path for room in DECISIVE for path in (package / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def write_salt(cohort: Cohort, output: Path) -> None:
    """Keeps what the patient ids of DICOM headers are hashed with, where there are any."""
    if cohort.salt:
        write_aside(output / _SALT, cohort.salt)
        (output / _SALT).chmod(0o600)


def read_salt(output: Path) -> str | None:
    """What this study hashes the patient ids of DICOM headers with; None where it has none."""
    try:
        return (output / _SALT).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def describe_backbone(backbone: Backbone) -> dict[str, str]:
    """What a file of trained weights says of itself, so that `study:FOLDER` can load it again."""
    recipe, weights = backbone.recipe, backbone.weights
    return {
        "backbone": backbone.name,
        "mean": ",".join(map(str, recipe.mean)),
        "std": ",".join(map(str, recipe.std)),
        "size": str(recipe.size),
        "weights": f"{weights.source} {weights.digest[:16]}".strip(),
        "preparations": "; ".join(weights.preparations),
    }


def images_of_study(folder: Path) -> pd.DataFrame:
    """What is known of every image that the models of a study have seen, in it and in the studies
    before it.

    Args:
        folder: of the study, or of a run in it.

    Returns:
        Columns `file_digest`, `pixel_digest`, `patient`.

    Raises:
        WeightsError: no `cohort.csv` there, so that nobody can say which images the weights have
            seen.
    """
    columns = ["file_digest", "pixel_digest", "patient"]
    for parent in (folder, *list(folder.resolve().parents)[:4]):
        if (parent / "cohort.csv").is_file():
            files = [parent / name for name in ("cohort.csv", _SEEN) if (parent / name).is_file()]
            tables = [
                read_table(file, WeightsError, "It lists the images that the weights have seen.")
                for file in files
            ]
            return pd.concat(
                [table.replace("", np.nan).reindex(columns=columns) for table in tables],
                ignore_index=True,
            )
    raise WeightsError(
        f"{folder}: belongs to no study with a cohort.csv, so it cannot be seen whether its "
        "images are among these. "
        "Keep the study's folder whole."
    )


def recorded_engine(output: Path, arm: str, kind: str = "") -> dict[str, Any]:
    """What of an engine an earlier part of this study chose, as a second measurement might choose
    otherwise; else empty.

    `kind`: of device, `cpu` or `cuda`; empty where it was another.
    """
    try:
        stored = json.loads((output / "environment.json").read_text(encoding="utf-8"))["arms"][arm]
        found = {name: str(stored[name]) for name in ("device", "precision", "layout")}
        more = {
            "compiled": bool(stored.get("compiled")),
            "difference": dict(stored.get("difference", {})),
        }
        return {**found, **more} if found["device"].startswith(kind) else {}
    except (OSError, ValueError, KeyError):
        return {}


def finished_run(folder: Path, key: str, arm: str, fold: int, seed: int) -> Run | None:
    """The run in this folder, if it is finished and everything that decided it is unchanged."""
    try:
        summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if summary.pop("key") != key:
            return None
        return read_run(folder, arm, fold, seed, summary)
    except (OSError, ValueError, KeyError):
        return None


def read_run(folder: Path, arm: str, fold: int, seed: int, summary: dict[str, Any]) -> Run:
    """The run in this folder, with its predictions.

    Raises:
        PredictionsError: a table of predictions is missing or damaged.
    """
    at_budget = (
        read_predictions(folder / AT_BUDGET / "predictions.csv", apart=True)
        if summary["plan"]["level"]
        else None
    )
    return Run(
        folder,
        arm,
        fold,
        seed,
        read_predictions(folder / "predictions.csv", apart=True),
        summary,
        at_budget,
    )


def _git_commit() -> str | None:
    """Commit of the folder the study was started in, where it is a checkout."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
