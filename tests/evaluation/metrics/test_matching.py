from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.evaluation.metrics.matching import (
    average_precision,
    centres_inside,
    match,
    pairwise_iou,
)

from detected import draw_boxes, rank_candidates


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_coco(seed):
    """faster-coco-eval, a reimplementation of pycocotools, on the same boxes."""
    from faster_coco_eval import COCO, COCOeval_faster

    lesions, candidates = draw_boxes(seed)
    # pycocotools lets candidates of one score through in the order of the file; here they are one
    # operating point: no two are alike.
    apart = iter(
        1e-6 * np.random.default_rng(seed).permutation(sum(len(score) for _, score in candidates))
    )
    candidates = [
        (boxes, score + np.array([next(apart) for _ in score])) for boxes, score in candidates
    ]
    truth = {
        "images": [{"id": i + 1, "width": 200, "height": 200} for i in range(len(lesions))],
        "categories": [{"id": 1, "name": "x"}],
    }
    marks = [(i + 1, box, box[2:] - box[:2]) for i, own in enumerate(lesions) for box in own]
    truth["annotations"] = [
        {
            "id": n + 1,
            "image_id": i,
            "category_id": 1,
            "bbox": [*b[:2], *side],
            "area": float(np.prod(side)),
            "iscrowd": 0,
        }
        for n, (i, b, side) in enumerate(marks)
    ]
    rows = [
        {"image_id": i + 1, "category_id": 1, "bbox": [*b[:2], *(b[2:] - b[:2])], "score": float(s)}
        for i, (boxes, score) in enumerate(candidates)
        for b, s in zip(boxes, score, strict=True)
    ]
    known = COCO(json.loads(json.dumps(truth)))
    evaluation = COCOeval_faster(known, known.loadRes(rows), "bbox", print_function=lambda *_: None)
    evaluation.params.iouThrs = np.array([0.1, 0.3, 0.5, 0.75])
    evaluation.run()
    expected = evaluation.eval["precision"][:, :, 0, 0, -1].mean(1)
    mine = [
        average_precision(*rank_candidates(lesions, candidates, least))
        for least in (0.1, 0.3, 0.5, 0.75)
    ]
    assert mine == pytest.approx(expected, abs=1e-6)
    assert 0.1 < mine[2] < 0.95


def test_matching_by_hand():
    lesions = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    candidates = np.array(
        [[0, 0, 10, 8], [0, 0, 10, 10], [24, 24, 40, 40], [21, 21, 30, 30]], float
    )
    assert pairwise_iou(candidates, lesions)[:, 0].tolist() == pytest.approx([0.8, 1.0, 0.0, 0.0])
    score = np.array([0.9, 0.8, 0.7, 0.6])
    # The first takes the lesion; the better one finds it taken. The third overlaps by 36 / 320.
    assert match(candidates, score, lesions).tolist() == [0, -1, -1, 1]
    assert match(candidates, score, lesions, 0.1).tolist() == [0, -1, 1, -1]
    assert centres_inside(candidates, lesions).any(1).tolist() == [True, True, False, True]
    assert match(candidates, score, lesions, rule="centre").tolist() == [0, -1, -1, 1]
    assert match(candidates[:0], score[:0], lesions).tolist() == []
    assert match(candidates, score, lesions[:0]).tolist() == [-1] * 4
    # 2 of 3 lesions: precision 1, 1/2, 2/3; recall 1/3, 1/3, 2/3 -> 34 points at 1 and 33 at 2/3.
    assert average_precision(
        np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), 3
    ) == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert np.isnan(average_precision(np.zeros(1), np.zeros(1, bool), 0))
    assert average_precision(np.zeros(0), np.zeros(0, bool), 4) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_weights_are_repetitions(seed, volumes):
    lesions, drawn = draw_boxes(seed, 8, volumes)
    candidates = [
        (boxes, score + 1e-5 * np.arange(len(score))) for boxes, score in drawn
    ]  # no ties, whose order would matter
    times = np.random.default_rng(seed).integers(0, 3, 8)
    if not sum(t * len(own) for t, own in zip(times, lesions, strict=True)):
        return
    repeated = [(lesions[i], candidates[i]) for i in range(8) for _ in range(times[i])]
    plain = average_precision(*rank_candidates(*zip(*repeated, strict=True), 0.5))
    score, hit, _ = rank_candidates(lesions, candidates, 0.5)
    weights = np.repeat(times, [len(s) for _, s in candidates])[None].astype(float)
    count = np.array([sum(t * len(own) for t, own in zip(times, lesions, strict=True))], float)
    assert average_precision(score, hit, count, weights)[0] == pytest.approx(plain, abs=1e-9)


def test_candidates_of_one_score_are_one_operating_point():
    """By hand: of four candidates with one score two are right; precision is 1/2 wherever they are
    reached.
    """
    hits = np.array([True, True, False, False])
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [0, 2, 1, 3]):
        assert average_precision(np.zeros(4), hits[order], 2.0) == pytest.approx(0.5)
    # Before them a right one of a higher score: precision 1 up to a recall of 1/3, then 3/5.
    value = average_precision(
        np.array([0, 0, 1, 0, 0.0]), np.array([True, False, True, False, True]), 3.0
    )
    assert value == pytest.approx((34 * 1.0 + 67 * 3 / 5) / 101)


def test_of_two_equal_candidates_the_place_decides_not_the_row():
    candidates = np.array([[0, 0, 10, 10], [1, 1, 11, 11.0]])
    lesions = np.array([[0, 0, 11, 11.0]])
    first = match(candidates, np.zeros(2), lesions, 0.5)
    second = match(candidates[::-1], np.zeros(2), lesions, 0.5)
    assert first.tolist() == second[::-1].tolist()
