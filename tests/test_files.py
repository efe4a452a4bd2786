"""What is written, or not."""

from __future__ import annotations

import os

import pytest


def test_a_full_disk_names_the_file_and_the_space(tmp_path, monkeypatch):
    from medtransfer.files import write_aside

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"it needs 3 MB, and .* are free on this disk") as caught:
        write_aside(tmp_path / "big.bin", bytes(3 * 2**20))
    assert caught.value.filename == str(tmp_path / "big.bin")
    assert list(tmp_path.iterdir()) == []
