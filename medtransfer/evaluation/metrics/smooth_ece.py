"""Smooth calibration error: kernel smoothing in place of bins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.special import expit

from medtransfer.evaluation.tables.arrays import Float

# Cells of the probability axis for kernel smoothing, and halvings of the bandwidth, to 1e-5.
CELLS, _HALVINGS = 2048, 17


def weighted_smooth_ece(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Smooth calibration error: the integral of |residual| smoothed over the bandwidth that equals
    it.

    Błasiok & Nakkiran 2024, arXiv:2309.12236; no bins to choose. Arguments as `weighted_ece`.
    """
    spectrum, low, high = (
        residual_spectrum(logit, target, weights),
        np.full(len(weights), 1e-6),
        np.ones(len(weights)),
    )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = smoothed_error(spectrum, middle) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray((low + high) / 2, np.float64)


def residual_spectrum(logit: Float, target: NDArray[Any], weights: Float) -> Float:
    """Cosine transform of the mean residual over the probability axis, (draw, cell)."""
    probability = expit(logit)
    # Shared between the two nearest cells, so that the grid shifts nothing.
    place = np.clip(probability * CELLS - 0.5, 0, CELLS - 1)
    lower = np.minimum(place.astype(int), CELLS - 2)
    share = place - lower
    residual = weights * (target - probability)
    mass = np.zeros((len(weights), CELLS))
    for at, part in ((lower, 1 - share), (lower + 1, share)):
        order = np.argsort(at, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(at[order]) > 0])
        mass[:, at[order][starts]] += np.add.reduceat((residual * part)[:, order], starts, axis=1)
    return np.asarray(dct(mass / weights.sum(1, keepdims=True), type=2, axis=1), np.float64)


def smoothed_error(spectrum: Float, bandwidth: Float) -> Float:
    """Integral of |residual| smoothed by a Gaussian reflected at 0 and 1, which is a product in
    cosines; (draw,).
    """
    decay = np.exp(-((np.pi * np.arange(CELLS)) ** 2) / 2 * bandwidth[:, None] ** 2)
    return np.asarray(np.abs(idct(spectrum * decay, type=2, axis=1)).sum(1), np.float64)
