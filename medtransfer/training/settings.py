"""How long a network trains, on what, and in which precision."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medtransfer.text.section import Section

Device = Literal["auto", "cpu", "cuda"]


class TrainSettings(Section):
    """The budget, the same for every arm whose own `budget` does not say otherwise."""

    epochs: int | None = Field(
        None, ge=1, description="Passes over the training images; the plan's steps where left out."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Epochs without a better tune log-loss before training stops, but not that of "
        "arms until level; left out: all are run.",
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        description="Images at a step; left out: 32 images, or 8 volumes; of detection 8, or 2.",
    )
    weight_decay: float = Field(0.05, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    layout: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto", description="Order of memory of images and convolutions."
    )
    compile: Literal["auto", True, False] = Field(
        "auto",
        description="Whether torch compiles what trains; auto: on CUDA, where that saves more "
        "time than it takes.",
    )
    device: Device = "auto"
    cache_gb: float = Field(
        4.0,
        ge=0,
        description="Disk for activations of frozen stages during a study, in 2^30 bytes; 0: none.",
    )
    track: Literal["tensorboard", "mlflow"] | None = Field(
        None, description="Where the curves of trainings go, besides metrics.jsonl."
    )
