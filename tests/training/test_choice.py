"""Which depth a search chooses, on scores whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.evaluation.metrics.recalibration import fit_map, log_losses
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training.choice import (
    Depth,
    DepthChoice,
    StageProbe,
    apply_choice,
    choose_depth,
    unit_means,
)
from medtransfer.training.probe import inner_folds

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


def test_units_are_averaged_before_they_are_compared():
    values = np.array([1.0, 3.0, 5.0, np.nan, 7.0])
    assert unit_means(values, np.array([4, 4, 9, 9, 2])).tolist() == [7.0, 2.0, 5.0]


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
