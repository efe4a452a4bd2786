from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.metrics.calibration_curve import (
    calibration_curve,
    curve_errors,
    curve_grid,
    curve_metric,
)
from scipy.special import expit

from scored import ones


def test_ici_of_perfect_and_of_shifted_probabilities():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.95, 20_000)
    target = (rng.random(20_000) < p).astype(int)
    logit = np.log(p / (1 - p))
    assert curve_errors(logit, target, ones(logit)[0])["ici"] < 0.015
    assert curve_errors(logit + 1.0, target, ones(logit)[0])["ici"] == pytest.approx(
        np.mean(expit(logit + 1.0) - p), abs=0.02
    )


def test_the_curve_of_draws_is_the_lowess_of_the_sample(cohort):
    """With every image once, lines fitted in the neighbourhoods of the sample are lowess, but for
    reading between grid points.
    """
    logit, target = cohort
    curve = curve_metric(logit[None])(logit, target, ones(logit))[0]
    assert curve[0] == pytest.approx(curve_errors(logit, target, ones(logit)[0])["ici"], abs=2e-3)
    smooth = np.interp(expit(logit), curve_grid(logit[None]), curve[1:])
    assert np.abs(smooth - calibration_curve(logit, target)).max() < 0.02
