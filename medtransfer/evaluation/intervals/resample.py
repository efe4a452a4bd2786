"""Bootstrap over patients, the same draws for all that is compared; the variance between seeds is
added to what it shows.

Seeds are not redrawn: a few of them, drawn again, show (S - 1) / S of the variance between them,
and no uncertainty of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.entries import no_interval
from medtransfer.evaluation.intervals.estimate import Mass, Value, by_model, mass_of
from medtransfer.evaluation.intervals.variance import (
    Cells,
    OverTrainings,
    Part,
    Scale,
    differ_between_seeds,
    move,
    quantile,
    two_sided_p,
)
from medtransfer.evaluation.tables.arrays import Float, Int
from medtransfer.evaluation.tables.scores import Scores, gather_levels

# (logit, target, weights (draw, row)) -> (draw,) or (draw, several).
Metric = Callable[[Float, NDArray[Any], Float], Float]
# A variance below this is rounding.
_NOTHING = 1e-24
# Beyond so many different scores of an arm, neighbouring ones are drawn as one, at their mean; the
# draws are moved by what this changes on the sample itself (an AUC by 1e-4).
_LEVELS = 4096


@dataclass(frozen=True, eq=False)
class Table:
    """The scores of one seed, images of one patient, class and score together.

    Attributes:
        logit, target: (row,).
        weight: (patient, row), sparse: images of the patient in the row, or their weight.
    """

    logit: Float
    target: Int
    weight: csr_array

    @property
    def total(self) -> Float:
        """(1, row), the weights of the sample itself."""
        return np.asarray(self.weight.sum(0), np.float64).reshape(1, -1)


def tabulate(logit: Float, target: NDArray[Any], weight: Float, codes: Int, patients: int) -> Table:
    """Gathers the images of one seed; see `Table`."""
    different, level = gather_levels(logit, _LEVELS)
    key, row = np.unique(2 * level + np.asarray(target, np.int64), return_inverse=True)
    matrix = csr_array((weight, (codes, row)), shape=(patients, len(key)))
    return Table(different[key // 2], key % 2, matrix)


@dataclass(frozen=True, eq=False)
class WithinModels:
    """A metric that is measured within models: its mean over the models, weighted by their masses.
    In a draw where a model has no value, the mean is over the others.
    """

    metric: Metric
    mass: Mass


@dataclass(frozen=True, eq=False)
class Question:
    """Metrics to be measured on some scores, by name."""

    scores: Scores
    metrics: Mapping[str, Metric | WithinModels]

    def parts(self, seed: int, within: bool) -> list[NDArray[np.bool_]]:
        """The images that are measured together, (image,) per part: all images, or the images of
        each model.
        """
        folds = self.scores.fold[seed] if within else np.zeros(len(self.scores.target), int)
        return [folds == fold for fold in np.unique(folds)]

    @property
    def kinds(self) -> list[bool]:
        """Whether there are metrics over all images (False), within models (True), or both."""
        return sorted({isinstance(metric, WithinModels) for metric in self.metrics.values()})


@dataclass(frozen=True, eq=False)
class DrawnMetric(OverTrainings):
    """A metric and its values in the draws over patients.

    Attributes:
        value: mean over seeds: a number, or (several,).
        by_seed: (seed,) or (seed, several).
        draws: (seed, draw) or (seed, draw, several); NaN where a draw lacks a class.
        freedom: degrees of freedom with which the variance over patients is known.
        cells: the values of single models, where the value is a mean over them.
        given: see `Scores`.
        apart: see `Estimate`.
        interaction: see `Estimate`.
    """

    value: Any
    by_seed: Float
    draws: Float
    freedom: float = np.inf
    cells: Cells | None = None
    given: bool = False
    apart: tuple[Part, ...] | None = None
    interaction: float = 0.0

    @property
    def mean(self) -> Float:
        """Mean over seeds, (draw,) or (draw, several)."""
        return np.asarray(self.draws.mean(0), np.float64)

    def __getitem__(self, column: int) -> DrawnMetric:
        return make_drawn_metric(
            self.by_seed[:, column], self.draws[:, :, column], self.freedom, given=self.given
        )

    def __sub__(self, other: DrawnMetric) -> DrawnMetric:
        """The difference in the same draws; seeds are paired where there are as many, folds where
        they are the same.
        """
        freedom = min(self.freedom, other.freedom)
        cells = None if self.cells is None else self.cells.less(other.cells)
        if len(self.by_seed) != len(other.by_seed):
            difference = make_drawn_metric(
                np.array([self.value - other.value]),
                (self.mean - other.mean)[None],
                freedom,
                given=self.given,
            )
            apart = differ_between_seeds(self.between, other.between)
            return replace(
                difference,
                cells=cells,
                apart=apart,
                interaction=self._interaction + other._interaction,
            )
        return make_drawn_metric(
            self.by_seed - other.by_seed, self.draws - other.draws, freedom, cells, self.given
        )

    def interval(
        self,
        scale: Scale = "identity",
        least: float = -np.inf,
        greatest: float = np.inf,
        parts: tuple[Part, ...] | None = None,
    ) -> dict[str, Any]:
        """Estimate with its 95 % interval: Student's t with the standard error that the draws show.

        Quantiles of the draws are too short where few patients decide: of 5 to 15 positive ones
        they hold 88 to 91 % (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13).

        Args:
            scale: where the estimate is nearer to normal, logit for shares.
            least: lower bound of the quantity.
            greatest: upper bound of the quantity.
            parts: of the variance; left out, over patients and seeds.
        """
        estimate = float(self.value) if np.isfinite(self.value) else None
        if self._known is None:
            reason = "not estimable: the classes are separated, or too few resamples hold both"
            return no_interval(reason, estimate)
        parts = self.parts if parts is None else parts
        if sum(part.variance for part in parts) < _NOTHING:
            return no_interval("no interval: all resamples give the same", estimate)
        half = quantile(parts) * np.sqrt(sum(part.variance for part in parts))
        low, high = move(self.value, -half, scale), move(self.value, half, scale)
        return {
            "estimate": estimate,
            "low": float(max(least, low)),
            "high": float(min(greatest, high)),
        }

    def p_value(self, parts: tuple[Part, ...] | None = None) -> float | None:
        """Two-sided p-value of the value being 0; None where its variance is not known."""
        if self._known is None:
            return None
        parts = self.parts if parts is None else parts
        variance = sum(part.variance for part in parts)
        return (
            two_sided_p(abs(self.value) / np.sqrt(variance), parts)
            if variance >= _NOTHING
            else None
        )

    @property
    def models_alone(self) -> tuple[Part, ...]:
        """Variance over patients, the trained models taken as given."""
        return (Part(float(self._covariance.mean()), self.freedom),)

    @property
    def _interaction(self) -> float:
        return max(0.0, self.models_alone[0].variance - self.shared[0].variance)

    @property
    def shared(self) -> tuple[Part, ...]:
        """See `Estimate.shared`."""
        seeds = len(self.draws)
        if self.apart is not None:
            return (Part(max(0.0, self.models_alone[0].variance - self.interaction), self.freedom),)
        if seeds == 1:
            return self.models_alone
        off = self._covariance.sum() - np.trace(self._covariance)
        return (Part(max(0.0, float(off) / (seeds * (seeds - 1))), self.freedom),)

    @cached_property
    def _covariance(self) -> Float:
        """Covariance of the seeds, (seed, seed), over the draws where every seed has a value."""
        finite = self._known
        return (
            np.atleast_2d(np.cov(finite))
            if finite is not None
            else np.full((len(self.draws),) * 2, np.nan)
        )

    @cached_property
    def _known(self) -> Float | None:
        finite = self.draws[:, np.isfinite(self.draws).all(0)]
        return (
            finite
            if np.isfinite(self.value) and finite.shape[1] >= 0.9 * self.draws.shape[1]
            else None
        )


def make_drawn_metric(
    by_seed: Float,
    draws: Float,
    freedom: float = np.inf,
    cells: Cells | None = None,
    given: bool = False,
) -> DrawnMetric:
    """A metric from the estimates of the seeds and their draws (seed, draw)."""
    mean = by_seed.mean(0)
    return DrawnMetric(
        float(mean) if np.ndim(mean) == 0 else mean, by_seed, draws, max(1.0, freedom), cells, given
    )


def draw_values(questions: Sequence[Question], draws: Draws) -> list[dict[str, DrawnMetric]]:
    """Measures each metric on the sample and in the draws, which are the same for all questions; a
    metric is computed per seed and averaged.

    Args:
        questions: their patients are among those of the draws.
        draws: see `Draws`.
    """
    count = len(draws.patients)
    tables = [_tabulate_all(question, draws, count) for question in questions]
    widest = max(
        (
            len(table.logit)
            for seeds in tables
            for kinds in seeds
            for parts in kinds.values()
            for table, _ in parts
        ),
        default=1,
    )
    collected: list[dict[str, list[list[Float]]]] = [
        {name: [[] for _ in q.scores.seeds] for name in q.metrics} for q in questions
    ]
    for _, counts in draws.chunks(2 * widest):
        by_patient = np.ascontiguousarray(counts.T)
        for question, seeds, values in zip(questions, tables, collected, strict=True):
            for seed, kinds in enumerate(seeds):
                for within, parts in kinds.items():
                    weights = [
                        np.ascontiguousarray((table.weight.T @ by_patient).T) for table, _ in parts
                    ]
                    for name, metric in question.metrics.items():
                        if isinstance(metric, WithinModels) == within:
                            values[name][seed].append(_join(name, metric, parts, weights))
    answers = []
    for question, values in zip(questions, collected, strict=True):
        by_seed, cells = estimates(question), _cells(question)
        freedom = _freedom(question.scores)
        answers.append(
            {
                name: make_drawn_metric(
                    by_seed[name],
                    np.stack([np.concatenate(p) for p in parts]),
                    freedom,
                    cells.get(name),
                    question.scores.given,
                )
                for name, parts in values.items()
            }
        )
    return answers


def _freedom(scores: Scores) -> float:
    """Degrees of freedom of the smaller class."""
    return min(len(set(scores.patients[scores.target == value])) for value in (0, 1)) - 1.0


def _join(
    name: str,
    metric: Metric | WithinModels,
    parts: Sequence[tuple[Table, dict[str, Any]]],
    weights: Sequence[Float],
) -> Float:
    """The values of a metric in the draws: of all rows, or the mean over models."""
    if not isinstance(metric, WithinModels):
        (table, correction), (weight,) = parts[0], weights
        return np.asarray(
            metric(table.logit, table.target, weight) + correction.get(name, 0.0), np.float64
        )
    values = [
        metric.metric(t.logit, t.target, w) + correction.get(name, 0.0)
        for (t, correction), w in zip(parts, weights, strict=True)
    ]
    return _mean_of_models(
        values,
        [mass_of(metric.mass, t.target, w) for (t, _), w in zip(parts, weights, strict=True)],
    )


def _mean_of_models(values: Sequence[Float], masses: Sequence[Float]) -> Float:
    if len(values) == 1:
        return values[0]
    stacked, mass = np.stack(values), np.stack(masses)
    mass = np.where(np.isfinite(stacked), mass, 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (mass * np.where(mass > 0, stacked, 0.0)).sum(0) / mass.sum(0), np.float64
        )


def _tabulate_all(
    question: Question, draws: Draws, count: int
) -> list[dict[bool, list[tuple[Table, dict[str, Any]]]]]:
    """The gathered scores of every seed, pooled and within models, and what gathering changes in
    each metric.
    """
    s = question.scores
    codes = draws.codes(s.patients)
    tables = []
    for seed, z in enumerate(s.logit):
        kinds: dict[bool, list[tuple[Table, dict[str, Any]]]] = {
            within: [] for within in question.kinds
        }
        for within, tables_of in kinds.items():
            for inside in question.parts(seed, within):
                table = tabulate(
                    z[inside], s.target[inside], s.weight[inside], codes[inside], count
                )
                tables_of.append((table, _moved(question, within, table, z[inside], inside)))
        tables.append(kinds)
    return tables


def _moved(
    question: Question, within: bool, table: Table, logit: Float, inside: NDArray[np.bool_]
) -> dict[str, Any]:
    """The change of each metric by drawing neighbouring scores as one; empty where every score has
    its own row.
    """
    if len(np.unique(logit)) <= _LEVELS:
        return {}
    target, weight = question.scores.target[inside], question.scores.weight[inside][None]
    metrics = {
        n: m.metric if isinstance(m, WithinModels) else m
        for n, m in question.metrics.items()
        if isinstance(m, WithinModels) == within
    }
    return {
        name: metric(logit, target, weight) - metric(table.logit, table.target, table.total)
        for name, metric in metrics.items()
    }


def estimates(question: Question) -> dict[str, Float]:
    """The value of each metric on the sample itself: (seed,) or (seed, several)."""
    s, by_name = question.scores, {}
    for name, metric in question.metrics.items():
        by_seed = []
        for seed, logit in enumerate(s.logit):
            within = isinstance(metric, WithinModels)
            of = metric.metric if isinstance(metric, WithinModels) else metric
            rows = question.parts(seed, within)
            values = [of(logit[c], s.target[c], s.weight[c][None]) for c in rows]
            masses = (
                [mass_of(metric.mass, s.target[c], s.weight[c][None]) for c in rows]
                if isinstance(metric, WithinModels)
                else []
            )
            by_seed.append((_mean_of_models(values, masses) if within else values[0])[0])
        by_name[name] = np.asarray(by_seed, np.float64)
    return by_name


def _cells(question: Question) -> dict[str, Cells | None]:
    """The values of single models, for the metrics within models."""
    within = {
        name: metric
        for name, metric in question.metrics.items()
        if isinstance(metric, WithinModels)
    }
    return {
        name: by_model(question.scores, _value_of(metric.metric), metric.mass)
        for name, metric in within.items()
    }


def _value_of(metric: Metric) -> Value:
    def value(logit: Float, target: NDArray[Any], weight: Float, _: Int) -> float:
        return float(metric(logit, target, weight[None])[0])

    return value


def bands(values: Float) -> tuple[Float, Float]:
    """2.5 and 97.5 % quantiles of the draws at each place, (draw, place) -> (place,) each; NaN
    where no draw has a value.
    """
    has_value = np.isfinite(values).any(0)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if has_value.any():
        low[has_value], high[has_value] = np.nanquantile(
            values[:, has_value], [0.025, 0.975], axis=0
        )
    return low, high


def plain(values: Float) -> list[float | None]:
    """Numbers for JSON; None where there is none."""
    return [float(value) if np.isfinite(value) else None for value in values]
