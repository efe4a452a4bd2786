"""The protocol of a task, and the batch it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head


class Batch(TypedDict):
    """What a loader yields.

    `features`: activations by name, at first `{"image": (batch, channel, *space)}`, of volumes for
    a network of planes (batch, slice, channel, row, column); `present`: bool (batch, slice), False
    where a slice only pads the volume; `targets`: float32 (batch, label), or boxes (batch, box, 4
    or 6), see `Detection`; `rows`: int64 (batch,), row numbers of the cohort.
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
        """A head for this backbone."""
        ...

    def loss(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Scalars by name, of what the head gives; `"loss"` is minimised."""
        ...

    def predict(self, outputs: Any) -> Tensor:
        """What the head gives -> float32 (batch, ...): what is kept of it for each image."""
        ...

    def correct(self, predictions: NDArray[Any]) -> NDArray[Any]:
        """Predictions of the network -> those of the cohort's own prevalence, float64."""
        ...

    def score(self, predictions: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """`loss`, by which epochs are chosen, lower is better; `raw`, of the predictions as they
        are; and what else is worth knowing.
        """
        ...

    def decode(
        self,
        predictions: NDArray[Any],
        targets: NDArray[Any],
        images: Sequence[str],
        patients: Sequence[str],
    ) -> pd.DataFrame:
        """Rows `image, patient, label, target, probability, logit`; the predictions already
        corrected.
        """
        ...
