"""The search for the depth, on features and on cohorts whose answer is known."""

from __future__ import annotations

import medtransfer as mt
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import depth as module
from medtransfer.training.choice import (
    Depth,
    StageProbe,
)
from medtransfer.training.loop import Budget


def probe(stage, loss, error=0.02):
    return StageProbe(stage, 0.8, loss, error)


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


def test_trials_take_their_share_of_one_fine_tuning():
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
