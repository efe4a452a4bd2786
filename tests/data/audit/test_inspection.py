"""Every image is read once, whatever happens to the process that reads it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.data.audit.inspection import inspect_image
from medtransfer.data.grid.cache import (
    digest_file,
    entry_path,
)
from medtransfer.data.grid.fixed import Fixed

from forks import PROCESSES


@pytest.mark.parametrize(
    "jobs", [1, pytest.param(2, marks=[pytest.mark.process, pytest.mark.xdist_group("plain")])]
)
def test_entries_are_the_uncached_result_bit_for_bit(own_cache, cohort, jobs, monkeypatch):
    monkeypatch.setattr("medtransfer.data.audit.inspection._WORTH_TORCH", 0.0)
    settings = {"size": 48, "window": "full"}
    facts = mt.inspect_images(cohort, fixed=Fixed(**settings), jobs=jobs)
    plain = mt.fixed_transforms(**settings)
    for path, entry in zip(cohort.images["path"], facts["entry"], strict=True):
        assert np.array_equal(np.load(entry), plain({"image": path})["image"].numpy())
    assert facts["image"].tolist() == cohort.images["image"].tolist()
    assert not list(own_cache.rglob("*.part"))
    again = mt.inspect_images(cohort, fixed=Fixed(**settings), jobs=1)
    assert again.drop(columns=["thumbnail", "picture"]).equals(
        facts.drop(columns=["thumbnail", "picture"])
    )
    for column in ("thumbnail", "picture"):
        assert all(np.array_equal(a, b) for a, b in zip(again[column], facts[column], strict=True))


def test_an_image_is_decoded_once(own_cache, cohort, monkeypatch):
    read = []
    real = mt.read_image
    monkeypatch.setattr(
        "medtransfer.data.audit.inspection.read_image", lambda path: read.append(path) or real(path)
    )
    mt.inspect_images(cohort, fixed=Fixed(32))
    assert len(read) == len(cohort)
    mt.inspect_images(cohort, fixed=Fixed(32))
    assert len(read) == len(cohort)
    assert len(list(own_cache.rglob("*.npy"))) == len(cohort)


def fill(paths: list[str], folder: str, ready: Any) -> None:
    ready.set()
    for path in paths:
        inspect_image(path, Path(folder), Fixed(64))


@pytest.mark.process
@pytest.mark.xdist_group("plain")
def test_a_kill_while_filling_leaves_no_wrong_entry(own_cache, cohort):
    """Twenty kills at random moments; whatever is there afterwards is right, and the rest is
    filled.
    """
    rng = np.random.default_rng(0)
    paths = cohort.images["path"].tolist()
    plain = {path: mt.fixed_transforms(64)({"image": path})["image"].numpy() for path in paths}
    entries = {
        path: Path(entry_path(own_cache, digest_file(Path(path)), repr(Fixed(64))))
        for path in paths
    }
    partial = 0
    running = []
    for kill in range(20):
        while len(running) < 2:
            ready = PROCESSES.Event()
            worker = PROCESSES.Process(target=fill, args=(paths, str(own_cache), ready))
            worker.start()
            running.append((worker, ready))
        worker, ready = running.pop(0)
        assert ready.wait(60), kill
        time.sleep(float(rng.uniform(0, 0.1)))
        worker.kill()
        worker.join()
        present = [path for path in paths if entries[path].is_file()]
        partial += 0 < len(present) < len(paths)
        for path in present:
            assert np.array_equal(np.load(entries[path]), plain[path])
        if len(present) == len(paths):
            for entry in entries.values():
                entry.unlink()
    running[0][0].join()
    assert partial > 0
    for path in paths:
        row = inspect_image(path, own_cache, Fixed(64))
        assert np.array_equal(np.load(row["entry"]), plain[path])


class Deadly(Fixed):
    """Kills the process that works on one of the images."""

    def apply(self, path, image):
        if Path(path).name == "5-0.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply(path, image)


KEPT: list[np.ndarray] = []


@dataclass(frozen=True)
class Growing(Fixed):
    """Lets the first process that comes to it grow by more than joblib allows, and notes in a
    folder which ones there were.
    """

    notes: str = ""

    def apply(self, path, image):
        notes = Path(self.notes)
        if not (notes / f"{os.getpid()}.tests").exists():
            (notes / str(os.getpid())).touch()
            if not KEPT and not (notes / "grown").exists():
                (notes / "grown").touch()
                KEPT.append(np.ones(1))
            if 0 < len(KEPT) < 5:  # not at once: joblib compares with what it saw first
                KEPT.append(np.ones(25_000_000))
            if not (notes / "renewed").exists():
                time.sleep(
                    0.6
                )  # it looks once a second; and there must be work left for the new process
                processes = sum(path.name.isdigit() for path in notes.iterdir())
                (notes / "renewed").touch() if processes > 2 else None
        return super().apply(path, image)


@pytest.mark.process
@pytest.mark.xdist_group("plain")
def test_processes_that_die_or_grow_are_renewed_and_nothing_is_lost(own_cache, cohort, monkeypatch):
    monkeypatch.setattr("medtransfer.data.audit.inspection._WORTH_TORCH", 0.0)
    facts = mt.inspect_images(cohort, fixed=Deadly(32), jobs=2).set_index("image")
    assert "killed the process" in facts.loc["5-0.png", "error"]
    assert (facts["error"] != "").sum() == 1
    assert facts.index.tolist() == cohort.images["image"].tolist()
    # What is left behind does not stop the next cohort in the same process. With warnings as
    # errors, as in these tests, joblib's own thread ended on its warning of a process that has
    # grown, and the work never.
    notes = own_cache / "processes"
    notes.mkdir()
    (notes / f"{os.getpid()}.tests").touch()  # which decodes the first images
    again = mt.inspect_images(cohort, fixed=Growing(40, notes=str(notes)), jobs=2)
    assert not KEPT
    assert (again["error"] == "").all()
    assert len(again) == len(cohort)
    assert (notes / "renewed").exists(), "no process was renewed"


def test_a_full_disk_is_no_fault_of_the_image(own_cache, cohort, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medtransfer.data.audit.inspection.write_entry", full)
    with pytest.raises(OSError, match="No space left"):
        inspect_image(cohort.images["path"][0], own_cache, Fixed(32))
