"""What makes a comparison fair: budgets, fields, seeds, draws, precision and flips, as they are
settled before training.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from medtransfer.config.study_config import load_config
from medtransfer.data.cohort.laterality import allowed_changes
from medtransfer.data.grid.source import ImageSource
from medtransfer.errors import ConfigError
from medtransfer.progress import Reporter
from medtransfer.records.run_folder import RunFolder
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study import engines as machine
from medtransfer.study import run as runs
from medtransfer.study.draws import draw_fold
from medtransfer.study.views import backbone_of, images_of
from medtransfer.training.device import Engine
from medtransfer.training.features import FeatureSource
from medtransfer.training.timing import make_engine

from networks import SMALL
from studies import ARMS, LITE, prepare_study, write_config


@pytest.fixture
def config(studies, tmp_path):
    return write_config(tmp_path, studies.cohort(40))


def test_an_arm_without_weights_goes_on_until_level_unless_it_says_otherwise(config):
    plans = prepare_study(
        config,
        f"arms.again={{backbone: {SMALL}, budget: 1}}",
        f"arms.until={{backbone: {LITE}, weights: imagenet, budget: level}}",
        "arms.formulas={kind: features}",
        "plan.strategy=lp_ft",
    ).plans
    assert {name: plan.level for name, plan in plans.items()} == {
        "imagenet": False,
        "scratch": True,
        "again": False,
        "until": True,
        "formulas": False,
    }
    assert len({plan.steps for name, plan in plans.items() if name != "formulas"}) == 1


def test_fields_for_all_arms_are_for_all_or_it_is_said(config):
    by_hand = [
        "plan.backbone_lr=0.001",
        "plan.head_lr=0.01",
        "plan.dropout=0.4",
        "plan.strategy=lp_ft",
        "arms.own={backbone: resnet18, plan: {head_lr: 0.02}}",
    ]
    plans = prepare_study(config, *by_hand).plans
    assert (
        plans["imagenet"].backbone_lr,
        plans["imagenet"].head_lr,
        plans["imagenet"].dropout,
    ) == (0.001, 0.01, 0.4)
    assert plans["scratch"].dropout == 0.4
    assert plans["scratch"].backbone_lr == plans["scratch"].head_lr == 3e-3
    assert (
        "Set for arms with weights, and not for this one: backbone_lr, head_lr, strategy."
        in plans["scratch"].reason
    )
    assert (plans["own"].head_lr, plans["own"].backbone_lr) == (0.02, 3e-3)
    assert "not for this one: backbone_lr, strategy." in plans["own"].reason
    assert "not for this one" not in plans["imagenet"].reason


def test_draws_are_nested_and_every_patient_has_one_role(config):
    prepared = prepare_study(config, "learning_curve.sizes=[2,4,9]")
    units = prepared.cohort.units.to_numpy()
    for fold in (0, 1):
        for episode in (1, 2):
            draws = [draw_fold(prepared, fold, episode, size) for size in (2, 3, 4, 6, 9)]
            for small, large in itertools.pairwise(draws):
                for part in ("train", "tune"):
                    assert set(getattr(small, part)) <= set(getattr(large, part))
            for draw in draws:
                assert len(draw.tune) > 0
                assert not set(units[draw.train]) & set(units[draw.tune])
                assert not set(units[draw.train]) & set(units[draw.test])
                assert np.array_equal(draw.test, prepared.split.fold(fold).test)
    assert set(draw_fold(prepared, 0, 1, 4).train) != set(draw_fold(prepared, 0, 2, 4).train)


def test_random_views_differ_between_seeds_and_plain_images_do_not(config, tmp_path):
    prepared = prepare_study(config)
    images, backbone, engine = (
        images_of(prepared, "imagenet", tmp_path / "store"),
        prepared.backbones["imagenet"],
        make_engine("cpu", "fp32"),
    )
    cut = backbone.names[3]
    kept = [images.keep(backbone, engine, cut, backbone.names[-1:], seed) for seed in (0, 1, 0)]
    assert all(isinstance(source, FeatureSource) for source in kept)
    first, second, again = (source.load([0, 1], 2)["features"][cut] for source in kept)
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    plain = [source.load([0, 1])["features"][cut] for source in kept]
    assert torch.equal(plain[0], plain[1])
    # They lie in one folder, so that seeds share the images as they are.
    assert len({source.folder for source in kept}) == 1
    sources = [
        images.source(backbone, engine, seed).load([0], 5)["features"]["image"] for seed in (0, 1)
    ]
    assert not torch.allclose(*sources)


@pytest.mark.parametrize(
    ("label", "flip", "expected"),
    [
        ("malignant", "auto", "left_right"),
        ("left", "auto", "none"),
        ("left", "all", "all"),
        ("malignant", "none", "none"),
    ],
)
def test_what_is_flipped_follows_the_label(config, label, flip, expected):
    prepared = prepare_study(config, f"augment.flip={flip}", "augment.rotate=5")
    cohort = replace(
        prepared.cohort,
        images=prepared.cohort.images.rename(columns={"malignant": label}),
        labels=(label,),
    )
    found = allowed_changes(cohort, prepared.config.augment)
    assert (found.flip, found.rotate, found.intensity) == (expected, 5.0, 1.0)


def test_the_flip_that_is_set_reaches_the_images(config):
    off = prepare_study(config, "augment={flip: none, rotate: 0, intensity: 0}")
    source = images_of(off, "imagenet").source(
        off.backbones["imagenet"], make_engine("cpu", "fp32")
    )
    assert isinstance(source, ImageSource)
    assert source.augment == allowed_changes(off.cohort, off.config.augment)
    assert (source.augment.flip, source.augment.rotate, source.augment.intensity) == (
        "none",
        0.0,
        0.0,
    )


def test_volumes_are_not_turned_upside_down(studies, tmp_path):
    config = write_config(
        tmp_path, studies.cohort(24, 3, volumes=True), image={"size": 32, "slices": 10}
    )
    with pytest.raises(ConfigError, match="augment.flip is all, which is for planes"):
        prepare_study(config, "augment.flip=all")


@pytest.mark.parametrize(
    ("difference", "expected"),
    [({"features": 0.2, "logits": 0.01}, "fp32"), ({"features": 0.02, "logits": 0.01}, "bf16")],
)
def test_reduced_precision_is_taken_only_where_it_changes_no_answer(
    config, monkeypatch, tmp_path, difference, expected
):
    prepared = prepare_study(
        config,
        "train.precision=auto",
        "plan.strategy=lp_ft",
        f"arms.scratch={{backbone: {LITE}}}",
        f"arms.probe={{backbone: {LITE}, weights: imagenet, plan: {{strategy: linear_probe}}}}",
    )
    asked = []

    def fastest(_, precision, **__):
        asked.append(precision)
        return Engine(
            torch.device("cpu"), "bf16" if precision == "auto" else precision, "channels_last"
        )

    monkeypatch.setattr(machine, "make_engine", fastest)
    seen = []

    def compare(backbone, taps, *_):
        seen.append((backbone.weights.source, len(taps)))
        # Of arms of one architecture the one that rounding changes most decides.
        return difference if backbone.weights.source != "none" else dict.fromkeys(difference, 0.0)

    monkeypatch.setattr(machine, "compare_with_fp32", compare)
    engines = machine.choose_engines(prepared, StudyFolder(tmp_path / "none"))
    assert {name: engines[name].precision for name in ARMS} == dict.fromkeys(ARMS, expected)
    assert engines["imagenet"].difference == difference
    # A probe goes through the images once, and magnifies rounding.
    assert engines["probe"].precision == "fp32"
    assert engines["probe"].difference == {}
    assert ("imagenet", 18) in seen  # its own network, and all that its head reads
    assert ("none", 1) in seen
    assert set(asked) == ({"auto"} if expected == "bf16" else {"auto", "fp32"})


def test_a_precision_by_hand_is_compared_and_taken(config, tmp_path):
    prepared = prepare_study(config, "train.precision=bf16", "plan.strategy=lp_ft")
    engines = machine.choose_engines(prepared, StudyFolder(tmp_path / "none"))
    assert engines["imagenet"].precision == "bf16"
    assert engines["imagenet"].difference["features"] > 0
    assert 0 < engines["imagenet"].difference["logits"] < 1


def test_seeds_of_draws_share_the_room_of_kept_views(config):
    few, many = (
        prepare_study(config, "train.cache_gb=0.003", "plan.strategy=lp_ft", *more).plans[
            "imagenet"
        ]
        for more in ((), ("learning_curve={sizes: [2], episodes: 9}",))
    )
    assert few.bytes_per_image == many.bytes_per_image > 0
    assert few.views > many.views


def test_a_budget_that_a_probe_cannot_use_is_named(config):
    plans = prepare_study(
        config,
        f"arms.probe={{backbone: {LITE}, weights: imagenet, budget: level, plan: {{strategy: "
        f"linear_probe}}}}",
    ).plans
    assert "A linear probe has no budget, so that the one set is not used." in plans["probe"].reason
    assert not plans["probe"].level


def test_statistics_of_volumes_are_those_of_several(studies, tmp_path, monkeypatch):
    """One volume alone has no variance between volumes, and a training step holds several."""
    sizes = []
    config = write_config(
        tmp_path,
        studies.cohort(24, 3, volumes=True),
        image={"size": 32, "slices": 24},
        arms={"scratch": {"backbone": "monai_resnet10"}},
    )
    prepared = prepare_study(config, "train.batch_size=4", "train.epochs=1")
    images, fold = images_of(prepared, "scratch"), prepared.split.fold(0)

    def stop(*given):
        sizes.extend(len(batch["targets"]) for batch in given[1].norms)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_network", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.run_fold(
            runs.Training(
                images,
                fold,
                backbone_of(prepared, "scratch", 0),
                prepared.plans["scratch"],
                make_engine("cpu", "fp32"),
                RunFolder(tmp_path / "run"),
                "scratch",
                0,
            ),
            Reporter(quiet=True),
        )
    assert sum(sizes) == len(fold.train)
    assert min(sizes) >= 3


def test_the_example_configurations_know_the_section():
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        assert load_config(path).augment.flip == "auto"
