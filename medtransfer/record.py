"""The study folder: what is written into it, and what of an earlier run of the study is taken up again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medtransfer.config import StudyConfig
from medtransfer.data.audit import audit
from medtransfer.data.cohort import Cohort, Fingerprint
from medtransfer.data.split import Split
from medtransfer.errors import ConfigError, StudyError
from medtransfer.evaluation.predictions import read_predictions, write_aside
from medtransfer.models.backbone import Backbone
from medtransfer.models.freeze import FreezePlan
from medtransfer.training.engine import Engine, describe_machine

_PACKAGES = (
    "medtransfer",
    "torch",
    "torchvision",
    "timm",
    "monai",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pydicom",
    "pillow",
)


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        folder: holds `run.json`, `metrics.jsonl`, `weights.safetensors`, `predictions.csv`.
        arm, fold, seed: which one.
        predictions: its tune and test rows.
        summary: the content of `run.json`.
    """

    folder: Path
    arm: str
    fold: int
    seed: int
    predictions: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """All that is settled before training begins, with nothing written yet."""

    config: StudyConfig
    cohort: Cohort
    facts: pd.DataFrame
    split: Split
    fingerprint: Fingerprint
    plans: dict[str, FreezePlan]
    backbones: dict[str, Backbone]
    found: int
    left_out: list[tuple[str, str]]


def check_folder(output: Path, config: StudyConfig) -> None:
    """Refuses a folder that holds anything else than this study.

    Raises:
        StudyError: not a folder, not writable, or holding another study or other files.
    """
    if output.exists() and not output.is_dir():
        raise StudyError(f"{output}: is a file. Choose another --output.")
    record = output / "study.yaml"
    if record.is_file():
        if record.read_text(encoding="utf-8") != config.to_yaml():
            raise StudyError(
                f"{output}: holds a study with other settings (see its study.yaml). Choose another --output, or remove the folder."
            )
    elif output.is_dir() and any(path.name != "plan.json" for path in output.iterdir()):
        raise StudyError(f"{output}: is not empty and holds no study. Choose another --output.")
    parent = output
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise StudyError(f"{parent}: cannot be written. Choose another --output.")


def read_plans(path: Path, plans: dict[str, FreezePlan]) -> dict[str, FreezePlan]:
    """Plans from an earlier `plan.json`, perhaps edited by hand; what it does not name stays as planned."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["arms"]
        read = {name: FreezePlan(**stored[name]) if name in stored else plan for name, plan in plans.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a plan ({error}). Mend it, or remove it to have it planned anew.") from error
    for name, plan in read.items():
        fits = isinstance(plan.frozen_stages, int) and 0 <= plan.frozen_stages <= plans[name].stages and plan.stages == plans[name].stages
        if not fits or plan.strategy not in {"linear_probe", "lp_ft", "scratch"}:
            raise ConfigError(
                f"{path}: arm {name}: frozen_stages is {plan.frozen_stages} of {plan.stages}, strategy {plan.strategy}; does not fit."
            )
    return read


def write_record(prepared: Prepared, engines: dict[str, Engine], output: Path) -> None:
    """study.yaml, cohort.csv, audit.json, plan.json, environment.json."""
    cohort, facts = prepared.cohort, prepared.facts
    write_aside(output / "study.yaml", prepared.config.to_yaml())
    table = cohort.images.drop(columns="path").merge(facts[["image", "file_digest"]], on="image", validate="one_to_one")
    folds = [c for c in prepared.split.parts.columns if c.startswith("fold_")]
    table[folds] = prepared.split.parts[folds]
    write_aside(output / "cohort.csv", table.to_csv(index=False, lineterminator="\n"))
    flow = {
        "found": prepared.found + len(cohort.ignored),
        "images": prepared.found,
        "readable": len(cohort),
        "used": len(cohort),
        "left_out": [list(pair) for pair in [*cohort.ignored, *prepared.left_out]],
        "official_split": prepared.split.official,
        "fingerprint_of_training": prepared.fingerprint.to_dict(),
    }
    write_aside(output / "audit.json", json.dumps({**audit(cohort, facts).to_dict(), "flow": flow}, indent=1))
    plans = {"arms": {name: plan.to_dict() for name, plan in prepared.plans.items()}}
    write_aside(output / "plan.json", json.dumps(plans, indent=1))
    arms = {
        name: {
            "backbone": b.name,
            "weights": asdict(b.weights),
            "recipe": asdict(b.recipe),
            "chain": "exact" if b.exact else "one stage: no exact chain is known",
            "stages": b.names,
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
    }
    write_aside(output / "environment.json", json.dumps(environment, indent=1))


def run_key(prepared: Prepared, engine: Engine, seed: int, fold: int, arm: str) -> str:
    """Digest of all that decides a run's numbers."""
    config, backbone = prepared.config, prepared.backbones[arm]
    content = {
        "version": metadata.version("medtransfer"),
        "torch": torch.__version__,
        "cohort": prepared.cohort.digest,
        "files": hashlib.sha256("".join(prepared.facts["file_digest"]).encode()).hexdigest(),
        "parts": prepared.split.parts[f"fold_{fold}"].tolist(),
        "image": config.image.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
        "arm": config.arms[arm].model_dump(mode="json"),
        "weights": backbone.weights.digest,
        "plan": prepared.plans[arm].to_dict(),
        "precision": engine.precision,
        "device": engine.device.type,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finished_run(folder: Path, key: str, arm: str, fold: int, seed: int) -> Run | None:
    """The run in this folder, if it is finished and everything that decided it is unchanged."""
    try:
        summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if summary.pop("key") != key:
            return None
        return Run(folder, arm, fold, seed, read_predictions(folder / "predictions.csv"), summary)
    except (OSError, ValueError, KeyError):
        return None


def _git_commit() -> str | None:
    """Commit of the folder the study was started in, where it is a checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
