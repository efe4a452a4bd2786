"""Lesion boxes: what a detector is trained on, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.cluster import KMeans
from torch import Tensor, nn

from medtransfer.errors import CohortError, ConfigError
from medtransfer.evaluation.metrics.matching import average_precision, match
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.pyramid import (
    DetectionHead,
    choose_levels,
    decode_boxes,
    giou,
)
from medtransfer.models.plan.plan import FreezePlan

Float = NDArray[np.float64]
_LEVELS, _SHAPES = 3, 6
# Strides of the finest level: for small lesions, and for others. Lesions of a level are up to so
# many strides large.
_FINE, _COARSE, _MOST_STRIDES = 4, 8, 5
# Boxes per anchor shape, at least, and how lesions are zoomed in training.
_BOXES_PER_SHAPE, _ZOOMS = 3, (0.85, 1.0, 1.15)
# Focal loss (arXiv:1708.02002): weight of positives, and exponent.
_ALPHA, _GAMMA = 0.25, 2.0
_BOX_WEIGHT = 2.0
_NEIGHBOURS = 4
# Of an image: boxes looked at, those kept, and by how much they may overlap.
_LOOKED_AT, KEPT, _OVERLAP = 200, 30, 0.3
# Kept for each lesion of the training image that has most of them, and looked at for each kept.
_PER_LESION, _PER_KEPT = 3, 4
_LEAST_SCORE = 0.005


@dataclass(frozen=True)
class Detection:
    """Detection of lesions, one kind of box.

    An image's own score is that of its best candidate.

    Targets are boxes (image, box, 2 x axes), lower and then upper ends along the axes of the input,
    rows of NaN where an image has fewer than another. Predictions are candidates (image, `kept`, 1
    + 2 x axes): the logit, then the box; best first.

    Attributes:
        labels: the one label.
        space: pixels of the input along rows and columns, or slices, rows and columns.
        anchors: (level, shape, axis), sides in pixels; see `fitted`.
        finest: stride of the finest level, in pixels; 0: `fitted` chooses it, see `choose_finest`.
            A training takes that of its plan.
        kept: candidates of an image, at most; three for each lesion of the training image with
            most, 30 at least.
        read: not used; detection heads read a stage of every level.
    """

    kind: ClassVar[str] = "detection"
    convex: ClassVar[bool] = False
    finds_boxes: ClassVar[bool] = True

    labels: tuple[str, ...]
    space: tuple[int, ...]
    anchors: tuple[tuple[tuple[float, ...], ...], ...] = ()
    finest: int = 0
    kept: int = KEPT
    read: str = "last"

    @property
    def positive_weights(self) -> tuple[float, ...]:
        """None: the loss has its own balance."""
        return (1.0,) * len(self.labels)

    def targets(
        self,
        labels: NDArray[Any],  # noqa: ARG002  # of the protocol
        boxes: NDArray[Any] | None,
        space: tuple[int, ...],
    ) -> NDArray[np.float32]:
        """The boxes, float32 (image, box, 4 or 6).

        Raises:
            ConfigError: the images are seen with other pixels than those of the task.
        """
        if boxes is None:
            raise ConfigError("the task is for boxes, and the cohort has none.")
        if self.space != space:
            raise ConfigError(
                f"the task is for images of {self.space} pixels, these are seen with {space}. Make "
                "both alike."
            )
        return np.asarray(boxes, np.float32)

    def positives(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """(image,): it has a lesion."""
        return np.asarray(np.isfinite(np.asarray(targets, float)).all(-1).any(-1))

    def fewest(self, patients_per_class: Mapping[str, int]) -> int:
        """Patients with a lesion."""
        return patients_per_class["1"]

    def batch_size(self, ndim: int) -> int:
        """8 images, or 2 volumes, which are larger than those of a classifier."""
        return 8 if ndim == 2 else 2

    def at_once(self, step: int, most: int) -> int:  # noqa: ARG002
        """As many as in training: more large images leave the caches of the processor."""
        return step

    def plan_fields(self, parts: Sequence[NDArray[Any]]) -> dict[str, Any]:
        """`finest`, the same in all folds: the least that a training part asks for."""
        return {"finest": min(choose_finest(targets) for targets in parts)}

    def planned(self, plan: FreezePlan) -> Detection:
        """The task whose pyramid begins where the plan says.

        Raises:
            ConfigError: the plan is for whole images.
        """
        if not plan.finest:
            raise ConfigError(
                "the plan is for whole images, the task is not. Give plan_freeze finest=8."
            )
        return replace(self, finest=plan.finest, read=plan.read)

    def fitted(self, targets: NDArray[Any]) -> Detection:
        """The same task with strides and anchors from the boxes of the training images.

        A level is for lesions up to five times its stride. Sides of the boxes there, as they are
        and zoomed as in training, are clustered on the logarithm (k-means, as Redmon & Farhadi
        2017, arXiv:1612.08242, section 2, which uses overlap).

        Raises:
            CohortError: no box.
        """
        axes = len(self.space)
        boxes, sides = _sides(targets)
        finest = self.finest or choose_finest(targets)
        # In slices alone, as images are.
        zooms = np.log(_ZOOMS)[:, None, None] * np.array([0.0] * (axes - 2) + [1.0, 1.0])
        spread = (sides + zooms).reshape(-1, axes)
        size = spread[:, -2:].mean(1)
        shapes = max(1, min(_SHAPES, len(boxes) // _BOXES_PER_SHAPE))
        anchors, low = [], -np.inf
        for level in range(_LEVELS):
            stride = finest * 2**level
            high = np.log(_MOST_STRIDES * stride) if level < _LEVELS - 1 else np.inf
            own = (size >= low) & (size < high)
            if own.sum() < shapes * _BOXES_PER_SHAPE:  # of others the shape alone
                own = np.ones(len(size), bool)
            moved = spread[own] + (np.clip(size[own], low, high) - size[own])[:, None] * (
                np.arange(axes) >= axes - 2
            )
            anchors.append(_cluster(moved, shapes))
            low = high
        most = int(np.isfinite(np.asarray(targets, float)).all(-1).sum(-1).max())
        return replace(
            self, anchors=tuple(anchors), finest=finest, kept=max(KEPT, _PER_LESION * most)
        )

    def make_head(self, backbone: Backbone) -> DetectionHead:
        """A pyramid with RetinaNet's heads; needs `fitted`."""
        return DetectionHead(
            choose_levels(backbone, self.finest, _LEVELS),
            self.space,
            np.asarray(self.anchors, float),
            len(self.labels),
        )

    def loss(self, outputs: dict[str, Any], targets: Tensor) -> dict[str, Tensor]:
        """Focal loss of all anchors, and 1 - generalised overlap of those that are to find a
        lesion; both per such anchor.

        Which anchors these are is found by ATSS (Zhang et al. 2020, arXiv:1912.02424), MONAI's.
        """
        from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher

        anchors, logits = outputs["anchors"], outputs["logits"].float()
        per_place = len(anchors) // sum(outputs["places"])
        matcher = ATSSMatcher(_NEIGHBOURS, center_in_gt=False)
        wanted, aims, at = torch.zeros_like(logits), [], []
        for image, rows in enumerate(targets):
            boxes = rows[rows.isfinite().all(1)]
            if not len(boxes):
                continue
            with torch.no_grad():
                found = matcher.compute_matches(boxes, anchors, outputs["places"], per_place)[1]
            chosen = (found >= 0).nonzero()[:, 0]
            wanted[image, chosen] = 1.0
            aims.append(boxes[found[chosen]])
            at.append(torch.stack([torch.full_like(chosen, image), chosen]))
        count = max(1, sum(map(len, aims)))
        classes = _focal(logits, wanted).sum() / count
        sides = outputs["moves"].sum() * 0.0
        if aims:
            image, chosen = torch.cat(at, 1)
            moved = decode_boxes(anchors[chosen], outputs["moves"].float()[image, chosen])
            sides = (1 - giou(moved, torch.cat(aims))).sum() / count
        return {"loss": classes + _BOX_WEIGHT * sides, "classes": classes, "sides": sides}

    def predict(self, outputs: dict[str, Any]) -> Tensor:
        """Candidates, best first, without those that overlap a better one by more than 0.3."""
        logits, axes = outputs["logits"].float(), len(self.space)
        limit = torch.tensor(self.space, dtype=torch.float32, device=logits.device).repeat(2)
        best = logits.amax(-1).topk(
            min(max(_LOOKED_AT, _PER_KEPT * self.kept), logits.shape[1]), dim=1
        )
        result = torch.full((len(logits), self.kept, 1 + 2 * axes), torch.nan, device=logits.device)
        for image, (score, index) in enumerate(zip(*best, strict=True)):
            boxes = decode_boxes(outputs["anchors"][index], outputs["moves"].float()[image, index])
            boxes = torch.minimum(boxes.clamp(min=0.0), limit)
            # The best one stays, however poor: it is the score of the image.
            there = ((boxes[:, axes:] - boxes[:, :axes]) >= 1.0).all(1) & (
                score.sigmoid() >= _LEAST_SCORE
            )
            there[0] |= ~there.any()
            kept = there.nonzero()[:, 0]
            kept = kept[suppress(boxes[kept], _OVERLAP)][: self.kept]
            result[image, : len(kept), 0], result[image, : len(kept), 1:] = score[kept], boxes[kept]
        return result

    def correct(self, predictions: NDArray[Any]) -> NDArray[Any]:
        """As they are, float64."""
        return np.asarray(predictions, np.float64)

    def score(self, predictions: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """1 - average precision at an overlap of 0.5."""
        scores, hits, lesions = [np.zeros(0)], [np.zeros(0, bool)], 0
        for candidates, boxes in zip(predictions, np.asarray(targets, float), strict=True):
            own, truth = candidates[np.isfinite(candidates[:, 0])], boxes[np.isfinite(boxes).all(1)]
            scores.append(own[:, 0])
            hits.append(match(own[:, 1:], own[:, 0], truth) >= 0)
            lesions += len(truth)
        found = (
            float(average_precision(np.concatenate(scores), np.concatenate(hits), lesions))
            if lesions
            else 0.0
        )
        return {"loss": 1 - found, "raw": 1 - found, "average_precision": found}

    def decode(
        self,
        predictions: NDArray[Any],
        targets: NDArray[Any],
        images: Sequence[str],
        patients: Sequence[str],
    ) -> pd.DataFrame:
        """One row per image: whether it has a lesion, and the score of its best candidate."""
        logit = np.asarray(predictions, np.float64)[:, 0, 0]
        return pd.DataFrame(
            {
                "image": np.asarray(images, dtype=object),
                "patient": np.asarray(patients, dtype=object),
                "label": self.labels[0],
                "target": np.isfinite(np.asarray(targets, float)).all(2).any(1).astype(np.int64),
                "probability": expit(logit),
                "logit": logit,
            }
        )


def choose_finest(targets: NDArray[Any]) -> int:
    """Stride of the finest level of a pyramid, from boxes as the network sees them: 4 where a tenth
    are smaller than 8 pixels, else 8.

    Args:
        targets: (image, box, 2 x axes), as of `Detection`.

    Raises:
        CohortError: no box.
    """
    return (
        _COARSE
        if np.quantile(_sides(targets)[1][:, -2:].mean(1), 0.1) >= np.log(_COARSE)
        else _FINE
    )


def _sides(targets: NDArray[Any]) -> tuple[Float, Float]:
    """The boxes of all images, and the logarithms of their sides, of a pixel at least."""
    boxes = np.asarray(targets, float)
    boxes = boxes[np.isfinite(boxes).all(-1)]
    if not len(boxes):
        raise CohortError("the training part has no lesion box.")
    axes = boxes.shape[1] // 2
    return boxes, np.log(np.maximum(boxes[:, axes:] - boxes[:, :axes], 1.0))


def suppress(boxes: Tensor, most: float) -> Tensor:
    """Indices of boxes, (box, 2 x axes) best first, without those that overlap a better one that
    stays by more than `most`.

    As `torchvision.ops.nms`, which knows planes alone; MONAI's takes 26 ms for 200 boxes where this
    takes 1.
    """
    axes = boxes.shape[1] // 2
    low, high = (
        torch.maximum(boxes[:, None, :axes], boxes[None, :, :axes]),
        torch.minimum(boxes[:, None, axes:], boxes[None, :, axes:]),
    )
    shared, size = (high - low).clamp(min=0).prod(-1), (boxes[:, axes:] - boxes[:, :axes]).prod(-1)
    over = (shared > most * (size[:, None] + size[None] - shared)).cpu().numpy()
    gone, kept = np.zeros(len(boxes), bool), []
    for place in range(len(boxes)):
        if not gone[place]:
            kept.append(place)
            gone |= over[place]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _cluster(sides: Float, shapes: int) -> tuple[tuple[float, ...], ...]:
    """So many shapes, (shape, axis), from logarithms of sides; repeated where there are fewer
    different ones.
    """
    wanted = min(shapes, len(np.unique(sides.round(3), axis=0)))
    found = KMeans(wanted, n_init=4, random_state=0).fit(sides).cluster_centers_
    found = found[np.arange(shapes) % wanted]
    return tuple(
        tuple(round(float(side), 3) for side in shape)
        for shape in np.exp(found[np.argsort(found.sum(1), kind="stable")])
    )


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = (logits.sigmoid() - wanted).abs()
    return torch.where(wanted > 0, _ALPHA, 1 - _ALPHA) * missed**_GAMMA * each
