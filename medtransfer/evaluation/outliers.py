"""Images unlike the training images: how many there are, and whether the model does worse on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.evaluation import influence
from medtransfer.evaluation.resample import Draws
from medtransfer.evaluation.scores import Scores

Float = NDArray[np.float64]
# An image is flagged where fewer tune images than this share are as far from the training images.
FLAGGED_BELOW = 0.05


def describe_outliers(scores: Scores, rows: pd.DataFrame, draws: Draws) -> dict[str, Any] | None:
    """Share of flagged test images; the Brier score of these and of the others, and its difference, with 95 % intervals.

    Args:
        scores: of an arm, recalibrated where that could be done.
        rows: its test rows, `image, seed, typical`.
        draws: names the patients.

    Returns:
        None where nothing is known of how typical the images are.
    """
    if "typical" not in rows.columns or rows["typical"].isna().any():
        return None
    wide = rows.pivot_table(index="image", columns="seed", values="typical", aggfunc="first")
    flag = wide.reindex(index=scores.images.tolist(), columns=list(scores.seeds)).to_numpy(np.float64).T < FLAGGED_BELOW
    # Errors lie in 0..1; the flag is told by the 2 that is added to them.
    coded = replace(scores, logit=(expit(scores.logit) - scores.target) ** 2 + 2.0 * flag)
    codes = draws.codes(scores.patients)

    def measure(estimator: influence.Estimator) -> influence.Estimate:
        return influence.estimate(coded.logit, coded.target, coded.weight, codes, len(draws.patients), estimator)

    flagged, others = measure(_brier_where(True)), measure(_brier_where(False))
    return {
        "flagged": measure(_share).interval(least=0.0),
        "brier_flagged": flagged.interval(least=0.0),
        "brier_others": others.interval(least=0.0),
        "difference": (flagged - others).interval(),
    }


def _share(coded: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:  # noqa: ARG001  the signature of an estimator
    return influence.mean((coded >= 2).astype(np.float64), weight)


def _brier_where(flagged: bool) -> influence.Estimator:
    def estimator(coded: Float, target: NDArray[Any], weight: Float) -> tuple[float, Float]:  # noqa: ARG001
        chosen = weight * ((coded >= 2) == flagged)
        if chosen.sum() == 0:
            return float("nan"), np.zeros(len(coded))
        return influence.mean(np.where(coded >= 2, coded - 2, coded), chosen)

    return estimator
