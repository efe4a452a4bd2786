from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.analyses.sites import by_site, meta_auc, meta_difference
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.headline import headline

from predicted import (
    assert_close,
)
from scored import (
    codes_of,
    estimate_of,
    make_scores,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def sites_of(rng, sites, patients, apart):
    site = np.arange(sites).repeat(patients)
    target = (rng.random(len(site)) < 0.4).astype(int)
    logit = (
        (1.5 + apart * rng.normal(size=sites))[site] * target
        + rng.normal(size=len(site))
        + 2 * rng.normal(size=sites)[site]
    )
    return logit, target, site


def over(scores):
    codes = codes_of(scores)
    return by_site(scores, codes, int(codes.max()) + 1)


def test_sites_are_a_sample_of_sites():
    rng = np.random.default_rng(0)
    logit, target, site = sites_of(rng, 8, 200, 0.4)
    scores = make_scores(logit, target, fold=site)
    found = meta_auc(over(scores))
    alone = estimate_of(scores).interval("logit")
    assert found["high"] - found["low"] > 1.3 * (alone["high"] - alone["low"])
    assert (
        found["new_site"]["low"]
        <= found["low"]
        < found["estimate"]
        < found["high"]
        <= found["new_site"]["high"]
    )
    assert len(found["sites"]) == 8
    assert meta_auc(over(make_scores(logit[:200], target[:200], fold=site[:200]))) is None
    moved = make_scores(logit + rng.normal(size=8)[site], target, fold=site)
    assert_close(meta_auc(over(moved))["estimate"], found["estimate"])
    assert meta_difference(over(scores), over(moved)) is None  # no two sites differ


def test_sites_that_separate_the_classes_do_not_raise_the_mean():
    """Of eight sites of twenty patients some have an AUC of 1 by chance; the truth is Φ(2.33 / √2)
    = 0.95.
    """
    rng, pooled = np.random.default_rng(3), []
    for _ in range(150):
        site, target = (
            np.repeat(np.arange(8), 20),
            np.tile(np.r_[np.zeros(12, int), np.ones(8, int)], 8),
        )
        pooled.append(
            meta_auc(over(make_scores(2.326 * target + rng.normal(size=160), target, fold=site)))[
                "estimate"
            ]
        )
    assert np.mean(pooled) == pytest.approx(0.95, abs=0.01)


def test_a_difference_over_sites_is_that_of_the_arms_beside_it():
    rng = np.random.default_rng(5)
    target, site = (
        np.tile(np.r_[np.zeros(12, int), np.ones(8, int)], 6),
        np.repeat(np.arange(6), 20),
    )
    for _ in range(10):
        arms = [
            over(make_scores(skill * target + rng.normal(size=120), target, fold=site))
            for skill in (2.0, 1.9)
        ]
        delta = meta_difference(*arms)
        assert delta["of_arms"][0] - delta["of_arms"][1] == pytest.approx(delta["estimate"])


def test_a_study_that_leaves_sites_out_is_reported_over_sites(scores):
    table = scores({"a": 1.5, "b": 0.6}, patients=300, folds=5)
    report = evaluate(table, bootstrap=100, leave_out="site").to_dict()
    entry = report["arms"]["a"]["auc"]
    assert entry["method"].startswith("random effects over sites")
    assert entry["over_patients"]["method"].startswith("DeLong")
    delta = report["comparisons"][0]["delta_auc"]
    assert delta["method"] == "random effects over sites of the difference within each"
    assert delta["new_site"]["low"] <= delta["low"] < delta["estimate"]
    verdict = report["comparisons"][0]["verdict"]
    assert "95 % interval over sites" in verdict
    first, second = delta["of_arms"]
    assert f"AUC {first:.3f} against {second:.3f}" in verdict
    assert (
        f"AUC: {first:.3f} against {second:.3f}, difference {delta['estimate']:+.3f}"
        in headline(report)[1]
    )
    assert first - second == pytest.approx(delta["estimate"])
    other = table[table["arm"] == "b"].assign(fold=lambda t: 4 - t["fold"])
    apart = evaluate(
        pd.concat([table[table["arm"] == "a"], other]), bootstrap=100, leave_out="site"
    ).to_dict()["comparisons"][0]
    assert apart["delta_auc"]["covers"] == "models"
