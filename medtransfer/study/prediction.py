"""What a trained network says of the tune and the test part: rows of the predictions table, and
candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.cohort.box_grid import drop_padding, list_candidates
from medtransfer.data.cohort.split import Fold
from medtransfer.inference.typicality import typicality
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head, LinearHead
from medtransfer.study.views import Images
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.detection import Detection
from medtransfer.training.batches import Loader
from medtransfer.training.device import Engine
from medtransfer.training.predicting import Model, predict
from medtransfer.training.probe import fit_head, pooled_features, solve_without

Load = Callable[[NDArray[np.int64]], Loader]
# Pieces of the tune part that are left out in turn where a probe predicts them.
_PIECES = 5


def measure_typicality(
    backbone: Backbone, head: LinearHead, engine: Engine, plain: Loader, tune: Loader, test: Loader
) -> NDArray[np.float64]:
    """Of the tune images, then of the test images, against the training images."""
    seen, known, new = (
        pooled_features(backbone, head, batches, engine) for batches in (plain, tune, test)
    )
    return np.concatenate([typicality(seen, known, of) for of in (known, new)])


def predict_parts(
    images: Images,
    backbone: Backbone,
    head: Head,
    task: Classification | Detection,
    engine: Engine,
    fold: Fold,
    load: Load,
    probe_seed: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the tune and the test part, and their candidates.

    The head of a probe has no epoch to choose, so that it is solved again on both the training and
    the tune part before it is tested. Tune images are then predicted by heads that were solved
    without a fifth of them each, as alike to the tested one as can be. `probe_seed`: of its inner
    folds; None of other arms.
    """
    if probe_seed is not None:
        tune = _predict_held_out(
            images, backbone, cast(LinearHead, head), task, engine, fold, load, probe_seed
        )
    else:
        tune = _predict_part(
            images, backbone, head, task, engine, "tune", fold.tune, load(fold.tune)
        )
    test = _predict_part(images, backbone, head, task, engine, "test", fold.test, load(fold.test))
    table, candidates = (
        pd.concat(column, ignore_index=True) for column in zip(tune, test, strict=True)
    )
    return table, candidates


def _predict_held_out(
    images: Images,
    backbone: Backbone,
    head: LinearHead,
    task: Classification | Detection,
    engine: Engine,
    fold: Fold,
    load: Load,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tune rows, each by a head that did not see its patient; leaves the head solved on all of the
    training and the tune part.
    """
    features = pooled_features(
        backbone, head, load(np.sort(np.concatenate([fold.train, fold.tune]))), engine
    )
    weights = task.positive_weights
    penalties = fit_head(head, features, images.groups[features.rows], weights, seed)["penalty"]
    units = images.groups[fold.tune]
    # In turn, those of one class after the other, so that no piece takes all of a class with it.
    positive = (
        pd.Series(images.targets[fold.tune].sum(1)).groupby(units).max().sort_values(kind="stable")
    )
    pieces = []
    for piece in range(min(_PIECES, len(positive))):
        rows = fold.tune[np.isin(units, positive.index[piece::_PIECES])]
        solve_without(head, features, rows, weights, penalties)
        pieces.append(
            _predict_part(images, backbone, head, task, engine, "tune", rows, load(rows))[0]
        )
    solve_without(head, features, np.zeros(0, np.int64), weights, penalties)
    order = images.cohort.images["image"].iloc[fold.tune].tolist()
    table = pd.concat(pieces, ignore_index=True)
    return table.set_index("image").loc[order].reset_index()[table.columns.tolist()], pd.DataFrame()


def _predict_part(
    images: Images,
    backbone: Backbone,
    head: Head,
    task: Classification | Detection,
    engine: Engine,
    part: str,
    rows: NDArray[np.int64],
    batches: Loader,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a part, and where boxes are looked for, its candidates; else an empty table."""
    predictions, truth = predict(Model(backbone, head, task, engine), batches)
    about = (
        images.cohort.images["image"].iloc[rows].tolist(),
        images.cohort.units.iloc[rows].tolist(),
    )
    candidates = pd.DataFrame()
    if images.boxes is not None:
        placements, plane = [images.placements[row] for row in rows], images.slices.plane
        predictions = drop_padding(predictions, placements, plane)
        candidates = list_candidates(predictions, *about, placements, plane).assign(part=part)
    return task.decode(predictions, truth, *about).assign(part=part), candidates
