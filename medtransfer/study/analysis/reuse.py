"""What a finished study reused of the pretrained weights: `reuse.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medtransfer.files import write_aside
from medtransfer.progress import Reporter
from medtransfer.study.record import Prepared
from medtransfer.study.views import backbone_of, images_of, load_run, task_of
from medtransfer.training.device import Engine
from medtransfer.training.reuse import compare_stages, distances, reset_robustness

# Tune images that are looked at in each fold.
_IMAGES = 200
# Of p-values corrected for the number of comparisons.
_LEVEL = 0.05


def write_reuse(
    prepared: Prepared,
    engines: Mapping[str, Engine],
    output: Path,
    comparisons: Sequence[Mapping[str, Any]],
    reporter: Reporter,
) -> None:
    """Measures on the tune images, for the first seed of every fold, and writes means over folds.

    `arms`: per fine-tuned arm and stage, CKA with the pretrained network, the way its weights moved
    as a share of their length, and the AUC when the stage alone is set back. `pairs`: CKA of a
    pretrained and a scratch arm of one architecture. `flags`: negative transfer, in words; these
    follow from the comparisons, whatever `report.reuse` says.
    """
    keys = sorted(
        json.loads(path.read_text(encoding="utf-8"))["key"]
        for path in output.glob("runs/*/fold-*/seed-*/run.json")
    )
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()
    kept = _read(output / "reuse.json")
    if kept.get("key") != digest:
        kept = {}
    if not kept and prepared.config.report.reuse:
        reporter.say("measuring what was reused of the pretrained weights")
        seed = prepared.config.protocol.seeds[0]
        arms = {
            arm: found
            for arm in prepared.config.arms
            if (found := _measure_arm(prepared, engines[arm], output, arm, seed))
        }
        kept = {
            "key": digest,
            "part": "tune",
            "seed": seed,
            "arms": arms,
            "pairs": _measure_pairs(prepared, engines, output, seed),
        }
    content = {**kept, "flags": flag_negative_transfer(prepared, comparisons)}
    write_aside(output / "reuse.json", json.dumps(content, indent=1))


def flag_negative_transfer(
    prepared: Prepared, comparisons: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Where an interval says that transfer, or freezing more of it, did harm."""
    arms, plans, flags = prepared.config.arms, prepared.plans, []
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
            planned = not prepared.config.plan.search and {
                plans[worse].tuned,
                plans[better].tuned,
            } == {"last"}
            if same and planned and plans[worse].frozen_stages > plans[better].frozen_stages:
                flags.append(
                    f"Frozen too deep: the AUC of {worse}, {plans[worse].frozen_stages} stages "
                    f"frozen, is {by} than that of {better} with "
                    f"{plans[better].frozen_stages}."
                )
    return flags


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _measure_arm(
    prepared: Prepared, engine: Engine, output: Path, arm: str, seed: int
) -> dict[str, Any]:
    """Means over the folds in which a pretrained arm was fine-tuned; empty where it never was."""
    if prepared.config.arms[arm].weights is None:
        return {}
    images = images_of(prepared, arm)
    rows: list[Any] = []
    for index in range(len(prepared.split)):
        after, head, plan = load_run(prepared, output, arm, index, seed)
        if plan.strategy != "lp_ft":
            continue
        before = backbone_of(prepared, arm, seed)
        before.truncate(plan.dropped_stages)
        batches = images.plain(_tune_rows(prepared, index), after, engine)
        task = replace(task_of(prepared, arm), read=plan.read)
        trained, reset = reset_robustness(before, after, head, task, batches, engine)
        rows.append(
            (
                after.names,
                compare_stages(before, after, batches, engine),
                distances(before, after),
                reset,
                trained,
            )
        )
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


def _measure_pairs(
    prepared: Prepared, engines: Mapping[str, Engine], output: Path, seed: int
) -> list[dict[str, Any]]:
    """CKA of every pretrained arm with every scratch arm of its architecture and channels, mean
    over folds.
    """
    arms, found = prepared.config.arms, []
    for a, transfer in arms.items():
        for b, scratch in arms.items():
            alike = (
                transfer.backbone == scratch.backbone
                and prepared.backbones[a].recipe.mean == prepared.backbones[b].recipe.mean
            )
            if transfer.weights is None or scratch.weights is not None or not alike:
                continue
            values = []
            for index in range(len(prepared.split)):
                first, second = (load_run(prepared, output, arm, index, seed)[0] for arm in (a, b))
                second.truncate(len(second.stages) - len(first.stages))
                values.append(
                    compare_stages(
                        first,
                        second,
                        images_of(prepared, a).plain(
                            _tune_rows(prepared, index), first, engines[a]
                        ),
                        engines[a],
                    )
                )
            fewest = min(map(len, values))
            means = np.mean([row[:fewest] for row in values], axis=0).tolist()
            found.append(
                {"a": a, "b": b, "stages": prepared.backbones[a].names[:fewest], "cka": means}
            )
    return found


def _tune_rows(prepared: Prepared, index: int) -> Any:
    rows = prepared.split.fold(index).tune
    return (
        rows
        if len(rows) <= _IMAGES
        else np.sort(np.random.default_rng(index).permutation(rows)[:_IMAGES])
    )
