"""Fields of a plan set by hand."""

from __future__ import annotations

from dataclasses import replace

import medtransfer as mt
import pytest
from medtransfer.errors import ConfigError
from medtransfer.models.plan.cache import CacheBudget, plan_cache
from medtransfer.models.plan.overrides import fix_plan
from medtransfer.models.plan.rules import (
    PlainCounts,
)

from plans import plan


def test_dropped_stages_shift_what_can_be_frozen(resnet):
    cut = plan(resnet, dropped_stages=3)
    assert (cut.kept_stages, cut.strategy) == (6, "lp_ft")
    assert cut.frozen_stages < 6
    assert plan(resnet, dropped_stages=3, strategy="linear_probe").frozen_stages == 6
    with pytest.raises(ConfigError, match="frozen_stages is 7; 6 of 9 stages are left"):
        plan(resnet, dropped_stages=3, frozen_stages=7)
    with pytest.raises(ConfigError, match="from 0 to 8"):
        plan(resnet, dropped_stages=9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dropout": 1.0},
        {"l2_sp": -0.1},
        {"mix": "yes"},
        {"read": "some"},
        {"views": 1.5},
        {"unfreeze": True},
        {"tuned": None, "x": 1},
    ],
)
def test_wrong_fields_are_refused(resnet, wrong):
    with pytest.raises(ConfigError, match="plan: "):
        plan(resnet, **wrong)


def test_scratch_takes_no_transfer_fields(resnet):
    scratch = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), resnet)
    assert scratch.strategy == "scratch"
    assert fix_plan(scratch, resnet, dropout=0.3).dropout == 0.3
    with pytest.raises(ConfigError, match="l2_sp cannot be set for an arm trained from scratch"):
        fix_plan(scratch, resnet, l2_sp=0.1)
    assert plan_cache(replace(scratch, views=0), resnet, 100, CacheBudget()).views == 0


def test_fields_can_be_set_by_hand(lite):
    found = plan(lite, 100, frozen_stages=3, head_lr=0.01)
    assert (found.frozen_stages, found.head_lr) == (3, 0.01)
    assert "Set by hand: " in found.reason
    assert plan(lite, 100, strategy="linear_probe").frozen_stages == 18
    assert plan(lite, 100, frozen_stages=18).strategy == "linear_probe"
    tuned = plan(lite, 7, strategy="lp_ft")
    assert (tuned.strategy, tuned.frozen_stages) == ("lp_ft", 17)
    assert tuned.steps > 0
    for wrong in (
        {"frozen_stages": 19},
        {"reason": "x"},
        {"strategy": "linear_probe", "frozen_stages": 3},
    ):
        with pytest.raises(ConfigError):
            plan(lite, 100, **wrong)


def test_views_set_for_all_arms_leave_a_planned_probe_alone(lite):
    assert plan(lite, 5, views=4).views == 0
    assert plan(lite, 100, views=4).views == 4
    with pytest.raises(ConfigError, match="no frozen prefix"):
        plan(lite, 100, views=4, strategy="linear_probe")


def test_norms_of_a_network_without_any_are_refused():
    with pytest.raises(ConfigError, match="nf_regnet_b0 has no norms"):
        plan(mt.load_backbone("nf_regnet_b0"), 100, tuned="norms")
