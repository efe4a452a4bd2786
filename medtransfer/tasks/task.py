"""The protocol of a task, and the batch it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head
from medtransfer.models.plan.plan import FreezePlan


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
    """What is learnt. A task answers what a training, a study or an evaluation asks, so
    that a new kind of task is one class.

    Attributes:
        kind: its word in a configuration.
        convex: its head is linear and its loss convex, so that a head alone can be solved;
            linear probes, the search for the depth, learning curves and heat maps rest on it.
        finds_boxes: its targets are boxes, which follow the pixels when an image is changed.
    """

    kind: ClassVar[str]
    convex: ClassVar[bool]
    finds_boxes: ClassVar[bool]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the logits."""
        ...

    @property
    def positive_weights(self) -> tuple[float, ...]:
        """Weight of positives in the loss, per label."""
        ...

    def targets(
        self, labels: NDArray[Any], boxes: NDArray[Any] | None, space: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """What is to be learnt of each image.

        Args:
            labels: (image, label), 0 or 1.
            boxes: (image, box, 4 or 6) in pixels as the network sees them, rows of NaN where an
                image has fewer than another; None where the cohort has none.
            space: these pixels along rows and columns, or slices, rows and columns.

        Returns:
            (image, ...), of a shape that `loss` and `score` take.
        """
        ...

    def positives(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """(image,): which images are positive, for parts that hold some of either kind."""
        ...

    def fewest(self, patients_per_class: Mapping[str, int]) -> int:
        """Patients of the kind that the plan depends on.

        Args:
            patients_per_class: patients by class, "0" and "1".
        """
        ...

    def batch_size(self, ndim: int) -> int:
        """Images, or volumes, at a step of training, where nobody sets it.

        Args:
            ndim: axes of space, 2 or 3.
        """
        ...

    def at_once(self, step: int, most: int) -> int:
        """Images at once in prediction.

        Args:
            step: at a step of training.
            most: that memory allows.
        """
        ...

    def plan_fields(self, parts: Sequence[NDArray[Any]]) -> dict[str, Any]:
        """What `plan_freeze` is told, besides counts and architecture.

        Args:
            parts: targets of the training part of each fold.
        """
        ...

    def planned(self, plan: FreezePlan) -> Self:
        """The task with what it takes from the plan.

        Raises:
            ConfigError: the plan is for another kind of task.
        """
        ...

    def fitted(self, targets: NDArray[Any]) -> Self:
        """The task with what it takes from the targets of a training part.

        Raises:
            CohortError: these targets do not suffice.
        """
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
