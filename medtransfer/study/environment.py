"""What a study writes down before it trains: settings, cohort, audit, plans, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from typing import Any

from medtransfer.errors import FileError
from medtransfer.files import read_json
from medtransfer.records.study_folder import StudyFolder, write_seen
from medtransfer.study.identity import conditions
from medtransfer.study.planning import write_plans
from medtransfer.study.settle import Settled
from medtransfer.text.tables import write_table
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


def write_record(settled: Settled, engines: dict[str, Engine], folder: StudyFolder) -> None:
    """Writes settings, cohort, lesions, audit, plans and environment."""
    cohort, facts, later = settled.cohort, settled.facts, folder.arms_added_later(settled.config)
    if not folder.is_study:  # first, so that a folder that is left half-written is known again
        folder.write_config(settled.config)
    folder.write_salt(cohort.salt)
    table = cohort.images.drop(columns="path").merge(
        facts[["image", "file_digest", "pixel_digest"]], on="image", validate="one_to_one"
    )
    write_seen(folder, settled.seen)
    folds = settled.split.columns
    table[folds] = settled.split.parts[folds]
    write_table(table, folder.cohort)
    if cohort.boxes is not None:
        write_table(cohort.boxes, folder.boxes)
    write_plans(settled.plans, folder.plan)
    arms = {
        name: {
            "backbone": b.name,
            "weights": asdict(b.weights),
            "recipe": asdict(b.recipe),
            "chain": "exact" if b.exact else "one stage: no exact chain is known",
            "stages": b.names,
            "slices": _describe_slices(settled, name),
            "input": _describe_input(settled, name),
            **describe_machine(engines[name]),
        }
        for name, b in settled.backbones.items()
    }
    environment = {
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "git_commit": _git_commit(),
        "arms": arms,
        "meaning": cohort.meaning,
        "added_later": later,
        "conditions": conditions(settled),
    }
    folder.write(folder.environment, environment)
    folder.write(folder.audit, _describe_audit(settled))
    # Last: until then it says which arms the other files know of.
    folder.write_config(settled.config)


def _describe_audit(settled: Settled) -> dict[str, Any]:
    """What was found in the cohort, and which images are used."""
    cohort, findings = settled.cohort, settled.findings
    flow = {
        "found": findings.found + len(cohort.ignored),
        "images": findings.found,
        "readable": len(cohort),
        "used": len(cohort),
        "left_out": [list(pair) for pair in [*findings.ignored, *findings.unreadable]],
        "group": settled.config.protocol.group,
        "units": int(cohort.units.nunique()),
        "official_split": settled.split.official,
        "fingerprint_of_training": settled.fingerprint.to_dict(),
    }
    return {**findings.to_dict(), "flow": flow}


def _describe_slices(settled: Settled, name: str) -> str:
    """How this arm sees volumes, in words; "" for images."""
    image, arm, backbone = (
        settled.config.image,
        settled.config.arms[name],
        settled.backbones[name],
    )
    if settled.fingerprint.ndim == 2:
        return ""
    apart = f", {image.slice_spacing:g} mm apart" if image.slice_spacing is not None else ""
    grid = f"up to {image.slices} {image.plane} slices{apart}"
    if backbone.ndim == 3:
        return f"{grid}, as one volume"
    pooled: str = arm.pooling
    if pooled == "attention" and settled.plans[name].strategy == "linear_probe":
        pooled = "attention, in a linear probe the mean"
    return (
        f"{grid}{f', with neighbours ({arm.slab} as channels)' if arm.slab > 1 else ''}; pooled "
        f"by {pooled}"
    )


def _describe_input(settled: Settled, name: str) -> str:
    """What reaches the network, in words."""
    channels, window = len(settled.backbones[name].recipe.mean), settled.config.image.window
    grey = not settled.fingerprint.colour and settled.config.arms[name].slab == 1
    repeated = (
        f", grey repeated to {channels} channels"
        if grey and channels > 1 and not isinstance(window, tuple)
        else ""
    )
    return f"window {window if isinstance(window, str) else list(window)}{repeated}"


def recorded_engine(folder: StudyFolder, arm: str, kind: str = "") -> dict[str, Any]:
    """What of an engine an earlier part of this study chose, as a second measurement might choose
    otherwise; else empty.

    Args:
        folder: of the study.
        arm: its name.
        kind: of device, `cpu` or `cuda`; empty where it was another. "": of any.
    """
    try:
        stored = read_json(folder.environment)["arms"][arm]
        engine = {name: str(stored[name]) for name in ("device", "precision", "layout")}
        compiled = bool(stored.get("compiled"))
        difference = dict(stored.get("difference", {}))
    except (OSError, FileError, ValueError, KeyError, TypeError):
        return {}
    if not engine["device"].startswith(kind):
        return {}
    return {**engine, "compiled": compiled, "difference": difference}


def _git_commit() -> str | None:
    """Commit of the folder the study was started in, where it is a checkout."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
