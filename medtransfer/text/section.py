"""Settings: a part of a configuration, declared beside the code that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medtransfer.text.yaml import holds_items, open_home


class Section(BaseModel):
    """Settings with their ranges and what each of them means.

    Unknown keys are errors, and values never change. The class that a part declares beside its code
    is the one that the configuration is composed of, so that a setting is declared once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_below(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any, field: ValidationInfo) -> Any:
        if getattr(value, "ndim", None) == 0:  # a number as numpy has it
            value = value.item()
        alone = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return (
            (value,)
            if alone and holds_items(cls.model_fields[str(field.field_name)].annotation)
            else value
        )


# A path, or a text that may hold one, with the home folder in place of `~`.
Place = Annotated[Path, AfterValidator(open_home)]
WithPlace = Annotated[str, AfterValidator(open_home)]
