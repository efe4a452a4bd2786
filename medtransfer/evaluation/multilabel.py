"""Several labels at once: their mean, and what is particular to classes that exclude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from medtransfer.errors import PredictionsError
from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import influence
from medtransfer.evaluation.comparison import Contestant, compare_arms
from medtransfer.evaluation.influence import Estimate
from medtransfer.evaluation.resample import Drawn, Draws, make_drawn
from medtransfer.evaluation.scores import Scores
from medtransfer.evaluation.spread import between
from medtransfer.evaluation.summary import WIDEST, Evaluated, Measured

Float = NDArray[np.float64]
# Probabilities of the classes of an image add up to 1 within this; beyond it they are labels that stand for themselves.
_TOLERANCE = 1e-3


def exclude_each_other(table: pd.DataFrame) -> bool:
    """Whether the labels are classes: of every image one is 1, and their probabilities add up to 1."""
    labels = table["label"].nunique()
    sums = table.groupby(["arm", "seed", "fold", "part", "image"], sort=False).agg(
        targets=("target", "sum"), total=("probability", "sum"), rows=("label", "size")
    )
    alike = (sums["targets"] == 1) & (np.abs(sums["total"] - 1) < _TOLERANCE) & (sums["rows"] == labels)
    return labels > 1 and bool(alike.all())


def refuse_class_names(table: pd.DataFrame) -> None:
    """The name of an image's class in place of the name of a label would make a label of every class.

    Raises:
        PredictionsError: every image has one label, and every label one target.
    """
    one = table.groupby(["arm", "seed", "fold", "part", "image"], sort=False)["label"].nunique().max() == 1
    if one and table.groupby("label")["target"].nunique().max() == 1:
        raise PredictionsError(
            f"column label holds the class of each image ({', '.join(list(dict.fromkeys(table['label']))[:4])}). It names what is "
            "predicted; remove it, as target already says which class is the true one."
        )


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over labels (macro average); its degrees of freedom are those of the rarest label."""
    count = len(estimates)
    combined = [
        sum((getattr(e, side) for e in estimates), np.zeros_like(estimates[0].positive)) / count for side in ("positive", "negative")
    ]
    # A patient may be positive for one label and negative for another; what he adds is one number.
    whole = combined[0] + combined[1]
    members = min((e.members for e in estimates), key=lambda m: min(m[:2]))
    by_seed = np.mean([e.by_seed for e in estimates], axis=0)
    rarest = min(members[:2])
    return replace(
        estimates[0],
        value=float(np.mean([e.value for e in estimates])),
        positive=whole,
        negative=np.zeros_like(whole),
        members=(rarest, rarest, members[2]),
        by_seed=by_seed,
        between=between(by_seed),
    )


def one_against_one(scores: dict[str, Scores], draws: Draws) -> Estimate:
    """Mean AUC over all pairs of classes (Hand & Till 2001, doi:10.1023/A:1010920819831), which prevalence does not move.

    Args:
        scores: by class, of one arm: target 1 where an image is of the class, over the same images.
        draws: names the patients.
    """
    pairs = []
    for a, b in combinations(scores, 2):
        for own, other in ((a, b), (b, a)):
            s = scores[own]
            inside = (s.target == 1) | (scores[other].target == 1)
            codes = draws.codes(s.patients[inside])
            pairs.append(
                influence.estimate(s.logit[:, inside], s.target[inside], s.weight[inside], codes, len(draws.patients), influence.auc)
            )
    return mean_estimate(pairs)


def recalibrate_classes(table: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]] | None:
    """Vector scaling of every arm, seed and fold on its tune rows (Guo et al. 2017, arXiv:1706.04599): softmax(w z + b).

    z are the logarithms of the class probabilities; log w ~ Normal(0, 1) and b ~ Normal(0, 2), so that few rows leave them near 1 and 0.

    Returns:
        The table with new probabilities and logits, and the parameters; None unless every class is among the tune rows of each.
    """
    labels = list(dict.fromkeys(table["label"]))
    parts, maps = [], []
    for cell, rows in table.groupby(["arm", "seed", "fold"], sort=False):
        tune = rows[rows["part"] == "tune"]
        if set(tune.loc[tune["target"] == 1, "label"]) != set(labels):
            return None
        z, truth, _ = _wide(tune, labels)
        factors, shifts = _fit_vector(z, truth)
        for _, own in rows.groupby("part", sort=False):
            z, _, order = _wide(own, labels)
            new = log_softmax(z * factors + shifts, axis=1)
            others = np.stack([logsumexp(np.delete(new, i, axis=1), axis=1) for i in range(len(labels))], axis=1)
            flat = pd.DataFrame(
                {
                    "image": np.repeat(order, len(labels)),
                    "label": np.tile(labels, len(order)),
                    "probability": np.exp(new).ravel(),
                    "logit": (new - others).ravel(),
                }
            )
            parts.append(own.drop(columns=["probability", "logit"]).merge(flat, on=["image", "label"], validate="one_to_one"))
        named = {f"factor_{label}": float(f) for label, f in zip(labels, factors, strict=True)}
        named |= {f"shift_{label}": float(s) for label, s in zip(labels, shifts, strict=True)}
        maps.append({**dict(zip(("arm", "seed", "fold"), cell, strict=True)), **named})
    return pd.concat(parts, ignore_index=True)[table.columns], maps


def _wide(rows: pd.DataFrame, labels: list[str]) -> tuple[Float, NDArray[np.int64], NDArray[np.object_]]:
    """(image, class) log-probabilities, (image,) class, and the images."""
    wide = rows.pivot_table(index="image", columns="label", values="logit", aggfunc="first")[labels]
    truth = rows.pivot_table(index="image", columns="label", values="target", aggfunc="first")[labels].to_numpy().argmax(1)
    # From one-against-rest logits, which keep what probabilities near 0 and 1 round away.
    log_p = -np.logaddexp(0.0, -wide.to_numpy(np.float64))
    return log_softmax(log_p, axis=1), truth, wide.index.to_numpy(object)


def _fit_vector(z: Float, truth: NDArray[np.int64]) -> tuple[Float, Float]:
    classes = z.shape[1]

    def loss(values: Float) -> float:
        new = log_softmax(z * np.exp(np.clip(values[:classes], -8, 8)) + values[classes:], axis=1)
        prior = 0.5 * float(np.square(values[:classes]).sum()) + 0.125 * float(np.square(values[classes:]).sum())
        return -float(new[np.arange(len(z)), truth].sum()) + prior

    found = minimize(loss, np.zeros(2 * classes), method="BFGS", options={"gtol": 1e-7}).x
    return np.exp(np.clip(found[:classes], -8, 8)), found[classes:]


def summarise_labels(
    parts: dict[str, Evaluated], exclusive: bool, draws: Draws, maps: list[dict[str, Any]] | None, margin: float | None
) -> dict[str, Any]:
    """The report of several labels: every label whole under `labels`, and under `arms` the means over labels."""
    first = next(iter(parts.values()))
    arms: dict[str, Any] = {}
    contestants = []
    for index, measured in enumerate(first.raw):
        name = measured.scores.arm
        raw = [part.raw[index] for part in parts.values()]
        found, drawn, entry = _mean_entry(raw)
        if exclusive:
            scores = {label: m.scores for label, m in zip(parts, raw, strict=True)}
            entry["auc_one_against_one"] = one_against_one(scores, draws).interval("logit")
            entry["accuracy"] = _accuracy(list(scores.values()))
        after = [part.recalibrated[index] for part in parts.values()]
        entry["recalibrated"] = None
        if all(one is not None for one in after):
            again = _mean_entry([one for one in after if one is not None])[2]
            entry["recalibrated"] = {**again, "method": "vector" if exclusive else "by label", "chosen": "", "maps": []}
            if maps is not None:
                entry["recalibrated"]["maps"] = [m for m in maps if m["arm"] == name]
        without = [label for label, m in zip(parts, raw, strict=True) if not np.isfinite(m.found["auc"].value)]
        if without:
            entry["auc"]["reason"] = f"not estimable: the test rows of {', '.join(without)} lack a class"
        contestants.append(Contestant(name, len(measured.scores.seeds), found, drawn))
        arms[name] = entry
    kind = "classes that exclude each other" if exclusive else "labels that stand for themselves"
    shared = {key: first.data[key] for key in ("unit", "bootstrap", "seed", "few_draws", "settings")}
    warnings = [f"{label}: {text}" for label, part in parts.items() for text in part.data["warnings"]]
    return {
        "label": f"{len(parts)} {kind}: {', '.join(parts)}",
        "images": max(part.data["images"] for part in parts.values()),
        "positive_images": {label: part.data["positive_images"] for label, part in parts.items()},
        "patients": len(draws.patients),
        "prevalence": {label: part.data["prevalence"] for label, part in parts.items()},
        **shared,
        "arms": arms,
        "comparisons": compare_arms(contestants, margin),
        "labels": {label: part.data for label, part in parts.items()},
        "warnings": [f"Figures are means over {len(parts)} labels, each with its own below.", *dict.fromkeys(warnings)],
    }


def _mean_entry(measured: Sequence[Measured]) -> tuple[dict[str, Estimate], dict[str, Drawn], dict[str, Any]]:
    found = {name: mean_estimate([m.found[name] for m in measured]) for name in measured[0].found}
    names = ("auc", "partial_auc", "average_precision", "ece", "l2_ece")
    drawn = {
        name: make_drawn(np.mean([m.drawn[name].by_seed for m in measured], 0), np.mean([m.drawn[name].draws for m in measured], 0))
        for name in names
    }
    entry = {
        "auc": {
            **found["auc"].interval("logit"),
            "method": "mean over labels, one against the rest; over patients" + (" and seeds" if found["auc"].between else ""),
        },
        "partial_auc": drawn["partial_auc"].interval(greatest=1.0),
        "average_precision": drawn["average_precision"].interval(least=0.0, greatest=1.0),
        "brier": found["brier"].interval(least=0.0, greatest=1.0),
        "brier_skill": found["brier_skill"].interval(greatest=1.0),
        "log_loss": found["log_loss"].interval(least=0.0),
        "ece": drawn["ece"].interval(recentre=True, greatest=1.0),
        "l2_ece": drawn["l2_ece"].interval(recentre=True, greatest=1.0),
        "calibration": {
            "intercept": found["intercept"].interval(widest=WIDEST),
            "slope": found["slope"].interval(widest=WIDEST),
            "observed_expected": found["observed_expected"].interval("log"),
        },
        "trust": None,  # said of every label
    }
    return found, {name: drawn[name] for name in ("auc", "partial_auc", "average_precision")}, entry


def _accuracy(scores: Sequence[Scores]) -> dict[str, Any]:
    """Share of images whose most probable class is the true one, its mean over the classes, and the ECE of the most probable class."""
    logits, truth = np.stack([s.logit for s in scores]), np.stack([s.target for s in scores]).argmax(0)
    right = logits.argmax(0) == truth
    by_class = [float(right[:, truth == c].mean()) for c in range(len(scores)) if (truth == c).any()]
    return {"share": float(right.mean()), "balanced": float(np.mean(by_class)), "confidence_ece": _confidence_ece(logits.max(0), right)}


def _confidence_ece(logit: Float, right: NDArray[np.bool_]) -> float:
    """ECE of the most probable class against whether it is the true one (Guo et al. 2017, arXiv:1706.04599), over equal-mass bins."""
    ones, error = np.ones((1, logit.shape[1])), cal.binned_metric(cal.weighted_ece)
    return float(np.mean([error(z, hit.astype(float), ones)[0] for z, hit in zip(logit, right, strict=True)]))
