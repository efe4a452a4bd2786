"""The search for the depth, on features and on cohorts whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.errors import StudyError
from medtransfer.evaluation.metrics.recalibration import fit_map, log_losses
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import depth as module
from medtransfer.training.choice import (
    Depth,
    DepthChoice,
    StageProbe,
    apply_choice,
    choose_depth,
    unit_means,
)
from medtransfer.training.probe import Labelled, choose_penalty, compare_heads, inner_folds
from medtransfer.training.solvers import PENALTIES, fit_path
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

LABELS = np.arange(60) % 2
UNITS = np.arange(60) // 2 * 2 + LABELS  # one image each
FOLDS = list(inner_folds(LABELS, UNITS, 5, 1))


def probe(stage, loss, error=0.02):
    return StageProbe(stage, 0.8, loss, error)


def noisy(strength, seed):
    return strength * (2 * LABELS - 1) + np.random.default_rng(seed).normal(size=60)


def choose(*strengths):
    logits = [noisy(strength, i) for i, strength in enumerate(strengths)]
    depths = [Depth(7, 0, "the plan"), Depth(3, 0, "one"), Depth(0, 0, "two")][: len(logits)]
    probes = tuple(probe(f"s{i}", loss) for i, loss in enumerate((0.6, 0.5, 0.4, 0.41)))
    return choose_depth(probes, 2, depths, logits, LABELS, UNITS, FOLDS, 30)


def test_the_prior_stays_unless_the_gain_exceeds_its_error():
    same = choose(1.0, 1.0)
    assert not same.overridden or same.trials[1].gain > same.trials[1].error
    clear = choose(0.2, 2.0, 1.0)
    assert clear.chosen == 1
    assert clear.trials[1].gain > clear.trials[1].error > 0
    assert clear.trials[0].gain == clear.trials[0].error == 0
    assert "Chosen: 3 stages frozen (one), which gains" in clear.reason
    kept = choose(2.0, 0.2)
    assert kept.chosen == 0
    assert "The plan stays (7 stages frozen): of 1 other depth(s) none gained" in kept.reason
    assert "what tells the classes apart shows only late" in clear.reason
    for choice in (clear, kept):
        assert "no measure of performance" in choice.reason
        assert choice.optimism >= 0
        assert DepthChoice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice


def test_gain_and_error_are_paired_over_patients():
    choice = choose(0.5, 1.5)
    losses = []
    for i, strength in enumerate((0.5, 1.5)):
        logits, each = noisy(strength, i), np.empty(60)
        for _, held in FOLDS:
            others = np.setdiff1d(np.arange(60), held)
            each[held] = log_losses(
                fit_map("temperature", logits[others], LABELS[others]).apply(logits[held]),
                LABELS[held],
            )
        losses.append(each)
    gains = losses[0] - losses[1]
    assert choice.trials[1].gain == pytest.approx(gains.mean())
    assert choice.trials[1].error == pytest.approx(gains.std(ddof=1) / np.sqrt(60))


def test_the_shallowest_stage_within_one_error_of_the_best():
    probes = [probe("a", 0.60), probe("b", 0.45), probe("c", 0.43, 0.03), probe("d", 0.50)]
    assert module._shallowest(probes) == 1
    assert module._shallowest([probe("a", 0.60), probe("b", 0.40)]) == 1


def where(depths):
    return [(depth.frozen, depth.dropped) for depth in depths]


def test_candidates_are_few_and_distinct():
    net = mt.load_backbone("resnet18")
    plan = mt.plan_freeze(
        PlainCounts({"0": 300, "1": 300}, "near"), net, transfer=True, frozen_stages=4
    )
    late = module._candidates(plan, 6, 9)
    assert where(late) == [(4, 0), (7, 0), (8, 0)]
    early = module._candidates(plan, 2, 9)
    assert where(early) == [(4, 0), (3, 0), (1, 6)]
    assert where(module._candidates(plan, 3, 9)) == [(4, 0), (2, 5)]
    assert where(module._candidates(plan, 8, 9)) == [(4, 0), (9, 0)]


def test_a_choice_becomes_a_plan():
    net = mt.load_backbone("resnet18")
    plan = mt.plan_freeze(PlainCounts({"0": 300, "1": 300}, "near"), net, transfer=True)
    clear = choose(0.2, 2.0, 1.0)
    found = apply_choice(plan, net, clear, 500)
    assert (found.frozen_stages, found.dropped_stages, found.strategy, found.steps) == (
        3,
        0,
        "lp_ft",
        plan.steps,
    )
    assert found.reason == f"{plan.reason} {clear.reason}"
    probe_plan = mt.plan_freeze(PlainCounts({"0": 5, "1": 5}, "near"), net, transfer=True)
    assert apply_choice(probe_plan, net, clear, 77).steps == 77
    to_probe = replace(
        clear, trials=(clear.trials[0], replace(clear.trials[1], frozen_stages=6, dropped_stages=3))
    )
    cut = apply_choice(plan, net, to_probe, 500)
    assert (cut.strategy, cut.steps, cut.kept_stages) == ("linear_probe", 0, 6)
    stays = apply_choice(plan, net, choose(2.0, 0.2), 500)
    assert replace(stays, reason=plan.reason) == plan


def test_trials_take_their_share_of_one_fine_tuning():
    from medtransfer.models.chain.costs import measure_stages
    from medtransfer.training.loop import Budget

    net = mt.load_backbone("resnet18")
    costs = measure_stages(net, 64)

    depths = [Depth(4, 0, ""), Depth(7, 0, ""), Depth(8, 0, "")]
    steps = module._trial_steps(Budget(1000, None, 0.0), depths, costs, 5, 400, 32)
    total = sum(cost.macs for cost in costs)
    spent = 400.0
    for depth in depths:
        prefix = sum(cost.macs for cost in costs[: depth.frozen]) / total
        spent += 3 * 400 * prefix + 5 * steps * 32 * 3 * (1 - prefix)
    assert 0.7 < spent / (3 * 1000 * 32) <= 0.8
    assert module._trial_steps(Budget(10, None, 0.0), depths, costs, 5, 400, 32) == 20


def test_units_are_averaged_before_they_are_compared():
    values = np.array([1.0, 3.0, 5.0, np.nan, 7.0])
    assert unit_means(values, np.array([4, 4, 9, 9, 2])).tolist() == [7.0, 2.0, 5.0]


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


def test_inner_folds_keep_patients_together_and_are_repeated():
    units = np.repeat(np.arange(20), 3)
    labels = np.repeat(np.arange(20) % 2, 3)
    folds = list(inner_folds(labels, units, 5, 2))
    assert len(folds) == 10
    for train, held in folds:
        assert not set(units[train]) & set(units[held])
    assert sorted(np.concatenate([held for _, held in folds[:5]]).tolist()) == list(range(60))
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=1)
    assert np.array_equal(folds[5][1], next(splitter.split(labels, labels, units))[1])
    assert list(inner_folds(labels[:6], units[:6], 5, 2)) == []


def test_the_penalty_follows_the_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 40))
    signal = noise.copy()
    signal[:, 0] += 4.0 * LABELS
    strong, _ = choose_penalty(Labelled(noise, LABELS, UNITS))
    weak, loss = choose_penalty(Labelled(signal, LABELS, UNITS))
    assert strong < weak
    assert loss < 0.5
    alone, missing = choose_penalty(Labelled(noise, LABELS, UNITS).take(np.arange(3)))
    assert alone == 1e-3
    assert np.isnan(missing)


def test_simple_heads_check_the_convex_one():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 5))
    values[:, 0] += 3.0 * LABELS
    aucs = compare_heads(Labelled(values, LABELS, UNITS))
    assert set(aucs) == {"logistic", "prototype", "neighbours"}
    assert all(auc > 0.85 for auc in aucs.values())
    chance = compare_heads(Labelled(rng.normal(size=(60, 5)), LABELS, UNITS))
    assert all(abs(auc - 0.5) < 0.25 for auc in chance.values())
    assert compare_heads(Labelled(values, LABELS, UNITS).take(np.arange(2))) == {}


def test_probes_at_chance_tell_nothing():
    logits, depths = (
        [noisy(1.0, 0), noisy(1.0, 1)],
        [Depth(7, 0, "the plan"), Depth(3, 0, "one")],
    )
    blind = choose_depth(
        (probe("a", 0.70), probe("b", 0.69)), 0, depths, logits, LABELS, UNITS, FOLDS, 30
    )
    assert "none is clearly better than chance (0.693)" in blind.reason
    assert "texture" not in blind.reason
