"""How an evaluation is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medtransfer.errors import PredictionsError, list_faults
from medtransfer.evaluation.metrics.recalibration import METHODS, Method
from medtransfer.evaluation.metrics.utility import Aims
from medtransfer.evaluation.tables.predictions import COLUMNS
from medtransfer.evaluation.tables.scores import RULES, Rule


@dataclass(frozen=True)
class Settings:
    """Choices that should be made before the results are seen.

    Attributes:
        bootstrap: number of draws, at least 100.
        seed: of the draws.
        unit: what is counted, `image` or `patient`; the other is shown beside it where patients
            have several images. `auto`: patients where they have several images and some of them
            are of either class, else images.
        aggregate: how images become one patient: `max`, `mean` or `noisy_or`; see
            `scores.by_patient`. `auto`: the mean where the label is the patient's, else noisy-or.
        recalibration: `auto` or a method; see `recalibration.recalibrate`.
        sensitivity, specificity: of operating points, on the tune rows; None: not wanted.
        threshold: probability of an operating point, as from a ratio of harm to benefit, for
            patients of `target_prevalence`; net benefit is compared there. None: not wanted.
        prevalences: at which predictive values are told, besides that of the cohort.
        target_prevalence: of the patients the model is meant for, where it is not that of the
            cohort, as of cases and controls.
        margin: of non-inferiority in AUC; None: not tested.
        coverage: of prediction sets.
        subgroups: columns of the table.
        weight: the column that says how much an image counts; None: all alike.
        leave_out: what each fold leaves out, where that is a site or the like: AUCs are then means
            over sites, see `sites`.
        models: `given`: figures are about the models in the table alone, as in an external
            validation, and their mean is that of them; `sampled`: each is one training of many.
        arms: in this order; those that are not named follow by name. Of two that are compared the
            later one is subtracted.
        look_alikes: `different`: patients whose names look alike, such as 7 and 007, are different
            people; `ask`: they are refused where they stand on both sides of a split.
    """

    bootstrap: int = 2000
    seed: int = 0
    unit: Literal["auto", "image", "patient"] = "auto"
    aggregate: Literal["auto"] | Rule = "auto"
    recalibration: Literal["auto"] | Method = "auto"
    sensitivity: float | None = 0.9
    specificity: float | None = 0.9
    threshold: float | None = None
    prevalences: tuple[float, ...] = ()
    target_prevalence: float | None = None
    margin: float | None = None
    coverage: float = 0.9
    subgroups: tuple[str, ...] = ()
    weight: str | None = None
    leave_out: str | None = None
    models: Literal["sampled", "given"] = "sampled"
    arms: tuple[str, ...] = ()
    look_alikes: Literal["ask", "different"] = "ask"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prevalences", tuple(self.prevalences))
        object.__setattr__(
            self,
            "arms",
            (self.arms,) if isinstance(self.arms, str) else tuple(dict.fromkeys(self.arms)),
        )
        object.__setattr__(
            self,
            "subgroups",
            (self.subgroups,)
            if isinstance(self.subgroups, str)
            else tuple(dict.fromkeys(self.subgroups)),
        )
        faults = [
            f"subgroups: {name} is a column of the table itself"
            for name in self.subgroups
            if name in COLUMNS
        ]
        if self.bootstrap < 100:
            faults.append(
                f"bootstrap is {self.bootstrap}; intervals need at least 100 draws, 2,000 are usual"
            )
        words = {
            "unit": ("auto", "image", "patient"),
            "aggregate": ("auto", *RULES),
            "recalibration": ("auto", *METHODS),
            "models": ("sampled", "given"),
            "look_alikes": ("ask", "different"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                faults.append(f"{name} is {getattr(self, name)!r}; use {', '.join(known)}")
        shares = {
            name: getattr(self, name)
            for name in (
                "sensitivity",
                "specificity",
                "threshold",
                "target_prevalence",
                "margin",
                "coverage",
            )
        }
        shares |= {f"prevalences[{i}]": value for i, value in enumerate(self.prevalences)}
        faults += [
            f"{name} is {value}; it lies between 0 and 1"
            for name, value in shares.items()
            if value is not None and not 0 < value < 1
        ]
        if faults:
            raise PredictionsError(
                list_faults(f"{len(faults)} setting(s) of the evaluation are wrong", faults)
            )

    @property
    def aims(self) -> Aims:
        """The operating points wanted."""
        wanted = (
            self.prevalences
            if self.target_prevalence is None
            else (*self.prevalences, self.target_prevalence)
        )
        return Aims(
            self.sensitivity,
            self.specificity,
            self.threshold,
            tuple(dict.fromkeys(wanted)),
            self.target_prevalence,
        )
