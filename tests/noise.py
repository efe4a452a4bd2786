"""Random images in place of files, for what reads batches."""

from __future__ import annotations

import torch


class Noise:
    """Images that differ by view, as random transforms make them; counts what is asked of it."""

    def __init__(self, count=6, size=64, slices=()):
        self.count, self.shape, self.loaded = count, (*slices, 3, size, size), []

    def prepare(self, rows, view):
        pass

    def load(self, rows, view=None):
        self.loaded += [(row, view) for row in rows]
        draw = 0 if view is None else view + 1
        images = [
            torch.randn(self.shape, generator=torch.Generator().manual_seed(1000 * draw + row))
            for row in rows
        ]
        present = torch.ones(
            len(rows), self.shape[0] if len(self.shape) == 4 else 1, dtype=torch.bool
        )
        targets = torch.tensor([[float(row % 2)] for row in rows])
        return {
            "features": {"image": torch.stack(images)},
            "present": present,
            "targets": targets,
            "rows": torch.tensor(rows),
        }
