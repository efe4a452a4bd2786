"""Figures follow from what a table says, not from the order of its rows and columns, the names in
it, or the scale of its scores.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medtransfer.errors import LeakageError, PredictionsError
from medtransfer.evaluation import evaluate
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.metrics.matching import average_precision, match
from sklearn.metrics import average_precision_score, roc_auc_score


def table(seed, patients=40, images=2, arms=("a", "b"), folds=2, coarse=0.0, column="probability"):
    """Patients with several images, ties where `coarse`, tune and test parts in folds."""
    rng = np.random.default_rng(seed)
    rows = []
    for fold in range(folds):
        for p in range(patients):
            part = "test" if p % folds == fold else "tune"
            for image in range(images):
                target = int((p + image * (seed % 2)) % 3 == 0)
                for arm in arms:
                    z = 1.2 * target + rng.normal() - 0.5
                    z = coarse * round(z / coarse) if coarse else z
                    rows.append(
                        (
                            arm,
                            0,
                            fold,
                            part,
                            f"i{p}_{image}",
                            f"p{p}",
                            target,
                            1 / (1 + np.exp(-z)) if column == "probability" else z,
                        )
                    )
    return pd.DataFrame(
        rows, columns=["arm", "seed", "fold", "part", "image", "patient", "target", column]
    )


def figures(report):
    """Every number of a report by its path."""
    flat = {}

    def walk(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, (*path, key))
        elif isinstance(value, list | tuple):
            for place, inner in enumerate(value):
                walk(inner, (*path, place))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[path] = value

    data = json.loads(json.dumps(report.to_dict()))
    data.pop("accounts")
    walk(data, ())
    return flat


def assert_same(first, second):
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert second[path] == pytest.approx(value, rel=1e-9, abs=1e-9), path


def scramble(frame, seed, names=("image", "patient")):
    """Rows shuffled, columns permuted, ids renamed."""
    rng = np.random.default_rng(seed)
    frame = frame.sample(frac=1, random_state=seed)[
        list(rng.permutation(frame.columns))
    ].reset_index(drop=True)
    for column in names:
        if column in frame.columns:
            old = sorted(frame[column].unique())
            new = [f"{column}-{n:05d}" for n in rng.permutation(len(old))]
            frame[column] = frame[column].map(dict(zip(old, new, strict=True)))
    return frame


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]), st.sampled_from([1, 2]))
def test_shuffled_permuted_and_renamed_tables_give_the_same_figures(seed, coarse, images):
    frame = table(seed, coarse=coarse, images=images)
    assert_same(
        figures(evaluate(frame, bootstrap=100)),
        figures(evaluate(scramble(frame, seed), bootstrap=100)),
    )


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["cube", "logistic", "ranks", "tiny"]))
def test_any_increasing_map_leaves_auc_and_average_precision(seed, which):
    frame = table(seed, images=1, coarse=0.25, column="score")
    # Ranks of all distinct values: the coarsest map that keeps the order.
    maps = {
        "cube": lambda z: z**3 + 100 * z,
        "logistic": lambda z: 1 / (1 + np.exp(-z)),
        "ranks": lambda z: z.rank(method="dense"),
        "tiny": lambda z: 1e-9 * z - 7,
    }
    moved = frame.assign(score=maps[which](frame["score"]))
    first, second = (evaluate(t, bootstrap=100).to_dict() for t in (frame, moved))
    for arm in ("a", "b"):
        for metric in ("auc", "partial_auc", "average_precision"):
            for key in ("estimate", "low", "high"):
                assert first["arms"][arm][metric][key] == pytest.approx(
                    second["arms"][arm][metric][key], abs=1e-9
                )
    for key in ("estimate", "low", "high", "p"):
        assert first["comparisons"][0]["delta_auc"][key] == pytest.approx(
            second["comparisons"][0]["delta_auc"][key], abs=1e-9
        )


def test_probabilities_near_zero_are_ranked_as_given():
    """As scikit-learn ranks them, down to the smallest double; the log-loss is that of the values
    as given.
    """
    rng = np.random.default_rng(0)
    target = np.r_[np.zeros(40), np.ones(20)].astype(int)
    for low in (-19.0, -300.0, -700.0):
        p = np.exp(np.where(target == 1, low + 3, low) + rng.normal(0, 1.0, 60))
        frame = pd.DataFrame(
            {"patient": [f"p{i}" for i in range(60)], "target": target, "probability": p}
        )
        arm = evaluate(frame, bootstrap=100).to_dict()["arms"]["model"]
        assert arm["auc"]["estimate"] == pytest.approx(roc_auc_score(target, p), abs=1e-12)
        assert arm["average_precision"]["estimate"] == pytest.approx(
            average_precision_score(target, p), abs=1e-12
        )
        loss = -np.mean(np.where(target == 1, np.log(p), np.log1p(-p)))
        assert arm["log_loss"]["estimate"] == pytest.approx(loss, rel=1e-9)


def test_certain_probabilities_stay_beyond_all_others_and_are_counted():
    frame = pd.DataFrame(
        {
            "patient": list("abcdef"),
            "target": [0, 0, 0, 1, 1, 1],
            "probability": [0.0, 1e-300, 0.3, 0.2, 1 - 1e-16, 1.0],
        }
    )
    report = evaluate(frame, bootstrap=100)
    assert report.to_dict()["arms"]["model"]["auc"]["estimate"] == pytest.approx(8 / 9)
    assert any(
        text.startswith("2 probabilities are exactly 0 or 1")
        for text in report.to_dict()["warnings"]
    )


@pytest.mark.parametrize("odd", [1 + 5e-7, -5e-7, np.float32(1.0000001)])
def test_rounding_to_single_precision_is_tolerated_and_counted(odd):
    frame = pd.DataFrame(
        {
            "patient": list("abcd"),
            "target": [0, 1, 0, 1],
            "probability": [0.2, 0.9, 0.4, float(odd)],
        }
    )
    assert any(
        "by no more than single precision" in text
        for text in evaluate(frame, bootstrap=100).to_dict()["warnings"]
    )
    with pytest.raises(PredictionsError, match="outside 0 to 1"):
        evaluate(frame.assign(probability=[0.2, 0.9, 0.4, 1.001]), bootstrap=100)


def test_a_logit_may_be_as_far_from_its_probability_as_the_digits_written_explain(tmp_path):
    z = np.array([-2.0, -0.3, 0.4, 1.7])
    p = 1 / (1 + np.exp(-z))
    rows = "".join(
        f"{n},{t},{q:.2f},{w:.6f}\n" for n, t, q, w in zip("abcd", [0, 1, 0, 1], p, z, strict=True)
    )
    (tmp_path / "p.csv").write_text("patient,target,probability,logit\n" + rows)
    report = evaluate(tmp_path / "p.csv", bootstrap=100).to_dict()
    assert report["arms"]["model"]["log_loss"]["estimate"] == pytest.approx(
        np.mean(np.logaddexp(0, np.where([0, 1, 0, 1], -z, z))), abs=1e-5
    )
    (tmp_path / "q.csv").write_text(
        "patient,target,probability,logit\n" + rows.replace("0.12", "0.22")
    )
    with pytest.raises(PredictionsError, match="disagree"):
        evaluate(tmp_path / "q.csv", bootstrap=100)


def test_scores_of_any_scale_are_ranked_and_nothing_else_is_said():
    """Readers on 1 to 5 beside a model with probabilities: AUC as scikit-learn's, and no
    calibration of what is no probability.
    """
    rng = np.random.default_rng(0)
    target = (rng.uniform(size=80) < 0.4).astype(int)
    base = np.clip(0.5 + 0.3 * (target - 0.5) + rng.normal(0, 0.2, 80), 0.01, 0.99)
    reader = np.clip(np.round(1 + 4 * base), 1, 5)
    people = [f"p{i}" for i in range(80)]
    frame = pd.concat(
        [
            pd.DataFrame({"arm": "Reader", "patient": people, "target": target, "score": reader}),
            pd.DataFrame(
                {"arm": "model", "patient": people, "target": target, "probability": base}
            ),
        ]
    )
    report = evaluate(frame, bootstrap=100)
    arms = report.to_dict()["arms"]
    assert arms["Reader"]["auc"]["estimate"] == pytest.approx(roc_auc_score(target, reader))
    assert arms["Reader"]["average_precision"]["estimate"] == pytest.approx(
        average_precision_score(target, reader)
    )
    for metric in ("brier", "log_loss", "ece"):
        assert arms["Reader"][metric]["estimate"] is None
        assert "no probability" in arms["Reader"][metric]["reason"]
        assert arms["model"][metric]["estimate"] is not None
    assert arms["Reader"]["calibration"]["slope"]["estimate"] is None
    assert arms["Reader"]["operating_points"] == []
    delta = report.to_dict()["comparisons"][0]
    assert delta["delta_auc"]["low"] is not None
    assert delta["delta_brier"]["estimate"] is None
    assert "Reader gives scores, not probabilities" in str(report)
    assert "brier" not in set(report.to_frame().query("arm == 'Reader'")["metric"])
    percent = frame.assign(probability=100 * frame["probability"])
    with pytest.raises(PredictionsError, match="are they per cent"):
        evaluate(percent, bootstrap=100)


def test_scores_of_patients_with_several_images_and_several_labels():
    frame = table(3, images=2, column="score")
    assert (
        evaluate(frame, bootstrap=100, unit="patient").to_dict()["arms"]["a"]["auc"]["estimate"]
        is not None
    )
    several = pd.concat([frame.assign(label="x"), frame.assign(label="y", score=-frame["score"])])
    arm = evaluate(several, bootstrap=100).to_dict()["arms"]["a"]
    assert arm["auc"]["estimate"] is not None
    assert arm["brier"]["estimate"] is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p7", "p7 "),
        ("p7", "P7"),
        ("7", "007"),
        ("12", "12.0"),
        ("p7", "p7\u200b"),
        ("é", "e\u0301"),
    ],
)
def test_one_patient_in_two_spellings_on_both_sides_is_a_leak(one, other):
    rows = [
        (one, "tune", 0, 0.3),
        (other, "test", 0, 0.4),
        *((f"q{i}", "test", i % 2, 0.2 + 0.1 * i) for i in range(6)),
    ]
    frame = pd.DataFrame(rows, columns=["patient", "part", "target", "probability"])
    with pytest.raises(LeakageError):
        evaluate(frame, bootstrap=100)
    if one == "p7" and other == "P7":
        assert evaluate(frame, bootstrap=100, look_alikes="different").to_dict()["patients"] == 7


def test_look_alikes_on_one_side_are_told():
    frame = pd.DataFrame(
        {
            "patient": ["7", "007", "1", "2"],
            "target": [0, 1, 0, 1],
            "probability": [0.1, 0.8, 0.3, 0.6],
        }
    )
    assert any(
        "may be written in two ways, such as 7 and 007" in text
        for text in evaluate(frame, bootstrap=100).to_dict()["warnings"]
    )


def test_the_account_of_rows_adds_up():
    frame = table(0, images=1)
    frame.loc[frame.index[:5], "target"] = np.nan
    frame = pd.concat([frame, frame.assign(part="train", fold=7).head(3)])
    (account,) = evaluate(frame, bootstrap=100).to_dict()["accounts"]
    assert account["given"] == len(frame)
    assert account["used"] + sum(part["count"] for part in account["left_out"]) == len(frame)
    reasons = {part["reason"]: part["count"] for part in account["left_out"]}
    assert reasons["no target"] >= 5


# Detection


def detections(seed, images=12, grid=0.0):
    rng = np.random.default_rng(seed)
    tested, candidates, lesions = [], [], []
    for i in range(images):
        tested.append(("a", 0, i % 2, "test", f"i{i}", f"p{i // 2}", int(i % 3 > 0), 0.5))
        for _ in range(i % 3):
            x, y = rng.integers(0, 60, 2)
            lesions.append((f"i{i}", x, y, x + 20, y + 20))
            for _ in range(2):
                dx, dy = rng.integers(-8, 9, 2)
                candidates.append(
                    (
                        "a",
                        0,
                        i % 2,
                        "test",
                        f"i{i}",
                        x + dx,
                        y + dy,
                        x + dx + 20,
                        y + dy + 20,
                        rng.normal() + 1,
                    )
                )
        for _ in range(2):
            x, y = rng.integers(0, 60, 2)
            candidates.append(("a", 0, i % 2, "test", f"i{i}", x, y, x + 15, y + 15, rng.normal()))
    box = ["x0", "y0", "x1", "y1"]
    found = pd.DataFrame(
        candidates, columns=["arm", "seed", "fold", "part", "image", *box, "logit"]
    )
    if grid:
        found["logit"] = grid * (found["logit"] / grid).round()
    names = ["arm", "seed", "fold", "part", "image", "patient", "target", "probability"]
    return (
        pd.DataFrame(tested, columns=names),
        found,
        pd.DataFrame(lesions, columns=["image", *box]),
    )


def lesion_figures(report):
    entry = report["arms"]["a"]
    names = ("ap_10", "ap_50", "map", "cpm", "sensitivity_1")
    return [entry[name][key] for name in names for key in ("estimate", "low", "high")] + entry[
        "froc"
    ]["curve"]["sensitivity"]


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_detection_is_blind_to_order_names_and_scale(seed, grid):
    tested, candidates, lesions = detections(seed, grid=grid)
    first = lesion_figures(evaluate_boxes(tested, candidates, lesions, bootstrap=100))
    rng = np.random.default_rng(seed)
    images = dict(
        zip(tested["image"], (f"x{n}" for n in rng.permutation(len(tested))), strict=True)
    )
    patients = {name: f"y{n}" for n, name in enumerate(rng.permutation(tested["patient"].unique()))}
    frames = [
        frame.sample(frac=1, random_state=seed).assign(image=lambda t: t["image"].map(images))
        for frame in (tested, candidates, lesions)
    ]
    frames[0]["patient"] = frames[0]["patient"].map(patients)
    frames[1] = frames[1][list(rng.permutation(frames[1].columns))]
    frames[1]["logit"] = frames[1]["logit"] ** 3 + 5 * frames[1]["logit"]  # increasing
    assert np.allclose(
        np.array(first, float),
        np.array(lesion_figures(evaluate_boxes(*frames, bootstrap=100)), float),
        atol=1e-9,
        equal_nan=True,
    )


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


def test_a_box_file_of_other_names_is_refused_with_the_near_one():
    tested, candidates, lesions = detections(1)
    with pytest.raises(PredictionsError, match="is it i1 of the predictions"):
        evaluate_boxes(
            tested,
            candidates,
            lesions.assign(image=lesions["image"].replace("i1", "I1")),
            bootstrap=100,
        )
    other = candidates.assign(patient="elsewhere")
    with pytest.raises(PredictionsError, match="in the candidates, of"):
        evaluate_boxes(tested, other, lesions, bootstrap=100)


def test_candidates_with_a_score_of_any_scale(tmp_path):
    tested, candidates, lesions = detections(2)
    score = candidates.drop(columns="logit").assign(score=50 + 10 * candidates["logit"])
    score.to_csv(tmp_path / "c.csv", index=False, sep=";", decimal=",")
    first = lesion_figures(evaluate_boxes(tested, candidates, lesions, bootstrap=100))
    second = evaluate_boxes(tested, tmp_path / "c.csv", lesions, bootstrap=100)
    assert np.allclose(first, lesion_figures(second), atol=1e-9)
    assert second["accounts"][0]["given"] == len(candidates)
