"""Penalised logistic regression against that of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from medtransfer.errors import StudyError
from medtransfer.training.solvers import PENALTIES, fit_path
from sklearn.linear_model import LogisticRegression


@pytest.mark.parametrize("shape", [(4, 30), (40, 300), (150, 20), (400, 300)])
@pytest.mark.parametrize(
    ("noise", "weight"), [(1.0, 1.7), (0.0, 1.0), (3.0, 12.0)]
)  # the second divides the classes without an error
def test_the_path_is_scikit_learns_whatever_solves_it(shape, noise, weight):
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape) * rng.uniform(0.1, 10, shape[1]) + 3
    labels = (values[:, 0] + noise * rng.normal(size=shape[0]) > np.median(values[:, 0])).astype(
        int
    )
    coefficients, intercepts = fit_path(values, labels, weight)
    scaled = (values - values.mean(0)) / values.std(0)
    for penalty, slope, bias in zip(PENALTIES, coefficients, intercepts, strict=True):
        model = LogisticRegression(
            C=penalty, max_iter=10_000, tol=1e-10, class_weight={0: 1, 1: weight}
        ).fit(scaled, labels)
        assert np.allclose(values @ slope + bias, model.decision_function(scaled), atol=2e-4)


def test_features_that_never_vary_count_nothing_and_those_that_are_not_finite_are_refused():
    labels = np.arange(10) % 2
    constant, intercepts = fit_path(np.ones((10, 20)), labels, 3.0, (1.0,))
    assert np.allclose(constant, 0)
    assert intercepts == pytest.approx([np.log(3)], abs=1e-5)
    with pytest.raises(StudyError, match="not finite"):
        fit_path(np.full((10, 20), np.inf), labels, 1.0)
