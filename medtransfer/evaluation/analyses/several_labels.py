"""Several labels at once: their mean, and what is particular to classes that exclude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from medtransfer.errors import PredictionsError
from medtransfer.evaluation.analyses.comparison import Contestant, compare_arms
from medtransfer.evaluation.analyses.one_arm import WIDEST, ArmMeasurements, LabelEvaluation
from medtransfer.evaluation.analyses.sites import BySite, put_over_sites
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.entries import NO_PROBABILITIES, interval_of, no_interval
from medtransfer.evaluation.intervals.estimate import Estimate, estimate
from medtransfer.evaluation.intervals.resample import DrawnMetric, make_drawn_metric
from medtransfer.evaluation.intervals.variance import Cells
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics import discrimination as dis
from medtransfer.evaluation.metrics.recalibration import FACTOR, SPREAD_OF_FACTOR, SPREAD_OF_SHIFT
from medtransfer.evaluation.settings import Settings
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores
from medtransfer.evaluation.tables.tuning import count_once, fit_shared

# Probabilities of the classes of an image add up to 1 within this; beyond it they are labels that
# stand for themselves.
_TOLERANCE = 1e-3


def exclude_each_other(table: pd.DataFrame) -> bool:
    """Whether the labels are classes: exactly one is 1 for every image, and their probabilities add
    up to 1.
    """
    labels = table["label"].nunique()
    sums = (
        table[table["part"] == "test"]
        .groupby(["arm", "seed", "fold", "image"], sort=False)
        .agg(targets=("target", "sum"), total=("probability", "sum"), rows=("label", "size"))
    )
    alike = (
        (sums["targets"] == 1) & (np.abs(sums["total"] - 1) < _TOLERANCE) & (sums["rows"] == labels)
    )
    return labels > 1 and bool(alike.all())


def refuse_class_names(table: pd.DataFrame) -> None:
    """Refuses a column `label` that holds the class of each image, as every class would become a
    label.

    Raises:
        PredictionsError: every image has one label, and every label one target.
    """
    one = (
        table.groupby(["arm", "seed", "fold", "part", "image"], sort=False)["label"].nunique().max()
        == 1
    )
    if one and table.groupby("label")["target"].nunique().max() == 1:
        raise PredictionsError(
            "column label holds the class of each image "
            f"({', '.join(list(dict.fromkeys(table['label']))[:4])}). It names what is "
            "predicted; remove it, as target already says which class is the true one."
        )


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over labels (macro average); its degrees of freedom are those of the rarest
    label.
    """
    count = len(estimates)
    # A patient may be positive for one label and negative for another, and has one influence.
    whole = (
        sum((e.positive + e.negative for e in estimates), np.zeros_like(estimates[0].positive))
        / count
    )
    members = min((e.members for e in estimates), key=lambda m: min(m[:2]))
    rarest = min(members[:2])
    return replace(
        estimates[0],
        value=float(np.mean([e.value for e in estimates])),
        positive=whole,
        negative=np.zeros_like(whole),
        members=(rarest, rarest, members[2]),
        by_seed=np.mean([e.by_seed for e in estimates], axis=0),
        cells=mean_cells([e.cells for e in estimates]),
    )


def mean_cells(of_labels: Sequence[Cells | None]) -> Cells | None:
    """The mean over labels of the figures of every model; the labels may be known for different
    images, but the models are the same.
    """
    cells = [c for c in of_labels if c is not None]
    if len(cells) < len(of_labels) or len({c.estimates.shape for c in cells}) > 1:
        return None
    means = {
        name: np.mean([getattr(c, name) for c in cells], axis=0) for name in ("estimates", "mass")
    }
    return replace(cells[0], **means, layout=hash(tuple(c.layout for c in cells)))


def one_against_one(scores: dict[str, Scores], draws: Draws) -> Estimate:
    """Mean AUC over all pairs of classes (Hand & Till 2001, doi:10.1023/A:1010920819831), which
    prevalence does not move.

    Args:
        scores: by class, of one arm: target 1 where an image is of the class, over the same images.
        draws: names the patients.
    """
    pairs = []
    for a, b in combinations(scores, 2):
        for positive, negative in ((a, b), (b, a)):
            s = scores[positive]
            inside = (s.target == 1) | (scores[negative].target == 1)
            pairs.append(
                estimate(
                    s, draws.codes(s.patients), len(draws.patients), influence.auc, "pairs", inside
                )
            )
    return mean_estimate(pairs)


def recalibrate_classes(table: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]] | None:
    """Vector scaling of every model on the tune rows that it may learn from (Guo et al. 2017,
    arXiv:1706.04599).

    The probabilities are softmax(w (z - c) + c + b). z are the logarithms of the class
    probabilities, c those of the prevalences of the classes; priors as in `recalibration`,
    parameters shared between models as in `tuning`.

    Returns:
        The table with new probabilities and logits, and the parameters, of the arms whose models
        all have tune rows of every class; None where there is no such arm.
    """
    labels = list(dict.fromkeys(table["label"]))
    parts, maps = [], []
    for arm, rows in table.groupby("arm", sort=False):
        tune = rows[rows["part"] == "tune"]
        models = [
            (
                key,
                of_model,
                tune[
                    ~tune["patient"].isin(set(of_model.loc[of_model["part"] == "test", "patient"]))
                ],
            )
            for key, of_model in rows.groupby(["seed", "fold"], sort=False)
        ]
        if any(
            set(allowed.loc[allowed["target"] == 1, "label"]) != set(labels)
            for _, _, allowed in models
        ):
            continue
        for (seed, fold), of_model, allowed in models:
            factors, shifts = _fit_vector(allowed, labels, (seed, fold))
            for _, piece in of_model.groupby("part", sort=False):
                parts.append(_apply_vector(piece, labels, factors, shifts))
            named = {f"factor_{label}": float(f) for label, f in zip(labels, factors, strict=True)}
            named |= {f"shift_{label}": float(s) for label, s in zip(labels, shifts, strict=True)}
            maps.append({"arm": arm, "seed": seed, "fold": fold, **named})
    return (pd.concat(parts, ignore_index=True)[table.columns], maps) if parts else None


def _apply_vector(
    rows: pd.DataFrame, labels: list[str], factors: Float, shifts: Float
) -> pd.DataFrame:
    z, _, order = _wide(rows, labels)
    new = log_softmax(z * factors + shifts, axis=1)
    others = np.stack(
        [logsumexp(np.delete(new, i, axis=1), axis=1) for i in range(len(labels))], axis=1
    )
    flat = pd.DataFrame(
        {
            "image": np.repeat(order, len(labels)),
            "label": np.tile(labels, len(order)),
            "probability": np.exp(new).ravel(),
            "logit": (new - others).ravel(),
        }
    )
    return rows.drop(columns=["probability", "logit"]).merge(
        flat, on=["image", "label"], validate="one_to_one"
    )


def _wide(rows: pd.DataFrame, labels: list[str]) -> tuple[Float, Int, NDArray[np.object_]]:
    """(image, class) log-probabilities, (image,) class, and the images."""
    wide = rows.pivot_table(index="image", columns="label", values="logit", aggfunc="first")[labels]
    truth = (
        rows.pivot_table(index="image", columns="label", values="target", aggfunc="first")[labels]
        .to_numpy()
        .argmax(1)
    )
    # From one-against-rest logits, which keep what probabilities near 0 and 1 round away.
    log_p = -np.logaddexp(0.0, -wide.to_numpy(np.float64))
    return log_softmax(log_p, axis=1), truth, wide.index.to_numpy(object)


def _fit_vector(
    tune: pd.DataFrame, labels: list[str], model: tuple[Any, Any]
) -> tuple[Float, Float]:
    """Factors and shifts of a model, so that z w + b are its recalibrated log-probabilities but for
    a constant.
    """
    z, truth, number, images, place = [], [], [], [], -1
    for index, (key, rows) in enumerate(tune.groupby(["seed", "fold"], sort=True)):
        values, classes, order = _wide(rows, labels)
        z.append(values)
        truth.append(classes)
        images.append(order)
        number.append(np.full(len(order), index))
        place = index if key == model else place
    logs, classes, models = np.concatenate(z), np.concatenate(truth), np.concatenate(number)
    weight = count_once(pd.Series(np.concatenate(images)))
    count = len(labels)
    share = np.bincount(classes, weight, count) / weight.sum()
    centre = np.log(np.maximum(share, 1e-6))

    def loss(values: Float) -> tuple[float, Float]:
        size = np.exp(np.clip(values[:, :count], -8, 8))
        distance = logs - centre
        new = log_softmax(size * distance + centre + values[:, count:], axis=1)
        residual = weight[:, None] * (np.exp(new) - np.eye(count)[classes])
        return -float(weight @ new[np.arange(len(classes)), classes]), np.column_stack(
            [residual * size * distance, residual]
        )

    mean = np.r_[np.full(count, FACTOR), np.zeros(count)]
    spread = np.r_[np.full(count, SPREAD_OF_FACTOR), np.full(count, SPREAD_OF_SHIFT)]
    shared, by_model = fit_shared(loss, models, mean, spread)
    values = by_model.get(place, shared)
    factors = np.exp(np.clip(values[:count], -8, 8))
    return factors, values[count:] + centre * (1 - factors)


def summarise_labels(
    parts: dict[str, LabelEvaluation],
    exclusive: bool,
    draws: Draws,
    maps: list[dict[str, Any]] | None,
    settings: Settings,
) -> dict[str, Any]:
    """The report of several labels: every label whole under `labels`, and under `arms` the means
    over labels.
    """
    first = next(iter(parts.values()))
    arms: dict[str, Any] = {}
    contestants = []
    for index, measured in enumerate(first.raw):
        name = measured.scores.arm
        raw = [part.raw[index] for part in parts.values()]
        estimates, drawn, entry = _mean_entry(raw)
        if exclusive:
            scores = {label: m.scores for label, m in zip(parts, raw, strict=True)}
            entry["auc_one_against_one"] = one_against_one(scores, draws).interval("logit")
            entry["accuracy"] = _accuracy(list(scores.values()))
        after = [part.recalibrated[index] for part in parts.values()]
        entry["recalibrated"] = None
        if all(one is not None for one in after):
            recalibrated = [one for one in after if one is not None]
            mean_recalibrated = _mean_entry(recalibrated)[2]
            mean_recalibrated["auc"] = put_over_sites(
                mean_recalibrated["auc"], _mean_sites(recalibrated)
            )
            entry["recalibrated"] = {
                **mean_recalibrated,
                "method": "vector" if exclusive else "by label",
                "chosen": "",
                "maps": [],
            }
            if maps is not None:
                entry["recalibrated"]["maps"] = [m for m in maps if m["arm"] == name]
        one_class = [
            label
            for label, m in zip(parts, raw, strict=True)
            if not np.isfinite(m.estimates["auc"].value)
        ]
        if one_class:
            entry["auc"]["reason"] = (
                f"not estimable: the test rows of {', '.join(one_class)} lack a class"
            )
        sites = _mean_sites(raw)
        entry["auc"] = put_over_sites(entry["auc"], sites)
        contestants.append(Contestant(name, estimates, drawn, sites=sites))
        arms[name] = entry
    kind = "classes that exclude each other" if exclusive else "labels that stand for themselves"
    shared = {
        key: first.data[key]
        for key in (
            "unit",
            "aggregate",
            "seeds",
            "models",
            "bootstrap",
            "seed",
            "few_draws",
            "settings",
        )
    }
    warnings = _say_once({label: part.data["warnings"] for label, part in parts.items()})
    return {
        "label": f"{len(parts)} {kind}: {', '.join(parts)}",
        "images": max(part.data["images"] for part in parts.values()),
        "positive_images": {label: part.data["positive_images"] for label, part in parts.items()},
        "patients": len(draws.patients),
        "prevalence": {label: part.data["prevalence"] for label, part in parts.items()},
        **shared,
        "arms": arms,
        "comparisons": compare_arms(contestants, settings.margin, settings.leave_out),
        "labels": {label: part.data for label, part in parts.items()},
        "warnings": [
            f"Figures are means over {len(parts)} labels, each with its own below.",
            *warnings,
        ],
    }


def _say_once(warnings: dict[str, list[str]]) -> list[str]:
    """Joins the warnings of the labels: one that holds for all labels stands alone, any other is
    preceded by its labels.
    """
    labels: dict[str, list[str]] = {}
    for label, texts in warnings.items():
        for text in texts:
            labels.setdefault(text, []).append(label)
    return [
        text if len(of) == len(warnings) else f"{', '.join(of)}: {text}"
        for text, of in labels.items()
    ]


def _mean_entry(
    measured: Sequence[ArmMeasurements],
) -> tuple[dict[str, Estimate], dict[str, DrawnMetric], dict[str, Any]]:
    estimates = {
        name: mean_estimate([m.estimates[name] for m in measured]) for name in measured[0].estimates
    }
    several = ("auc", "partial_auc", "average_precision", "l2_ece")
    drawn = {
        name: _mean_drawn([m.drawn[name] for m in measured])
        for name in several
        if name in measured[0].drawn
    }
    scored = measured[0].scores.scored
    cancels = no_interval("errors of opposite sign would cancel: see each label")
    cancels = dict(NO_PROBABILITIES) if scored else cancels
    entry = {
        "auc": {
            **estimates["auc"].interval("logit"),
            "method": "mean over labels, one against the rest, within models; over patients"
            + (" and seeds" if len(estimates["auc"].parts) > 1 else ""),
        },
        "partial_auc": drawn["partial_auc"].interval("logit", greatest=1.0),
        "average_precision": drawn["average_precision"].interval("logit", 0.0, 1.0),
        "brier": interval_of(estimates, "brier", least=0.0, greatest=1.0),
        "brier_skill": interval_of(estimates, "brier_skill", greatest=1.0),
        "log_loss": interval_of(estimates, "log_loss", least=0.0),
        "ece": dict(NO_PROBABILITIES) if scored else _mean_ece(measured),
        "l2_ece": interval_of(drawn, "l2_ece", least=0.0, greatest=1.0),
        "calibration": {
            "intercept": cancels,
            "absolute_intercept": None
            if scored
            else float(np.mean([abs(m.estimates["intercept"].value) for m in measured])),
            "slope": interval_of(estimates, "slope", widest=WIDEST),
            "observed_expected": cancels,
        },
        "pooled": _mean_pooled(measured),
        "trust": None,  # said of every label
    }
    return (
        estimates,
        {name: drawn[name] for name in ("auc", "partial_auc", "average_precision")},
        entry,
    )


def _mean_ece(measured: Sequence[ArmMeasurements]) -> dict[str, Any]:
    error = cal.binned_metric(cal.weighted_ece)
    ece = np.mean(
        [
            error(z, m.scores.target, m.scores.weight[None])[0]
            for m in measured
            for z in m.scores.logit
        ]
    )
    return no_interval("no interval: see each label, beside what chance gives", float(ece))


def _mean_pooled(measured: Sequence[ArmMeasurements]) -> dict[str, Any] | None:
    """The AUC with one threshold for all models, averaged over labels; None where one model tests
    all images.
    """
    if len(np.unique(measured[0].scores.fold)) == 1:
        return None
    aucs = [
        dis.auc_within(z, m.scores.target, np.zeros(len(z), int))
        for m in measured
        for z in m.scores.logit
    ]
    return {
        "auc": no_interval(
            "no interval: pooled over models",
            float(np.mean(aucs)) if np.isfinite(aucs).all() else None,
        )
    }


def _mean_sites(measured: Sequence[ArmMeasurements]) -> BySite | None:
    """The mean over labels of the AUC of every site at which all of them have one; None where no
    fold leaves a site out.
    """
    by_label = [dict(m.sites) for m in measured if m.sites]
    if len(by_label) < len(measured):
        return None
    shared = [
        fold
        for fold in by_label[0]
        if all(fold in of and np.isfinite(of[fold].value) for of in by_label)
    ]
    return [(fold, mean_estimate([of[fold] for of in by_label])) for fold in shared]


def _mean_drawn(drawn: Sequence[DrawnMetric]) -> DrawnMetric:
    freedom = min(d.freedom for d in drawn)
    cells = mean_cells([d.cells for d in drawn])
    return make_drawn_metric(
        np.mean([d.by_seed for d in drawn], 0),
        np.mean([d.draws for d in drawn], 0),
        freedom,
        cells,
        drawn[0].given,
    )


def _accuracy(scores: Sequence[Scores]) -> dict[str, Any]:
    """Share of images whose most probable class is the true one, its mean over the classes, and the
    ECE of the most probable class.
    """
    logits, truth = (
        np.stack([s.logit for s in scores]),
        np.stack([s.target for s in scores]).argmax(0),
    )
    right = logits.argmax(0) == truth
    by_class = [
        float(right[:, truth == c].mean()) for c in range(len(scores)) if (truth == c).any()
    ]
    return {
        "share": float(right.mean()),
        "balanced": float(np.mean(by_class)),
        "confidence_ece": _confidence_ece(logits.max(0), right),
    }


def _confidence_ece(logit: Float, right: NDArray[np.bool_]) -> float:
    """ECE of the most probable class against whether it is the true one (Guo et al. 2017,
    arXiv:1706.04599), over equal-mass bins.
    """
    ones, error = np.ones((1, logit.shape[1])), cal.binned_metric(cal.weighted_ece)
    return float(
        np.mean([error(z, hit.astype(float), ones)[0] for z, hit in zip(logit, right, strict=True)])
    )
