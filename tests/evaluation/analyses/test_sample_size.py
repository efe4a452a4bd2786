from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.analyses.sample_size import advise, required_n, required_n_slope
from medtransfer.evaluation.intervals import influence
from scipy.special import expit

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_sizes_for_a_validation():
    n = required_n(0.8, 0.2, 0.05)
    middle, auc = n / 2 - 1, 0.8
    error = np.sqrt(auc * 0.2 * (1 + middle * 0.2 / 1.2 + middle * auc / 1.8) / (n**2 * 0.2 * 0.8))
    assert 1.959964 * error == pytest.approx(0.05, rel=0.005)
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1.2, 5000)
    n = required_n_slope(logit, 0.4)
    slopes = []
    for _ in range(60):
        x = rng.choice(logit, n)
        y = (rng.random(n) < expit(x)).astype(int)
        slopes.append(influence.slope(x, y, np.ones(n), np.zeros(n, int))[0])
    assert 2 * 1.96 * np.std(slopes) == pytest.approx(0.4, rel=0.25)
    advice = advise(0.8, 0.2, logit, rng.random(5000) < expit(logit), 0.3)
    assert set(advice["needed"]) == {"auc", "observed_expected", "slope", "net_benefit"}
    assert advice["patients"] == max(advice["needed"].values())
    assert advise(None, 0.0, logit, logit > 0, None)["patients"] is None
    # A case-control sample tells of the population that it is drawn from: logits there, and as many
    # positives as there.
    truth = rng.normal(size=400_000) - 3 + 2 * (here := rng.random(400_000) < 0.05)
    whole = 2 * truth + 4 + np.log(0.05 / 0.95)
    cases = np.r_[np.flatnonzero(here), np.flatnonzero(~here)[: here.sum()]]
    sampled, population = (
        advise(0.9, 0.05, whole[rows], here[rows], None)["needed"]["slope"]
        for rows in (cases, slice(None))
    )
    assert sampled == pytest.approx(population, rel=0.03)
    with pytest.raises(ValueError, match="no information"):
        required_n_slope(np.zeros(5))
