from __future__ import annotations

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import LeakageError, PredictionsError
from medtransfer.evaluation.analyses.learning_curve import (
    Curve,
    describe_curve,
    extrapolate,
    learning_curve,
    match_sizes,
)
from medtransfer.evaluation.tables.predictions import (
    check_predictions,
    read_predictions,
    write_predictions,
)
from medtransfer.study.run import _balance
from scipy.optimize import curve_fit
from sklearn.metrics import roc_auc_score


def curve_table(sizes=(5, 10, 20, 40), episodes=2, folds=2, patients=80, seed=0):
    rng = np.random.default_rng(seed)
    target = np.arange(patients) % 2
    frames = []
    for size in sizes:
        for episode in range(1, episodes + 1):
            logit = (2 - 2 / np.sqrt(size)) * target + rng.normal(size=patients)
            # Scores of different folds lie at different places, as those of different small models
            # do.
            fold = np.arange(patients) // 2 % folds
            frame = pd.DataFrame(
                {
                    "patient": [f"P{i}" for i in range(patients)],
                    "target": target,
                    "logit": logit + 5.0 * fold,
                }
            )
            frames.append(
                frame.assign(
                    arm="imagenet", seed=0, fold=fold, part="test", size=size, episode=episode
                )
            )
    table = pd.concat(frames, ignore_index=True)
    return check_predictions(table)


def test_a_perfect_model_of_a_draw_has_the_brier_score_of_a_perfect_model():
    """A draw of as many patients of either class may hold four images of a positive and one of a
    negative one: 80 % are positive.
    """
    rng = np.random.default_rng(0)
    target = (rng.random(40_000) < 0.3).astype(int)
    evidence = 1.5 * (1.5 * target + rng.normal(size=40_000)) - 1.5**2 / 2
    table = pd.DataFrame(
        {
            "patient": range(40_000),
            "target": target,
            "logit": evidence + np.log(4),
            "probability": 0.0,
        }
    )
    balanced = _balance(table, np.repeat([0.0, 1.0], [20, 80])[:, None])
    assert balanced["logit"].to_numpy() == pytest.approx(evidence)
    rows = check_predictions(
        balanced.assign(arm="a", seed=0, fold=0, part="test", size=10, episode=1)
    )
    (entry,) = learning_curve(rows, 100, 0)[0]
    p = 1 / (1 + np.exp(-(evidence + np.log(0.3 / 0.7))))
    assert entry["brier"]["estimate"] == pytest.approx(np.mean((p - target) ** 2), abs=1e-4)


def test_seeds_of_one_draw_do_not_show_how_draws_vary():
    table = curve_table(episodes=1)
    entries, _ = learning_curve(
        pd.concat([table, table.assign(seed=1, logit=table["logit"] + 0.1)]), 200, 0
    )
    assert {entry["episodes"] for entry in entries} == {1}
    assert all(entry["auc"]["low"] is None for entry in entries)


def test_the_curve_is_the_mean_within_folds():
    table = curve_table()
    entries, matches = learning_curve(table, 200, 0)
    seen = [entry for entry in entries if not entry["extrapolated"]]
    assert [entry["size"] for entry in seen] == [5, 10, 20, 40]
    for entry in seen:
        rows = table[table["size"] == entry["size"]]
        parts = [
            roc_auc_score(part["target"], part["logit"])
            for _, part in rows.groupby(["episode", "fold"])
        ]
        assert entry["auc"]["estimate"] == pytest.approx(np.mean(parts))
        assert entry["auc"]["low"] < entry["auc"]["estimate"] < entry["auc"]["high"]
        assert entry["episodes"] == 2
    beyond = [entry for entry in entries if entry["extrapolated"]]
    assert [entry["size"] for entry in beyond] == [80, 160]
    assert beyond[0]["auc"]["estimate"] <= beyond[1]["auc"]["estimate"] <= 1
    assert describe_curve(entries, matches)[0].startswith("Learning curve of imagenet: AUC 0.")
    assert "is to be expected with 160" in describe_curve(entries, matches)[0]


def test_two_sizes_are_not_extrapolated():
    assert not any(
        entry["extrapolated"] for entry in learning_curve(curve_table(sizes=(5, 10)), 100, 0)[0]
    )
    assert learning_curve(curve_table().iloc[:0], 100, 0) == ([], [])


def test_the_power_law_is_found_again():
    sizes, beyond = np.array([5.0, 10, 20, 40, 80]), np.array([160.0, 320])
    exact = 0.9 - 0.5 * sizes**-0.5
    assert np.allclose(extrapolate(sizes, exact[None], beyond), 0.9 - 0.5 * beyond**-0.5, atol=1e-9)
    rng = np.random.default_rng(0)
    noisy = exact + 0.01 * rng.normal(size=5)
    found, _ = curve_fit(
        lambda n, a, b, c: a - b * n**-c,
        sizes,
        noisy,
        p0=(0.9, 0.5, 0.5),
        bounds=([0, 0, 0.1], [1, 5, 1.5]),
    )
    expected = found[0] - found[1] * beyond ** -found[2]
    assert np.allclose(extrapolate(sizes, noisy[None], beyond)[0], expected, atol=0.005)


def test_no_curve_goes_beyond_one_or_down():
    sizes, beyond = np.array([5.0, 10, 20]), np.array([1000.0])
    steep = np.array([[0.5, 0.75, 0.99]])
    assert 0.99 < extrapolate(sizes, steep, beyond)[0, 0] <= 1.0
    falling = np.array([[0.8, 0.7, 0.6]])
    assert extrapolate(sizes, falling, beyond)[0, 0] == pytest.approx(0.7)
    assert np.isnan(extrapolate(sizes, np.array([[0.8, np.nan, 0.6]]), beyond)).all()


def test_rows_of_a_curve_do_not_touch_the_rest(scores, tmp_path):
    main = scores({"imagenet": 1.0})
    alone = mt.evaluate(main, bootstrap=100).to_dict()
    both = pd.concat([main.assign(size=0, episode=0), curve_table()], ignore_index=True)
    together = mt.evaluate(both, bootstrap=100).to_dict()
    assert len(together["learning_curve"]) == 6
    assert alone["learning_curve"] == []
    assert together["arms"] == alone["arms"]
    write_predictions(check_predictions(both), tmp_path / "p.csv")
    assert read_predictions(tmp_path / "p.csv").equals(check_predictions(both))
    assert (
        mt.evaluate(tmp_path / "p.csv", bootstrap=100).to_dict()["learning_curve"]
        == together["learning_curve"]
    )
    write_predictions(check_predictions(main), tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text().splitlines()[
        0
    ] == "arm,seed,fold,part,image,patient,label,target,probability,logit"


def test_faults_of_a_curve_are_told():
    table = curve_table()
    with pytest.raises(PredictionsError, match="size stands alone"):
        check_predictions(table.drop(columns="episode"))
    with pytest.raises(PredictionsError, match="is there twice"):
        check_predictions(pd.concat([table, table]))
    leaking = table.copy()
    leaking.loc[0, "part"] = "tune"
    leaking = pd.concat([leaking, table.iloc[:1]])
    with pytest.raises(LeakageError):
        check_predictions(leaking)


def test_a_fold_that_lacks_a_class_in_a_draw_does_not_count():
    entries, _ = learning_curve(curve_table(patients=16, folds=4), 200, 0)
    assert all(entry["auc"]["low"] is not None for entry in entries)


def test_sizes_that_match_are_read_off_the_law():
    """AUC .9 - .5 n^-1/2 against .9 - n^-1/2: the second needs four times as many."""
    sizes = np.array([10.0, 20, 40, 80])
    ahead, behind = 0.9 - 0.5 * sizes**-0.5, 0.9 - sizes**-0.5
    rng = np.random.default_rng(0)
    noise = 0.001 * rng.normal(size=(2, 300, 4))
    curves = {
        "imagenet": Curve(sizes, ahead, ahead + noise[0]),
        "scratch": Curve(sizes, behind, behind + noise[1]),
    }
    found = match_sizes(curves)
    assert [(m["arm"], m["to_match"], m["size"]) for m in found] == [
        ("scratch", "imagenet", size) for size in (10, 20, 40, 80)
    ]
    for m in found:
        assert m["needed"]["estimate"] == pytest.approx(4 * m["size"], rel=0.02)
        assert m["needed"]["low"] < 4 * m["size"]
        assert m["needed"]["high"] is None or m["needed"]["high"] > 4 * m["size"]
        assert m["within"] == (4 * m["size"] <= 320)
    assert "scratch would need about" in describe_curve([], found)[0]


def test_an_arm_that_never_gets_there_is_beyond_the_cohort():
    sizes = np.array([10.0, 20, 40, 80])
    curves = {
        "a": Curve(sizes, sizes * 0 + 0.9, np.full((50, 4), 0.9)),
        "b": Curve(sizes, sizes * 0 + 0.6, np.full((50, 4), 0.6)),
    }
    found = match_sizes(curves)
    assert len(found) == 4
    assert all(m["needed"]["estimate"] is None and not m["within"] for m in found)
    assert "more patients than this cohort can tell" in describe_curve([], found)[0]
