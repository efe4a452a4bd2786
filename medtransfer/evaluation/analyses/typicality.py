"""Images unlike the training images: how many there are, and whether the model does worse on
them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.entries import no_interval
from medtransfer.evaluation.intervals.estimate import Estimate, estimate
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.probabilities import squared_errors
from medtransfer.evaluation.tables.scores import Scores

# An image is flagged where fewer tune images than this share are as far from the training images.
FLAGGED_BELOW = 0.05
# With fewer flagged patients nothing is reported about them.
FEWEST = 10


def describe_outliers(
    scores: Scores, rows: pd.DataFrame, tuned: int, draws: Draws
) -> dict[str, Any] | None:
    """Share of flagged test images; the Brier score of these and of the others, and its difference,
    with 95 % intervals.

    Args:
        scores: of an arm, recalibrated where that could be done.
        rows: its test rows, `image, seed, typical`.
        tuned: tune images of the model that has the fewest: the least share it can tell is 1 / (n +
            1).
        draws: names the patients.

    Returns:
        None where nothing is known of how typical the images are.
    """
    if "typical" not in rows.columns or rows["typical"].isna().any():
        return None
    if 1 / (tuned + 1) >= FLAGGED_BELOW:
        reason = (
            f"cannot be told, as a model has {tuned} of its tune part to compare with, and "
            f"{int(1 / FLAGGED_BELOW)} are needed"
        )
        nothing = no_interval(reason)
        return {
            "flagged": nothing,
            "brier_flagged": nothing,
            "brier_others": nothing,
            "difference": nothing,
        }
    wide = rows.pivot_table(index="image", columns="seed", values="typical", aggfunc="first")
    flag = (
        wide.reindex(index=scores.images.tolist(), columns=list(scores.seeds))
        .to_numpy(np.float64)
        .T
        < FLAGGED_BELOW
    )
    # Errors lie in 0..1; 2 is added to those of flagged images to mark them.
    coded = replace(scores, logit=squared_errors(scores.logit, scores.target) + 2.0 * flag)
    codes, count = draws.codes(scores.patients), len(draws.patients)
    share = estimate(coded, codes, count, _share)
    flagged, others = (
        _of_group(coded, codes, count, flag if wanted else ~flag, wanted)
        for wanted in (True, False)
    )
    members = len(np.unique(codes[flag.any(0)]))
    if members < FEWEST:
        reason = f"{members} patients have such an image, and {FEWEST} are needed"
        too_few = no_interval(reason, flagged.value if np.isfinite(flagged.value) else None)
        return {
            "flagged": share.interval(least=0.0),
            "brier_flagged": too_few,
            "brier_others": others.interval(least=0.0),
            "difference": no_interval(reason),
        }
    return {
        "flagged": share.interval(least=0.0),
        "brier_flagged": flagged.interval(least=0.0),
        "brier_others": others.interval(least=0.0),
        "difference": replace(flagged - others, members=flagged.members).interval(),
    }


def _of_group(
    coded: Scores, codes: Int, count: int, inside: NDArray[np.bool_], flagged: bool
) -> Estimate:
    """Brier score of a group; its variance comes from the group's own patients, both classes
    together.
    """
    brier = estimate(coded, codes, count, _brier_where(flagged))
    patients = len(np.unique(codes[inside.any(0)]))
    together = brier.positive + brier.negative
    return replace(
        brier,
        positive=together,
        negative=np.zeros_like(together),
        members=(patients, patients, patients),
        clustered=True,
    )


def _share(
    coded: Float,
    target: NDArray[Any],  # noqa: ARG001
    weight: Float,
    model: NDArray[Any],  # noqa: ARG001
) -> tuple[float, Float]:
    return influence.mean((coded >= 2).astype(np.float64), weight)


def _brier_where(flagged: bool) -> influence.Estimator:
    def estimator(
        coded: Float,
        target: NDArray[Any],  # noqa: ARG001
        weight: Float,
        model: NDArray[Any],  # noqa: ARG001
    ) -> tuple[float, Float]:
        group_weight = weight * ((coded >= 2) == flagged)
        if group_weight.sum() == 0:
            return float("nan"), np.zeros(len(coded))
        return influence.mean(np.where(coded >= 2, coded - 2, coded), group_weight)

    return estimator
