"""From a predictions table to every number of the report."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.errors import PredictionsError
from medtransfer.evaluation import calibration as cal
from medtransfer.evaluation import discrimination as dis
from medtransfer.evaluation.comparison import compare_arms, trust
from medtransfer.evaluation.learning_curve import describe_curve, learning_curve
from medtransfer.evaluation.predictions import CLIP, Scores, align_scores, check_predictions, read_predictions, write_aside
from medtransfer.evaluation.resample import Metric, draw_values, estimates, percentile_interval

Float = NDArray[np.float64]
METRICS: dict[str, Metric] = {
    "auc": dis.weighted_auc,
    "average_precision": dis.weighted_average_precision,
    "brier": cal.weighted_brier,
    "brier_skill": cal.weighted_brier_skill,
    "log_loss": cal.weighted_log_loss,
    "ece": cal.weighted_ece,
    "intercept": cal.weighted_intercept,
    "slope": cal.weighted_slope,
    "observed_expected": cal.weighted_observed_expected,
}
# A lowess per draw is dear; its interval needs fewer draws than a p-value does.
_ICI_DRAWS = 200
_BAND_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """Every number with its interval.

    Attributes:
        data: the content of `report.json`.
        page: the HTML page, where one was written.
    """

    data: Mapping[str, Any]
    page: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return dict(self.data)

    def to_frame(self) -> pd.DataFrame:
        """One row per arm and metric: `arm, recalibrated, metric, estimate, low, high`."""
        rows = []
        for arm, entry in self.data["arms"].items():
            for recalibrated, part in ((False, entry), (True, entry["recalibrated"])):
                if part is None:
                    continue
                flat = {key: value for key, value in part.items() if isinstance(value, dict) and "estimate" in value}
                flat |= part["calibration"]
                rows += [(arm, recalibrated, key, v["estimate"], v["low"], v["high"]) for key, v in flat.items()]
        return pd.DataFrame(rows, columns=["arm", "recalibrated", "metric", "estimate", "low", "high"])

    @property
    def sentences(self) -> list[str]:
        """The verdict on each pair of arms, then on the probabilities of each arm."""
        verdicts = [str(entry["verdict"]) for entry in self.data["comparisons"]]
        for entry in self.data["arms"].values():
            verdicts.append(str(entry["trust"]))
            if entry["recalibrated"] is not None:
                verdicts.append(str(entry["recalibrated"]["trust"]))
        return verdicts

    def save(self, path: Path) -> None:
        """Writes `report.json`."""
        write_aside(path, json.dumps(self.data, indent=1, allow_nan=False, ensure_ascii=False))

    def show(self) -> None:
        """Shows the report: as HTML in a notebook, as text elsewhere."""
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display

            if get_ipython() is not None:
                display(HTML(self._repr_html_()))  # type: ignore[no-untyped-call]
                return
        except ImportError:
            pass
        print(self)  # noqa: T201  showing is what was asked for

    def __str__(self) -> str:
        lines = [*self.sentences, "", self._wide_frame().to_string()]
        lines += [f"Note: {warning}" for warning in self.data["warnings"]]
        return "\n".join(lines) + (f"\nPage: {self.page}" if self.page else "")

    def _wide_frame(self) -> pd.DataFrame:
        frame = self.to_frame()
        frame["text"] = [
            "not estimable" if pd.isna(e) else f"{e:.3f}" + ("" if pd.isna(low) else f" ({low:.3f} to {high:.3f})")
            for e, low, high in zip(frame["estimate"], frame["low"], frame["high"], strict=True)
        ]
        frame["arm"] = frame["arm"] + frame["recalibrated"].map({True: ", recalibrated", False: ""})
        order = list(dict.fromkeys(frame["metric"]))
        wide = frame.pivot_table(index="metric", columns="arm", values="text", aggfunc="first", sort=False).loc[order]
        wide.index.name, wide.columns.name = None, None
        return wide

    def _repr_html_(self) -> str:
        sentences = "".join(f"<p>{html.escape(s)}</p>" for s in self.sentences)
        notes = "".join(f"<li>{html.escape(w)}</li>" for w in self.data["warnings"])
        page = f"<p>Page: <code>{html.escape(str(self.page))}</code></p>" if self.page else ""
        return f"<div>{sentences}{self._wide_frame().to_html(escape=True)}<ul>{notes}</ul>{page}</div>"


def evaluate(table: pd.DataFrame | str | Path, bootstrap: int = 2000, seed: int = 0) -> EvaluationReport:
    """Evaluates the test rows of a predictions table.

    AUCs and all other metrics are computed over all test images together (folds pooled), per seed, and
    averaged over seeds. Intervals are 95 %: of the AUC by DeLong on the logit scale, of all else by
    bootstrap over patients and seeds. Temperatures are fitted per arm, seed and fold on its tune rows.

    Args:
        table: as `predictions.check_predictions` describes it, or the path of such a CSV.
        bootstrap: number of draws, at least 100.
        seed: of the draws.

    Raises:
        PredictionsError, LeakageError: a table that cannot be evaluated.
    """
    if bootstrap < 100:
        raise PredictionsError(f"bootstrap is {bootstrap}; intervals need at least 100 draws, 2,000 are usual.")
    table = read_predictions(table) if isinstance(table, (str, Path)) else check_predictions(table)
    curve = table[table["size"] > 0] if "size" in table.columns else table.iloc[:0]
    table = table[table["size"] == 0] if "size" in table.columns else table
    scores, warnings = align_scores(table)
    scores = [_recalibrate(arm, table) for arm in scores]
    warnings += _warnings(table, scores)
    raw = [estimates(arm, METRICS) for arm in scores]
    draws = draw_values(scores, METRICS, bootstrap, seed)
    ici_draws = draw_values(scores, {"ici": cal.weighted_ici}, min(bootstrap, _ICI_DRAWS), seed)
    arms: dict[str, Any] = {}
    for i, arm in enumerate(scores):
        entry = _summarise(arm, raw[i], {**draws[i], **ici_draws[i]}, bootstrap, seed, False)
        entry["recalibrated"] = None
        if arm.recalibrated is not None:
            again = [arm]
            values = {
                **draw_values(again, METRICS, bootstrap, seed, True)[0],
                **draw_values(again, {"ici": cal.weighted_ici}, min(bootstrap, _ICI_DRAWS), seed, True)[0],
            }
            entry["recalibrated"] = _summarise(arm, estimates(arm, METRICS, True), values, bootstrap, seed, True)
        arms[arm.arm] = entry
    first = scores[0]
    growth = learning_curve(curve, bootstrap, seed)
    warnings += describe_curve(growth)
    data = {
        "label": str(table["label"].iloc[0]),
        "images": len(first.images),
        "positive_images": int(first.target.sum()),
        "patients": len(set(first.patients.astype(str))),
        "prevalence": float(first.target.mean()),
        "bootstrap": bootstrap,
        "seed": seed,
        "ici_bootstrap": min(bootstrap, _ICI_DRAWS),
        "arms": arms,
        "comparisons": compare_arms(scores, raw, draws),
        "learning_curve": growth,
        "warnings": warnings,
    }
    return EvaluationReport(data)


def _summarise(
    arm: Scores, values: dict[str, float], draws: dict[str, Float], bootstrap: int, seed: int, recalibrated: bool
) -> dict[str, Any]:
    logits = arm.recalibrated if recalibrated and arm.recalibrated is not None else arm.logit
    rng = np.random.default_rng([seed, 1])
    null = cal.ece_null(logits, arm.patients, bootstrap, rng)
    values = {**values, "ici": float(np.mean([cal.ici(logit, arm.target) for logit in logits]))}
    auc = dis.auc_interval(logits, arm.target, arm.patients)
    bootstrapped = percentile_interval(values["auc"], draws["auc"])
    auc["bootstrap"] = {"low": bootstrapped["low"], "high": bootstrapped["high"]}
    auc["fold_mean"] = _fold_mean_auc(arm, logits)
    entry: dict[str, Any] = {
        "auc": auc,
        **{key: percentile_interval(values[key], draws[key]) for key in ("average_precision", "brier", "brier_skill", "log_loss")},
        "ece": {
            **percentile_interval(values["ece"], draws["ece"], recentre=True),
            "null_mean": float(null.mean()),
            "null_high": float(np.quantile(null, 0.95)),
            "bins": len(cal.bin_edges(logits[0], logits.shape[1])) + 1,
        },
        "calibration": {
            **{key: percentile_interval(values[key], draws[key]) for key in ("intercept", "slope", "observed_expected")},
            "ici": percentile_interval(values["ici"], draws["ici"], recentre=True),
        },
    }
    name = f"{arm.arm} after temperature scaling" if recalibrated else arm.arm
    entry["trust"] = trust(name, entry)
    if recalibrated and arm.temperatures is not None:
        entry["temperature"] = [{"seed": s, "fold": f, "temperature": t} for (s, f), t in arm.temperatures.items()]
    entry["curves"] = {
        "roc": dis.roc_curve(logits, arm.target),
        "reliability": cal.reliability(logits, arm.target, arm.patients, _BAND_DRAWS, rng),
        "histogram": _histogram(logits, arm.target),
    }
    return entry


def _recalibrate(arm: Scores, table: pd.DataFrame) -> Scores:
    """Divides the logits by the temperature of their seed and fold; left out unless every one has tune rows of both classes."""
    tune = table[(table["arm"] == arm.arm) & (table["part"] == "tune")]
    temperatures: dict[tuple[int, int], float] = {}
    recalibrated = np.empty_like(arm.logit)
    for index, seed in enumerate(arm.seeds):
        for fold in sorted(set(arm.fold.tolist())):
            rows = tune[(tune["seed"] == seed) & (tune["fold"] == fold)]
            if rows["target"].nunique() < 2:
                return arm
            temperature = cal.fit_temperature(rows["logit"].to_numpy(float), rows["target"].to_numpy(int))
            temperatures[seed, fold] = temperature
            inside = arm.fold == fold
            recalibrated[index, inside] = arm.logit[index, inside] / temperature
    return replace(arm, recalibrated=recalibrated, temperatures=temperatures)


def _fold_mean_auc(arm: Scores, logits: Float) -> float | None:
    """Mean of the AUCs within folds; None where a fold lacks a class."""
    aucs = []
    for fold in sorted(set(arm.fold.tolist())):
        inside = arm.fold == fold
        ones = np.ones((1, int(inside.sum())))
        aucs += [float(dis.weighted_auc(logit[inside], arm.target[inside], ones)[0]) for logit in logits]
    mean = float(np.mean(aucs))
    return mean if np.isfinite(mean) else None


def _histogram(logits: Float, target: NDArray[Any], bins: int = 20) -> dict[str, list[float]]:
    """Images per bin of probability, by class, mean over seeds."""
    edges = np.linspace(0, 1, bins + 1)
    probability = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    counts = {
        name: (np.histogram(probability[:, target == value], edges)[0] / len(logits)).tolist()
        for name, value in (("negative", 0), ("positive", 1))
    }
    return {"edges": edges.tolist(), **counts}


def _warnings(table: pd.DataFrame, scores: list[Scores]) -> list[str]:
    first = scores[0]
    warnings = []
    smallest = min(len(set(first.patients[first.target == c].astype(str))) for c in (0, 1))
    if smallest < 100:
        warnings.append(
            f"Small test set: {smallest} patients in the smaller class; calibration in particular needs about 200 of each class."
        )
    seeds = {len(arm.seeds) for arm in scores}
    if min(seeds) == 1:
        warnings.append("One seed: the intervals do not hold the randomness of training. Five seeds are advisable below 2,000 images.")
    elif min(seeds) < 5 and len(first.images) < 2000:
        warnings.append(
            f"{min(seeds)} seeds: the randomness of training is known from few draws only. Five are advisable below 2,000 images."
        )
    if len(scores) > 1 and len({arm.seeds for arm in scores}) > 1:
        warnings.append("The arms have different seeds; they are paired over patients only.")
    if len(set(first.fold.tolist())) > 1:
        warnings.append(
            "Cross-validation: scores of different folds come from different models and are pooled; "
            "intervals are over patients, and do not hold the variation between training sets."
        )
    for arm in scores:
        if arm.recalibrated is None:
            warnings.append(f"{arm.arm}: not recalibrated, as not every seed and fold has tune rows of both classes.")
    images = len(first.images)
    if images > len(set(first.patients.astype(str))):
        warnings.append("Several images per patient: figures are per image, intervals keep the images of a patient together.")
    extreme = int(((table["probability"] <= 0) | (table["probability"] >= 1)).sum())
    if extreme:
        warnings.append(f"{extreme} probabilities are exactly 0 or 1; without a logit they are taken as {CLIP:g} and {1 - CLIP:g}.")
    return warnings
