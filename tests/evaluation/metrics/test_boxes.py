from __future__ import annotations

import numpy as np
import pytest
from medtransfer.evaluation.metrics.boxes import RATES, froc, froc_curve

from detected import (
    draw_boxes,
    rank_candidates,
)


@pytest.mark.parametrize("seed", range(4))
def test_froc_is_that_of_monai(seed):
    from monai.metrics import compute_froc_curve_data, compute_froc_score

    lesions, candidates = draw_boxes(seed, 40)
    score, hit, count = rank_candidates(lesions, candidates, 0.3)
    order = np.argsort(-score, kind="stable")
    score, hit = score[order], hit[order]
    images = len(lesions)
    # MONAI leaves the lowest score out; one more, below all others and no hit, takes its place.
    false = np.append(score[~hit], score.min() - 1)
    x, y = compute_froc_curve_data(false, score[hit], count, images)
    expected = [compute_froc_score(np.append(x, 0.0), np.append(y, 0.0), (rate,)) for rate in RATES]
    one = np.ones((1, len(score)))
    mine = froc(score, hit, one, np.array([float(count)]), np.array([float(images)]))[0]
    assert mine == pytest.approx(np.array(expected, float), abs=1e-9)


def test_froc_by_hand():
    score, hit = np.array([4.0, 3.0, 3.0, 1.0]), np.array([True, False, True, False])
    x, y = froc_curve(score, hit, np.ones((1, 4)), np.array([4.0]), np.array([2.0]))
    # Both of score 3 are let through together.
    assert x.tolist() == [[0, 0, 0.5, 1.0]]
    assert y.tolist() == [[0, 0.25, 0.5, 0.5]]
