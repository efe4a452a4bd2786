"""The protocol of a task, and the batch it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.models.backbone import Backbone
from medtransfer.models.heads import Head


class Batch(TypedDict):
    """What a loader yields.

    `features`: activations by name, at first `{"image": (batch, channel, *space)}`, of volumes for a network of
    planes (batch, slice, channel, row, column); `present`: bool (batch, slice), False where a slice only pads the
    volume; `targets`: float32 (batch, label); `rows`: int64 (batch,), row numbers of the cohort.
    """

    features: dict[str, Tensor]
    present: Tensor
    targets: Tensor
    rows: Tensor


class Task(Protocol):
    """What a training loop needs to know of a task."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the logits."""
        ...

    @property
    def positive_weights(self) -> tuple[float, ...]:
        """Weight of positives in the loss, per label."""
        ...

    def make_head(self, backbone: Backbone) -> Head:
        """A head for this backbone; its logits start at 0."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Scalars by name; `"loss"` is minimised."""
        ...

    def correct(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Logits of the network -> logits of the cohort's own prevalence, float64."""
        ...

    def decode(self, logits: NDArray[Any], targets: NDArray[Any], images: Sequence[str], patients: Sequence[str]) -> pd.DataFrame:
        """Rows `image, patient, label, target, probability, logit`; the logits already corrected."""
        ...
