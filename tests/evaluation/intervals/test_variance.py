from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.intervals.variance import (
    Cells,
    Part,
    between_folds,
    between_seeds,
    quantile,
    trained_again,
    two_sided_p,
)
from medtransfer.evaluation.tables.scores import align_scores
from scipy.stats import t as student

from scored import estimate_of

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


@pytest.mark.parametrize("freedom", [2, 3.7])  # of 3.7 scipy has no quantile at 1e-261
@pytest.mark.parametrize("ratio", [0.1, 1.0, 2.5, 6.0, 30.0])
def test_p_belongs_to_the_interval(ratio, freedom):
    parts = [Part(0.4, np.inf), Part(0.6, freedom)]
    p = two_sided_p(ratio, parts)
    assert quantile(parts, 1 - p) == pytest.approx(ratio, rel=1e-6)
    assert two_sided_p(ratio, [Part(1.0, 7)]) == pytest.approx(2 * student.sf(ratio, 7))
    assert two_sided_p(0.0, [Part(1.0, 7)]) == 1


def test_seeds_of_the_same_folds_show_their_variance_in_every_fold():
    """Two seeds, two folds with three pairs against one: (9/16 · 0.02 + 1/16 · 0.08) / 2, known
    from as many folds as count.
    """
    cells = Cells(np.array([[0.7, 0.5], [0.9, 0.9]]), np.array([3.0, 1.0]), 0)
    (part,) = between_seeds(np.array([0.65, 0.9]), cells)
    assert part.variance == pytest.approx((9 / 16 * 0.02 + 1 / 16 * 0.08) / 2)
    assert part.freedom == pytest.approx((10 / 16) ** 2 / (81 / 256 + 1 / 256))
    assert between_seeds(np.array([0.65, 0.9])) == (Part(pytest.approx(0.03125 / 2), 1),)
    assert between_seeds(np.array([0.7])) == ()


def test_folds_alike_give_the_usual_t_interval():
    values = np.array([0.7, 0.8, 0.75, 0.9])
    part = between_folds(Cells(values[None], np.ones(4), 0))
    assert (part.variance, part.freedom) == (
        pytest.approx(values.var(ddof=1) / 4),
        pytest.approx(3),
    )
    assert between_folds(Cells(np.array([[0.7]]), np.ones(1), 0)) is None
    missing = Cells(np.array([[0.7, np.nan, 0.9]]), np.ones(3), 0)
    assert between_folds(missing).freedom == pytest.approx(1)


def test_what_shows_trainings_is_mixed_by_its_degrees_of_freedom():
    shared = (Part(0.001, np.inf),)
    one = Cells(np.array([[0.7, 0.8, 0.75]]), np.ones(3), 0)
    assert trained_again(shared, shared, (), one) == (between_folds(one),)
    assert trained_again(shared, shared, (), None) == ()
    seeds = between_seeds(np.array([0.7, 0.8]))
    assert trained_again(shared, shared, seeds, None) == (*shared, *seeds)
    two = Cells(np.array([[0.7, 0.8, 0.75], [0.72, 0.81, 0.71]]), np.ones(3), 0)
    patients, mixed = trained_again(shared, shared, between_seeds(two.estimates.mean(1), two), two)
    seeds, folds = between_seeds(two.estimates.mean(1), two)[0], between_folds(two)
    assert patients.variance == pytest.approx(0.001 * 3 / 5)
    assert mixed.variance == pytest.approx((3 * seeds.variance + 2 * folds.variance) / 5)
    assert mixed.freedom == pytest.approx(5)


def test_trainings_never_show_less_than_the_patients_by_themselves(scores):
    """Three folds may agree by luck; the interval that holds trainings must not lie within that of
    these models.
    """
    patients = (Part(0.01, np.inf),)
    assert (
        trained_again(patients, patients, (), Cells(np.array([[0.70, 0.71, 0.705]]), np.ones(3), 0))
        == patients
    )
    for seed in range(20):
        first, second = align_scores(scores({"a": 1.0, "b": 0.9}, folds=3, seed=seed))[0]
        difference = estimate_of(first) - estimate_of(second)
        told, alone = (
            difference.interval(parts=parts)
            for parts in (difference.trained_again, difference.models_alone)
        )
        assert told["low"] <= alone["low"] + 1e-12
        assert told["high"] >= alone["high"] - 1e-12
    delta = evaluate(scores({"a": 1.0, "b": 0.9}, folds=3), bootstrap=100).to_dict()["comparisons"][
        0
    ]["delta_auc"]
    assert delta["covers"] == "training"
