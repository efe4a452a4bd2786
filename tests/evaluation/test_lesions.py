"""Detection numbers agree with COCO's evaluation, with MONAI's FROC and with cases worked by
hand.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.metrics.boxes import RATES, froc, froc_curve
from medtransfer.evaluation.metrics.matching import (
    average_precision,
    centres_inside,
    match,
    overlaps,
)
from medtransfer.evaluation.sentences.headline import describe_detector
from medtransfer.evaluation.tables.candidates import read_candidates, read_lesions

COLUMNS = ["x0", "y0", "x1", "y1"]


def draw(seed: int, images: int = 30, volumes: bool = False):
    """Lesions, and candidates that are some of them, moved, and others."""
    rng = np.random.default_rng(seed)
    axes = 3 if volumes else 2
    lesions, candidates = [], []
    for image in range(images):
        low = rng.uniform(0, 80, (rng.integers(0, 4), axes))
        own = np.concatenate([low, low + rng.uniform(5, 40, low.shape)], 1)
        lesions.append(own)
        near = own[rng.random(len(own)) < 0.8]
        near = near + rng.normal(0, 3, near.shape)
        near[:, axes:] = np.maximum(near[:, axes:], near[:, :axes] + 1)
        far = rng.uniform(0, 80, (rng.integers(0, 5), axes))
        boxes = np.concatenate([near, near[:1] + 1, np.concatenate([far, far + 20], 1)])
        # Steps of a tenth: there are ties.
        score = np.round(
            np.concatenate([rng.normal(1, 1, len(boxes) - len(far)), rng.normal(0, 1, len(far))]), 1
        )
        candidates.append((boxes, score + 1e-9 * image))
    return lesions, candidates


def by_hand(lesions, candidates, least):
    hits = [
        match(boxes, score, own, least) >= 0
        for own, (boxes, score) in zip(lesions, candidates, strict=True)
    ]
    return (
        np.concatenate([score for _, score in candidates]),
        np.concatenate(hits),
        sum(map(len, lesions)),
    )


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_coco(seed):
    """faster-coco-eval, a reimplementation of pycocotools, on the same boxes."""
    from faster_coco_eval import COCO, COCOeval_faster

    lesions, candidates = draw(seed)
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
        average_precision(*by_hand(lesions, candidates, least)) for least in (0.1, 0.3, 0.5, 0.75)
    ]
    assert mine == pytest.approx(expected, abs=1e-6)
    assert 0.1 < mine[2] < 0.95


@pytest.mark.parametrize("seed", range(4))
def test_froc_is_that_of_monai(seed):
    from monai.metrics import compute_froc_curve_data, compute_froc_score

    lesions, candidates = draw(seed, 40)
    score, hit, count = by_hand(lesions, candidates, 0.3)
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


def test_matching_by_hand():
    lesions = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    candidates = np.array(
        [[0, 0, 10, 8], [0, 0, 10, 10], [24, 24, 40, 40], [21, 21, 30, 30]], float
    )
    assert overlaps(candidates, lesions)[:, 0].tolist() == pytest.approx([0.8, 1.0, 0.0, 0.0])
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


def test_froc_by_hand():
    score, hit = np.array([4.0, 3.0, 3.0, 1.0]), np.array([True, False, True, False])
    x, y = froc_curve(score, hit, np.ones((1, 4)), np.array([4.0]), np.array([2.0]))
    # Both of score 3 are let through together.
    assert x.tolist() == [[0, 0, 0.5, 1.0]]
    assert y.tolist() == [[0, 0.25, 0.5, 0.5]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_weights_are_repetitions(seed, volumes):
    lesions, drawn = draw(seed, 8, volumes)
    candidates = [
        (boxes, score + 1e-5 * np.arange(len(score))) for boxes, score in drawn
    ]  # no ties, whose order would matter
    times = np.random.default_rng(seed).integers(0, 3, 8)
    if not sum(t * len(own) for t, own in zip(times, lesions, strict=True)):
        return
    repeated = [(lesions[i], candidates[i]) for i in range(8) for _ in range(times[i])]
    plain = average_precision(*by_hand(*zip(*repeated, strict=True), 0.5))
    score, hit, _ = by_hand(lesions, candidates, 0.5)
    weights = np.repeat(times, [len(s) for _, s in candidates])[None].astype(float)
    count = np.array([sum(t * len(own) for t, own in zip(times, lesions, strict=True))], float)
    assert average_precision(score, hit, count, weights)[0] == pytest.approx(plain, abs=1e-9)


def tables(seeds: int = 1, images: int = 90, volumes: bool = False):
    rows, found, boxes = [], [], []
    columns = ["x0", "y0", "z0", "x1", "y1", "z1"] if volumes else COLUMNS
    for arm, noise in (("good", 0), ("poor", 1)):
        for seed in range(seeds):
            lesions, candidates = draw(3, images, volumes)
            rng = np.random.default_rng([noise, seed])
            for i, (own, (boxes_of_image, score)) in enumerate(
                zip(lesions, candidates, strict=True)
            ):
                box = boxes_of_image + 12 * noise * (i % 2)
                part = "tune" if i // 2 % 3 == 0 else "test"
                rows.append(
                    (
                        arm,
                        seed,
                        0,
                        part,
                        f"i{i}",
                        f"p{i // 2}",
                        "lesion",
                        int(len(own) > 0),
                        float(rng.normal()),
                    )
                )
                about = {"arm": arm, "seed": seed, "fold": 0, "part": part, "image": f"i{i}"}
                for b, one in zip(box, score, strict=True):
                    found.append(
                        {
                            **about,
                            **dict(zip(columns, b, strict=True)),
                            "logit": one + noise * rng.normal(0, 3),
                        }
                    )
                if arm == "good" and seed == 0:
                    boxes += [dict(zip(columns, b, strict=True)) | {"image": f"i{i}"} for b in own]
    predictions = pd.DataFrame(
        rows,
        columns=["arm", "seed", "fold", "part", "image", "patient", "label", "target", "logit"],
    )
    return predictions, pd.DataFrame(found), pd.DataFrame(boxes)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("volumes", [False, True])
def test_the_report_of_two_arms(seeds, volumes):
    predictions, candidates, boxes = tables(seeds, volumes=volumes)
    report = evaluate_boxes(predictions, candidates, boxes, bootstrap=300)
    good, poor = report["arms"]["good"], report["arms"]["poor"]
    assert (report["images"], report["patients"]) == (60, 30)
    for entry in (good, poor):
        for key in ("ap_10", "ap_50", "map", "cpm", "sensitivity_1"):
            assert 0 <= entry[key]["low"] < entry[key]["estimate"] < entry[key]["high"] <= 1, key
        assert (
            entry["ap_10"]["estimate"] >= entry["ap_30"]["estimate"] >= entry["ap_50"]["estimate"]
        )
        if not volumes:  # else too few are found on the tune part
            assert entry["calibration"]["observed_expected"]["estimate"] == pytest.approx(
                1, abs=0.5
            )
        assert sum(size["lesions"] for size in entry["by_size"]) == report["lesions"]
    delta = report["comparisons"][0]["delta_ap_50"]
    assert delta["estimate"] == pytest.approx(good["ap_50"]["estimate"] - poor["ap_50"]["estimate"])
    assert delta["low"] > 0
    assert delta["p"] < 0.05
    start = "As these models were trained, " if seeds == 1 else ""
    assert report["comparisons"][0]["verdict"].startswith(
        f"{start}good finds lesions better than poor: average precision"
    )
    assert describe_detector("good", good).startswith("good finds")
    json.dumps(report, allow_nan=False)


def test_equal_arms_are_not_told_apart():
    predictions, candidates, boxes = tables()
    alone = [table[table["arm"] == "good"] for table in (predictions, candidates)]
    twice = [pd.concat([table, table.assign(arm="twin")]) for table in alone]
    report = evaluate_boxes(*twice, boxes, bootstrap=200)
    assert report["comparisons"][0]["delta_ap_50"]["low"] is None
    assert report["comparisons"][0]["verdict"].startswith(
        "Cannot tell whether good or twin finds lesions better"
    )


def test_edges():
    predictions, candidates, boxes = tables()
    none = evaluate_boxes(predictions, candidates.iloc[:0], boxes, bootstrap=100)
    assert none["arms"]["good"]["ap_50"]["estimate"] == 0.0
    assert none["arms"]["good"]["calibration"] is None
    with pytest.raises(PredictionsError, match="no test image has a lesion"):
        evaluate_boxes(predictions, candidates, boxes[boxes["image"] == "nowhere"], bootstrap=100)
    with pytest.raises(PredictionsError, match="tested on different images"):
        evaluate_boxes(
            predictions[~((predictions["arm"] == "poor") & (predictions["image"] == "i2"))],
            candidates,
            boxes,
        )
    with pytest.raises(PredictionsError, match="overlap is 0"):
        evaluate_boxes(predictions, candidates, boxes, overlap=0)
    own = predictions[predictions["patient"] == "p2"]
    one = evaluate_boxes(
        own, candidates[candidates["image"].isin(own["image"])], boxes, bootstrap=100
    )
    json.dumps(one, allow_nan=False)
    assert one["patients"] == 1


def test_tables_are_read_strictly(tmp_path):
    _, candidates, boxes = tables()
    candidates.assign(probability=0.5).drop(
        columns=["logit", "arm", "seed", "fold", "part"]
    ).to_csv(tmp_path / "c.csv", index=False)
    table = read_candidates(tmp_path / "c.csv")
    assert set(table["arm"]) == {"model"}
    assert set(table["logit"]) == {0.0}
    candidates.assign(probability=2.0).drop(columns="logit").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(PredictionsError, match="row 2: probability is 2, outside 0 to 1"):
        read_candidates(tmp_path / "c.csv")
    boxes.assign(x1=boxes["x0"]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(PredictionsError, match="row 2: x1 is not above x0"):
        read_lesions(tmp_path / "b.csv")
    boxes.drop(columns="y1").to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(PredictionsError, match="no column y1"):
        read_lesions(tmp_path / "b.csv")
    with pytest.raises(PredictionsError, match="no such file"):
        read_lesions(tmp_path / "none.csv")


def test_candidates_that_belong_to_nothing_are_refused():
    predictions, candidates, boxes = tables()
    for changed, message in (
        (
            candidates.assign(arm="other"),
            "arm.s. of the candidates are not in the predictions, such as other",
        ),
        (
            candidates.assign(image="images/" + candidates["image"]),
            "image.s. of the candidates are not in the predictions",
        ),
        (candidates[candidates["arm"] == "good"], "poor, seed 0, has no candidate at all"),
        (candidates.assign(z0=0.0, z1=1.0), "one has z0 and z1"),
    ):
        with pytest.raises(PredictionsError, match=message):
            evaluate_boxes(predictions, changed, boxes, bootstrap=100)
    with pytest.raises(PredictionsError, match="no test rows"):
        evaluate_boxes(predictions[predictions["part"] == "tune"], candidates, boxes)
    alone = predictions[predictions["arm"] == "good"]
    nameless = candidates[candidates["arm"] == "good"].assign(arm="model")
    assert list(evaluate_boxes(alone, nameless, boxes, bootstrap=100)["arms"]) == ["good"]
    labels = pd.concat([alone, alone.assign(label="other")])
    twice, once = (
        evaluate_boxes(t, nameless, boxes, bootstrap=100)["arms"]["good"] for t in (labels, alone)
    )
    assert twice["ap_50"] == once["ap_50"]


def test_names_stay_text(tmp_path):
    table = pd.DataFrame(
        [("007", "NA", 0, 0, 5, 5, 0.5)],
        columns=["arm", "image", "x0", "y0", "x1", "y1", "probability"],
    )
    table.to_csv(tmp_path / "c.csv", index=False)
    assert read_candidates(tmp_path / "c.csv")[["arm", "image"]].to_numpy().tolist() == [
        ["007", "NA"]
    ]
    table.assign(part="Test").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(PredictionsError, match="row 2: part is 'Test'"):
        read_candidates(tmp_path / "c.csv")
    table.iloc[:0].to_csv(tmp_path / "c.csv", index=False)
    assert read_candidates(tmp_path / "c.csv").empty


def test_sensitivity_by_size_follows_the_threshold_of_all_ties():
    """All scores equal: one false positive per image lets nothing through where there are more."""
    predictions, candidates, boxes = tables()
    alone = predictions[predictions["arm"] == "good"]
    flat = candidates[candidates["arm"] == "good"].assign(logit=1.0)
    many = pd.concat(
        [flat, *[flat.assign(x0=flat["x0"] + 200, x1=flat["x1"] + 200 + i) for i in range(4)]]
    )
    entry = evaluate_boxes(alone, many, boxes, bootstrap=100)["arms"]["good"]
    assert [size["sensitivity"]["estimate"] for size in entry["by_size"]] == [0.0] * 3
    equal = boxes.assign(x1=boxes["x0"] + 10, y1=boxes["y0"] + 10)
    found = evaluate_boxes(alone, flat, equal, bootstrap=100)["arms"]["good"]["by_size"]
    assert [size["lesions"] for size in found] == [
        len(equal[equal["image"].isin(alone.loc[alone["part"] == "test", "image"])])
    ]


def test_a_perfect_detector_is_described():
    predictions, _, boxes = tables()
    alone = predictions[predictions["arm"] == "good"]
    perfect = boxes.assign(arm="good", seed=0, fold=0, part="test", logit=3.0)
    entry = evaluate_boxes(alone, perfect, boxes, bootstrap=100)["arms"]["good"]
    assert describe_detector("good", entry) == (
        "good finds 100 % of the lesions at one false positive per image; average precision at an "
        "overlap of 0.5: 1.000."
    )
