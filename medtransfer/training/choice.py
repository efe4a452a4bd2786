"""What a search for the depth saw, what it chose, and why, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.evaluation.metrics.discrimination import auc_within
from medtransfer.evaluation.metrics.recalibration import fit_map, log_losses
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.plan.overrides import fix_plan
from medtransfer.models.plan.plan import FreezePlan

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Folds = list[tuple[Int, Int]]


@dataclass(frozen=True)
class StageProbe:
    """How well a linear head on one stage tells held-out images apart.

    Attributes:
        stage: its name.
        auc: of out-of-fold scores, pairs within a fold, mean over folds and repeats.
        log_loss: per patient, in nats. `error`: its standard error over patients.
    """

    stage: str
    auc: float
    log_loss: float
    error: float


@dataclass(frozen=True)
class Trial:
    """A short training at one depth.

    Attributes:
        frozen_stages, dropped_stages: the depth.
        why: how it came to be tried.
        auc: of out-of-fold scores, pairs within a fold. log_loss: of these scores, at a temperature
            from the other folds.
        gain: log-loss per patient won over the prior; `error`: its standard error, paired. 0 for
            the prior.
    """

    frozen_stages: int
    dropped_stages: int
    why: str
    auc: float
    log_loss: float
    gain: float
    error: float


@dataclass(frozen=True)
class Depth:
    """A depth that is tried.

    Attributes:
        frozen: stages that stay as they are.
        dropped: last stages that are cut off.
        why: how it came to be tried.
    """

    frozen: int
    dropped: int
    why: str


@dataclass(frozen=True)
class DepthChoice:
    """What the search saw and chose.

    Attributes:
        probes: stage by stage.
        trials: the prior first. Empty where there are too few patients.
        chosen: index of the trial chosen.
        optimism: by how much the log-loss of the chosen trial is too low because it was chosen
            (Tibshirani & Tibshirani 2009, doi:10.1214/08-AOAS224).
        steps: of each trial.
        reason: in words.
        seconds: that the search took.
    """

    probes: tuple[StageProbe, ...]
    trials: tuple[Trial, ...]
    chosen: int
    optimism: float
    steps: int
    reason: str
    seconds: float

    @property
    def overridden(self) -> bool:
        """Whether the data overrode the prior."""
        return self.chosen > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "overridden": self.overridden}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DepthChoice:
        """What `to_dict` gave."""
        rest = {key: values[key] for key in ("chosen", "optimism", "steps", "reason", "seconds")}
        return cls(
            tuple(StageProbe(**row) for row in values["probes"]),
            tuple(Trial(**row) for row in values["trials"]),
            **rest,
        )


def apply_choice(
    plan: FreezePlan, backbone: Backbone, choice: DepthChoice, steps: int
) -> FreezePlan:
    """The plan at the depth chosen, with the reason; `steps` where the plan was a probe and is not
    any more.
    """
    if not choice.overridden:
        return replace(plan, reason=f"{plan.reason} {choice.reason}")
    trial = choice.trials[choice.chosen]
    # Activations are kept for a cut that is not the plan's any more.
    freed = replace(plan, views=0, cache_cut="", bytes_per_image=0)
    deeper = fix_plan(
        freed, backbone, frozen_stages=trial.frozen_stages, dropped_stages=trial.dropped_stages
    )
    return replace(
        deeper,
        reason=f"{plan.reason} {choice.reason}",
        steps=(plan.steps or steps) if deeper.strategy == "lp_ft" else 0,
    )


def unit_means(values: Float, units: Int) -> Float:
    """Mean per unit, in the order of their numbers; NaN is left out."""
    codes = np.unique(units, return_inverse=True)[1]
    valid = ~np.isnan(values)
    total = np.bincount(codes[valid], values[valid])
    result: Float = total / np.bincount(codes[valid])
    return result


def choose_depth(
    probes: tuple[StageProbe, ...],
    shallowest: int,
    depths: Sequence[Depth],
    logits: Sequence[Float],
    labels: Int,
    units: Int,
    folds: Folds,
    steps: int,
) -> DepthChoice:
    """Compares trials per patient, at temperatures of the other folds; the prior, the first of
    them, stays unless one gains enough.

    Args:
        probes: of the stages.
        shallowest: number of the first stage within one standard error of the best.
        depths: of the trials, the prior first.
        logits: out-of-fold scores (image,) of each trial.
        labels: (image,), 0 or 1.
        units: (image,), number of the patient.
        folds: of the trials.
        steps: of each trial, for the record.

    Returns:
        The choice; its `seconds` are left for the caller to fill in.
    """
    tested = ~np.isnan(logits[0])
    (model,) = number_folds(folds, len(labels))
    losses = [tempered_losses(scores, labels, folds) for scores in logits]
    per_unit = [unit_means(loss, units) for loss in losses]
    trials = []
    for depth, scores, loss in zip(depths, logits, per_unit, strict=True):
        difference = per_unit[0] - loss
        error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
        auc = auc_within(scores[tested], labels[tested], model[tested])
        trials.append(
            Trial(
                depth.frozen,
                depth.dropped,
                depth.why,
                auc,
                float(loss.mean()),
                float(difference.mean()),
                error,
            )
        )
    better = [i for i in range(1, len(trials)) if trials[i].gain > trials[i].error]
    best = max(better, key=lambda i: trials[i].gain, default=0)
    by_fold = np.array(
        [[float(np.mean(loss[held_out])) for _, held_out in folds] for loss in losses]
    )
    optimism = float(np.mean(by_fold[best] - by_fold.min(axis=0)))
    share = float(labels.mean())
    chance = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    reason = _explain(probes, shallowest, trials, best, optimism, len(np.unique(units)), chance)
    return DepthChoice(probes, tuple(trials), best, optimism, steps, reason, 0.0)


def number_folds(folds: Folds, count: int, repeats: int = 1) -> Int:
    """(repeat, image), number of the fold in which each image was held out, for the first time, the
    second, and so on.
    """
    numbers, times = np.zeros((repeats, count), np.int64), np.zeros(count, np.int64)
    for number, (_, held_out) in enumerate(folds):
        numbers[times[held_out], held_out] = number
        times[held_out] += 1
    return numbers


def tempered_losses(logits: Float, labels: Int, folds: Folds) -> Float:
    """Log-loss of each image at the temperature of the other folds, so that over-confidence, which
    goes away later, does not count.
    """
    losses = np.full(len(labels), np.nan)
    for _, held_out in folds:
        others = np.setdiff1d(np.flatnonzero(~np.isnan(logits)), held_out)
        scores = logits[held_out]
        if len(set(labels[others])) == 2:
            scores = fit_map("temperature", logits[others], labels[others]).apply(scores)
        losses[held_out] = log_losses(scores, labels[held_out])
    return losses


def _explain(
    probes: Sequence[StageProbe],
    shallowest: int,
    trials: Sequence[Trial],
    choice: int,
    optimism: float,
    patients: int,
    chance: float,
) -> str:
    best = min(probes, key=lambda probe: probe.log_loss)
    place = (shallowest + 1) / len(probes)
    kind = (
        "early, as texture and edges do"
        if place <= 1 / 3
        else "only late, as composed shapes do"
        if place > 2 / 3
        else "in the middle of the network"
    )
    if best.log_loss + best.error >= chance:
        finding = f"none is clearly better than chance ({chance:.3f})"
    else:
        finding = f"what tells the classes apart shows {kind}"
    by_stage = (
        f"Linear heads on each of {len(probes)} stages, on {patients} patients held out in turn: "
        f"the best is {best.stage} "
        f"(log-loss {best.log_loss:.3f}), and {probes[shallowest].stage} is the first within one "
        f"standard error ({best.error:.3f}) of it; "
        f"{finding}."
    )
    trial = trials[choice]
    depth = f"{trial.frozen_stages} stages frozen" + (
        f", {trial.dropped_stages} cut off" if trial.dropped_stages else ""
    )
    if choice:
        decision = (
            f"Chosen: {depth} ({trial.why}), which gains {trial.gain:.3f} in log-loss per patient "
            f"(standard error {trial.error:.3f})."
        )
    elif len(trials) > 1:
        nearest = max(trials[1:], key=lambda t: t.gain)
        decision = (
            f"The plan stays ({depth}): of {len(trials) - 1} other depth(s) none gained more than "
            "its standard error "
            f"(the best {nearest.gain:+.3f}, standard error {nearest.error:.3f})."
        )
    else:
        decision = f"The plan stays ({depth}): the probes suggest no other depth."
    return (
        f"{by_stage} {decision} The score by which it was chosen is too good by about "
        f"{optimism:.3f}, and is no measure of performance."
    )
