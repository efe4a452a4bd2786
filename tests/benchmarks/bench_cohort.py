"""Seconds and memory to read and split a manifest of 100,000 images, two of each patient."""

from __future__ import annotations

import csv
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.split import split_cohort

ROWS = 100_000


def timed(name: str, work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {seconds:.1f} s, {peak:.2f} GB at most so far", flush=True)
    return result


def write_manifest(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient", "site", "malignant"])
        for row in range(ROWS):
            name = f"images/{row:06d}.png"
            (folder / name).touch()
            patient = row // 2
            writer.writerow([name, f"P{patient}", f"site {patient % 5}", int(rng.random() < 0.2)])
    return folder / "manifest.csv"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        manifest = write_manifest(Path(name))
        read = lambda: Cohort.from_csv(manifest, name, ["malignant"], columns=["site"])  # noqa: E731
        cohort = timed(f"a manifest of {ROWS:,} rows", read)
        images = cohort.images
        timed("its split into 5 folds", lambda: split_cohort(cohort))
        pairs = images["image"].to_numpy()[np.random.default_rng(1).integers(0, ROWS, (10_000, 2))]
        joined = timed("10,000 near-duplicates made groups", lambda: cohort.grouped(pairs.tolist()))
        timed("the split of the groups", lambda: split_cohort(joined))
        timed("a fold for each site", lambda: split_cohort(cohort, leave_out="site"))
        parts = np.where(images["site"] == "site 0", "test", "train")
        official = replace(cohort, images=images.assign(split=parts))
        timed("an official split", lambda: split_cohort(official))


if __name__ == "__main__":
    main()
