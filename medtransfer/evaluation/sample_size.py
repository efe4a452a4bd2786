"""How many patients a validation needs for intervals of a given width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

Float = NDArray[np.float64]
_Z = float(norm.ppf(0.975))
_FEWEST = 20.0  # below it the formula says nothing
# A useful validation: half-widths of the intervals that Riley et al. 2021 use.
HALF_WIDTHS = {"auc": 0.05, "observed_expected": 0.2, "slope": 0.2}


def required_n(auc: float, prevalence: float, half_width: float = 0.05) -> int:
    """Patients for a 95 % interval of the AUC of estimate ± `half_width`, by the standard error of Newcombe 2006 (doi:10.1002/sim.2324).

    Args:
        auc: expected, between 0.5 and 1.
        prevalence: between 0 and 1.
        half_width: above 0.
    """

    def excess(n: float) -> float:
        middle = n / 2 - 1
        spread = auc * (1 - auc) * (1 + middle * (1 - auc) / (2 - auc) + middle * auc / (1 + auc))
        return float(_Z * np.sqrt(spread / (n**2 * prevalence * (1 - prevalence)))) - half_width

    return int(np.ceil(brentq(excess, _FEWEST, 1e9))) if excess(_FEWEST) > 0 else int(_FEWEST)


def required_n_observed_expected(prevalence: float, half_width: float = 0.2) -> int:
    """Patients for a 95 % interval of observed / expected of about 1 ± `half_width`: n = (1 - φ) / (φ SE(ln O/E)²) (Riley et al. 2021)."""
    error = np.log(1 + half_width) / _Z
    return int(np.ceil((1 - prevalence) / (prevalence * error**2)))


def required_n_slope(logit: Float, half_width: float = 0.2, slope: float = 1.0) -> int:
    """Patients for a 95 % interval of the calibration slope of 1 ± `half_width`, by Fisher's information (Riley et al. 2021).

    Args:
        logit: (image,), the distribution of logits to be expected, such as those of this cohort.
        half_width: above 0.
        slope: expected.
    """
    p = expit(slope * logit)
    w = p * (1 - p)
    i00, i01, i11 = float(w.mean()), float((w * logit).mean()), float((w * logit**2).mean())
    information = i00 * i11 - i01**2
    if information <= 0:
        raise ValueError("all logits are the same, so a slope has no information")
    return int(np.ceil((_Z / half_width) ** 2 * i00 / information))


def advise(auc: float | None, prevalence: float, logit: Float) -> dict[str, Any]:
    """What an external validation of such a model needs (Riley et al. 2021, doi:10.1002/sim.9025; 2024, doi:10.1136/bmj-2023-074821).

    Args:
        auc: of this study; None: not estimable.
        prevalence: to be expected.
        logit: (image,), after recalibration where that could be done.

    Returns:
        By criterion, `patients` and `positives`; with the half-widths asked for, and the largest of the numbers.
    """
    needed: dict[str, int] = {}
    if not 0 < prevalence < 1:
        return {"needed": {}, "patients": None, "positives": None, "half_widths": HALF_WIDTHS}
    if auc is not None and 0.5 < auc < 1:
        needed["auc"] = required_n(auc, prevalence, HALF_WIDTHS["auc"])
    needed["observed_expected"] = required_n_observed_expected(prevalence, HALF_WIDTHS["observed_expected"])
    if np.ptp(logit) > 1e-9:
        needed["slope"] = required_n_slope(logit, HALF_WIDTHS["slope"])
    largest = max(needed.values())
    return {"needed": needed, "patients": largest, "positives": int(np.ceil(largest * prevalence)), "half_widths": HALF_WIDTHS}
