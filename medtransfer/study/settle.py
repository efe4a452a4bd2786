"""From a configuration to all that is settled before training: cohort, split, backbones, plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medtransfer.config.arm import Arm
from medtransfer.config.sections import CohortSection
from medtransfer.config.study_config import StudyConfig
from medtransfer.data.audit.audit import audit, tell_meaning
from medtransfer.data.audit.fingerprint import Fingerprint, make_fingerprint
from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.cohort.box_grid import boxes_on_grid, boxes_seen, place_images
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.laterality import allowed_changes
from medtransfer.data.cohort.split import Split, split_cohort
from medtransfer.data.grid.fixed import Fixed
from medtransfer.data.grid.settings import Augment
from medtransfer.data.grid.slices import Slices
from medtransfer.data.images.medmnist import is_archive
from medtransfer.data.images.windows import parse_window
from medtransfer.errors import CohortError, ConfigError, LeakageError, StudyError, list_faults
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.chain.backbone import Backbone, Recipe
from medtransfer.models.plan.plan import (
    CacheBudget,
    FreezePlan,
    fix_plan,
    plan_cache,
    refuse_random_prefix,
)
from medtransfer.models.plan.rules import Counts, plan_freeze
from medtransfer.models.plan.schedule import CYCLES
from medtransfer.models.weights.locate import published_recipe
from medtransfer.progress import Reporter
from medtransfer.study.record import (
    Prepared,
    images_of_study,
    read_plans,
    read_salt,
    refuse_edited_steps,
)
from medtransfer.tasks.detection import choose_finest
from medtransfer.training.settings import TrainSettings

# Fields of a plan that mean the same for arms with weights and without.
_OF_ALL_ARMS = ("dropout", "finest")


def fixed_of(config: StudyConfig) -> Fixed:
    """The fixed half of the transforms."""
    image = config.image
    return Fixed(
        image.size,
        parse_window(image.window),
        image.spacing,
        Slices(image.slices, image.slice_spacing, image.plane),
    )


def augment_of(config: StudyConfig, cohort: Cohort) -> Augment:
    """Which random changes the labels allow."""
    return allowed_changes(cohort, config.augment)


def load_arm(arm: Arm, size: int, seed: int) -> Backbone:
    """The backbone of an arm, with its weights."""
    recipe = None
    if arm.recipe is not None:
        recipe = Recipe(arm.recipe.mean, arm.recipe.std, published_recipe(arm.backbone).size)
    channels = arm.slab if arm.slab > 1 else arm.channels
    return load_backbone(arm.backbone, arm.weights, recipe, seed, channels, size)


def prepare(
    config: StudyConfig,
    cohort: Cohort | None,
    output: Path | None,
    reporter: Reporter,
    fixed: Fixed | None,
) -> Prepared:
    """All that is settled before training begins; nothing is written.

    Args:
        config: the study.
        cohort: its images; None: as the configuration says.
        output: folder of the study, whose edited plan and salt are taken up; None: of no study.
        reporter: progress.
        fixed: also fill the image cache with these transforms.

    Raises:
        ConfigError, CohortError, LeakageError, WeightsError: something does not fit.
    """
    protocol = config.protocol
    # The network first: a misspelt backbone is found in a second, before thousands of images are
    # read.
    backbones = {
        name: load_arm(arm, config.image.size, config.protocol.seeds[0])
        for name, arm in config.arms.items()
    }
    cohort = _with_kept_salt(config, cohort, output)
    if config.task == "detection":
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
    # A split that cannot be made is found now too, before thousands of images are read.
    split_cohort(cohort, protocol.folds, protocol.split_seed, protocol.tune, protocol.leave_out)
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
    facts = facts[facts["error"] == ""].reset_index(drop=True)
    seen = _refuse_images_seen_before(config, cohort, facts, reporter)
    if config.protocol.group == "cluster":
        used = set(cohort.images["image"])
        cohort = cohort.grouped(
            [(a, b) for a, b in findings.near_duplicates if a in used and b in used]
        )
    split = split_cohort(
        cohort, protocol.folds, protocol.split_seed, protocol.tune, protocol.leave_out
    )
    fingerprint = _training_fingerprint(cohort, facts, split)
    _require_dimensions(config, backbones, fingerprint.ndim)
    batch = batch_size(config.train, fingerprint.ndim, cohort.detects)
    finest = _choose_finest(config, cohort, facts, split) if cohort.detects else 0
    plans = {
        name: plan_arm(config, name, net, fingerprint, fingerprint.ndim, len(cohort), finest)
        for name, net in backbones.items()
    }
    edited = output / "plan.json" if output is not None else None
    if edited is not None and edited.is_file():
        plans = _take_up_edits(edited, config, plans, backbones, fingerprint.ndim, len(cohort))
    for name, backbone in backbones.items():
        refuse_random_prefix(backbone, plans[name])
        if config.plan.search and plans[name].tuned == "first":
            raise ConfigError(
                f"arms.{name}: plan.search looks for how many first stages to freeze, and "
                "plan.tuned=first freezes the last."
            )
    smallest = min(len(split.fold(index).train) for index in range(len(split)))
    batches = max(1, smallest // batch)
    plans = share_steps(plans, config, batches)
    if edited is not None and edited.is_file():
        refuse_edited_steps(edited, plans)
    return Prepared(config, cohort, facts, split, fingerprint, plans, backbones, findings, seen)


def _take_up_edits(
    path: Path,
    config: StudyConfig,
    plans: dict[str, FreezePlan],
    backbones: dict[str, Backbone],
    ndim: int,
    images: int,
) -> dict[str, FreezePlan]:
    """The plans with what was edited in `plan.json`; where a depth was edited and the views were
    not, these follow it.
    """
    cache, edited = cache_budget(config, ndim, images), {}
    for name, plan in read_plans(path, plans, backbones).items():
        by_hand = (
            config.plan.views is not None
            or config.arms[name].plan.views is not None
            or plan.views != plans[name].views
        )
        try:
            edited[name] = plan_cache(plan, backbones[name], images, cache, choose=not by_hand)
        except ConfigError as error:
            more = "Where an arm was added, it shares the cache; start another study with all arms."
            raise ConfigError(f"{path}: arm {name}: {error} {more}") from error
    return edited


def plan_arm(
    config: StudyConfig,
    name: str,
    backbone: Backbone,
    counts: Counts,
    ndim: int,
    images: int,
    finest: int = 0,
) -> FreezePlan:
    """The plan of an arm: from counts and architecture, with what is set by hand for all arms, then
    for this one.

    `images` are those of the whole cohort, whose folds share what is kept of frozen stages;
    `finest` as in `plan_freeze`.
    """
    own = config.arms[name].plan.model_dump(exclude_none=True)
    cache = cache_budget(config, ndim, images)
    shared = config.plan.by_hand()
    if (
        config.arms[name].kind == "features"
    ):  # nothing of it can be trained, whatever is set for all arms
        plan = plan_freeze(counts, backbone, cache=cache, strategy="linear_probe")
        why = (
            "Features by formula: a logistic regression, its penalty chosen on inner folds of "
            "the training patients."
        )
        return replace(plan, evidence="strong", reason=f"{why}{_left_as_planned(shared)}")
    try:
        plan = plan_freeze(
            counts,
            backbone,
            config.plan.domain,
            batch=batch_size(config.train, ndim, config.task == "detection"),
            cache=cache,
            **{"finest": finest, **shared, **own},
        )
        if plan.strategy != "scratch":
            return plan
        # Rates for all arms are those of pretrained stages, and so is what is frozen; what is set
        # for this arm alone must fit it.
        fields = {
            key: value
            for key, value in {**shared, **own}.items()
            if key in own or key in _OF_ALL_ARMS
        }
        plan = fix_plan(plan, backbone, **fields) if fields else plan
        idle = {key: value for key, value in shared.items() if key not in {*own, *_OF_ALL_ARMS}}
        return replace(plan, reason=plan.reason + _left_as_planned(idle))
    except ConfigError as error:
        raise ConfigError(f"arms.{name}: {error}") from error


def _left_as_planned(fields: Mapping[str, object]) -> str:
    """Which fields that are set for all arms are not for this one, in words; they can be set for it
    alone.
    """
    return (
        f" Set for arms with weights, and not for this one: {', '.join(sorted(fields))}."
        if fields
        else ""
    )


def cache_budget(config: StudyConfig, ndim: int, images: int) -> CacheBudget:
    """What the configuration leaves to the cached activations of each arm."""
    pretrained = sum(
        arm.weights is not None or arm.kind == "features" for arm in config.arms.values()
    )
    # A draw of a learning curve has a seed of its own, counted on from the first.
    curve, first = config.learning_curve, config.protocol.seeds[0]
    draws = range(first + 1, first + 1 + curve.episodes) if curve.sizes else ()
    slices, seeds = config.image.slices if ndim == 3 else 1, len({*config.protocol.seeds, *draws})
    return CacheBudget(
        config.train.cache_gb / max(1, pretrained), config.image.size, slices, images, seeds
    )


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


def load_cohort(
    section: CohortSection, salt: str | None = None, columns: Sequence[str] = ()
) -> Cohort:
    """The cohort that a configuration describes; ids from DICOM headers are hashed with the salt,
    `columns` of a manifest are kept.
    """
    outside = section.outside
    if section.boxes is not None and not section.labels and not section.classes:
        where = (
            section.root,
            section.boxes,
            section.manifest,
            section.kinds,
            section.patient,
            section.unnamed,
            section.parts,
        )
        return Cohort.from_boxes(*where, salt, columns, section.axes, outside)
    if section.manifest is not None and is_archive(section.manifest):
        cohort = Cohort.from_medmnist(section.manifest, section.positive)
    elif section.manifest is not None:
        cohort = Cohort.from_csv(
            section.manifest, section.root, section.labels, section.positive, salt, columns, outside
        )
    else:
        cohort = Cohort.from_folders(section.root, section.classes, section.positive, salt, outside)
    return (
        cohort.with_boxes(section.boxes, section.kinds, section.axes)
        if section.boxes is not None
        else cohort
    )


def _with_kept_salt(config: StudyConfig, cohort: Cohort | None, output: Path | None) -> Cohort:
    """A study that goes on calls its patients as it did before."""
    section, left_out = config.cohort, config.protocol.leave_out
    columns = tuple(dict.fromkeys((*config.evaluate.subgroups, *([left_out] if left_out else []))))
    kept = read_salt(output) if output is not None else None
    if cohort is None:
        return load_cohort(section, kept, columns)
    if kept is None or cohort.salt in {"", kept}:
        return cohort
    again = load_cohort(section, kept, columns)
    missing = sorted(set(again.images["image"]) - set(cohort.images["image"]))
    again = again.without(missing) if missing else again
    known = ["image", *cohort.labels]
    if again.labels != cohort.labels or not again.images[known].equals(cohort.images[known]):
        raise StudyError(f"{output}: was made with other images or labels. Choose another output.")
    return again


def refuse_unreadable(facts: pd.DataFrame, cohort: Cohort) -> None:
    """Stops where images cannot be read, with all of them and their reasons."""
    bad = facts[facts["error"] != ""]
    if len(bad):
        faults = [
            f"{image}: {error}" for image, error in zip(bad["image"], bad["error"], strict=True)
        ]
        remedy = (
            "Mend or remove them, or set cohort.skip_unreadable=true to leave them out and have "
            "them listed in the report."
        )
        raise CohortError(
            list_faults(
                f"{cohort.root}: {len(bad)} of {len(cohort)} images cannot be read", faults, remedy
            )
        )


def _training_fingerprint(cohort: Cohort, facts: pd.DataFrame, split: Split) -> Fingerprint:
    """Fingerprint of the training part with the fewest patients in its smaller class: the plan sees
    no test image.
    """
    prints = []
    for index in range(len(split)):
        part = cohort.images.iloc[split.fold(index).train].reset_index(drop=True)
        inside = replace(cohort, images=part)
        prints.append(make_fingerprint(inside, facts))
    return min(
        prints,
        key=lambda print_: (
            print_.patients_per_class["1"] if cohort.detects else print_.smallest_class
        ),
    )


def _choose_finest(config: StudyConfig, cohort: Cohort, facts: pd.DataFrame, split: Split) -> int:
    """Stride of the finest level of a detector, the same in all folds: the least that a training
    part asks for.
    """
    placements = place_images(fixed_of(config), facts)
    seen = boxes_seen(boxes_on_grid(cohort, placements), placements, config.image.plane)
    return min(choose_finest(seen[split.fold(index).train]) for index in range(len(split)))


def batch_size(train: TrainSettings, ndim: int, detects: bool = False) -> int:
    """Images, or volumes, at a step of training."""
    return train.batch_size or ((8 if ndim == 2 else 2) if detects else (32 if ndim == 2 else 8))


def share_steps(
    plans: dict[str, FreezePlan], config: StudyConfig, batches: int, draws: bool = False
) -> dict[str, FreezePlan]:
    """The plans with one budget, times that of each arm: the one that is set, or the longest any of
    them asks for.

    `batches` are those of an epoch; `draws` of a learning curve have their own budget, and end with
    it.
    """
    longest = max(plan.steps for plan in plans.values())
    shared: dict[str, FreezePlan] = {}
    for name, plan in plans.items():
        shared[name] = plan
        if plan.strategy == "linear_probe":
            if config.arms[name].budget not in {None, 1}:
                shared[name] = replace(
                    plan,
                    reason=f"{plan.reason} A linear probe has no budget, so that the one set is "
                    "not used.",
                )
        else:
            arm = config.arms[name]
            train = train_of(config, name, draws)
            steps = (
                max(1, round(longest * arm.times))
                if train.epochs is None
                else train.epochs * batches
            )
            reason = (
                plan.reason
                if arm.times == 1
                else f"{plan.reason} Its budget is {arm.times:g} times that of the study."
            )
            level = arm.level and not draws
            if level:
                reason += (
                    " Training goes on until the tune loss has levelled off, at most "
                    f"{CYCLES[-1]} times the budget."
                )
            shared[name] = replace(plan, steps=steps, reason=reason, level=level)
    return shared


def train_of(config: StudyConfig, arm: str, draws: bool = False) -> TrainSettings:
    """The training of an arm, whose epochs are its budget times those of the study; steps that are
    set for draws come before epochs.
    """
    epochs = None if draws and config.learning_curve.steps else config.train.epochs
    return config.train.model_copy(
        update={"epochs": epochs and max(1, round(epochs * config.arms[arm].times))}
    )


def count_steps(plan: FreezePlan, train: TrainSettings, batches: int) -> int:
    """Optimiser steps of a plan, where an epoch has so many batches."""
    if plan.strategy == "linear_probe":
        return 0
    return train.epochs * batches if train.epochs is not None else plan.steps
