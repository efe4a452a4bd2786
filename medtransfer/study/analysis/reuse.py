"""What a finished study reused of the pretrained weights: `reuse.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import numpy as np

from medtransfer.inference.model import TrainedModel
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import LinearHead
from medtransfer.progress import Reporter
from medtransfer.study.recorded import Recorded
from medtransfer.study.settle import load_arm
from medtransfer.training.batches import Loader
from medtransfer.training.reuse import compare_stages, distances, reset_robustness

# Tune images that are looked at in each fold.
_IMAGES = 200
# Of p-values corrected for the number of comparisons.
_LEVEL = 0.05


def write_reuse(
    study: Recorded, comparisons: Sequence[Mapping[str, Any]], reporter: Reporter
) -> None:
    """Measures on the tune images, for the first seed of every fold, and writes means over folds.

    `arms`: per fine-tuned arm and stage, CKA with the pretrained network, the way its weights moved
    as a share of their length, and the AUC when the stage alone is set back. `pairs`: CKA of a
    pretrained and a scratch arm of one architecture. `flags`: negative transfer, in words; these
    follow from the comparisons, whatever `report.reuse` says.

    Raises:
        WeightsError: a model or the pretrained weights of an arm are not to be had any more.
    """
    folder, config = study.folder, study.config
    keys = sorted(run["key"] for arm in config.arms for run in folder.summaries_of(arm))
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()
    measured = folder.read(folder.reuse)
    if measured.get("key") != digest:
        measured = {}
    if not measured and config.report.reuse:
        reporter.say("measuring what was reused of the pretrained weights")
        arms = {arm: values for arm in config.arms if (values := _measure_arm(study, arm))}
        measured = {
            "key": digest,
            "part": "tune",
            "seed": config.protocol.seeds[0],
            "arms": arms,
            "pairs": _measure_pairs(study),
        }
    folder.write(folder.reuse, {**measured, "flags": flag_negative_transfer(study, comparisons)})


def flag_negative_transfer(study: Recorded, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where an interval says that transfer, or freezing more of it, did harm."""
    arms, flags = study.config.arms, []
    plans = study.folder.read(study.folder.plan).get("arms", {})
    for comparison in comparisons:
        for worse, better, sign in (
            (comparison["a"], comparison["b"], 1),
            (comparison["b"], comparison["a"], -1),
        ):
            delta = comparison["delta_auc"]
            if delta["low"] is None or max(sign * delta["low"], sign * delta["high"]) >= 0:
                continue
            if delta["p_holm"] is None or delta["p_holm"] >= _LEVEL:
                continue  # among so many comparisons it may be chance, as the verdict says
            if arms[worse].times < arms[better].times:
                continue  # it was trained less
            low, high = sorted(abs(delta[key]) for key in ("low", "high"))
            budget = " at the same budget" if comparison.get("at_budget") else ""
            by = f"lower by {abs(delta['estimate']):.3f} ({low:.3f} to {high:.3f}){budget}"
            if (
                arms[worse].weights is not None
                and arms[better].weights is None
                and arms[better].kind == "network"
            ):
                flags.append(
                    f"Negative transfer: the AUC of {worse}, which is pretrained, is {by} than "
                    f"that of {better}, from scratch."
                )
            same = (
                arms[worse].backbone == arms[better].backbone
                and arms[worse].weights == arms[better].weights is not None
            )
            planned = not study.config.plan.search and {
                plans[worse]["tuned"],
                plans[better]["tuned"],
            } == {"last"}
            if same and planned and plans[worse]["frozen_stages"] > plans[better]["frozen_stages"]:
                flags.append(
                    f"Frozen too deep: the AUC of {worse}, {plans[worse]['frozen_stages']} stages "
                    f"frozen, is {by} than that of {better} with "
                    f"{plans[better]['frozen_stages']}."
                )
    return flags


def _measure_arm(study: Recorded, arm: str) -> dict[str, Any]:
    """Means over the folds in which a pretrained arm was fine-tuned; empty where it never was."""
    section, seed = study.config.arms[arm], study.config.protocol.seeds[0]
    if section.weights is None:
        return {}
    rows: list[Any] = []
    pretrained: Backbone | None = None
    for fold in study.folds:
        model = study.open(arm, fold, seed)
        plan = model.description.plan
        if plan.strategy != "lp_ft":
            continue
        if pretrained is None:
            pretrained = load_arm(section, study.config.image.size, seed)
        before, after = deepcopy(pretrained), model.backbone
        before.truncate(plan.dropped_stages)
        batches, head = _tune_batches(study, model, fold), cast(LinearHead, model.head)
        trained, reset = reset_robustness(
            before, after, head, model.description.task, batches, model.engine
        )
        alike = compare_stages(before, after, batches, model.engine)
        rows.append((after.names, alike, distances(before, after), reset, trained))
    # Folds whose search cut off stages have fewer; what all of them have is averaged.
    fewest = min((len(row[0]) for row in rows), default=0)
    if not fewest:
        return {}
    means = [
        np.mean([row[column][:fewest] for row in rows], axis=0).tolist() for column in (1, 2, 3)
    ]
    names = ("cka", "moved", "reset_auc")
    return {
        "stages": rows[0][0][:fewest],
        "folds": len(rows),
        **dict(zip(names, means, strict=True)),
        "auc": float(np.mean([row[4] for row in rows])),
    }


def _measure_pairs(study: Recorded) -> list[dict[str, Any]]:
    """CKA of every pretrained arm with every scratch arm of its architecture and channels, mean
    over folds.
    """
    arms, seed, pairs = study.config.arms, study.config.protocol.seeds[0], []
    recorded = study.folder.read(study.folder.environment)["arms"]
    for a, transfer in arms.items():
        for b, scratch in arms.items():
            alike = (
                transfer.backbone == scratch.backbone
                and recorded[a]["recipe"]["mean"] == recorded[b]["recipe"]["mean"]
            )
            if transfer.weights is None or scratch.weights is not None or not alike:
                continue
            values = []
            for fold in study.folds:
                first, second = (study.open(arm, fold, seed) for arm in (a, b))
                second.backbone.truncate(len(second.backbone.stages) - len(first.backbone.stages))
                batches = _tune_batches(study, first, fold)
                values.append(
                    compare_stages(first.backbone, second.backbone, batches, first.engine)
                )
            fewest = min(map(len, values))
            means = np.mean([row[:fewest] for row in values], axis=0).tolist()
            pairs.append({"a": a, "b": b, "stages": recorded[a]["stages"][:fewest], "cka": means})
    return pairs


def _tune_batches(study: Recorded, model: TrainedModel, fold: int) -> Loader:
    """Some tune images of a fold, with their labels."""
    images = study.part(fold, "tune")
    if len(images) > _IMAGES:
        drawn = np.sort(np.random.default_rng(fold).permutation(len(images))[:_IMAGES])
        images = [images[place] for place in drawn]
    labels = study.images.set_index("image").loc[images, list(model.labels)]
    entries = [study.entries[image] for image in images]
    return model.batches(model.source(entries, labels.to_numpy(np.float32)))
