"""How many patients a validation needs for intervals of a given width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from medtransfer.evaluation.intervals.variance import NORMAL_95
from medtransfer.evaluation.tables.arrays import Float

_CERTAIN = 30.0  # a logit whose probability differs from 0 or 1 by rounding alone
_FEWEST = 20.0  # below it the formula says nothing
# A useful validation: whole widths of the 95 % intervals, as Riley et al. 2021 and their
# pmvalsampsize have them.
WIDTHS = {"auc": 0.1, "observed_expected": 0.2, "slope": 0.2, "net_benefit": 0.2}


def required_n(auc: float, prevalence: float, half_width: float = 0.05) -> int:
    """Patients for a 95 % interval of the AUC of estimate ± `half_width`, by the standard error of
    Newcombe 2006 (doi:10.1002/sim.2324).

    Args:
        auc: expected, between 0.5 and 1.
        prevalence: between 0 and 1.
        half_width: above 0.
    """

    def excess(n: float) -> float:
        middle = n / 2 - 1
        spread = auc * (1 - auc) * (1 + middle * (1 - auc) / (2 - auc) + middle * auc / (1 + auc))
        error = np.sqrt(spread / (n**2 * prevalence * (1 - prevalence)))
        return float(NORMAL_95 * error) - half_width

    return int(np.ceil(brentq(excess, _FEWEST, 1e9))) if excess(_FEWEST) > 0 else int(_FEWEST)


def required_n_observed_expected(
    prevalence: float, width: float = WIDTHS["observed_expected"]
) -> int:
    """Patients for a 95 % interval of observed / expected of this width about 1: n = (1 - φ) / (φ
    SE(ln O/E)²) (Riley et al. 2021).
    """
    error = np.arcsinh(width / 2) / NORMAL_95
    return int(np.ceil((1 - prevalence) / (prevalence * error**2)))


def required_n_slope(
    logit: Float, width: float = WIDTHS["slope"], slope: float = 1.0, weight: Float | None = None
) -> int:
    """Patients for a 95 % interval of the calibration slope of this width, by Fisher's information
    (Riley et al. 2021).

    Args:
        logit: (image,), the distribution of logits to be expected, such as those of this cohort.
        width: above 0.
        slope: expected.
        weight: (image,), how much each counts, where the classes are mixed otherwise than here.
    """
    p = expit(slope * logit)
    w = p * (1 - p)
    i00, i01, i11 = (float(np.average(w * logit**power, weights=weight)) for power in (0, 1, 2))
    information = i00 * i11 - i01**2
    if information <= 0:
        raise ValueError("all logits are the same, so a slope has no information")
    return int(np.ceil((2 * NORMAL_95 / width) ** 2 * i00 / information))


def required_n_net_benefit(
    sensitivity: float,
    specificity: float,
    prevalence: float,
    threshold: float,
    width: float = WIDTHS["net_benefit"],
) -> int:
    """Patients for a 95 % interval of the net benefit / prevalence of this width (Riley et al.
    2021).

    Args:
        sensitivity: expected at the threshold.
        specificity: expected at the threshold.
        prevalence: between 0 and 1.
        threshold: probability from which on one acts.
        width: above 0.
    """
    odds = (1 - prevalence) / prevalence * threshold / (1 - threshold)
    spread = (
        sensitivity * (1 - sensitivity) / prevalence
        + odds**2 * specificity * (1 - specificity) / (1 - prevalence)
        + odds**2 * (1 - specificity) ** 2 / (prevalence * (1 - prevalence))
    )
    return int(np.ceil(spread * (2 * NORMAL_95 / width) ** 2))


def advise(
    auc: float | None,
    prevalence: float,
    logit: Float,
    target: NDArray[Any],
    threshold: float | None,
) -> dict[str, Any]:
    """What an external validation of such a model needs (Riley et al. 2021, doi:10.1002/sim.9025;
    2024, doi:10.1136/bmj-2023-074821).

    Args:
        auc: of this study, within models; None: not estimable.
        prevalence: to be expected.
        logit: (image,), after recalibration where that could be done, at that prevalence.
        target: (image,); its mix counts as that prevalence has it.
        threshold: probability from which on one acts; None: net benefit is left out.

    Returns:
        By criterion, `patients` and `positives`; with the widths asked for, and the largest of the
        numbers.
    """
    needed: dict[str, int] = {}
    if not 0 < prevalence < 1:
        return {"needed": {}, "patients": None, "positives": None, "widths": WIDTHS}
    if auc is not None and 0.5 < auc < 1:
        needed["auc"] = required_n(auc, prevalence, WIDTHS["auc"] / 2)
    needed["observed_expected"] = required_n_observed_expected(prevalence)
    truth = np.asarray(target) == 1
    # Certain ones tell nothing of a slope.
    telling = logit[np.abs(logit) < _CERTAIN]
    if len(telling) and np.ptp(telling) > 1e-9 and 0 < truth.sum() < len(truth):
        needed["slope"] = required_n_slope(
            logit,
            weight=np.where(truth, prevalence / truth.mean(), (1 - prevalence) / (~truth).mean()),
        )
    if threshold is not None and 0 < truth.sum() < len(truth):
        called = expit(logit) >= threshold
        needed["net_benefit"] = required_n_net_benefit(
            float(called[truth].mean()), float(1 - called[~truth].mean()), prevalence, threshold
        )
    largest = max(needed.values())
    return {
        "needed": needed,
        "patients": largest,
        "positives": int(np.ceil(largest * prevalence)),
        "widths": WIDTHS,
    }
