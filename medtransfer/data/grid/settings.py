"""How pixels become the input of a network, and how they vary in training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from medtransfer.data.images.windows import parse_window
from medtransfer.text.section import Section


class ImageSettings(Section):
    """How pixels become the network's input."""

    size: int = Field(128, ge=32, le=1024, description="Side of the square input in pixels.")
    spacing: Annotated[float, Field(gt=0)] | tuple[Annotated[float, Field(gt=0)], ...] | None = (
        Field(
            None,
            description="mm per pixel of the input, one number or one per axis; left out: the "
            "longest side fills size.",
        )
    )
    slices: int = Field(24, ge=1, le=512, description="Of a volume: number of slices.")
    slice_spacing: float | None = Field(
        None,
        gt=0,
        description="Of a volume: mm from slice to slice; left out: slices are spread over the "
        "whole volume.",
    )
    plane: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="Of the slices of a volume."
    )
    window: str | tuple[Any, ...] = Field(
        "percentile",
        description="What becomes 0..1: percentile (0.5 to 99.5), full (minimum to maximum), "
        "from_header (DICOM), "
        "lung, brain, soft_tissue, bone (CT, in HU), [center, width], or a list of three of these "
        "for three channels.",
    )

    @field_validator("window")
    @classmethod
    def _known_window(cls, value: Any) -> Any:
        return parse_window(value)

    @field_validator("spacing")
    @classmethod
    def _axes(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(value) not in {2, 3}:
            raise ValueError(f"spacing is one number, or one per axis (2 or 3), not {len(value)}")
        return value


class Augment(Section):
    """Random changes of images in training, as far as the labels allow them."""

    flip: Literal["auto", "none", "left_right", "all"] = Field(
        "auto",
        description="all: planes upside down too, where images have no up, as in histology; auto: "
        "left_right, or none where a label names "
        "a side.",
    )
    rotate: float = Field(
        15.0,
        ge=0,
        le=180,
        description="Degrees to either side, at the most; images with boxes are not turned.",
    )
    intensity: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the usual changes of gamma, contrast and brightness; 0: none.",
    )
