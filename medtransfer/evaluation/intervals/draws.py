"""The draws of the bootstrap over patients: how often each draw takes each patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.evaluation.tables.arrays import Float, Int

# Numbers held at once for the draws: 64 MB.
_CHUNK = 8_000_000


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each draw takes each patient: with replacement, all images of a patient together,
    in every seed.

    Attributes:
        patients: (patient,), all different; of all that is compared.
        number: of draws.
        seed: of the draws.
        strata: (patient,), numbers of what is drawn from apart, such as folds; left out: all are
            drawn from at once.

    Of n patients of a stratum n - 1 are drawn, which gives the variance of a mean also where strata
    are small (Rao & Wu 1988, doi:10.1080/01621459.1988.10478591, whose factor n / (n - 1) is left
    out: all that is measured is a ratio).
    """

    patients: NDArray[np.object_]
    number: int
    seed: int
    strata: Int | None = None

    @cached_property
    def place(self) -> dict[Any, int]:
        """Number of each patient."""
        return {patient: index for index, patient in enumerate(self.patients)}

    def codes(self, patients: NDArray[np.object_]) -> Int:
        """Numbers of these patients."""
        return np.array([self.place[patient] for patient in patients], np.int64)

    def chunks(self, width: int) -> Iterator[tuple[slice, Float]]:
        """Counts (draw, patient), for some draws at a time; `width` numbers will be held for each
        draw.
        """
        rng, count = np.random.default_rng([self.seed, 0]), len(self.patients)
        strata = np.zeros(count, np.int64) if self.strata is None else self.strata
        order = np.argsort(strata, kind="stable")
        sizes = np.bincount(strata)
        number_drawn = np.where(sizes > 1, sizes - 1, sizes)
        first, size_of = (
            np.repeat(np.cumsum(sizes) - sizes, number_drawn),
            np.repeat(sizes, number_drawn),
        )
        step = max(1, _CHUNK // max(width, count))
        for start in range(0, self.number, step):
            rows = slice(start, min(start + step, self.number))
            size = rows.stop - rows.start
            drawn = (
                order[first + rng.integers(0, size_of, (size, len(first)))]
                + count * np.arange(size)[:, None]
            )
            yield (
                rows,
                np.bincount(drawn.ravel(), minlength=size * count)
                .reshape(size, count)
                .astype(np.float64),
            )


def patients_of(rows: pd.DataFrame) -> NDArray[np.object_]:
    """The patients in the order of the rows, which follows from their content; see `order`."""
    return np.asarray(rows["patient"].unique(), object)


def strata_of(test: pd.DataFrame, patients: NDArray[np.object_]) -> Int | None:
    """Number of the fold in which each patient is tested, where all arms and seeds test him in the
    same; else None.

    Args:
        test: test rows, `patient, fold`.
        patients: in their order.
    """
    folds = test.groupby(test["patient"].astype(str))["fold"].agg(["min", "max"])
    if not (folds["min"] == folds["max"]).all():
        return None
    return np.asarray(
        np.unique(folds.loc[[str(p) for p in patients], "min"], return_inverse=True)[1], np.int64
    )
