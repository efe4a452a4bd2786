"""What decides the numbers of a run: the digest by which a study knows it again."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from medtransfer.files import digest_of
from medtransfer.study.settle import Settled
from medtransfer.training.device import Engine

# What decides a run's numbers: packages, whole, so that no module of them can be forgotten.
DECISIVE = (
    "config",
    "data",
    "evaluation/intervals",
    "evaluation/metrics",
    "evaluation/settings.py",
    "evaluation/tables",
    "inference",
    "models",
    "records",
    "study",
    "tasks",
    "text",
    "training",
)


# Libraries that decide them; those of formulas where an arm is measured by these.
_LIBRARIES = ("torch", "timm", "monai", "accelerate", "scikit-learn", "numpy", "scipy")
_OF_FORMULAS = ("scikit-image",)


@cache
def code_digest() -> str:
    """Digest of the modules that decide a run's numbers."""
    package = Path(__file__).parents[1]
    places = [package / place for place in DECISIVE]
    files = [
        path
        for place in places
        for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def conditions(settled: Settled) -> str:
    """Digest of what all runs of a study share: code, libraries, images and parts. Runs that differ
    in it cannot be compared.
    """
    return digest_of(
        {
            "code": code_digest(),
            "versions": {name: metadata.version(name) for name in (*_LIBRARIES, *_OF_FORMULAS)},
            "cohort": settled.cohort.digest,
            "images": _digest_images(settled),
            "parts": {
                column: settled.split.parts[column].tolist() for column in settled.split.columns
            },
        }
    )


def _digest_images(settled: Settled) -> str:
    """Images are named by the bytes of the file, the settings, and the code and libraries that
    decoded them.
    """
    names = "".join(Path(entry).name for entry in settled.facts["entry"])
    return hashlib.sha256(names.encode()).hexdigest()


def longest_steps(settled: Settled) -> int:
    """The most steps of any arm, where an arm's own budget is left aside."""
    return max(
        round(plan.steps / settled.config.arms[name].times) for name, plan in settled.plans.items()
    )


def run_key(settled: Settled, engine: Engine, seed: int, fold: int, arm: str) -> str:
    """Digest of all that decides a run's numbers."""
    config, backbone = settled.config, settled.backbones[arm]
    formulas = config.arms[arm].kind == "features"
    content = {
        "code": code_digest(),
        "versions": {
            name: metadata.version(name)
            for name in (*_LIBRARIES, *(_OF_FORMULAS if formulas else ()))
        },
        "cohort": settled.cohort.digest,
        "images": _digest_images(settled),
        "parts": settled.split.parts[f"fold_{fold}"].tolist(),
        "image": config.image.model_dump(mode="json"),
        "augment": config.augment.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude={"track"}),
        "ndim": settled.fingerprint.ndim,
        "task": config.task,
        "arm": config.arms[arm].model_dump(mode="json"),
        "weights": backbone.weights.digest,
        "plan": settled.plans[arm].decisive(),
        # A probe that is fine-tuned after the search takes the steps of the others.
        "search": config.plan.search and longest_steps(settled),
        "precision": engine.precision,
        "layout": engine.layout,
        "compiled": engine.compiled,
        "device": engine.device.type,
        "seed": seed,
    }
    return digest_of(content)
