"""Cohorts whose label lies at a known level of the image: fine texture, or the shape of an
outline.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from skimage.draw import polygon

SIDE = 96


def texture(rng: np.random.Generator, positive: bool) -> np.ndarray:
    """Faint grain over smooth clouds: of single pixels, or an eighth of it of pairs of pixels; as
    strong in both, 0..255.
    """
    clouds = gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(6, 16))
    fine, pairs = (
        rng.normal(size=(SIDE, SIDE)),
        np.kron(rng.normal(size=(SIDE // 2, SIDE // 2)), np.ones((2, 2))),
    )
    share = 0.0 if positive else 0.12
    grain = np.sqrt(1 - share) * fine + np.sqrt(share) * pairs
    return _grey(clouds / clouds.std() * rng.uniform(20, 50) + grain * rng.uniform(4, 10))


def shape(rng: np.random.Generator, positive: bool) -> np.ndarray:
    """An outline with corners pulled in (a star) or not (a polygon), of any size, turn, brightness
    and grain, 0..255.
    """
    corners = int(rng.integers(5, 9))
    radius, turn = rng.uniform(20, 32), rng.uniform(0, 2 * np.pi)
    angles = turn + np.arange(2 * corners) * np.pi / corners
    radii = np.where(
        np.arange(2 * corners) % 2 == 0,
        radius,
        radius * (0.55 if positive else np.cos(np.pi / corners)),
    )
    row, column = rng.uniform(36, 60, 2)
    inside = np.zeros((SIDE, SIDE))
    inside[polygon(row + radii * np.sin(angles), column + radii * np.cos(angles), inside.shape)] = 1
    grain = (
        zoom(rng.normal(size=(SIDE // 4, SIDE // 4)), 4, order=1) * rng.uniform(4, 12)
        + rng.normal(size=(SIDE, SIDE)) * 6
    )
    return _grey(gaussian_filter(inside, 1.0) * rng.choice([-1, 1]) * rng.uniform(25, 60) + grain)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 128, 0, 255).astype(np.uint8)


def write_planted(folder: Path, kind: str, patients: int, seed: int = 0) -> Path:
    """One image per patient, every other one positive; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    make, rows = {"texture": texture, "shape": shape}[kind], []
    for patient in range(patients):
        Image.fromarray(make(rng, bool(patient % 2))).save(folder / f"{patient}.png")
        rows.append({"image": f"{patient}.png", "patient": f"P{patient}", "malignant": patient % 2})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"
