from __future__ import annotations

import medtransfer as mt
import pytest
from medtransfer.data.grid.cache import cache_folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def cohort(manifest):
    path = manifest(patients=12, views=2)
    return mt.Cohort.from_csv(path, path.parent, ["malignant"])
