"""Thousands of damaged files: no traceback, no hang, no memory of the machine. Run: make bench, or with a number of files."""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from mutants import mutants, sources, try_one


def main(count: int = 6000, seed: int = 2) -> int:
    """Prints what went wrong; returns how much."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    faults = []
    slowest = (0.0, "")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(12):
            (Path(folder) / f"{i}.png").write_bytes(sources()["grey8.png"])
        for name, data in mutants(count, seed):
            path = Path(folder) / name
            path.write_bytes(data)
            start = time.monotonic()
            fault = try_one(path)
            slowest = max(slowest, (time.monotonic() - start, name))
            if fault:
                faults.append(fault)
                print(fault, flush=True)
            path.unlink()
    spent = time.monotonic() - begun
    result = f"{count} damaged files, seed {seed}: {len(faults)} faults, {spent:.0f} s"
    print(f"{result}; slowest {slowest[0]:.2f} s ({slowest[1]})")
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(1, main(*(int(argument) for argument in sys.argv[1:]))))
