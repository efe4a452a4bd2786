"""What of a freeze plan can be set by hand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medtransfer.text.section import Section


class PlanSettings(Section):
    """Fields of the freeze plan set by hand. Whatever is left out is planned from the cohort; see
    `FreezePlan`.
    """

    strategy: Literal["linear_probe", "lp_ft"] | None = None
    frozen_stages: int | None = Field(
        None, ge=0, description="The first so many never change; with tuned first, the last."
    )
    dropped_stages: int | None = Field(None, ge=0, description="So many are cut off the top.")
    head_lr: float | None = Field(None, gt=0)
    backbone_lr: float | None = Field(None, gt=0)
    stage_decay: float | None = Field(None, gt=0, le=1)
    norm_policy: Literal["train", "eval"] | None = None
    tuned: Literal["last", "first", "norms"] | None = Field(
        None, description="Which stages train: last, first (surgical), norms alone."
    )
    unfreeze: Literal["at_once", "gradual"] | None = Field(
        None, description="gradual: stage by stage from the top."
    )
    read: Literal["last", "all"] | None = Field(
        None, description="Stages whose features the head reads."
    )
    l2_sp: float | None = Field(
        None, ge=0, lt=1, description="Pull towards the pretrained weights."
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Of the features the head reads.")
    adapt_norm: bool | None = Field(
        None, description="Batch-norm statistics taken anew from the training images (AdaBN)."
    )
    mix: bool | None = Field(
        None, description="Keep the best mixture of pretrained and fine-tuned weights (WiSE-FT)."
    )
    views: int | None = Field(
        None, ge=0, description="Random views per image whose frozen activations are kept; 0: none."
    )
    finest: Literal[4, 8, 16] | None = Field(
        None, description="Of a detector: stride of the finest level of its pyramid, in pixels."
    )
