"""The curves of a training in TensorBoard or MLflow, where asked for; `metrics.jsonl` is written in
any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from medtransfer.errors import ConfigError

Track = Literal["tensorboard", "mlflow"]
Log = Callable[[Mapping[str, float], int], None]


def refuse_missing(track: Track | None) -> None:
    """Before anything is trained.

    Raises:
        ConfigError: what is asked for is not installed.
    """
    if track is not None and find_spec(track) is None:
        raise ConfigError(
            f'train.track: {track} is not installed: pip install "medtransfer[track]".'
        )


@contextmanager
def tracking(track: Track | None, name: str, folder: Path) -> Iterator[Log]:
    """Gives a function that logs the values of an epoch.

    Args:
        track: where; None: nowhere.
        name: of the run.
        folder: of the run. TensorBoard writes into it; MLflow where its own variables
            (`MLFLOW_TRACKING_URI`) say.
    """
    if track is None:
        yield lambda *_: None
        return
    # It imports torch, which takes seconds.
    from accelerate.tracking import MLflowTracker, TensorBoardTracker

    tracker = (
        TensorBoardTracker("tensorboard", folder)
        if track == "tensorboard"
        else MLflowTracker("medtransfer", run_name=name)
    )
    tracker.start()
    try:
        yield lambda values, epoch: tracker.log(dict(values), step=epoch)
    finally:
        tracker.finish()
