from __future__ import annotations

from pathlib import Path

import pytest

from file_mutants import mutants, sources, try_one
from table_mutants import table_mutants, try_table, write_images

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # libraries remark on damaged files; errors are what counts


def test_damaged_files_give_an_image_or_an_error_that_names_them(tmp_path):
    """300 here, more than 5,000 in tests/benchmarks/bench_fuzz.py."""
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(sources()["grey8.png"])
    faults = []
    for name, data in mutants(300, seed=1):
        path = Path(tmp_path / name)
        path.write_bytes(data)
        fault = try_one(path)
        if fault:
            faults.append(fault)
        path.unlink()
    assert not faults, "\n".join(faults)


def test_damaged_tables_and_annotations_lose_nothing_in_silence(tmp_path):
    write_images(tmp_path)
    faults = [fault for mutant in table_mutants(1, 200) if (fault := try_table(mutant, tmp_path))]
    assert not faults, "\n".join(faults)
