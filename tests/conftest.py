"""Fixtures: small images on disk, tables of scores, and a cache that no test shares with the
user.
"""

from __future__ import annotations

import os

# Before numpy and torch are loaded. Small networks gain nothing from a second thread, and sums over
# threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image

if TYPE_CHECKING:
    from studies import Studies


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make test-quick` leaves out."""
    for item in items:
        room = item.path.parent.name
        if room == "study" or "studies" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.study)
        if room == "processes":
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True, scope="session")
def _private_cache(shared_folder: Path) -> None:
    # For the session: a fixture of a whole module would otherwise run before it and use the cache
    # of the user.
    os.environ["MEDTRANSFER_CACHE"] = str(shared_folder / "cache")


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard() -> None:
    """As in the foreground: a shell that starts the tests in the background has them, and all that
    they start, ignore Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _nothing_imported_is_looked_through() -> None:
    # Every training ends with a collection of garbage, which looks through all that torch and its
    # kind hold: for this long, they stay.
    import medtransfer.study.study  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test that draws from torch's global generator draws the same whatever ran before it in this
    process.
    """
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def studies(shared_folder: Path, _private_cache: None) -> Studies:
    """Makes studies that tests share; see `Studies`."""
    from studies import Studies

    return Studies(shared_folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("MEDTRANSFER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "busi").is_dir():
        pytest.skip(f"the real images are not here: {folder}")
    return folder


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, array: np.ndarray) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path

    return write


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes images and a manifest: `patients` patients with `views` images each, every other
    patient positive.
    """

    def write(patients: int = 12, views: int = 2, **columns: list[object]) -> Path:
        rows = []
        rng = np.random.default_rng(0)
        for p in range(patients):
            for v in range(views):
                name = f"{p}-{v}.png"
                array = rng.integers(0, 120, (40, 48)).astype(np.uint8)
                if p % 2:
                    array[10:30, 10:30] += 100
                Image.fromarray(array).save(tmp_path / name)
                rows.append({"image": name, "patient": f"P{p}", "malignant": p % 2})
        table = pd.DataFrame(rows)
        for name, values in columns.items():
            table[name] = values
        table.to_csv(tmp_path / "manifest.csv", index=False)
        return tmp_path / "manifest.csv"

    return write


@pytest.fixture(scope="session")
def scores() -> Callable[..., pd.DataFrame]:
    """A predictions table: arms with a signal of given strength over the same patients."""

    def make(
        arms: dict[str, float],
        patients: int = 120,
        views: int = 1,
        seeds: int = 1,
        folds: int = 2,
        seed: int = 0,
    ) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        frames = []
        target = np.repeat(rng.integers(0, 2, patients), views)
        patient = np.repeat([f"P{i}" for i in range(patients)], views)
        fold = np.repeat(np.arange(patients) % folds, views)
        common = rng.normal(size=len(target))
        for arm, strength in arms.items():
            for s in range(seeds):
                logit = strength * (target - 0.5) * 2 + common + 0.5 * rng.normal(size=len(target))
                base = pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": s,
                        "fold": fold,
                        "part": "test",
                        "patient": patient,
                        "label": "y",
                        "target": target,
                    }
                )
                base["image"] = [f"{p}/{i}" for i, p in enumerate(patient)]
                base["logit"] = logit
                tune = base.copy()
                tune["part"], tune["fold"] = "tune", (fold + 1) % folds
                frames += [base, tune] if folds > 1 else [base]
        table = pd.concat(frames, ignore_index=True)
        table["probability"] = 1 / (1 + np.exp(-table["logit"]))
        return table

    return make
