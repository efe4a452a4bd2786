"""Which operating points are wanted. It imports nothing, so that settings are read at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Aims:
    """Which operating points are wanted.

    Attributes:
        sensitivity: least sensitivity on the tune rows, with the highest specificity; None: no such
            point.
        specificity: least specificity on the tune rows, with the highest sensitivity; None: no such
            point.
        probability: a threshold of the (recalibrated) probability, as from a harm / benefit ratio p
            / (1 - p); None: not wanted.
        prevalences: at which predictive values are told, besides that of the cohort.
        prevalence: for which `probability` is meant, where it is not that of the cohort.
    """

    sensitivity: float | None = 0.9
    specificity: float | None = 0.9
    probability: float | None = None
    prevalences: tuple[float, ...] = ()
    prevalence: float | None = None
