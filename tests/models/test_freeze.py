from __future__ import annotations

import medtransfer as mt
import pytest
import torch
from medtransfer.errors import ConfigError, WeightsError
from medtransfer.models.freeze import PlainCounts
from medtransfer.models.heads import LinearHead
from medtransfer.models.plan import refuse_random_prefix
from medtransfer.models.schedule import parameter_groups


@pytest.fixture(scope="module")
def lite():
    return mt.load_backbone("tf_efficientnet_lite0")


def plan(backbone, smallest, domain="near", **fixed):
    return mt.plan_freeze(PlainCounts({"0": 2 * smallest, "1": smallest}, domain), backbone, transfer=True, **fixed)


@pytest.mark.parametrize(
    ("smallest", "near", "far", "evidence"),
    [
        (7, 18, 18, "weak"),
        (20, 10, 10, "weak"),
        (100, 10, 7, "weak"),
        (400, 7, 7, "strong"),
        (5000, 0, 0, "strong"),
        (20_000, 0, 0, "strong"),
    ],
)
def test_the_table_for_a_plain_cnn(lite, smallest, near, far, evidence):
    assert plan(lite, smallest, "near").frozen_stages == near
    assert plan(lite, smallest, "far").frozen_stages == far
    assert plan(lite, smallest).evidence == evidence


def test_the_plan_says_why(lite):
    found = plan(lite, 100, "far")
    for part in ("100 patients in the smaller class", "far from ImageNet", "weak evidence", "last 11 of 18 stages"):
        assert part in found.reason
    assert (found.strategy, found.steps, found.norm_policy, found.read, found.unfreeze) == ("lp_ft", 1000, "eval", "all", "gradual")
    assert plan(lite, 7).strategy == "linear_probe"
    assert plan(lite, 7).steps == 0
    assert "too few patients to fine-tune (from 8 on it would be)" in plan(lite, 7).reason
    assert 0 < found.trainable_fraction < 1
    assert plan(lite, 5000).trainable_fraction == 1


def test_families_differ():
    vit = mt.load_backbone("vit_tiny_patch16_224")
    dense = mt.load_backbone("densenet121")
    assert plan(vit, 400).frozen_stages > len(vit.stages) / 2
    assert plan(dense, 400).frozen_stages == 0
    # All or nothing, its neck (where it has one) with it.
    for name, stages in (("hrnet_w18_small", 1), ("cait_xxs24_224", 2)):
        whole = mt.load_backbone(name)
        assert len(whole.stages) == stages
        assert {plan(whole, n).frozen_stages for n in (7, 100, 400, 50_000)} == {0, stages}


def test_scratch_trains_everything_whatever_is_set(lite):
    found = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), lite, frozen_stages=5)
    assert (found.strategy, found.frozen_stages, found.stage_decay, found.norm_policy) == ("scratch", 0, 1.0, "train")
    assert found.steps > 0


def test_fields_can_be_set_by_hand(lite):
    found = plan(lite, 100, frozen_stages=3, head_lr=0.01)
    assert (found.frozen_stages, found.head_lr) == (3, 0.01)
    assert "Set by hand: " in found.reason
    assert plan(lite, 100, strategy="linear_probe").frozen_stages == 18
    assert plan(lite, 100, frozen_stages=18).strategy == "linear_probe"
    tuned = plan(lite, 7, strategy="lp_ft")
    assert (tuned.strategy, tuned.frozen_stages) == ("lp_ft", 17)
    assert tuned.steps > 0
    for wrong in ({"frozen_stages": 19}, {"reason": "x"}, {"strategy": "linear_probe", "frozen_stages": 3}):
        with pytest.raises(ConfigError):
            plan(lite, 100, **wrong)


def test_groups_cover_what_trains_once_with_decaying_rates():
    net = mt.load_backbone("tf_efficientnet_lite0")
    found = plan(net, 100, "far", l2_sp=0.0)
    net.freeze(found.frozen_stages)
    head = LinearHead(net.stages[-1], 1)
    groups = parameter_groups(net, head, found, 0.05)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in [*net.parameters(), *head.parameters()] if p.requires_grad}
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head"] == found.head_lr
    assert rates["conv_head"] == found.backbone_lr
    assert rates["blocks.6.0"] == pytest.approx(found.backbone_lr * found.stage_decay)
    assert all((group["weight_decay"] > 0) == (group["params"][0].ndim > 1) for group in groups)


def test_random_weights_are_not_frozen(lite, tmp_path):
    """Neither those of no file, nor those of a file that was never trained."""
    frozen = plan(lite, 100)
    with pytest.raises(WeightsError, match="10 stages are to be frozen, but these do not look like trained weights"):
        refuse_random_prefix(lite, frozen)
    path = tmp_path / "untrained.pth"
    torch.save(mt.load_backbone("tf_efficientnet_lite0", seed=4).network.state_dict(), path)
    untrained = mt.load_backbone("tf_efficientnet_lite0", weights=f"file:{path}")
    assert untrained.weights.proof["moved"] == 0
    with pytest.raises(WeightsError, match=r"file:.*100 % of the norms and biases are as a random initialisation leaves them"):
        refuse_random_prefix(untrained, frozen)
    refuse_random_prefix(untrained, plan(lite, 20_000))
    refuse_random_prefix(mt.load_backbone("tf_efficientnet_lite0", weights="imagenet"), frozen)


def test_few_patients_of_a_far_domain_are_not_trained_deeper():
    dense = mt.load_backbone("densenet121")
    assert plan(dense, 20, "far").frozen_stages == plan(dense, 20, "near").frozen_stages > 0
    assert "row of the table deeper" not in plan(dense, 20, "far").reason
    whole = mt.load_backbone("hrnet_w18_small")
    assert "no exact chain of stages" in plan(whole, 60, "near").reason


def test_views_set_for_all_arms_leave_a_planned_probe_alone(lite):
    assert plan(lite, 5, views=4).views == 0
    assert plan(lite, 100, views=4).views == 4
    with pytest.raises(ConfigError, match="no frozen prefix"):
        plan(lite, 100, views=4, strategy="linear_probe")


def test_norms_of_a_network_without_any_are_refused():
    with pytest.raises(ConfigError, match="vgg11 has no norms"):
        plan(mt.load_backbone("vgg11"), 100, tuned="norms")


def test_words_decide_nothing(lite):
    assert "reason" not in plan(lite, 100).decisive()
    assert plan(lite, 100).decisive().items() <= plan(lite, 100).to_dict().items()


def test_a_network_built_for_a_size_is_planned_for_it():
    net = mt.load_backbone("vit_tiny_patch16_224", size=64)
    assert plan(net, 400, frozen_stages=3).bytes_per_image == 17 * 192 * 4
