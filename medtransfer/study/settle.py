"""From a configuration to all that is settled before training: cohort, split, backbones, plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.config.arm import Arm
from medtransfer.config.study_config import StudyConfig
from medtransfer.data.audit.audit import Audit, audit, tell_meaning
from medtransfer.data.audit.fingerprint import Fingerprint, make_fingerprint
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.box_grid import boxes_on_grid, boxes_seen, place_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.split import Split, split_cohort
from medtransfer.data.grid.fixed import Fixed, fixed_of, input_space
from medtransfer.errors import CohortError, ConfigError, LeakageError, list_faults
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.chain.backbone import Backbone, Recipe
from medtransfer.models.plan.plan import FreezePlan, refuse_random_prefix
from medtransfer.models.weights.locate import locate, published_recipe
from medtransfer.progress import Reporter
from medtransfer.records.study_folder import StudyFolder, images_of_study
from medtransfer.study.cohort import read_cohort
from medtransfer.study.planning import (
    plan_arm,
    refuse_edited_steps,
    share_steps,
    take_up_edits,
)
from medtransfer.tasks.kinds import make_task
from medtransfer.tasks.task import Task


@dataclass(frozen=True)
class Settled:
    """All that is settled before training begins, with nothing written yet.

    Attributes:
        config: the study.
        cohort: the images in use.
        facts: what each of them is, see `inspect_images`.
        split: their parts in each fold.
        fingerprint: of the smallest training part, which the plans follow from.
        plans: by arm.
        backbones: by arm, with their weights.
        findings: about the images in use and the unreadable ones.
        seen: images that the weights of earlier studies were trained on.
    """

    config: StudyConfig
    cohort: Cohort
    facts: pd.DataFrame
    split: Split
    fingerprint: Fingerprint
    plans: dict[str, FreezePlan]
    backbones: dict[str, Backbone]
    findings: Audit
    seen: pd.DataFrame


def settle(
    config: StudyConfig,
    cohort: Cohort | None,
    folder: StudyFolder | None,
    reporter: Reporter,
    fixed: Fixed | None,
) -> Settled:
    """Settles all that is settled before training begins; nothing is written.

    Args:
        config: the study.
        cohort: its images; None: as the configuration says.
        folder: of the study, whose edited plan and salt are taken up; None: of no study.
        reporter: progress.
        fixed: also fill the image cache with these transforms.

    Raises:
        ConfigError, CohortError, LeakageError, WeightsError: something does not fit.
    """
    # Weights that are not on this machine are told before thousands of images are read; what the
    # networks are built with takes seconds to import, and waits.
    for arm in config.arms.values():
        if arm.weights is not None:
            locate(arm.backbone, arm.weights)
    cohort = _open_cohort(config, cohort, folder)
    # A split that cannot be made is told before thousands of images are read, too.
    split = _split(config, cohort)
    cohort, facts, findings = _inspect(config, cohort, reporter, fixed)
    backbones = {
        name: load_arm(arm, config.image.size, config.protocol.seeds[0])
        for name, arm in config.arms.items()
    }
    seen = _refuse_images_seen_before(config, cohort, facts, reporter)
    if config.protocol.group == "cluster":
        used = set(cohort.images["image"])
        pairs = [(a, b) for a, b in findings.near_duplicates if a in used and b in used]
        cohort = cohort.grouped(pairs)
    if config.protocol.group == "cluster" or len(cohort) < len(split.parts):
        split = _split(config, cohort)
    task = make_task(config.task, cohort.labels, input_space(config.image, len(facts["shape"][0])))
    fingerprint = _training_fingerprint(cohort, facts, split, task)
    _require_dimensions(config, backbones, fingerprint.ndim)
    fields = task.plan_fields(_targets_of_parts(config, cohort, facts, split, task))
    plans = {
        name: plan_arm(config, name, net, fingerprint, task, len(cohort), **fields)
        for name, net in backbones.items()
    }
    edited = folder.plan if folder is not None and folder.plan.is_file() else None
    if edited is not None:
        plans = take_up_edits(edited, config, plans, backbones, fingerprint.ndim, len(cohort))
    for name, backbone in backbones.items():
        refuse_random_prefix(backbone, plans[name])
        if config.plan.search and plans[name].tuned == "first":
            raise ConfigError(
                f"arms.{name}: plan.search looks for how many first stages to freeze, and "
                "plan.tuned=first freezes the last."
            )
    smallest = min(len(split.fold(index).train) for index in range(len(split)))
    step = config.train.batch_size or task.batch_size(fingerprint.ndim)
    plans = share_steps(plans, config, max(1, smallest // step))
    if edited is not None:
        refuse_edited_steps(edited, plans)
    return Settled(config, cohort, facts, split, fingerprint, plans, backbones, findings, seen)


def _open_cohort(config: StudyConfig, cohort: Cohort | None, folder: StudyFolder | None) -> Cohort:
    """The cohort with the label that is studied, and the patients that were told apart."""
    cohort = read_cohort(config, cohort, folder)
    if make_task(config.task, cohort.labels, ()).finds_boxes:
        cohort = cohort.detecting()
    cohort = cohort.told_apart(config.cohort.look_alikes)
    absent = [c for c in config.evaluate.subgroups if c not in cohort.images.columns]
    if absent:
        raise ConfigError(
            f"evaluate.subgroups: the cohort has no column {', '.join(absent)}. Use columns of "
            "its manifest."
        )
    if len(cohort.labels) != 1:
        raise ConfigError(
            f"cohort.labels: one label is studied at a time, {len(cohort.labels)} given. Run one "
            "study per label."
        )
    return cohort


def _split(config: StudyConfig, cohort: Cohort) -> Split:
    protocol = config.protocol
    return split_cohort(
        cohort, protocol.folds, protocol.split_seed, protocol.tune, protocol.leave_out
    )


def _inspect(
    config: StudyConfig, cohort: Cohort, reporter: Reporter, fixed: Fixed | None
) -> tuple[Cohort, pd.DataFrame, Audit]:
    """The readable images of the cohort, what they are, and what was found in all of them."""
    facts = inspect_images(cohort, reporter, fixed)
    bad = facts[facts["error"] != ""]
    if not config.cohort.skip_unreadable:
        refuse_unreadable(facts, cohort)
    cohort = cohort.fitted(facts)
    meanings = (tell_meaning(label, meaning) for label, meaning in cohort.meaning.items())
    for text in (*map(str, cohort.accounts), *cohort.notes, *meanings):
        reporter.say(text)
    reporter.say("looking for what would make a result wrong")
    findings = audit(
        cohort,
        facts,
        group=config.protocol.group,
        shortcuts=config.audit.shortcuts,
        flip=config.augment.flip,
    )
    if findings.sides:
        reporter.say(" ".join(findings.sides))
    if len(bad):
        reporter.say(
            f"{len(bad)} of {len(cohort)} images cannot be read and are left out; the report "
            "lists them"
        )
        cohort = cohort.without(bad["image"].tolist())
    return cohort, facts[facts["error"] == ""].reset_index(drop=True), findings


def load_arm(arm: Arm, size: int, seed: int) -> Backbone:
    """The backbone of an arm, with its weights."""
    recipe = None
    if arm.recipe is not None:
        recipe = Recipe(arm.recipe.mean, arm.recipe.std, published_recipe(arm.backbone).size)
    channels = arm.slab if arm.slab > 1 else arm.channels
    return load_backbone(arm.backbone, arm.weights, recipe, seed, channels, size)


def _require_dimensions(config: StudyConfig, backbones: Mapping[str, Backbone], ndim: int) -> None:
    """Networks, slabs and flips must fit planes or volumes."""
    if config.augment.flip == "all" and ndim == 3:
        raise ConfigError(
            "augment.flip is all, which is for planes; volumes have an up. Use left_right or none."
        )
    for arm, backbone in backbones.items():
        slab = config.arms[arm].slab
        if backbone.ndim > ndim:
            raise ConfigError(
                f"arms.{arm}: {backbone.name} takes volumes, and these images are planes. Choose "
                "a network of planes."
            )
        if slab > 1 and (ndim == 2 or backbone.ndim == 3):
            what = "these images are planes" if ndim == 2 else f"{backbone.name} sees whole volumes"
            raise ConfigError(
                f"arms.{arm}.slab is {slab}, but {what}. A slab is for volumes seen slice by slice."
            )


def _refuse_images_seen_before(
    config: StudyConfig, cohort: Cohort, facts: pd.DataFrame, reporter: Reporter
) -> pd.DataFrame:
    """Weights that were trained on some of these images would know the answers; returns all that
    they were trained on.
    """
    seen = [pd.DataFrame(columns=["file_digest", "pixel_digest", "patient"])]
    for name, arm in config.arms.items():
        if arm.weights is None or not arm.weights.startswith("study:"):
            continue
        folder = Path(arm.weights.removeprefix("study:")).expanduser()
        before = images_of_study(folder)
        again = facts["file_digest"].isin(before["file_digest"]) | facts["pixel_digest"].isin(
            before["pixel_digest"].dropna()
        )
        if again.any():
            raise LeakageError(
                f"arms.{name}: {int(again.sum())} of {len(facts)} images of {cohort.root} belong "
                f"to the study in {folder}, whose weights "
                f"this arm starts from (first: {facts.loc[again, 'image'].iloc[0]}). Leave them "
                "out, or use other weights."
            )
        shared = (
            sorted(set(cohort.images["patient"].astype(str)) & set(before["patient"].dropna()))
            if cohort.patients_known
            else []
        )
        if shared:
            reporter.say(
                f"arms.{name}: {len(shared)} patient ids occur here and in the study in {folder} "
                f"(first: {shared[0]}). Where they are the "
                "same people, its weights know them, and the figures are too high."
            )
        seen.append(before)
    return pd.concat(seen, ignore_index=True).drop_duplicates()


def refuse_unreadable(facts: pd.DataFrame, cohort: Cohort) -> None:
    """Stops where images cannot be read, with all of them and their reasons."""
    bad = facts[facts["error"] != ""]
    if len(bad):
        faults = [
            f"{image}: {error}" for image, error in zip(bad["image"], bad["error"], strict=True)
        ]
        remedy = (
            "Correct or remove them, or set cohort.skip_unreadable=true to leave them out and have "
            "them listed in the report."
        )
        raise CohortError(
            list_faults(
                f"{cohort.root}: {len(bad)} of {len(cohort)} images cannot be read", faults, remedy
            )
        )


def _training_fingerprint(
    cohort: Cohort, facts: pd.DataFrame, split: Split, task: Task
) -> Fingerprint:
    """Fingerprint of the training part with the fewest patients of the kind that the plan depends
    on: the plan sees no test image.
    """
    prints = []
    for index in range(len(split)):
        part = cohort.images.iloc[split.fold(index).train].reset_index(drop=True)
        prints.append(make_fingerprint(replace(cohort, images=part), facts))
    return min(prints, key=lambda print_: task.fewest(print_.patients_per_class))


def _targets_of_parts(
    config: StudyConfig, cohort: Cohort, facts: pd.DataFrame, split: Split, task: Task
) -> list[NDArray[np.float32]]:
    """The targets of the training part of each fold, as the network sees them."""
    labels = cohort.images[list(cohort.labels)].to_numpy(np.float32)
    boxes, space = None, input_space(config.image, len(facts["shape"][0]))
    if task.finds_boxes:
        placements = place_images(fixed_of(config.image), facts)
        boxes = boxes_seen(boxes_on_grid(cohort, placements), placements, config.image.plane)
    targets = task.targets(labels, boxes, space)
    return [targets[split.fold(index).train] for index in range(len(split))]
