"""Bootstrap over patients, the same draws for all that is compared; the variance between seeds is added to what it shows.

Seeds are not redrawn: a few of them, drawn again, show (S - 1) / S of the variance between them, and no uncertainty of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from medtransfer.evaluation.scores import Scores
from medtransfer.evaluation.spread import Part, between, quantile, two_sided_p

Float = NDArray[np.float64]
# (logit, target, weights (draw, row)) -> (draw,) or (draw, several).
Metric = Callable[[Float, NDArray[Any], Float], Float]
# A variance below this is rounding.
_NOTHING = 1e-24
# Numbers held at once for the draws: 64 MB.
_CHUNK = 8_000_000
# Beyond so many different scores of an arm, neighbouring ones are drawn as one, at their mean; the draws are moved by what
# this changes on the sample itself (an AUC by 1e-4).
_LEVELS = 4096


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each draw takes each patient: with replacement, all images of a patient together, in every seed.

    Attributes:
        patients: (patient,), all different; of all that is compared.
        number: of draws.
        seed: of the draws.
    """

    patients: NDArray[np.object_]
    number: int
    seed: int

    @cached_property
    def place(self) -> dict[Any, int]:
        """Number of each patient."""
        return {patient: index for index, patient in enumerate(self.patients)}

    def codes(self, patients: NDArray[np.object_]) -> NDArray[np.int64]:
        """Numbers of these patients."""
        return np.array([self.place[patient] for patient in patients], np.int64)

    def chunks(self, width: int) -> Iterator[tuple[slice, Float]]:
        """Counts (draw, patient), some draws at a time; `width` numbers are to be held for each."""
        rng, count = np.random.default_rng([self.seed, 0]), len(self.patients)
        step = max(1, _CHUNK // max(width, count))
        for start in range(0, self.number, step):
            rows = slice(start, min(start + step, self.number))
            size = rows.stop - rows.start
            drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
            yield rows, np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Table:
    """The scores of one seed, images of one patient, class and score together.

    Attributes:
        logit, target: (row,).
        weight: (patient, row), sparse: images of the patient in the row, or their weight.
    """

    logit: Float
    target: NDArray[np.int64]
    weight: csr_array

    @property
    def total(self) -> Float:
        """(1, row), the sample as it is."""
        return np.asarray(self.weight.sum(0), np.float64).reshape(1, -1)


def tabulate(logit: Float, target: NDArray[Any], weight: Float, codes: NDArray[np.int64], patients: int) -> Table:
    """Gathers the images of one seed; see `Table`."""
    different, level = np.unique(logit, return_inverse=True)
    if len(different) > _LEVELS:
        order = np.argsort(logit, kind="stable")
        level = np.empty(len(logit), np.int64)
        level[order] = np.arange(len(logit)) * _LEVELS // len(logit)
        different = np.bincount(level, logit) / np.bincount(level)
    key, row = np.unique(2 * level + np.asarray(target, np.int64), return_inverse=True)
    matrix = csr_array((weight, (codes, row)), shape=(patients, len(key)))
    return Table(different[key // 2], key % 2, matrix)


@dataclass(frozen=True, eq=False)
class Question:
    """Metrics of some scores.

    Attributes:
        scores: of one arm.
        metrics: by name.
        within: (seed, image), parts such as folds: a metric is then the mean of its values within them; of a draw in which a part
            has none, over the others.
    """

    scores: Scores
    metrics: Mapping[str, Metric]
    within: NDArray[Any] | None = None

    def parts(self, seed: int) -> list[NDArray[np.bool_]]:
        """(image,) per part."""
        parts = np.zeros(len(self.scores.target), int) if self.within is None else self.within[seed]
        return [parts == part for part in np.unique(parts)]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A metric and its draws over patients.

    Attributes:
        value: mean over seeds: a number, or (several,).
        by_seed: (seed,) or (seed, several).
        draws: (draw,) or (draw, several), of the mean over seeds; NaN where a draw lacks a class.
        between: parts of the variance of the value that come from seeds, for a single number.
    """

    value: Any
    by_seed: Float
    draws: Float
    between: tuple[Part, ...]

    def __getitem__(self, column: int) -> Drawn:
        return make_drawn(self.by_seed[:, column], self.draws[:, column])

    def __sub__(self, other: Drawn) -> Drawn:
        """The difference in the same draws; seeds are paired where there are as many."""
        if len(self.by_seed) == len(other.by_seed):
            return make_drawn(self.by_seed - other.by_seed, self.draws - other.draws)
        difference = np.array([self.value - other.value])
        return Drawn(float(difference[0]), difference, self.draws - other.draws, self.between + other.between)

    def interval(self, recentre: bool = False, least: float = -np.inf, greatest: float = np.inf) -> dict[str, Any]:
        """Estimate with its 95 % interval: the 2.5 and 97.5 % quantiles of the draws, or with several seeds Student's t.

        Args:
            recentre: for errors that cannot be negative (ECE, ICI), whose draws lie too high because a resample is rougher than its
                sample: the draws are shifted so that their mean is the estimate, and cut at 0.
            least, greatest: bounds of the quantity.
        """
        finite = self._known()
        estimate = float(self.value) if np.isfinite(self.value) else None
        if finite is None:
            reason = "not estimable: the classes are separated, or too few resamples hold both"
            return {"estimate": estimate, "low": None, "high": None, "reason": reason}
        parts = self._parts(finite)
        if sum(part.variance for part in parts) < _NOTHING:
            return {"estimate": estimate, "low": None, "high": None, "reason": "no interval: all resamples give the same"}
        if self.between:
            half = quantile(parts) * np.sqrt(sum(part.variance for part in parts))
            low, high = self.value - half, self.value + half
            least = 0.0 if recentre else least
        else:
            shifted = np.maximum(finite - finite.mean() + self.value, 0.0) if recentre else finite
            low, high = np.quantile(shifted, [0.025, 0.975])
        return {"estimate": estimate, "low": float(max(least, low)), "high": float(min(greatest, high))}

    def p_value(self) -> float | None:
        """Two-sided, of the value being 0: twice the share of draws on its far side, never below 2 / (draws + 1); or by Student's t."""
        finite = self._known()
        if finite is None:
            return None
        parts = self._parts(finite)
        if sum(part.variance for part in parts) < _NOTHING:
            return None
        if self.between:
            return two_sided_p(abs(self.value) / np.sqrt(sum(part.variance for part in parts)), parts)
        tail = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
        return float(min(1.0, 2 * (tail + 1) / (len(finite) + 1)))

    def _known(self) -> Float | None:
        finite = self.draws[np.isfinite(self.draws)]
        return finite if np.isfinite(self.value) and len(finite) >= 0.9 * len(self.draws) else None

    def _parts(self, finite: Float) -> tuple[Part, ...]:
        return (Part(float(np.var(finite, ddof=1)), np.inf), *self.between)


def make_drawn(by_seed: Float, draws: Float) -> Drawn:
    """From the estimates of the seeds and the draws of their mean."""
    mean = by_seed.mean(0)
    return Drawn(float(mean) if np.ndim(mean) == 0 else mean, by_seed, draws, between(by_seed) if by_seed.ndim == 1 else ())


def draw_values(questions: Sequence[Question], draws: Draws) -> list[dict[str, Drawn]]:
    """Each metric and its draws, paired between all questions; a metric is computed per seed and averaged.

    Args:
        questions: their patients are among those of the draws.
        draws: see `Draws`.
    """
    count = len(draws.patients)
    tables = [_tabulate_all(question, draws, count) for question in questions]
    widest = max((len(table.logit) for seeds in tables for parts in seeds for table, _ in parts), default=1)
    found: list[dict[str, list[Float]]] = [{name: [] for name in question.metrics} for question in questions]
    for _, counts in draws.chunks(2 * widest):
        turned = np.ascontiguousarray(counts.T)
        for question, seeds, values in zip(questions, tables, found, strict=True):
            sums: dict[str, Float] = {}
            for parts in seeds:
                weights = [np.ascontiguousarray((table.weight.T @ turned).T) for table, _ in parts]
                for name, metric in question.metrics.items():
                    own = zip(parts, weights, strict=True)
                    value = _mean_of_parts([metric(t.logit, t.target, w) + move.get(name, 0.0) for (t, move), w in own]) / len(seeds)
                    sums[name] = sums[name] + value if name in sums else value
            for name, value in sums.items():
                values[name].append(value)
    answers = []
    for question, values in zip(questions, found, strict=True):
        by_seed = estimates(question)
        answers.append({name: make_drawn(by_seed[name], np.concatenate(parts)) for name, parts in values.items()})
    return answers


def _tabulate_all(question: Question, draws: Draws, count: int) -> list[list[tuple[Table, dict[str, Any]]]]:
    """Per seed and part, the gathered scores and what gathering changes."""
    s = question.scores
    codes = draws.codes(s.patients)
    tables = []
    for seed, z in enumerate(s.logit):
        own = []
        for inside in question.parts(seed):
            table = tabulate(z[inside], s.target[inside], s.weight[inside], codes[inside], count)
            own.append((table, _moved(question, table, z[inside], inside)))
        tables.append(own)
    return tables


def _moved(question: Question, table: Table, logit: Float, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """By metric, what is lost by drawing neighbouring scores as one; nothing where every score has its own row."""
    if len(np.unique(logit)) <= _LEVELS:
        return {}
    target, weight = question.scores.target[inside], question.scores.weight[inside][None]
    return {
        name: metric(logit, target, weight) - metric(table.logit, table.target, table.total) for name, metric in question.metrics.items()
    }


def _mean_of_parts(values: list[Float]) -> Float:
    if len(values) == 1:
        return values[0]
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, stacked, 0.0).sum(0) / there.sum(0), np.float64)


def estimates(question: Question) -> dict[str, Float]:
    """Each metric on the data as they are: (seed,) or (seed, several)."""
    scores, found = question.scores, {}
    for name, metric in question.metrics.items():
        by_seed = []
        for seed, logit in enumerate(scores.logit):
            parts = question.parts(seed)
            by_seed.append(_mean_of_parts([metric(logit[c], scores.target[c], scores.weight[c][None]) for c in parts])[0])
        found[name] = np.asarray(by_seed, np.float64)
    return found


def bands(values: Float) -> tuple[Float, Float]:
    """2.5 and 97.5 % quantiles of the draws at each place, (draw, place) -> (place,) each; NaN where no draw has a value."""
    known = np.isfinite(values).any(0)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return low, high
