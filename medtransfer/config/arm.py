"""One contestant of a comparison."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from medtransfer.models.plan.settings import PlanSettings
from medtransfer.text.section import Section, WithPlace


def _check_budget(value: object) -> object:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 100
    if value is None or value == "level" or number:
        return float(value) if isinstance(value, (int, float)) else value
    raise ValueError(f"a number above 0, at most 100, or level, not {value!r}")


class RecipeSettings(Section):
    """Mean and standard deviation of the input, of intensities in 0..1: one number, or one per
    channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> RecipeSettings:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError("mean and std have as many numbers as each other, and std is above 0")
        return self


class Arm(Section):
    """One contestant: a backbone, where its weights come from, and how it sees volumes.

    `Arm("tf_efficientnet_lite0", "imagenet", pooling="mean")`: the backbone and its weights may be
    given by position.
    """

    kind: Literal["network", "features"] = Field(
        "network",
        description="features: intensity, texture and shape by formula, with a logistic "
        "regression; a baseline to beat.",
    )
    backbone: str
    weights: WithPlace | None = Field(
        None,
        description="imagenet, timm:TAG, radimagenet, radimagenet:PATH, file:PATH, study:FOLDER, "
        "or none for random weights.",
    )
    channels: int = Field(
        3,
        ge=1,
        le=64,
        description="Of the input; 1: the first convolution is summed over the colours.",
    )
    recipe: RecipeSettings | None = Field(
        None, description="Mean and std of the input, in place of those of the weights."
    )
    pooling: Literal["attention", "mean", "max"] = Field(
        "attention", description="How the slices of a volume become one case."
    )
    slab: int = Field(
        1,
        ge=1,
        le=15,
        description="Odd number of neighbouring slices that become the channels of each (2.5D).",
    )
    budget: Annotated[float | Literal["level"] | None, BeforeValidator(_check_budget)] = Field(
        None,
        description="So many times the training of the other arms; or level: on until the tune "
        "loss has levelled off, at most four times "
        "as long, as arms without weights do where it is left out.",
    )
    plan: PlanSettings = Field(
        PlanSettings(),
        description="Fields of the freeze plan for this arm alone, before those of the section "
        "plan.",
    )

    def __init__(
        self, backbone: str | None = None, weights: str | None = None, **fields: Any
    ) -> None:
        given = {"backbone": backbone, "weights": weights}
        super().__init__(**{key: v for key, v in given.items() if v is not None}, **fields)

    @model_validator(mode="before")
    @classmethod
    def _formulas(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "features" not in (
            value.get("kind"),
            value.get("backbone"),
        ):
            return value
        plan = value.get("plan")
        empty = plan is None or (
            isinstance(plan, dict) and all(field is None for field in plan.values())
        )
        idle = {"plan"} if empty else set()
        idle |= {"budget"} if value.get("budget") == 1 else set()
        given = {key for key, setting in value.items() if setting is not None and setting != "none"}
        extra = sorted(map(str, given - idle - {"kind", "backbone", "pooling", "channels", "slab"}))
        if extra or value.get("backbone", "features") != "features":
            raise ValueError(
                f"kind: features takes no {', '.join(extra) or 'backbone'}; it is measured by "
                "formula"
            )
        return {**value, "kind": "features", "backbone": "features"}

    @property
    def times(self) -> float:
        """The budget of this arm, in budgets of the study."""
        return self.budget if isinstance(self.budget, float) else 1.0

    @property
    def level(self) -> bool:
        """Whether training goes on beyond the budget until the tune loss has levelled off."""
        return self.kind == "network" and (
            self.budget == "level" or (self.budget is None and self.weights is None)
        )

    @model_validator(mode="after")
    def _slab(self) -> Arm:
        if self.slab % 2 == 0:
            raise ValueError(
                "slab is an odd number of slices, the middle one with as many on either side, "
                f"not {self.slab}"
            )
        if self.slab > 1 and self.channels not in {3, self.slab}:
            raise ValueError(f"slab {self.slab} makes {self.slab} channels; leave channels out")
        return self

    @field_validator("weights", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) == 1:  # YAML takes `file: PATH` apart
            kind, rest = next(iter(value.items()))
            if rest is None:
                raise ValueError(
                    f"{kind}: stands alone; write what follows it, without a space: {kind}:PATH"
                )
            return f"{kind}:{rest}"
        return None if isinstance(value, str) and value.lower() == "none" else value
