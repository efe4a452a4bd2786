"""Features by formula, without learning: intensity, texture and shape; the baseline that a network
must beat.

They stand where a backbone stands, as a chain of one stage that is always frozen, so that folds,
seeds, draws, the cache and the convex head are those of every arm.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import kurtosis, skew
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.filters import sobel_h, sobel_v, threshold_otsu
from skimage.measure import label, moments_central, moments_hu, moments_normalized, regionprops
from torch import Tensor, nn

from medtransfer.models.chain.backbone import Backbone, Recipe, WeightsRecord
from medtransfer.models.chain.chain import Chain, Stage

NAME = "features"
_SHADES, _DISTANCES = 32, (1, 2, 4)
_TEXTURES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
_PATTERNS = ((8, 1), (16, 2))  # neighbours and radius
_SCALES = (1.0, 2.0, 4.0, 8.0)
_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_DIRECTIONS = 8


def describe_picture(picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """The features of one grey picture.

    Intensity: moments, quantiles, entropy. Texture: grey-level co-occurrence at three distances
    (Haralick et al. 1973, doi:10.1109/TSMC.1973.4309314), local binary patterns (Ojala et al. 2002,
    doi:10.1109/TPAMI.2002.1017623), gradients by direction, energy between scales. Shape: of the
    largest region brighter than Otsu's threshold, and of the largest darker one inside it, as
    lesions are; Hu's moments (1962, doi:10.1109/TIT.1962.1057692).

    Args:
        picture: (row, column), intensities in 0..1.

    Returns:
        (feature,), finite.
    """
    clipped = np.clip(np.nan_to_num(picture.astype(np.float64)), 0.0, 1.0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter(
            "ignore"
        )  # of flat pictures, whose moments of higher order are not defined
        parts = [*_intensity(clipped), *_texture(clipped), *_shape(clipped)]
    return np.nan_to_num(np.array(parts, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _intensity(picture: NDArray[Any]) -> list[float]:
    histogram = np.histogram(picture, 32, (0, 1))[0] / picture.size
    filled = histogram[histogram > 0]
    return [
        picture.mean(),
        picture.std(),
        skew(picture, axis=None),
        kurtosis(picture, axis=None),
        -(filled * np.log(filled)).sum(),
        *np.quantile(picture, _QUANTILES),
    ]


def _texture(picture: NDArray[Any]) -> list[float]:
    shades = np.minimum((picture * _SHADES).astype(np.uint8), _SHADES - 1)
    pairs = graycomatrix(
        shades,
        _DISTANCES,
        (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4),
        _SHADES,
        symmetric=True,
        normed=True,
    )
    found = [value for name in _TEXTURES for value in graycoprops(pairs, name).mean(1)]
    bytes_ = (picture * 255).astype(np.uint8)
    for neighbours, radius in _PATTERNS:
        codes = local_binary_pattern(bytes_, neighbours, radius, "uniform")
        found += (np.histogram(codes, neighbours + 2, (0, neighbours + 2))[0] / codes.size).tolist()
    rows, columns = sobel_h(picture), sobel_v(picture)
    strength, direction = np.hypot(rows, columns), np.arctan2(rows, columns) % np.pi
    by_direction = np.histogram(direction, _DIRECTIONS, (0, np.pi), weights=strength)[0]
    found += [strength.mean(), strength.std(), *(by_direction / max(by_direction.sum(), 1e-12))]
    smooth = [picture, *(gaussian_filter(picture, scale) for scale in _SCALES)]
    return found + [
        float(np.square(fine - coarse).mean() ** 0.5) for fine, coarse in itertools.pairwise(smooth)
    ]


def _shape(picture: NDArray[Any]) -> list[float]:
    smooth = gaussian_filter(picture, 1.0)
    cut = threshold_otsu(smooth) if np.ptp(smooth) > 0 else 1.0
    bright = smooth > cut
    dark = ~bright
    # Darkness that touches the border is background.
    marked = label(dark)
    border = np.unique(np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]]))
    dark = dark & ~np.isin(marked, border)
    hu = moments_hu(moments_normalized(moments_central(picture)))
    return [
        bright.mean(),
        *_region(bright, picture),
        *_region(dark, picture),
        *(np.sign(hu) * np.log1p(1e6 * np.abs(hu))),
    ]


def _region(mask: NDArray[np.bool_], picture: NDArray[Any]) -> list[float]:
    """Of the largest piece: area, eccentricity, solidity, extent, roundness, contrast with the
    rest; zeros where there is none.
    """
    pieces = regionprops(label(mask))
    if not pieces:
        return [0.0] * 7
    piece = max(pieces, key=lambda p: p.area)
    inside = np.zeros(mask.shape, bool)
    inside[tuple(piece.coords.T)] = True
    outside = picture[~inside].mean() if (~inside).any() else 0.0
    perimeter = max(piece.perimeter, 1.0)
    return [
        piece.area / mask.size,
        piece.eccentricity,
        piece.solidity,
        piece.extent,
        4 * np.pi * piece.area / perimeter**2,
        picture[inside].mean() - outside,
        len(pieces) / 100,
    ]


class Handcrafted(nn.Module):
    """Images (batch, channel, row, column) in 0..1 -> features (batch, feature), float32; of
    colour, the mean of the channels.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        # Of ones: every part of a chain has parameters, by which its device is known.
        self.scale = nn.Parameter(torch.ones(count), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        grey = image.detach().float().mean(1).cpu().numpy()
        values = np.stack([describe_picture(picture) for picture in grey])
        return torch.from_numpy(values).to(image.device, torch.float32) * self.scale


class _Network(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.measure = Handcrafted(count)


def build_handcrafted() -> Backbone:
    """The features as a backbone."""
    count = len(describe_picture(np.zeros((32, 32), np.float32)))
    stage = Stage(NAME, ("measure",), count, 1, "NC", ("measure",))
    version = metadata.version("scikit-image")
    digest = hashlib.sha256(Path(__file__).read_bytes() + version.encode()).hexdigest()
    proof = {"passed": True, "sentence": "formulas; there is nothing to load"}
    record = WeightsRecord(
        "formulas",
        f"{count} features of scikit-image {version}",
        digest,
        recipe_from="0..1",
        proof=proof,
    )
    return Backbone(
        NAME,
        _Network(count),
        Chain((stage,), True, ()),
        Recipe((0.0,) * 3, (1.0,) * 3, 128),
        record,
    )
