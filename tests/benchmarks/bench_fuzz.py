"""Thousands of damaged files: no traceback, no hang, no memory of the machine. Run: make bench, or
with a number of files.
"""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoint_mutants import checkpoint_mutants, try_checkpoint
from file_mutants import mutants, sources, try_one
from table_mutants import table_mutants, try_table, write_images
from yaml_mutants import try_mutant, yaml_mutants

# Shares of the mutants: pictures, volumes and DICOM; tables and annotations; configurations;
# checkpoints.
SHARES = {"images": 0.6, "tables": 0.2, "configurations": 0.1, "checkpoints": 0.1}


def try_images(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and fault of each."""
    for i in range(12):
        (folder / f"{i}.png").write_bytes(sources()["grey8.png"])
    for name, data in mutants(count, seed):
        path = folder / name
        path.write_bytes(data)
        yield name, try_one(path)
        path.unlink()


def try_tables(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and fault of each."""
    write_images(folder)
    for mutant in table_mutants(seed, count):
        yield mutant.kind, try_table(mutant, folder)


def try_configurations(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and fault of each."""
    for mutant in yaml_mutants(seed, count):
        yield "study.yaml", try_mutant(mutant, folder)


def try_checkpoints(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and fault of each."""
    for path, _ in checkpoint_mutants(seed, count, folder):
        yield path.name, try_checkpoint(path)
        path.unlink()


def main(count: int = 10_000, seed: int = 2) -> int:
    """Prints what went wrong; returns how much."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    tries = {
        "images": try_images,
        "tables": try_tables,
        "configurations": try_configurations,
        "checkpoints": try_checkpoints,
    }
    faults = []
    for kind, share in SHARES.items():
        begun = start = time.monotonic()
        slowest = (0.0, "")
        here = 0
        with tempfile.TemporaryDirectory() as folder:
            for name, fault in tries[kind](round(share * count), seed, Path(folder)):
                slowest = max(slowest, (time.monotonic() - start, name))
                here += 1
                if fault:
                    faults.append(fault)
                    print(fault, flush=True)
                start = time.monotonic()
        print(
            f"{here} damaged {kind}, seed {seed}: {time.monotonic() - begun:.0f} s; slowest "
            f"{slowest[0]:.2f} s ({slowest[1]})",
            flush=True,
        )
    print(f"{len(faults)} faults")
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(1, main(*(int(argument) for argument in sys.argv[1:]))))
