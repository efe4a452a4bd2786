"""Plans follow the size of the cohort, the domain and the family of the network."""

from __future__ import annotations

import itertools

import medtransfer as mt
import pytest
from medtransfer.models.plan.rules import (
    PlainCounts,
    at_size,
    cohort_size,
    count_budget,
    scratch_rate,
)

from plans import plan


@pytest.mark.parametrize(
    ("smallest", "near", "far", "evidence"),
    [
        (7, 18, 18, "weak"),
        (14, 10, 10, "weak"),
        (50, 8, 7, "weak"),
        (400, 7, 7, "strong"),
        (5000, 0, 0, "strong"),
        (20_000, 0, 0, "strong"),
    ],
)
def test_shares_of_a_plain_cnn(lite, smallest, near, far, evidence):
    assert plan(lite, smallest, "near").frozen_stages == near
    assert plan(lite, smallest, "far").frozen_stages == far
    assert plan(lite, smallest).evidence == evidence


def test_the_plan_says_why(lite):
    found = plan(lite, 100, "far")
    for part in (
        "100 patients in the smallest class",
        "(geometric mean of the classes 141)",
        "weak evidence",
        "last 11 of 18 stages",
    ):
        assert part in found.reason
    assert "far from ImageNet" in plan(lite, 30, "far").reason
    assert (found.strategy, found.steps, found.norm_policy, found.read, found.unfreeze) == (
        "lp_ft",
        1000,
        "eval",
        "all",
        "gradual",
    )
    assert plan(lite, 7).strategy == "linear_probe"
    assert plan(lite, 7).steps == 0
    assert "too few patients to fine-tune (from 8 on it would be)" in plan(lite, 7).reason
    assert 0 < found.trainable_fraction < 1
    assert plan(lite, 5000).trainable_fraction == 1


def test_families_differ():
    vit = mt.load_backbone("vit_tiny_patch16_224")
    dense = mt.load_backbone("densenet121")
    assert plan(vit, 150).frozen_stages > len(vit.stages) / 2
    assert plan(dense, 400).frozen_stages == 0
    # All or nothing, its neck (where it has one) with it.
    for name, stages in (("hrnet_w18_small", 1), ("cait_xxs24_224", 2)):
        whole = mt.load_backbone(name)
        assert len(whole.stages) == stages
        assert {plan(whole, n).frozen_stages for n in (7, 100, 400, 50_000)} == {0, stages}


def test_scratch_trains_everything_whatever_is_set(lite):
    found = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), lite, frozen_stages=5)
    assert (found.strategy, found.frozen_stages, found.stage_decay, found.norm_policy) == (
        "scratch",
        0,
        1.0,
        "train",
    )
    assert found.steps > 0


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "densenet121"])
@pytest.mark.parametrize("transfer", [True, False])
def test_more_patients_are_never_trained_less(name, transfer):
    net = mt.load_backbone(name)
    sizes = (8, 25, 50, 100, 149, 150, 200, 400, 999, 1000, 1001, 5000, 9999, 10_000, 100_000)
    for batch in (8, 32):
        plans = [
            mt.plan_freeze(
                PlainCounts({"0": n, "1": n}, "far"), net, transfer=transfer, batch=batch
            )
            for n in sizes
        ]
        steps = [found.steps for found in plans]
        assert steps == sorted(steps)
        assert steps[0] == 300  # below 10 images a class
        assert all(
            found.frozen_stages >= later.frozen_stages for found, later in itertools.pairwise(plans)
        )
    # Half as many again where patients double, or twice as many: no jump.
    counts = [count_budget(images, 32) for images in range(32, 50_000, 16)]
    assert max(later / now for now, later in itertools.pairwise(counts)) < 1.6


def test_the_size_is_that_of_all_classes():
    assert cohort_size({"0": 30, "1": 30}) == 30
    assert cohort_size({"0": 147, "1": 399}) == pytest.approx((147 * 399) ** 0.5)
    assert cohort_size({"0": 100, "1": 0}) == 0
    assert at_size(((10, 1.0), (1000, 3.0)), 100) == pytest.approx(2.0)  # half-way on the logarithm
    assert [at_size(((10, 1.0), (1000, 3.0)), size) for size in (0, 5, 10**6)] == [1.0, 1.0, 3.0]


def test_very_few_positives_are_weak_evidence_however_many_negatives(lite):
    found = mt.plan_freeze(PlainCounts({"0": 5000, "1": 7}, "far"), lite, transfer=True)
    assert (found.strategy, found.read, found.evidence) == ("linear_probe", "all", "weak")
    assert "weak evidence; too few patients to fine-tune" in found.reason


def test_rates_from_scratch_follow_the_family():
    names = (
        "resnet18",
        "densenet121",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "vit_tiny_patch16_224",
        "monai_resnet10",
    )
    assert [scratch_rate(mt.load_backbone(name)) for name in names] == [
        3e-3,
        1e-3,
        2e-3,
        2e-4,
        3e-4,
        3e-3,
    ]


def test_few_patients_of_a_far_domain_are_not_trained_deeper():
    dense = mt.load_backbone("densenet121")
    assert plan(dense, 14, "far").frozen_stages == plan(dense, 14, "near").frozen_stages > 0
    assert "more is trained" not in plan(dense, 14, "far").reason
    whole = mt.load_backbone("hrnet_w18_small")
    assert "no exact chain of stages" in plan(whole, 40, "near").reason


def test_a_network_built_for_a_size_is_planned_for_it():
    net = mt.load_backbone("vit_tiny_patch16_224", size=64)
    assert plan(net, 400, frozen_stages=3).bytes_per_image == 17 * 192 * 4
