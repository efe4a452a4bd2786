"""Columns of a predictions table. It imports nothing, so that settings are read at once."""

from __future__ import annotations

COLUMNS = (
    "arm",
    "seed",
    "fold",
    "part",
    "image",
    "patient",
    "label",
    "target",
    "probability",
    "logit",
)
