"""Binary labels, one logit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from medtransfer.errors import CohortError, ConfigError
from medtransfer.evaluation.metrics.recalibration import fit_map, log_losses
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import LinearHead, Pooling
from medtransfer.models.plan.plan import FreezePlan

_LARGEST_WEIGHT = 10.0


@dataclass(frozen=True)
class Classification:
    """Binary classification of whole images.

    Class imbalance: in the loss, positives weigh w = negatives / positives of the training part
    (kept within 1/10 and 10), so that the rare class is learnt. A model fitted so is calibrated for
    another prevalence; `correct` subtracts log w from its logits, which gives back the
    probabilities of the cohort's own prevalence (Elkan 2001, IJCAI, theorem 2; King & Zeng 2001,
    doi:10.1093/oxfordjournals.pan.a004868).

    Attributes:
        labels: names of the labels.
        positive_weights: w per label; 1 where left out.
        mean_weights: mean weight of the training images per label, which scales the loss; 1 where
            left out.
        pooling: of the slices of a volume, see `LinearHead`.
        read: the stages whose features the head reads: the last, or all.
    """

    kind: ClassVar[str] = "classification"
    convex: ClassVar[bool] = True
    finds_boxes: ClassVar[bool] = False

    labels: tuple[str, ...]
    positive_weights: tuple[float, ...] = ()
    mean_weights: tuple[float, ...] = ()
    pooling: Pooling = "mean"
    read: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        for name in ("positive_weights", "mean_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)) or (1.0,) * len(self.labels))

    def targets(
        self,
        labels: NDArray[Any],
        boxes: NDArray[Any] | None,  # noqa: ARG002  # of the protocol
        space: tuple[int, ...],  # noqa: ARG002  # of the protocol
    ) -> NDArray[np.float32]:
        """The labels, float32 (image, label)."""
        return np.asarray(labels, np.float32)

    def positives(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """(image,): the first label is 1."""
        return np.asarray(targets[:, 0] == 1)

    def fewest(self, patients_per_class: Mapping[str, int]) -> int:
        """Patients of the smaller class."""
        return min(patients_per_class.values())

    def batch_size(self, ndim: int) -> int:
        """32 images, or 8 volumes."""
        return 32 if ndim == 2 else 8

    def at_once(self, step: int, most: int) -> int:  # noqa: ARG002
        """As many as memory allows."""
        return most

    def plan_fields(self, parts: Sequence[NDArray[Any]]) -> dict[str, Any]:  # noqa: ARG002
        """Nothing."""
        return {}

    def planned(self, plan: FreezePlan) -> Classification:
        """The task whose head reads the stages of the plan.

        Raises:
            ConfigError: the plan is for boxes.
        """
        if plan.finest:
            raise ConfigError(
                "the plan is for boxes, the task is not. Leave finest of plan_freeze out."
            )
        return replace(self, read=plan.read)

    def fitted(self, targets: NDArray[Any]) -> Classification:
        """The same task with weights from the training targets (image, label), 0 or 1.

        Raises:
            CohortError: a label has only one class in these targets.
        """
        positives = np.asarray(targets, float).sum(0)
        negatives = len(targets) - positives
        for label, p, n in zip(self.labels, positives, negatives, strict=True):
            if min(p, n) == 0:
                raise CohortError(
                    f"label {label}: the training part has {int(p)} positive and {int(n)} "
                    "negative images; both are needed."
                )
        weights = np.clip(negatives / positives, 1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT)
        means = (positives * weights + negatives) / len(targets)
        return replace(
            self,
            positive_weights=tuple(float(w) for w in weights),
            mean_weights=tuple(float(m) for m in means),
        )

    def make_head(self, backbone: Backbone) -> LinearHead:
        """One linear layer on the pooled activation of the last stage, or of all."""
        stages = backbone.stages if self.read == "all" else backbone.stages[-1:]
        return LinearHead(stages, len(self.labels), self.pooling)

    def loss(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Weighted binary cross-entropy, in float32.

        Divided by the mean weight of the training part, not of the batch: the latter varies with
        the positives in it, which would bias the fit (by 0.3 in the logit at 9 % positives and 16
        images).
        """
        weights, means = (
            torch.tensor(w).to(outputs.device, non_blocking=True)
            for w in (self.positive_weights, self.mean_weights)
        )
        each = nn.functional.binary_cross_entropy_with_logits(
            outputs.float(), targets, reduction="none"
        )
        scale = torch.where(targets > 0, weights, torch.ones_like(weights))
        return {"loss": (each * scale / means).mean()}

    def predict(self, outputs: Tensor) -> Tensor:
        """The logits, float32 (batch, label)."""
        return outputs.float()

    def correct(self, predictions: NDArray[Any]) -> NDArray[Any]:
        """Subtracts log w; (image, label) -> the same, float64."""
        return np.asarray(predictions, np.float64) - np.log(self.positive_weights)

    def score(self, predictions: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Unweighted log-loss at the best temperature about the prevalence, and as it is, and the
        AUC.

        The first one chooses the epoch ("refine, then calibrate", Berta et al. 2025,
        arXiv:2501.19195): over-confidence grows while discrimination still improves, and a
        temperature takes it away.
        """
        from torchmetrics.functional.classification import binary_auroc  # takes seconds to import

        columns = zip(predictions.T, targets.T, strict=True)
        refined = float(
            np.mean(
                [log_losses(fit_map("temperature", z, y).apply(z), y).mean() for z, y in columns]
            )
        )
        raw = float(log_losses(predictions, targets).mean())
        auc = float(
            binary_auroc(torch.from_numpy(predictions[:, 0]), torch.from_numpy(targets[:, 0]).int())
        )
        return {"loss": refined, "raw": raw, "auc": auc}

    def decode(
        self,
        predictions: NDArray[Any],
        targets: NDArray[Any],
        images: Sequence[str],
        patients: Sequence[str],
    ) -> pd.DataFrame:
        """One row per image and label."""
        count = len(self.labels)
        flat = np.asarray(predictions, np.float64).reshape(-1)
        return pd.DataFrame(
            {
                "image": np.repeat(np.asarray(images, dtype=object), count),
                "patient": np.repeat(np.asarray(patients, dtype=object), count),
                "label": np.tile(np.asarray(self.labels, dtype=object), len(images)),
                "target": np.asarray(targets, np.int64).reshape(-1),
                "probability": expit(flat),
                "logit": flat,
            }
        )
