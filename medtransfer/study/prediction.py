"""What a trained network says of the tune and the test part: rows of the predictions table, and
candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.cohort.box_grid import drop_padding, list_candidates
from medtransfer.data.cohort.split import Fold
from medtransfer.models.heads.linear import LinearHead
from medtransfer.study.views import Images
from medtransfer.training.batches import Loader
from medtransfer.training.predicting import Model, predict
from medtransfer.training.probe import fit_head, pooled_features, solve_without

Load = Callable[[NDArray[np.int64]], Loader]
# Pieces of the tune part that are left out in turn where a probe predicts them.
_PIECES = 5


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained network on the images of its cohort.

    Attributes:
        images: of the cohort.
        model: the network, and what it learnt.
    """

    images: Images
    model: Model

    def predict_parts(
        self, fold: Fold, load: Load, probe_seed: int | None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of the tune and the test part, and their candidates.

        The head of a probe has no epoch to choose, so that it is solved again on both the training
        and the tune part before it is tested. Tune images are then predicted by heads that were
        solved without a fifth of them each, as alike to the tested one as can be.

        Args:
            fold: which images are tune and test.
            load: rows of the cohort to batches of them.
            probe_seed: of the inner folds of a probe; None for other arms.
        """
        if probe_seed is not None:
            tune = self._predict_held_out(fold, load, probe_seed)
        else:
            tune = self._predict_part("tune", fold.tune, load(fold.tune))
        test = self._predict_part("test", fold.test, load(fold.test))
        table, candidates = (
            pd.concat(column, ignore_index=True) for column in zip(tune, test, strict=True)
        )
        return table, candidates

    def _predict_held_out(
        self, fold: Fold, load: Load, seed: int
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Tune rows, each by a head that did not see its patient; leaves the head solved on all of
        the training and the tune part.
        """
        images, model = self.images, self.model
        head, weights = cast(LinearHead, model.head), model.task.positive_weights
        rows = np.sort(np.concatenate([fold.train, fold.tune]))
        features = pooled_features(model.backbone, head, load(rows), model.engine)
        penalties = fit_head(head, features, images.groups[features.rows], weights, seed)["penalty"]
        units = images.groups[fold.tune]
        # In turn, those of one class after the other, so that no piece takes all of a class with
        # it.
        positive = (
            pd.Series(images.targets[fold.tune].sum(1))
            .groupby(units)
            .max()
            .sort_values(kind="stable")
        )
        pieces = []
        for piece in range(min(_PIECES, len(positive))):
            rows = fold.tune[np.isin(units, positive.index[piece::_PIECES])]
            solve_without(head, features, rows, weights, penalties)
            pieces.append(self._predict_part("tune", rows, load(rows))[0])
        solve_without(head, features, np.zeros(0, np.int64), weights, penalties)
        order = images.cohort.images["image"].iloc[fold.tune].tolist()
        table = pd.concat(pieces, ignore_index=True)
        in_order = table.set_index("image").loc[order].reset_index()[table.columns.tolist()]
        return in_order, pd.DataFrame()

    def _predict_part(
        self, part: str, rows: NDArray[np.int64], batches: Loader
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of a part, and of a task that finds boxes its candidates; else an empty table."""
        images, task = self.images, self.model.task
        predictions, truth = predict(self.model, batches)
        about = (
            images.cohort.images["image"].iloc[rows].tolist(),
            images.cohort.units.iloc[rows].tolist(),
        )
        candidates = pd.DataFrame()
        if task.finds_boxes:
            placements, plane = [images.placements[row] for row in rows], images.image.plane
            predictions = drop_padding(predictions, placements, plane)
            candidates = list_candidates(predictions, *about, placements, plane).assign(part=part)
        return task.decode(predictions, truth, *about).assign(part=part), candidates
