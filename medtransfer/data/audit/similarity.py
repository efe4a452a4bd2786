"""Near-duplicates: images that show the same pixels, moved, mirrored, rescaled or saved again.

Two images of one patient taken a moment apart are near-duplicates too, and as harmful: on both
sides of a split they turn memory into accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

Float = NDArray[np.float32]

# A pair is confirmed where the small pictures correlate this well, and their detail does too.
# Detail is what a Gaussian of 2 pixels takes away: images of different patients in one view agree
# in the large, not in it. What detail an image shares with a quarter of all others (the edge of a
# sector or disc, a frame, a ruler) is no evidence and is discounted.
CORRELATION = 0.97
DETAIL = 0.55
_COMMON, _OTHERS, _FEWEST_OTHERS = 0.75, 500, 20
_SIGMA = 2.0
# Coefficients of the perceptual hash along each axis, and the agreement that makes a candidate.
_COEFFICIENTS = {2: 16, 3: 6}
_CANDIDATE = 0.93
_BLOCK = 2048


def near_duplicates(
    thumbnails: Sequence[Float | None], features: Float | None = None
) -> list[tuple[int, int, float]]:
    """Pairs of images that show the same, over mirrorings and half turns of planes.

    The perceptual hash is the low-frequency cosine transform of the small picture, kept as numbers
    (Zauner 2010 keeps its signs): its product is the correlation of the smoothed pictures, and a
    mirroring changes signs only. All pairs are compared; candidates are confirmed pixel by pixel.

    Args:
        thumbnails: 64 x 64 or 16 x 16 x 16 each, see `inspection.make_thumbnail`; None where
            unreadable.
        features: (image, dimension), embeddings of the same images; pairs with a cosine above 0.98
            are candidates as well.

    Returns:
        (first, second, correlation) with first < second, in order.
    """
    pairs: dict[tuple[int, int], float] = {}
    for dimensions in _COEFFICIENTS:
        rows = np.array(
            [
                i
                for i, t in enumerate(thumbnails)
                if t is not None and t.ndim == dimensions and t.std() > 0
            ],
            dtype=int,
        )
        if len(rows) < 2:
            continue
        pictures = np.stack([thumbnails[i] for i in rows])
        flat, detail = _unit(pictures), _unit(_take_detail(pictures))
        near = None if features is None else _unit(features[rows], centred=False)
        # Volumes have one orientation: they are not mirrored.
        flips = [(), (1,), (2,), (1, 2)] if dimensions == 2 else [()]
        for flip in flips:
            for first, second in _candidates(pictures, flip, near if flip == () else None):
                value = float(flat[first] @ _flipped(flat[second], pictures.shape[1:], flip))
                if value < CORRELATION:
                    continue
                fine = float(detail[first] @ _flipped(detail[second], pictures.shape[1:], flip))
                shared = max(_common_detail(detail, first), _common_detail(detail, second))
                if (fine - shared) / (1.0 - shared) < DETAIL:
                    continue
                key = (int(rows[first]), int(rows[second]))
                pairs[key] = max(value, pairs.get(key, -1.0))
    return [(first, second, value) for (first, second), value in sorted(pairs.items())]


def _candidates(
    pictures: Float, flip: tuple[int, ...], near: Float | None
) -> list[tuple[int, int]]:
    hashes = _hash(pictures)
    signs = _signs(pictures.ndim - 1, flip)
    other = hashes * signs
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        block = slice(start, start + _BLOCK)
        alike = hashes[block] @ other.T > _CANDIDATE
        if near is not None:
            alike |= near[block] @ near.T > 0.98
        first, second = np.nonzero(np.triu(alike, start + 1))
        pairs += list(zip((first + start).tolist(), second.tolist(), strict=True))
    return pairs


def _common_detail(detail: Float, image: int) -> float:
    """How well an image's detail correlates with that of the upper quarter of the others; 0 in a
    small cohort.
    """
    if len(detail) <= _FEWEST_OTHERS:
        return 0.0
    others = np.delete(np.arange(len(detail)), image)
    sample = others[:: max(1, len(others) // _OTHERS)]
    return float(np.clip(np.quantile(detail[sample] @ detail[image], _COMMON), 0.0, 0.999))


def _hash(pictures: Float) -> Float:
    axes = tuple(range(1, pictures.ndim))
    keep = _COEFFICIENTS[len(axes)]
    spectrum = dctn(pictures.astype(np.float64), axes=axes, norm="ortho")[
        (slice(None), *(slice(keep),) * len(axes))
    ]
    flat = spectrum.reshape(len(pictures), -1)[:, 1:]  # without the mean
    return np.asarray(
        flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12), dtype=np.float32
    )


def _signs(dimensions: int, flip: tuple[int, ...]) -> Float:
    """A mirrored axis changes the sign of its odd coefficients."""
    keep = _COEFFICIENTS[dimensions]
    signs = np.ones((keep,) * dimensions, np.float32)
    for axis in flip:
        index = np.arange(keep).reshape([-1 if d == axis - 1 else 1 for d in range(dimensions)])
        signs = signs * np.where(index % 2 == 1, -1.0, 1.0).astype(np.float32)
    return np.asarray(signs.ravel()[1:])


def _take_detail(pictures: Float) -> Float:
    sigma = (0.0, *(_SIGMA if pictures.ndim == 3 else _SIGMA / 2,) * (pictures.ndim - 1))
    return np.asarray(pictures - gaussian_filter(pictures, sigma), dtype=np.float32)


def _unit(pictures: Float, centred: bool = True) -> Float:
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    if centred:
        flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(
        flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12), dtype=np.float32
    )


def _flipped(flat: Float, shape: tuple[int, ...], flip: tuple[int, ...]) -> Float:
    return (
        flat
        if not flip
        else np.flip(flat.reshape(shape), axis=tuple(axis - 1 for axis in flip)).ravel()
    )
