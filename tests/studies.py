"""Small cohorts and studies, each made once for all tests and all processes that ask for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock
from medtransfer.cli.app import app
from medtransfer.config.study_config import load_config
from medtransfer.data.grid.fixed import fixed_of
from medtransfer.data.phantom.planes import write_phantom
from medtransfer.progress import Reporter
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.settle import Settled, settle
from typer.testing import CliRunner, Result

from networks import SMALL

# The embedded ImageNet weights; where weights do not matter, the small network.
LITE = "tf_efficientnet_lite0"
ARMS: dict[str, dict[str, Any]] = {
    "imagenet": {"backbone": LITE, "weights": "imagenet"},
    "scratch": {"backbone": SMALL},
}
# Of one architecture, so that their features can be compared stage by stage.
TWINS: dict[str, dict[str, Any]] = {"imagenet": ARMS["imagenet"], "scratch": {"backbone": LITE}}
# What takes as long as the trainings themselves; three tests and their fixtures ask for all of it
# (test_end_to_end.py).
LEAN: dict[str, Any] = {
    "audit": {"shortcuts": False},
    "report": {"figures": [], "gallery": False, "reuse": False},
}
FULL: dict[str, Any] = {"audit": {}, "report": {"figures": ["svg"]}}
SETTINGS: dict[str, Any] = {
    "image": {"size": 32},
    "protocol": {"folds": 2},
    "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "layout": "channels_last"},
    "evaluate": {"bootstrap": 100},
    **LEAN,
}


def invoke(*arguments: object) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_config(folder: Path, manifest: Path, **sections: Any) -> Path:
    """`study.yaml` of a lean study with two arms on the images of a manifest; whole sections may be
    given otherwise.
    """
    labels = {"labels": ["malignant"]} if "task" not in sections else {"boxes": "boxes.csv"}
    cohort = {"manifest": str(manifest), "root": str(manifest.parent), **labels}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"cohort": cohort, "arms": ARMS, **SETTINGS, **sections}))
    return path


def prepare_study(config: Path, *overrides: str, output: Path | None = None) -> Settled:
    """What is settled before anything is trained or written; see `settle`."""
    loaded = load_config(config, overrides)
    folder = StudyFolder(output) if output is not None else None
    return settle(loaded, None, folder, Reporter(quiet=True), fixed_of(loaded.image))


def read_run(study: Path, arm: str, fold: int = 0, seed: int = 0) -> dict[str, Any]:
    """`run.json` of a finished run."""
    content: dict[str, Any] = json.loads(
        (study / "runs" / arm / f"fold-{fold}" / f"seed-{seed}" / "run.json").read_text()
    )
    return content


def finished_runs(study: Path) -> dict[Path, int]:
    """When each run, draw and search of a study was finished."""
    return {
        path: path.stat().st_mtime_ns
        for pattern in ("**/run.json", "**/depth.json")
        for path in study.glob(pattern)
    }


def read_table(study: Path) -> pd.DataFrame:
    """The predictions of a study, in an order that does not depend on who made them when."""
    table = pd.read_csv(study / "predictions.csv")
    keys = [name for name in ("arm", "seed", "fold", "part", "image", "size") if name in table]
    return table.sort_values(keys).reset_index(drop=True)


@dataclass(frozen=True)
class FinishedStudy:
    """A study that other tests read too; `copy` it before anything in it is changed.

    Attributes:
        folder: holds `study.yaml`, the configuration, and `out`, the study.
        manifest: of its cohort, which lies elsewhere.
    """

    folder: Path
    manifest: Path

    @property
    def config(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def copy(self, folder: Path) -> FinishedStudy:
        shutil.copytree(self.folder, folder)
        return FinishedStudy(folder, self.manifest)


class Studies:
    """Makes cohorts and studies below one folder, which all processes of a test session share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cohort(self, patients: int = 30, seed: int = 2, volumes: bool = False) -> Path:
        """Manifest of a phantom cohort, see `write_phantom`."""

        def make(folder: Path) -> None:
            write_phantom(folder, patients, seed=seed, volumes=volumes)

        return self._once("cohort", [patients, seed, volumes], make) / "manifest.csv"

    def finished(self, manifest: Path, **sections: Any) -> FinishedStudy:
        """A study that `compare` has finished; see `write_config`."""

        def make(folder: Path) -> None:
            config = write_config(folder, manifest, **sections)
            result = invoke("compare", config, "--output", folder / "out")
            assert result.exit_code == 0, result.output

        return FinishedStudy(self._once("study", [str(manifest), sections], make), manifest)

    def classification(self) -> FinishedStudy:
        """Images, fine-tuned and from scratch, with all that a report can have."""
        sections = changed(SETTINGS, train={"layout": "auto"}) | FULL  # the layout is measured
        return self.finished(self.cohort(), arms=TWINS, plan={"strategy": "lp_ft"}, **sections)

    def detection(self) -> FinishedStudy:
        """Lesion boxes on images, with all that a report can have."""
        sections = (
            changed(SETTINGS, image={"size": 64}, train={"epochs": 2, "batch_size": None}) | FULL
        )
        return self.finished(self.cohort(16, 0), task="detection", arms=TWINS, **sections)

    def volumes(self) -> FinishedStudy:
        """DICOM series and NIfTI files, slice by slice and as a whole, with all that a report can
        have.
        """
        sections = changed(SETTINGS, image={"slices": 10}, train={"batch_size": 4}) | FULL
        arms = {"imagenet": ARMS["imagenet"], "scratch": {"backbone": "monai_resnet10"}}
        return self.finished(
            self.cohort(24, 3, volumes=True), arms=arms, plan={"strategy": "lp_ft"}, **sections
        )

    def _once(self, kind: str, content: Any, make: Callable[[Path], None]) -> Path:
        """The folder that `make` fills, by whoever comes first; the others wait for it."""
        name = f"{kind}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"  # noqa: E501
        folder, done = self.root / name, self.root / f"{name}.done"
        with FileLock(self.root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # half-made by one that failed
                folder.mkdir(parents=True)
                make(folder)
                done.touch()
        return folder


def changed(settings: Mapping[str, Any], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose sections have some keys otherwise."""
    return {
        **settings,
        **{name: {**settings.get(name, {}), **section} for name, section in sections.items()},
    }
