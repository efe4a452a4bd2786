"""Fixtures: small images on disk, tables of scores, and a cache that no test shares with the user."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    # For the session: a fixture of a whole module would otherwise run before it and use the cache of the user.
    os.environ["MEDTRANSFER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _figures_for_the_page_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing each figure three times takes as long as a small training; tests of the report, and studies that a whole module shares, do so.
    if "report" not in request.path.parts:
        monkeypatch.setattr("medtransfer.report.build._KINDS", ("svg",))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums over threads differ in their last bits."""
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


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
    """Writes images and a manifest: `patients` patients with `views` images each, every other patient positive."""

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


@pytest.fixture
def scores() -> Callable[..., pd.DataFrame]:
    """A predictions table: arms with a signal of given strength over the same patients."""

    def make(arms: dict[str, float], patients: int = 120, views: int = 1, seeds: int = 1, folds: int = 2, seed: int = 0) -> pd.DataFrame:
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
                    {"arm": arm, "seed": s, "fold": fold, "part": "test", "patient": patient, "label": "y", "target": target}
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
