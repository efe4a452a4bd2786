"""Bootstrap over patients and seeds, the same draws for all that is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from medtransfer.evaluation.scores import Scores

Float = NDArray[np.float64]
# (logit, target, weights (draw, row)) -> (draw,) or (draw, several).
Metric = Callable[[Float, NDArray[Any], Float], Float]
# Numbers held at once for the draws: 64 MB.
_CHUNK = 8_000_000
# Beyond so many different scores of an arm, neighbouring ones are drawn as one, at their mean; the draws are moved by what
# this changes on the sample itself (an AUC by 1e-4).
_LEVELS = 4096


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each draw takes each patient, and each seed.

    A draw takes patients with replacement, all images of a patient together, and, crossed with that, seeds with
    replacement.

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

    def shares(self, seeds: int) -> Float:
        """(draw, seed), the share of each; arms with as many seeds share them."""
        return np.random.default_rng([self.seed, 1, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), self.number) / seeds


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
        within: (image,), parts such as folds: a metric is then the mean of its values within them; of a draw in which a part has
            none, over the others.
    """

    scores: Scores
    metrics: Mapping[str, Metric]
    within: NDArray[Any] | None = None

    @property
    def parts(self) -> list[NDArray[np.bool_]]:
        """(image,) per part."""
        parts = np.zeros(len(self.scores.target), int) if self.within is None else self.within
        return [parts == part for part in np.unique(parts)]


def draw_values(questions: Sequence[Question], draws: Draws) -> list[dict[str, Float]]:
    """Values of each metric in each draw, paired between all questions.

    A metric is computed per seed and averaged over the seeds drawn.

    Args:
        questions: their patients are among those of the draws.
        draws: see `Draws`.

    Returns:
        Per question, by metric: (draw,) or (draw, several); NaN where a draw lacks a class.
    """
    count = len(draws.patients)
    tables, moves = [], []
    for question in questions:
        s = question.scores
        codes = draws.codes(s.patients)
        tables.append([[tabulate(z[c], s.target[c], s.weight[c], codes[c], count) for c in question.parts] for z in s.logit])
        moves.append(
            [
                [_moved(question, t, z[c], c) for t, c in zip(own, question.parts, strict=True)]
                for own, z in zip(tables[-1], s.logit, strict=True)
            ]
        )
    widest = max((len(table.logit) for seeds in tables for parts in seeds for table in parts), default=1)
    found: list[dict[str, list[Float]]] = [{name: [] for name in question.metrics} for question in questions]
    shares = [draws.shares(len(question.scores.seeds)) for question in questions]
    for rows, counts in draws.chunks(2 * widest):
        turned = np.ascontiguousarray(counts.T)
        for question, seeds, moved, share, values in zip(questions, tables, moves, shares, found, strict=True):
            sums: dict[str, Float] = {}
            for seed, parts in enumerate(seeds):
                weights = [np.ascontiguousarray((table.weight.T @ turned).T) for table in parts]
                for name, metric in question.metrics.items():
                    own = zip(parts, weights, moved[seed], strict=True)
                    value = _mean_of_parts([metric(t.logit, t.target, w) + move.get(name, 0.0) for t, w, move in own])
                    part = share[rows, seed].reshape(-1, *[1] * (value.ndim - 1))
                    # A seed that is not drawn says nothing, even where it has no value.
                    value = np.where(part > 0, part * value, 0.0)
                    sums[name] = sums[name] + value if name in sums else value
            for name, value in sums.items():
                values[name].append(value)
    return [{name: np.concatenate(parts) for name, parts in values.items()} for values in found]


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


def estimates(question: Question) -> dict[str, Any]:
    """Each metric on the data as they are, averaged over seeds (and parts): a number, or (several,)."""
    scores, found = question.scores, {}
    for name, metric in question.metrics.items():
        by_seed = [
            _mean_of_parts([metric(logit[c], scores.target[c], scores.weight[c][None]) for c in question.parts]) for logit in scores.logit
        ]
        mean = np.mean(by_seed, axis=0)[0]
        found[name] = float(mean) if np.ndim(mean) == 0 else mean
    return found


def percentile_interval(estimate: float, values: Float, recentre: bool = False) -> dict[str, Any]:
    """Estimate with the 2.5 and 97.5 % quantiles of the draws.

    Args:
        estimate: on the data as they are.
        values: (draw,).
        recentre: for errors that cannot be negative (ECE, ICI), whose draws lie too high because a
            resample is rougher than its sample: the draws are shifted so that their mean is the
            estimate, and cut at 0.
    """
    finite = values[np.isfinite(values)]
    if not np.isfinite(estimate) or len(finite) < 0.9 * len(values):
        reason = "not estimable: the classes are separated, or too few resamples hold both"
        return {"estimate": float(estimate) if np.isfinite(estimate) else None, "low": None, "high": None, "reason": reason}
    if recentre:
        finite = np.maximum(finite - finite.mean() + estimate, 0.0)
    low, high = np.quantile(finite, [0.025, 0.975])
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}


def bands(values: Float) -> tuple[Float, Float]:
    """2.5 and 97.5 % quantiles of the draws at each place, (draw, place) -> (place,) each; NaN where no draw has a value."""
    known = np.isfinite(values).any(0)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return low, high


def two_sided_p(values: Float) -> float | None:
    """Share of draws on the far side of 0, doubled; never below 2 / (draws + 1)."""
    finite = values[np.isfinite(values)]
    if len(finite) < 0.9 * len(values):
        return None
    tail = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return float(min(1.0, 2 * (tail + 1) / (len(finite) + 1)))
