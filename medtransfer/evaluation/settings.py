"""How an evaluation is done."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from medtransfer.errors import PredictionsError, list_faults
from medtransfer.evaluation.metrics.aims import Aims
from medtransfer.evaluation.tables.columns import COLUMNS
from medtransfer.text.section import Section

Share = Annotated[float, Field(gt=0, lt=1)]


class Settings(Section):
    """What is measured and how; to be chosen before the results are seen."""

    bootstrap: int = Field(2000, ge=100, le=100_000)
    seed: int = Field(0, ge=0, lt=2**31)
    unit: Literal["auto", "image", "patient"] = Field(
        "auto",
        description="What is counted; the other is shown beside it. auto: patients, where they "
        "have several images.",
    )
    aggregate: Literal["auto", "max", "mean", "noisy_or"] = Field(
        "auto",
        description="How the images of a patient become one score. auto: mean, or noisy_or where "
        "labels are of images.",
    )
    recalibration: Literal["auto", "temperature", "platt", "beta", "isotonic"] = Field(
        "auto",
        description="Fitted on tune patients; auto: platt, unless another is better in "
        "cross-validation among them.",
    )
    sensitivity: Share | None = Field(
        0.9, description="Of an operating point, reached on tune patients."
    )
    specificity: Share | None = Field(
        0.9, description="Of an operating point, reached on tune patients."
    )
    threshold: Share | None = Field(
        None, description="Probability of an operating point, from the harm / benefit of acting."
    )
    prevalences: tuple[Share, ...] = Field(
        (), description="At which predictive values are told, besides that of the cohort."
    )
    target_prevalence: Share | None = Field(
        None, description="Of the patients the model is meant for."
    )
    margin: Share | None = Field(None, description="Of non-inferiority in AUC, such as 0.05.")
    coverage: Share = Field(0.9, description="Of prediction sets.")
    subgroups: tuple[str, ...] = Field(
        (), description="Columns of the manifest: results within their groups."
    )
    weight: str | None = Field(
        None, description="Column of a predictions table that says how much an image counts."
    )
    leave_out: str | None = Field(
        None,
        description="What each fold of a predictions table leaves out, such as site; a study "
        "takes it from protocol.leave_out.",
    )
    arms: tuple[str, ...] = Field(
        (), description="Order of the arms; others follow by name. The later of two is subtracted."
    )
    look_alikes: Literal["ask", "different"] = Field(
        "ask",
        description="different: patients whose names look alike, such as 7 and 007, are different "
        "people, on whatever side.",
    )
    models: Literal["sampled", "given"] = Field(
        "sampled",
        description="given: figures are about the models of the table alone, as in an external "
        "validation; sampled: each is one training of many.",
    )

    @field_validator("arms", "subgroups")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("subgroups")
    @classmethod
    def _not_of_the_table(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := [name for name in value if name in COLUMNS]:
            raise ValueError(f"{taken[0]} is a column of the table itself")
        return value

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


class HitRule(Section):
    """What counts as a lesion that was found; to be chosen before the results are seen."""

    hit: Literal["overlap", "centre"] = Field(
        "overlap", description="overlap, or centre: of the candidate, within the lesion's box."
    )
    overlap: float = Field(0.5, gt=0, le=1, description="Least intersection over union of a hit.")


def make_settings(**choices: Any) -> Settings:
    """The settings of an evaluation, from keyword arguments.

    Raises:
        PredictionsError: with every fault, each with its name.
    """
    known = list(Settings.model_fields)
    if strange := sorted(set(choices) - set(known)):
        raise PredictionsError(
            f"{', '.join(strange)}: no setting of an evaluation. There are: {', '.join(known)}."
        )
    try:
        return Settings(**choices)
    except ValidationError as error:
        faults = [_describe_fault(item) for item in error.errors()]
        raise PredictionsError(
            list_faults(f"{len(faults)} setting(s) of the evaluation are wrong", faults)
        ) from error


def _describe_fault(item: Any) -> str:
    """One fault that pydantic lists, in the words of the other messages."""
    name, *index = item["loc"]
    name = f"{name}{''.join(f'[{place}]' for place in index)}"
    if name == "bootstrap" and item["type"] == "greater_than_equal":
        return f"bootstrap is {item['input']}; intervals need at least 100 draws, 2,000 are usual"
    if item["type"] in {"greater_than", "less_than"} and item["ctx"] in ({"gt": 0}, {"lt": 1}):
        return f"{name} is {item['input']}; it lies between 0 and 1"
    if item["type"] == "literal_error":
        words = item["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{name} is {item['input']!r}; use {words}"
    if item["type"] == "value_error":
        return f"{name}: {item['msg'].removeprefix('Value error, ')}"
    return f"{name} is {item['input']!r}: {item['msg']}"
