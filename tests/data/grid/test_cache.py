"""The cache gives what the plain path gives, whoever writes it and whenever it is killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from medtransfer.data.audit.inspection import inspect_image
from medtransfer.data.grid import cache
from medtransfer.data.grid.cache import (
    cache_folder,
    digest_file,
    entry_path,
    read_entry,
    read_facts,
    write_entry,
)
from medtransfer.data.grid.fixed import Fixed

from damage import damage
from forks import PROCESSES


def test_another_setting_file_or_code_makes_another_entry(own_cache, cohort, monkeypatch):
    path = cohort.images["path"][0]
    first = inspect_image(path, own_cache, Fixed(32))
    names = {first["entry"]}
    for fixed in (Fixed(48), Fixed(32, "full"), Fixed(32, (100.0, 50.0))):
        names.add(inspect_image(path, own_cache, fixed)["entry"])
    data = bytearray(Path(path).read_bytes())
    Path(path).write_bytes(Path(cohort.images["path"][2]).read_bytes())
    changed = inspect_image(path, own_cache, Fixed(32))
    names.add(changed["entry"])
    assert changed["pixel_digest"] != first["pixel_digest"]
    Path(path).write_bytes(bytes(data))
    monkeypatch.setattr(cache, "_maker", lambda: "other code")
    names.add(inspect_image(path, own_cache, Fixed(32))["entry"])
    assert len(names) == 6


def test_a_folder_has_the_digest_of_its_files(tmp_path):
    (tmp_path / "s").mkdir()
    for name in "ab":
        (tmp_path / "s" / name).write_bytes(name.encode())
    first = digest_file(tmp_path / "s")
    assert digest_file(tmp_path / "s", "tag") != first
    (tmp_path / "s" / "b").write_bytes(b"c")
    assert digest_file(tmp_path / "s") != first


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_no_damaged_entry_is_taken_or_stops_the_next_start(own_cache, cohort, suffix):
    path, rng = cohort.images["path"][0], np.random.default_rng(0)
    row = inspect_image(path, own_cache, Fixed(32))
    (entry,) = own_cache.rglob(f"*.{suffix}")
    content = entry.read_bytes()
    for copy in range(600):
        entry.write_bytes(damage(content, rng))
        with pytest.warns(UserWarning, match=f"{entry.name}: this entry .* is damaged"):
            taken = (
                read_entry(entry) if suffix == "npy" else read_facts(own_cache, row["file_digest"])
            )
        assert taken is None
        if copy % 60 == 0:
            with pytest.warns(UserWarning, match=entry.name):
                again = inspect_image(path, own_cache, Fixed(32))
            assert entry.read_bytes() == content
            assert {k: str(v) for k, v in again.items()} == {k: str(v) for k, v in row.items()}


def test_an_entry_with_nan_is_named_and_not_taken(own_cache):
    path = entry_path(own_cache, "file", "setting")
    write_entry(path, np.array([[0.5, np.nan]], np.float32))
    with pytest.warns(UserWarning, match=f"{path.name}: this entry"):
        assert read_entry(path) is None
    write_entry(path, np.array([[0.5, 0.25]], np.float32))
    assert read_entry(path).tolist() == [[0.5, 0.25]]


def test_an_entry_that_cannot_be_read_is_named(own_cache):
    path = entry_path(own_cache, "file", "setting")
    path.mkdir(parents=True)
    with pytest.warns(UserWarning, match=f"{path.name}: this entry"):
        assert read_entry(path) is None


def test_entries_reach_the_disk_before_they_get_their_name(own_cache, monkeypatch):
    steps = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: steps.append("sync") or sync(number))
    monkeypatch.setattr(
        Path, "replace", lambda part, path: steps.append("rename") or rename(part, path)
    )
    write_entry(entry_path(own_cache, "file", "setting"), np.zeros((2, 2), np.float32))
    assert steps == ["sync", "rename"]


def write_often(folder: str, number: int) -> None:
    for _ in range(60):
        write_entry(
            entry_path(Path(folder), "file", "setting"), np.full((64, 64), number, np.float32)
        )


@pytest.mark.process
@pytest.mark.xdist_group("plain")
def test_writers_do_not_disturb_each_other(own_cache):
    writers = [
        PROCESSES.Process(target=write_often, args=(str(own_cache), number)) for number in (1, 2)
    ]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        array = read_entry(entry_path(own_cache, "file", "setting"))
        if array is not None:
            seen += 1
            assert len(np.unique(array)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen > 0
    assert not list(own_cache.rglob("*.part"))


def test_a_cache_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be written"):
        folder = cache_folder()
    assert (folder / "images").is_dir()


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_pixels_beside_their_header_are_part_of_the_key(own_cache, tmp_path, suffix):
    """Two patients with equal headers, as exported by one script."""
    rows = []
    for patient in (1, 2):
        (tmp_path / f"P{patient}").mkdir()
        image = SimpleITK.GetImageFromArray(
            np.random.default_rng(patient).integers(0, 99, (9, 10, 11)).astype(np.int16)
        )
        SimpleITK.WriteImage(image, str(tmp_path / f"P{patient}" / f"t2.{suffix}"))
        rows.append(inspect_image(str(tmp_path / f"P{patient}" / f"t2.{suffix}"), own_cache))
    headers = [(tmp_path / f"P{patient}" / f"t2.{suffix}").read_bytes() for patient in (1, 2)]
    assert headers[0] == headers[1]
    assert rows[0]["pixel_digest"] != rows[1]["pixel_digest"]


def test_the_cache_is_for_the_user_alone(own_cache):
    assert own_cache.stat().st_mode & 0o077 == 0
