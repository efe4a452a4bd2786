"""Fixtures of weights."""

from __future__ import annotations

import pytest


@pytest.fixture
def unproved(monkeypatch):
    """Whether weights are trained ones is asked in test_trained.py; elsewhere they are random, and
    looking takes longer than loading.
    """
    monkeypatch.setattr(
        "medtransfer.models.catalog.catalog.prove",
        lambda *_: {"passed": True, "sentence": "not looked at"},
    )
    monkeypatch.setattr("medtransfer.models.catalog.catalog._proofs", {})
